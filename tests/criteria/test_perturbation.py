"""Squared perturbations against the values and codes written out."""

import pytest
import torch

from mixqvit.criteria.perturbation import squared_perturbations
from mixqvit.quantization.calibration import prepare_weight
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from tests.tiny_models import tiny_images


def test_perturbations_are_those_of_the_original_weight_and_input(calibration):
    graph, images = calibration.graph, tiny_images(3)
    found = list(squared_perturbations(calibration, images, (2, 4)))
    assert [piece.layer for piece in found] == [layer.name for layer in graph.layers]
    for piece in found:
        layer = graph.by_name[piece.layer]
        ((_, values),) = graph.walk(images, [layer.node])
        operands = graph.operands(layer, values)
        for bits in (2, 4):
            own = (bits, 8 if layer.kind == "patch_embed" else bits)
            quantizers = calibration.quantizers(layer, own)
            ratio = shift = None
            for index, (quantizer, operand) in enumerate(zip(quantizers, operands, strict=True)):
                quantized = quantizer(operand)
                if isinstance(quantizer, ReparameterizedQuantizer):
                    ratio, shift = quantizer.ratio, quantizer.shift
                    quantized = (quantized + shift) * ratio  # the moved input, moved back
                expected = float((quantized - operand).square().sum()) / 3
                assert piece.operands[index][8 if layer.kind == "patch_embed" else bits] == pytest.approx(expected)
            if layer.is_matmul:
                assert piece.weight is None
                continue
            weight = prepare_weight(calibration, layer, own).weight
            weight = weight if ratio is None else weight / ratio
            assert piece.weight[bits] == pytest.approx(float((weight - graph.weight(layer)).square().sum()))
            assert list(piece.weight) == [2, 4]
            assert list(piece.operands[0]) == ([8] if layer.kind == "patch_embed" else [2, 4])


def test_some_inputs_are_reparameterized_and_bits_shrink_all_perturbations(calibration):
    assert any(layer.is_reparameterized for layer in calibration.graph.layers)
    for piece in squared_perturbations(calibration, tiny_images(2), (2, 8)):
        if piece.weight is not None:
            assert piece.weight[2] > 10 * piece.weight[8] > 0
        for operand in piece.operands:
            assert 2 not in operand or operand[2] > 10 * operand[8] > 0


def test_finished_layers_are_left_out_and_gradients_stay_as_they_are(vit):
    names = [layer.name for layer in vit.graph.layers]
    whole = list(squared_perturbations(vit, tiny_images(2), (4,)))
    steps = squared_perturbations(vit, tiny_images(2), (4,), finished=names[:-2])
    assert torch.is_grad_enabled()
    pieces = []
    for piece in steps:
        assert torch.is_grad_enabled()
        pieces.append(piece)
    assert pieces == whole[-2:]
    assert list(squared_perturbations(vit, tiny_images(2), (4,), finished=names)) == []
