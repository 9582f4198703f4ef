from dataclasses import replace

import pytest
import torch

import mixqvit
from mixqvit.errors import CalibrationError
from mixqvit.network.tracing import trace
from mixqvit.quantization import fidelity_stage
from mixqvit.quantization.fidelity import Fidelity, check_fidelity, correlation_over_images, fidelity
from mixqvit.stages.store import Store
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model


@pytest.fixture
def graph():
    return trace(tiny_model("vit"), tiny_images(2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_at_8_bits_logits_follow_full_precision_from_image_to_image(architecture):
    images = tiny_images(6)
    calibration = mixqvit.calibrate(trace(tiny_model(architecture), images), images, bit_widths=(8,))
    found = fidelity(calibration, images)
    assert found.correlation > 0.99
    assert (found.images, found.layer, found.note) == (6, "", None)
    check_fidelity(found, "mix-qvit")


def test_the_layer_that_breaks_8_bits_is_named(graph):
    images = tiny_images(6)
    calibration = mixqvit.calibrate(graph, images, "min-max", bit_widths=(8,))
    name = "blocks.0.attn.proj"
    ((quantizer,),) = (tuple(widths.values()) for widths in calibration.layers[name].operands)
    wrong = replace(quantizer, zero_point=quantizer.zero_point + 1000)
    broken = replace(calibration.layers[name], operands=({8: wrong},))
    found = fidelity(replace(calibration, layers={**calibration.layers, name: broken}), images)
    assert found.correlation < 0.5
    assert found.layer == name
    with pytest.raises(CalibrationError, match=f"min-max even 8 bits .* the layer {name} breaks most"):
        check_fidelity(found, "min-max")


def test_correlations_are_centred_over_images():
    generator = torch.Generator().manual_seed(0)
    common, own, other = 100 * torch.randn(1, 5, generator=generator), *torch.randn(2, 400, 5, generator=generator)
    assert correlation_over_images(common + own, common + 3 * own) == pytest.approx(1)
    assert abs(correlation_over_images(common + own, common + other)) < 0.1
    assert correlation_over_images(common + own, common.expand(400, 5)) == 0
    assert correlation_over_images(common + own, torch.full((400, 5), torch.nan)) == 0
    assert correlation_over_images(common.expand(400, 5), common + own) is None
    # A single output is compared over the images like many.
    assert correlation_over_images(own[:, :1], own[:, :1] * 2) == pytest.approx(1)


def test_what_cannot_be_compared_is_said(graph):
    images = tiny_images(1)
    alone = fidelity(mixqvit.calibrate(graph, images, "min-max", bit_widths=(8,)), images)
    assert alone.correlation is None
    assert "one calibration image" in alone.note
    twice = images.repeat(3, 1, 1, 1)
    same = fidelity(mixqvit.calibrate(graph, twice, "min-max", bit_widths=(8,)), twice)
    assert same.correlation is None
    assert "the same for all 3" in same.note


def test_a_study_whose_8_bits_do_not_follow_is_refused_after_calibration_and_remembered(tmp_path, monkeypatch):
    settings = Settings(calibration_images=4, evaluation_images=4, recipe="min-max")
    counted = []

    def checked(calibration, pixels):
        counted.append(len(pixels))
        return Fidelity(0.1, len(pixels), "head", 0.2)

    monkeypatch.setattr(fidelity_stage, "fidelity", checked)
    study = Study("digits_vit", settings=settings, store=Store(tmp_path))
    for opened in (study, Study(study.model, study.image_sets, settings, study.store)):
        with pytest.raises(CalibrationError, match="the layer head breaks most"):
            opened.calibration()
    assert counted == [4]
