"""A small table of layers with allocations and measurements, for the tests of the Budget page's figures."""

from math import nan

from mixqvit.allocation.budget import Allocation, Budget
from mixqvit.allocation.costs import Storage, cost
from mixqvit.network.layers import Layer
from mixqvit.quantization.roles import ChannelParameters
from mixqvit.tasks.classification import METRICS
from mixqvit.tasks.evaluation import Evaluation, ReferenceAnswers
from mixqvit.views.allocation_words import LayerFacts

LAYERS = (
    Layer("patch_embed.proj", "patch_embed", None, 64, 8, 640, (1, 1, 8, 8), (1, 8, 4, 4), "a", None),
    Layer("blocks.0.attn.matmul1", "matmul1", 0, 0, 0, 320, (1, 1, 4, 8), (1, 1, 4, 4), "b", None),
    Layer("blocks.0.mlp.fc1", "fc1", 0, 128, 16, 1280, (1, 4, 8), (1, 4, 16), "c", "n"),
    Layer("head", "head", None, 32, 4, 32, (1, 8), (1, 4), "d", None),
)
STORAGE = Storage({"post_layer_norm": ChannelParameters(8, moves_input=True)}, 40, 600)
BITS = {"patch_embed.proj": (5, 8), "blocks.0.attn.matmul1": (4, 4), "blocks.0.mlp.fc1": (2, 2), "head": (32, 32)}
BEFORE = {**BITS, "blocks.0.mlp.fc1": (4, 4), "patch_embed.proj": (3, 8)}
IMPORTANCE = {"patch_embed.proj": 0.1, "blocks.0.attn.matmul1": 0.2, "blocks.0.mlp.fc1": 0.3, "head": 0.4}
SENSITIVITY = {name: {bits: 1.0 / bits for bits in range(2, 9)} for name in BITS}


def facts(bits=BITS, previous=BEFORE, **restrictions) -> LayerFacts:
    return LayerFacts(bits, previous, IMPORTANCE, SENSITIVITY, METRICS["kl"], **restrictions)


def evaluation(correct: int | None = 180, kl: float = 0.25) -> Evaluation:
    return Evaluation(200, 200, correct, 150, kl)


def of_one_class(correct: int | None = 200) -> Evaluation:
    """What is measured of a model that has one class."""
    return Evaluation(200, 200, correct, 200, nan, reference=ReferenceAnswers(200, 1, 1, 1, correct, 1.0))


def allocation(bits=BITS, harm: float = 0.5, budget: Budget | None = None) -> Allocation:
    return Allocation(bits, harm, cost(LAYERS, bits, STORAGE), budget)
