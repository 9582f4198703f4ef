"""Quantizers compared on one operand, and recipes compared on the whole model."""

import json

import pytest
import torch

import mixqvit
from mixqvit import commands
from mixqvit.errors import BitWidthError, CalibrationError, MixQViTError
from mixqvit.network.bits import FULL_PRECISION
from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.fisher import fisher_diagonals
from mixqvit.quantization.model import quantize
from mixqvit.quantization.operands import operands_of
from mixqvit.quantization.quantizer_comparison import compare_quantizers
from mixqvit.quantization.quantizers.adaptive_log import AdaptiveLogQuantizer
from mixqvit.quantization.quantizers.log2 import Log2Quantizer
from mixqvit.quantization.quantizers.log_sqrt2 import LogSqrt2Quantizer
from mixqvit.quantization.quantizers.power_of_two_factor import PowerOfTwoFactorQuantizer
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.twin_uniform import TwinGeluQuantizer, TwinSoftmaxQuantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.recipes import MENU, RECIPES
from mixqvit.quantization.roles import ROLES, roles
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study
from tests.tiny_models import tiny_images, tiny_model

# Of the study's own recipe all bit-widths are calibrated, of the others the one that is measured.
SMALL = Settings(recipe="min-max", calibration_images=4, analysis_images=4, evaluation_images=70)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture(scope="module")
def pixels():
    return tiny_images(3)


@pytest.fixture(scope="module")
def graph(pixels):
    return trace(tiny_model("vit"), pixels)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize(
    "make",
    [
        lambda bits: UniformQuantizer(number(0.3), number(2.0), bits),
        lambda bits: Log2Quantizer(number(0.9), bits),
        lambda bits: LogSqrt2Quantizer(number(0.9), bits),
        lambda bits: AdaptiveLogQuantizer(number(0.9), number(0.7), 0.0, bits, zero_code=True),
        lambda bits: AdaptiveLogQuantizer(number(2.0), number(0.1), 0.17, bits),
        lambda bits: TwinSoftmaxQuantizer(number(0.01), number(3.0), bits),
        lambda bits: TwinGeluQuantizer(number(0.01), number(4.0), bits),
    ],
)
def test_levels_are_exactly_what_a_quantizer_returns(make, bits):
    quantizer = make(bits)
    levels = quantizer.levels()
    lowest = 0 if isinstance(quantizer, LogSqrt2Quantizer) else -3  # log√2 is for values that are not negative
    fine = torch.cat([torch.linspace(lowest, 80, 400_001), torch.logspace(-90, 1, 100_001, base=2)]).double()
    returned = quantizer(fine)
    assert torch.isclose(returned[:, None].unique()[:, None], levels, rtol=1e-9, atol=1e-15).any(dim=1).all()
    assert torch.allclose(quantizer(levels), levels, rtol=1e-9, atol=1e-15)
    assert (levels.diff() > 0).all()


def test_levels_per_channel_are_those_of_the_chosen_channel():
    channels = UniformQuantizer(torch.tensor([0.1, 0.5]), torch.tensor([0.0, 1.0]), 2)
    moved = ReparameterizedQuantizer(channels, UniformQuantizer(number(0.3), number(0.0), 2))
    assert moved.levels(1).tolist() == pytest.approx([-0.5, 0, 0.5, 1])
    factors = PowerOfTwoFactorQuantizer(number(0.1), number(1.0), torch.tensor([0.0, 2.0]), 2)
    assert factors.levels(1).tolist() == pytest.approx([-0.4, 0, 0.4, 0.8])


def test_errors_are_those_of_the_layers_output(graph, pixels):
    """Written out: the quantizer of the menu, then the layer, with no folding of weights."""
    fisher = fisher_diagonals(graph, pixels)
    for name, place in (("blocks.1.attn.qkv", 0), ("blocks.1.attn.matmul2", 1), ("blocks.0.mlp.fc2", 0)):
        layer = graph.by_name[name]
        found = compare_quantizers(graph, layer, place, pixels, fisher[name], [2, 5])
        _, values = next(graph.walk(pixels, [layer.node]))
        factors = graph.operands(layer, values)
        operand = operands_of(graph, layer, factors, len(pixels), fisher[name])[place]
        assert [quantizer.name for quantizer in found.quantizers] == list(MENU[operand.role])

        def output(own, layer=layer, place=place, factors=factors):
            own_factors = [*factors[:place], own, *factors[place + 1 :]]
            return torch.matmul(*own_factors) if layer.is_matmul else graph.operation(layer)(*own_factors)

        exact = output(operand.values)
        for quantizer in found.quantizers:
            fitted = MENU[operand.role][quantizer.name](operand, [2, 5])
            for bits in (2, 5):
                plain = fitted[bits].unmoved
                expected = (output(plain(operand.values)) - exact).square().sum() / exact.square().sum()
                assert quantizer.errors[bits] == pytest.approx(float(expected), rel=1e-6), (name, quantizer.name)


