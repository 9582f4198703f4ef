"""Operations with weights that are no layers: they are named, and sizes and budgets count them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import mixqvit
from mixqvit.allocation.budget import Budget, ceilings
from mixqvit.allocation.costs import cost
from mixqvit.errors import InfeasibleBudgetError
from mixqvit.network.bits import uniform
from mixqvit.network.tracing import trace
from mixqvit.packing.model import packed, storage
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model


class Sequencer(nn.Module):
    """An LSTM over tokens, between a patch embedding and a head."""

    def __init__(self, hidden: int, head: int = 5) -> None:
        super().__init__()
        self.stem, self.lstm = nn.Conv2d(1, 8, 4, 4), nn.LSTM(8, hidden, batch_first=True, bidirectional=True)
        self.local, self.fc, self.head = (
            nn.Conv1d(16, 16, 3, padding=1),
            nn.Linear(2 * hidden, head),
            nn.Linear(head, 5),
        )

    def forward(self, images):
        tokens = self.stem(images).flatten(2)
        tokens, _ = self.lstm(functional.gelu(self.local(tokens.transpose(1, 2))))
        return self.head(functional.gelu(self.fc(tokens)).mean(1))


@pytest.fixture(scope="module")
def sequencer():
    torch.manual_seed(0)
    module, pixels = Sequencer(8).eval(), torch.randn(4, 1, 16, 16)
    return module, pixels, trace(module, pixels)


def test_their_share_of_weights_and_work_is_known_and_said(sequencer):
    _, _, graph = sequencer
    convolution, lstm = graph.unquantized
    assert (convolution.name, convolution.kind, convolution.parameters) == ("local", "Conv1d", 16 * 16 * 3)
    assert convolution.macs == 16 * 8 * 16 * 3  # 16 channels of 8 positions out, 16 channels of 3 positions in
    assert (lstm.name, lstm.kind, lstm.parameters) == ("lstm", "LSTM", 2 * 32 * (8 + 8))
    assert lstm.macs == 16 * 2 * 32 * (8 + 8)  # 16 tokens
    share = (16 * 16 * 3 + 2 * 32 * 16) / graph.parameters
    work = (convolution.macs + lstm.macs) / (graph.macs + convolution.macs + lstm.macs)
    assert graph.notes == graph.warnings
    said = f"{100 * share:.0f} % of the weights and {100 * work:.0f} % of the multiply-accumulates are not quantized"
    assert graph.notes[0].startswith(f"{said}: local (Conv1d), lstm (LSTM).")


def test_a_small_share_is_a_note_but_no_warning():
    graph = trace(Sequencer(8, head=4096).eval(), torch.randn(1, 1, 16, 16))
    assert len(graph.notes) == 1
    assert graph.warnings == ()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_whose_weights_are_all_in_layers_has_nothing_to_say(architecture):
    graph = trace(tiny_model(architecture), tiny_images(1))
    assert (graph.unquantized, graph.unquantized_macs, graph.notes) == ((), 0, ())


def test_sizes_and_budgets_count_them_in_full_precision(sequencer):
    _, pixels, graph = sequencer
    quantized = mixqvit.quantize(mixqvit.calibrate(graph, pixels, "min-max", bit_widths=(8,)), 8)
    content = packed(quantized)  # checks its own size against the cost
    weights = sum(operation.parameters for operation in graph.unquantized)
    assert content.full_precision_bytes >= 4 * weights
    rest = storage(graph, "min-max")
    fixed = 32 * 32 * graph.unquantized_macs
    assert rest.full_precision_bitops == fixed
    spent = cost(graph.layers, uniform(graph.layers, 4), rest)
    assert spent.bitops > fixed
    assert ceilings(graph.layers, rest, Budget(average_bits=4))["bitops"] == spent.bitops
    harms = {layer.name: {bits: 4.0**-bits for bits in range(2, 9)} for layer in graph.layers}
    budget = Budget(bitops=fixed + 0.5 * (spent.bitops - fixed))
    found = mixqvit.allocate(graph.layers, harms, budget, rest)
    assert fixed < found.cost.bitops <= budget.bitops
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible value is"):
        mixqvit.allocate(graph.layers, harms, Budget(bitops=float(fixed)), rest)
