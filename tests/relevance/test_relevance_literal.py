"""A whole network against the literal one-image implementations."""

import pytest

from mixqvit.relevance.propagation import propagate
from tests.relevance.literal_chefer import AutogradChefer, LiteralChefer


@pytest.mark.parametrize("oracle", [LiteralChefer, AutogradChefer])
@pytest.mark.parametrize("name", ["vit", "vit_gray"])
def test_a_whole_vit_equals_the_literal_implementation(build, name, oracle) -> None:
    module, graph, pixels = build(name)
    literal = oracle(module)
    found = propagate(graph, pixels, 3)
    for index, image in enumerate(pixels):
        expected = literal(image, 3)
        assert (found.pixels[index] - expected).norm() <= 1e-10 * expected.norm()
        for layer, relevance in literal.at_outputs.items():
            output = found.outputs[layer][index]
            output = output.flatten(1).T if layer == "patch_embed.proj" else output
            assert (output - relevance).norm() <= 1e-9 * relevance.norm(), layer
        assert literal.at_outputs.keys() == found.outputs.keys()