def test_histograms_count_all_values_and_those_of_the_median_channel(graph, pixels):
    layer = graph.by_name["blocks.0.mlp.fc1"]
    found = compare_quantizers(graph, layer, 0, pixels, bit_widths=[4])
    _, values = next(graph.walk(pixels, [layer.node]))
    (inputs,) = graph.operands(layer, values)
    widths = (inputs.amax(dim=(0, 1)) - inputs.amin(dim=(0, 1))).tolist()
    assert found.values.counts.sum() == inputs.numel()
    assert found.channel_values.counts.sum() == inputs[..., 0].numel()
    assert sorted(widths)[(len(widths) - 1) // 2] == widths[found.channel]
    assert {quantizer.name for quantizer in found.quantizers if not quantizer.is_per_channel} == {
        "min-max",
        "percentile",
        "output error",
    }
    alone = compare_quantizers(graph, graph.by_name["head"], 0, pixels, bit_widths=[4])
    assert alone.channel is alone.channel_values is None


@pytest.mark.parametrize("architecture", ["vit", "swin"])
def test_every_operand_has_one_quantizer_of_each_recipe_and_its_channels_are_the_layers(architecture, pixels):
    graph = trace(tiny_model(architecture), pixels)
    fisher = fisher_diagonals(graph, pixels)
    seen, looks = set(), set()
    for layer in graph.layers:
        for place, role in enumerate(roles(layer)):
            found = compare_quantizers(graph, layer, place, pixels, fisher[layer.name], [2])
            assert sorted(name for one in found.quantizers for name in one.recipes) == sorted(RECIPES)
            assert len({one.look for one in found.quantizers}) == len(found.quantizers)
            looks |= {(one.name, one.look) for one in found.quantizers}
            # What is stored for every channel, and so the size, is known before anything is fitted.
            stored = {name for name, fit in MENU[role].items() if fit.stored is not None}
            assert {one.name for one in found.quantizers if one.is_per_channel} == stored
            if role == "post_layer_norm":
                assert found.channel_values.counts.sum() * graph.weight(layer).shape[1] == found.values.counts.sum()
            seen.add(role)
    assert seen == set(ROLES)
    assert len(looks) == len({name for menu in MENU.values() for name in menu})


def test_what_cannot_be_compared_is_refused_by_name(graph, pixels):
    with pytest.raises(MixQViTError, match="head has no operand 1"):
        compare_quantizers(graph, graph.by_name["head"], 1, pixels)
    with pytest.raises(CalibrationError, match=r"patch_embed\.proj is not finite"):
        compare_quantizers(graph, graph.by_name["patch_embed.proj"], 0, pixels * torch.inf)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study("digits_swin", settings=SMALL, store=mixqvit.Store(tmp_path_factory.mktemp("recipes")))


@pytest.fixture(scope="module")
def measured(study):
    steps = list(study.quantizers.recipe_steps(3))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert {step.total for step in steps} == {steps[-1].done}
    return steps[-1].result


def test_every_recipe_is_measured_like_its_quantized_model(study, measured):
    assert set(measured) == {"full precision", *RECIPES}
    assert measured["full precision"].agreement == 1
    pixels = study.calibration_images.subset(4).pixels
    images = study.evaluation_images
    for name, bits in (("repq-vit", (3, 3)), ("fq-vit", None)):
        logits = quantize(calibrate(study.graph, pixels, name, bits), 3)(images.pixels)
        assert measured[name].correct == int((logits.argmax(dim=1) == images.labels).sum())
        assert measured[name].kl == pytest.approx(
            float(study.task.divergence(study.graph(images.pixels), logits).mean())
        )
    assert measured["min-max"] == study.evaluate(3)


def test_stopped_recipes_go_on_without_measuring_the_finished_ones_again(study, monkeypatch, tmp_path):
    begun = Study("digits_swin", settings=SMALL, store=mixqvit.Store(tmp_path))
    for step in begun.quantizers.recipe_steps(3):
        if set(step.piece) == {"full precision", "min-max"}:
            break
    again = Study("digits_swin", settings=SMALL, store=begun.store)
    assert list(again.quantizers.saved_recipes(3)) == ["full precision", "min-max"]
    calibrated = []

    def calibrate_steps(graph, pixels, recipe, *rest, **named):
        calibrated.append(recipe)
        raise CalibrationError("far enough")

    monkeypatch.setattr("mixqvit.quantization.calibration_stage.calibrate_steps", calibrate_steps)
    with pytest.raises(CalibrationError, match="far enough"):
        list(again.quantizers.recipe_steps(3))
    assert calibrated == ["fq-vit"]
    assert again.quantizers.saved_recipes(4).keys() == {"full precision"}


def test_bits_that_recipes_do_not_serve_are_refused(study):
    with pytest.raises(BitWidthError, match="use 2 to 8"):
        study.quantizers.saved_recipes(FULL_PRECISION)
    with pytest.raises(CalibrationError, match="one bit-width"):
        list(study.evaluate_steps({"head.fc": 4}, "repq-vit"))
    with pytest.raises(CalibrationError, match="no recipe 'best'"):
        list(study.evaluate_steps(4, "best"))


def test_commands_print_recipes_and_evaluate_one(study, measured, monkeypatch, capfd):
    for part in ("stages", "allocations"):
        monkeypatch.setattr(f"mixqvit.commands.{part}.open_study", lambda options: study)
    assert commands.main(["recipes", "--model", "digits_swin", "--bits", "3"]) == 0
    table = capfd.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in table[2:]] == list(measured)
    assert commands.main(["evaluate", "--model", "digits_swin", "--bits", "3", "--recipe", "adalog", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["recipe"] == "adalog"
    assert document["measured"]["kl"] == measured["adalog"].kl
    assert commands.main(["evaluate", "--packed", "file", "--recipe", "adalog"]) == commands.BAD_INPUT
