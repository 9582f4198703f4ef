"""Layers of other classes than Linear and Conv2d: what they compute is what is quantized, packed and counted."""

from collections.abc import Callable, Mapping

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn import functional

import mixqvit
from mixqvit.errors import ModelError
from mixqvit.network.tracing import trace


class CosineLinear(nn.Linear):
    """A classifier by angles, as in few-shot learning."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.scale = nn.Parameter(torch.tensor(7.0))

    def forward(self, values):
        return self.scale * functional.linear(functional.normalize(values, dim=-1), functional.normalize(self.weight))


class ScaledLinear(nn.Linear):
    """A Linear with an equalized learning rate, as in StyleGAN."""

    def forward(self, values):
        return functional.linear(values, self.weight * 3, self.bias)


class BareLinear(nn.Module):
    """A weight without a Linear around it, `[in, out]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, values):
        return values @ self.matrix


class Patched(nn.Conv2d):
    def _conv_forward(self, values, weight, bias):
        return super()._conv_forward(values, -weight, bias)


def weight_normed(inputs: int, outputs: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(inputs, outputs))


CONVOLUTIONS: Mapping[str, Callable[..., nn.Module]] = {
    "same": lambda i, o: Conv2dSame(i, o, 3, stride=2),
    "standardized": lambda i, o: StdConv2d(i, o, 3, stride=2),
    "standardized, same": lambda i, o: StdConv2dSame(i, o, 3, stride=2),
    "standardized and scaled": lambda i, o: ScaledStdConv2d(i, o, 3, stride=2),
    "reflecting": lambda i, o: nn.Conv2d(i, o, 3, stride=2, padding=1, padding_mode="reflect"),
    "of its own": lambda i, o: Patched(i, o, 3, stride=2, padding=1),
}
LINEARS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "cosine": CosineLinear,
    "scaled": ScaledLinear,
    "bare": BareLinear,
    "weight norm": weight_normed,
}


class Network(nn.Module):
    """Two convolutions, tokens, a block and a head."""

    def __init__(self, convolution: Callable[..., nn.Module], linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.conv = convolution(3, 8), convolution(8, 8)
        self.norm, self.fc, self.head = nn.LayerNorm(8), linear(8, 12), linear(12, 5)

    def forward(self, images):
        values = self.conv(functional.gelu(self.stem(images))).flatten(2).transpose(1, 2)
        return self.head(functional.gelu(self.fc(self.norm(values))).mean(1))


def network(convolution: str = "", linear: str = "") -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    plain = lambda i, o: nn.Conv2d(i, o, 3, stride=2, padding=1)  # noqa: E731
    module = Network(CONVOLUTIONS.get(convolution, plain), LINEARS.get(linear, nn.Linear)).eval()
    return module, torch.randn(6, 3, 16, 16)


def centred(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean(0)).flatten()


@pytest.mark.parametrize(
    ("convolution", "linear"), [*((name, "") for name in CONVOLUTIONS), *(("", name) for name in LINEARS)]
)
def test_whatever_a_layers_class_computes_is_what_is_quantized_and_packed(convolution, linear, tmp_path):
    module, pixels = network(convolution, linear)
    with torch.no_grad():
        exact = module(pixels)
        graph = trace(module, pixels)
        torch.testing.assert_close(graph(pixels), exact)
        calibration = mixqvit.calibrate(graph, pixels, "min-max", bit_widths=(8,))
        # Each layer alone: a wrong one must not hide behind the others.
        for layer in graph.layers:
            found = mixqvit.quantize(calibration, {layer.name: 8})(pixels)
            assert torch.corrcoef(torch.stack([centred(exact), centred(found)]))[0, 1] > 0.995, layer.name
        quantized = mixqvit.quantize(calibration, 8)
    assert graph.layers[0].kind == "patch_embed"
    assert [layer.parameters for layer in graph.layers] == [216, 576, 96, 60]
    mixqvit.pack(quantized, tmp_path / "model.safetensors")
    again = mixqvit.load_packed(tmp_path / "model.safetensors", model=module)
    assert torch.equal(again(pixels), quantized(pixels))


def test_layers_keep_their_modules_names_unless_the_module_has_more_to_it():
    names = [layer.name for layer in trace(*network("standardized, same", "cosine")).layers]
    assert names == ["stem", "conv", "fc.linear", "head.linear"]


class Dynamic(nn.Conv2d):
    """Mixes its weight by what it sees."""

    def forward(self, values):
        return functional.conv2d(values, self.weight * values.mean(), self.bias, self.stride, self.padding)


class Undecided(nn.Linear):
    def forward(self, values):
        return super().forward(values if values.sum() > 0 else -values)


@pytest.mark.parametrize(
    ("place", "layer", "message"),
    [
        ("conv", lambda: Dynamic(8, 8, 3, stride=2, padding=1), "operation conv2d in conv"),
        ("fc", lambda: Undecided(8, 12), r"inside fc \(Undecided\)"),
    ],
)
def test_layers_whose_weight_is_not_their_own_are_refused_by_name(place, layer, message):
    module, pixels = network()
    setattr(module, place, layer().eval())
    with pytest.raises(ModelError, match=message):
        trace(module, pixels)
