"""The architecture that a packed model's numbers belong to: how the file names it, and how it is built again."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from mixqvit.errors import PackingError
from mixqvit.models.model import Model
from mixqvit.models.sources.factory import build
from mixqvit.network.graph import Graph
from mixqvit.network.query_key import merge_query_key
from mixqvit.network.tracing import trace

__all__ = ["build_described", "describe", "fingerprint", "keeps_statistics", "rebuild", "unquantized_parameters"]


def describe(model: Model | None) -> Mapping[str, Any] | None:
    """Return what `rebuild` needs: the architecture as the model's source wrote it; None where nothing says it."""
    if model is None or model.architecture is not None:
        return model and model.architecture
    if not timm.is_model(model.name):
        return None
    return {"timm": model.name} | ({"arguments": dict(model.arguments)} if model.arguments else {})


def rebuild(
    description: Mapping[str, Any] | None, module: nn.Module | None, input_shape: tuple[int, ...], merged: bool = False
) -> Graph:
    """Return the graph of an architecture, whatever its weights are.

    Args:
        description: What `describe` returned.
        module: A module of this architecture, used instead if given.
        input_shape: Shape of one image `[C, H, W]`.
        merged: Whether query and key are merged, as training with `ofq` does.

    Raises:
        PackingError: Nothing says which architecture it is, or it is none that is known here.
        ModelError: It cannot be built or traced.
        UnsupportedOperationError: Its query and key cannot be merged.
    """
    if module is None:
        module = build_described(description)
    graph = trace(module, torch.zeros(1, *input_shape))
    return merge_query_key(graph) if merged else graph


def build_described(description: Mapping[str, Any] | None) -> nn.Module:
    """Return the module that `describe` described, with fresh weights.

    Raises:
        PackingError: Nothing says which architecture it is, or it is none that is known here.
        ModelError: It cannot be built.
    """
    if description is None:
        raise PackingError("The file does not name its architecture: give the model it was made from, model=MODULE.")
    module = build(description)
    if module is None:
        raise PackingError("The file is damaged, or of a newer version: its architecture is none that is known here.")
    return module


def unquantized_parameters(graph: Graph) -> dict[str, nn.Parameter]:
    """Return the parameters outside the layers' weights by name: biases, norms, embeddings."""
    weights = {f"{layer.name}.weight" for layer in graph.layers}
    return {name: value for name, value in graph.module.named_parameters() if name not in weights}


def keeps_statistics(graph: Graph) -> str | None:
    """Return the name of a module with state that is no parameter, such as a batch norm's; None if there is none."""
    modules = dict(graph.module.named_modules())
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[node.target]
            if len(module.state_dict()) > len(list(module.named_parameters())):
                return node.target
    return None


def fingerprint(graph: Graph) -> str:
    """Return a hexadecimal SHA-256 of all that the numbers of a packed model must fit.

    Layers, names and shapes of parameters, and the constants of the architecture (attention masks, indices), which
    are not in the file.
    """
    layers = [(layer.name, layer.parameters, layer.has_bias) for layer in graph.layers]
    parameters = [(name, list(value.shape)) for name, value in graph.module.named_parameters()]
    digest = hashlib.sha256(json.dumps([layers, parameters, graph.input_shape]).encode())
    for name, constant in sorted(graph.module.named_buffers()):
        digest.update(f"{name} {constant.dtype} {tuple(constant.shape)}\n".encode())
        digest.update(constant.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
