from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixqvit.network.graph import Graph
from mixqvit.network.tracing import trace
from tests.tiny_models import TRANSFORMERS, small_transformer


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=sorted(TRANSFORMERS))
def model_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build() -> Callable[[str], tuple[nn.Module, Graph, Tensor]]:
    """Return a function from a model's name to a random model, its graph and three images, in float64."""
    torch.set_num_threads(1)

    def build(name: str) -> tuple[nn.Module, Graph, Tensor]:
        module, pixels = small_transformer(name)
        return module, trace(module, pixels), pixels

    return build
