"""Golden values of the published Transformer-Explainability code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer

from mixqvit.network.tracing import trace
from mixqvit.relevance.attribution import attention_gradients, attention_nodes, transformer_attribution
from mixqvit.relevance.propagation import propagate

_GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "reference" / "chefer_relevance_vit.safetensors"


@pytest.mark.skipif(not _GOLDEN.exists(), reason="needs ../shared/reference, which a user's checkout does not have")
def test_every_golden_tensor_is_reproduced() -> None:
    with safe_open(_GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    module = VisionTransformer(**config).double()
    state = {name.removeprefix("state."): t for name, t in golden.items() if name.startswith("state.")}
    module.load_state_dict(state)
    pixels, classes = golden["images"], golden["classes"]
    graph = trace(module, pixels)
    torch.testing.assert_close(graph(pixels), golden["logits"], rtol=0, atol=1e-12)

    attentions = attention_nodes(graph)
    adds = [node.name for node in graph.nodes if node.name.startswith("add_")]
    nodes = {layer.name: layer.name for layer in graph.layers} | {"norm": "norm"}
    for block, attention in enumerate(attentions):
        nodes[f"blocks.{block}.attn.softmax"] = attention
        nodes[f"blocks.{block}.add1"], nodes[f"blocks.{block}.add2"] = adds[2 * block : 2 * block + 2]

    relevance = propagate(graph, pixels, classes, stabilizer=1e-9, keep=list(nodes.values()))
    gradients = attention_gradients(graph, pixels, classes)
    found = {
        "relevance.pixels": relevance.pixels,
        "transformer_attribution": transformer_attribution(graph, pixels, classes),
    }
    found |= {f"relevance_at_output_of.{name}": relevance.outputs[node] for name, node in nodes.items()}
    for block, attention in enumerate(attentions):
        found[f"attn_relevance.{block}"] = relevance.outputs[attention]
        found[f"attn_gradient.{block}"] = gradients[attention]

    compared = 0
    for name, expected in golden.items():
        image, _, what = name.partition(".")
        if image in ("image0", "image1"):
            index = int(image[-1])
            difference = found[what][index : index + 1] - expected
            assert difference.norm() <= 1e-6 * expected.norm(), name
            compared += 1
    assert compared == 76
