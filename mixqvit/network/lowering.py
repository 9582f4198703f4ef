"""Lowering: what a model multiplies its activations with becomes the weight of a plain Linear or convolution.

Everything that is known about a quantized layer (reparameterization, compensation, output errors, relevance rules,
packing, ONNX) assumes y = W x + b with a stored W. So a module is a layer only if its forward is torch's own, on a
weight of its own; that is decided by type, because a probe with some inputs could miss a branch. Any other class is
traced into its operations: a product in it whose weight follows from parameters alone (a standardized convolution, a
cosine head, weight norm, a padding mode, a bias put together from parts) becomes a plain layer with the weight that
comes out, and what else it does stays around that layer in full precision. The function does not change. A weight that
depends on the images, and a class that cannot be traced into, are refused by name.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.padding import pad_same, pad_same_arg
from torch import Tensor, fx, nn
from torch.nn import functional

from mixqvit.errors import ModelError
from mixqvit.network.graph import Graph, Values, attribute
from mixqvit.network.layer_table import is_plain, operation_name

__all__ = ["is_same_padding", "with_fixed_padding", "with_one_module_per_weight", "with_plain_layers"]


def with_fixed_padding(traced: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Turn timm's padding that is computed from the input (TensorFlow's "same") into a pad by fixed numbers, in place.

    Args:
        traced: The model.
        shapes: Shapes of all tensor-valued nodes for one image, by node name.
    """
    constants = _Constants(traced)
    for node in [node for node in traced.graph.nodes if is_same_padding(node)]:
        names = ("x", "kernel_size", "stride", "dilation", "value")
        arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
        given = {name: constants.of(value) for name, value in arguments.items() if name != "x"}
        value = given.pop("value", 0)
        amounts = pad_same_arg(shapes[arguments["x"].name][-2:], **given)
        padded = arguments["x"]
        if any(amounts):
            with traced.graph.inserting_before(node):
                padded = traced.graph.call_function(functional.pad, (padded, amounts), {"value": value})
            padded.meta = {key: value for key, value in node.meta.items() if key != "is_wrapped"}
        node.replace_all_uses_with(padded)
        traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def is_same_padding(node: fx.Node) -> bool:
    """Return whether a node pads by numbers that it computes from the size of its input."""
    return node.op == "call_function" and node.target is pad_same


@dataclass(frozen=True)
class _Product:
    """A product with constants, before it becomes a layer.

    Attributes:
        node: The operation.
        values: The node that is multiplied.
        module: The plain layer that computes the same.
        owner: Path of the module that the weight, or most of what it is made of, belongs to.
        expression: How weight and bias follow from parameters: equal expressions are one layer called again.
    """

    node: fx.Node
    values: fx.Node
    module: nn.Module
    owner: str
    expression: str

    @property
    def name(self) -> str:
        """What the layer is called where its owner's path is taken."""
        return "conv2d" if isinstance(self.module, nn.Conv2d) else "linear"


def with_plain_layers(traced: fx.GraphModule) -> fx.GraphModule:
    """Return the model with every product of activations and constants as a plain Linear or convolution module."""
    constants = _Constants(traced)
    products = {node: found for node in traced.graph.nodes if (found := _product(traced, node, constants))}
    if not products:
        return traced
    used = _targets_beside(traced, products)
    targets: dict[str, str] = {}
    for node, product in products.items():
        target = targets.get(product.expression)
        if target is None:
            target = targets[product.expression] = _free_path(product, used | set(targets.values()))
            traced.add_submodule(target, product.module)
        with traced.graph.inserting_before(node):
            call = traced.graph.call_module(target, (product.values,))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        traced.graph.erase_node(node)
    # What the weights were made of, before anything checks that it is still there.
    for node in reversed(traced.graph.nodes):
        if constants.has(node) and not node.users:
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    return fx.GraphModule(traced, traced.graph)  # without what the weights were made of


_OF_SHAPE = ("getattr", "size", "dim")  # what needs no values
_SETTINGS = ("stride", "padding", "dilation", "groups")


def with_one_module_per_weight(traced: fx.GraphModule) -> fx.GraphModule:
    """Return the model with one module for every weight, called once or several times.

    Modules that share their weight but not their bias call the same module without a bias, and add theirs.

    Raises:
        ModelError: Convolutions share a weight but not their stride, padding, dilation or groups; or something that is
            no layer reads a layer's weight, which quantization would change for it.
    """
    calls: dict[int, list[fx.Node]] = {}
    others: dict[int, fx.Node] = {}
    modules = dict(traced.named_modules(remove_duplicate=False))
    for node in traced.graph.nodes:
        if node.op == "call_module" and is_plain(modules[node.target]):
            calls.setdefault(id(modules[node.target].weight), []).append(node)
        elif node.op == "call_module":
            others |= {id(parameter): node for parameter in modules[node.target].parameters()}
        elif node.op == "get_attr" and not all(operation_name(user, traced) in _OF_SHAPE for user in node.users):
            others[id(attribute(traced, node.target))] = next(iter(node.users))
    for weight in calls.keys() & others.keys():
        raise ModelError(
            f"The weight of {calls[weight][0].target} is also read by the operation "
            f"{operation_name(others[weight], traced)}, which quantizing the layer would change."
        )
    shared = [own for own in calls.values() if len({node.target for node in own}) > 1]
    for own in shared:
        _share(traced, own, {node.target: modules[node.target] for node in own})
    return fx.GraphModule(traced, traced.graph) if shared else traced


def _share(traced: fx.GraphModule, nodes: list[fx.Node], modules: Mapping[str, nn.Module]) -> None:
    first = next(iter(modules))
    settings = {tuple(str(getattr(module, name, None)) for name in _SETTINGS) for module in modules.values()}
    if len(settings) > 1:
        raise ModelError(
            f"{' and '.join(modules)} share a weight but not their stride, padding, dilation and groups: they cannot "
            "be one quantized layer."
        )
    if len({id(module.bias) for module in modules.values()}) == 1:
        for node in nodes:
            node.target = first
        return
    weight, is_linear = modules[first].weight, isinstance(modules[first], nn.Linear)
    product = _linear(weight) if is_linear else _convolution(weight, **_settings_of(modules[first]))
    path = f"{first}.{'linear' if is_linear else 'conv2d'}"
    traced.add_submodule(path, product)
    for node in nodes:
        with traced.graph.inserting_before(node):
            found = traced.graph.call_module(path, node.args)
            found.meta = dict(node.meta)
            if modules[node.target].bias is not None:
                bias = traced.graph.get_attr(f"{node.target}.bias")
                if not is_linear:
                    bias = traced.graph.call_method("reshape", (bias, (-1, 1, 1)))
                found = traced.graph.call_function(operator.add, (found, bias))
                found.meta = dict(node.meta)
        node.replace_all_uses_with(found)
        traced.graph.erase_node(node)


def _settings_of(module: nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name) for name in _SETTINGS}


class _Constants:
    """The values of what follows from parameters alone, computed when they are asked for."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self._graph = Graph(traced, (), (0, 0, 0), 0, 0)
        self._values: Values = {}
        self._others: set[fx.Node] = set()
        for node in traced.graph.nodes:
            if node.op in ("placeholder", "output") or not self._others.isdisjoint(node.all_input_nodes):
                self._others.add(node)

    def has(self, argument: Any) -> bool:
        """Return whether an argument of an operation, nodes within it included, does not depend on the images."""
        nodes: list[fx.Node] = []
        fx.map_arg(argument, nodes.append)
        return self._others.isdisjoint(nodes)

    def of(self, argument: Any) -> Any:
        """Return the value of such an argument."""
        return fx.map_arg(argument, self._value)

    def _value(self, node: fx.Node) -> Any:
        if node.name not in self._values:
            for operand in node.all_input_nodes:
                self._value(operand)
            with torch.no_grad():
                self._values[node.name] = self._graph.compute(node, self._values)
        return self._values[node.name]


def _product(traced: fx.GraphModule, node: fx.Node, constants: _Constants) -> _Product | None:
    """Return a node that multiplies activations with constants, as what `linear` or `conv2d` does."""
    name = operation_name(node, traced) if node.op != "call_module" else ""
    names = {
        "linear": ("input", "weight", "bias"),
        "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        "matmul": ("input", "other"),
        "mm": ("input", "other"),
    }.get(name, ())
    arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
    values = arguments.pop("input", None)
    if not isinstance(values, fx.Node) or constants.has(values) or not constants.has(arguments):
        return None
    source = arguments.get("weight", arguments.get("other"))
    given = dict(constants.of(arguments))
    if name in ("matmul", "mm"):
        weight = given.pop("other")
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            return None
        given["weight"] = weight.T
    module = _convolution(**given) if name == "conv2d" else _linear(**given)
    expression = f"{name} {_expression(arguments)}"
    return _Product(node, values, module, _owner(source, constants), expression)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    return _filled(nn.Linear, weight, bias, (weight.shape[1], weight.shape[0]))


def _convolution(weight: Tensor, bias: Tensor | None = None, groups: int = 1, **settings: Any) -> nn.Conv2d:
    shape = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
    return _filled(nn.Conv2d, weight, bias, shape, groups=groups, **settings)


def _filled(
    kind: type[nn.Module], weight: Tensor, bias: Tensor | None, shape: tuple[Any, ...], **settings: Any
) -> nn.Module:
    # Not initialized: that would take random numbers from whoever traces.
    module: Any = nn.utils.skip_init(kind, *shape, bias=bias is not None, **settings)
    module.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return module.eval()


def _expression(argument: Any) -> str:
    """Return a constant argument as it follows from parameters, the same for every call of the same module."""

    def written(node: fx.Node) -> str:
        if node.op == "get_attr":
            return node.target
        return f"{node.op} {node.target} {_expression(node.args)} {_expression(node.kwargs)}"

    return str(fx.map_arg(argument, written))


def _owner(source: fx.Node, constants: _Constants) -> str:
    """Return the path of the module that holds the largest tensor that a node is computed from."""
    pending, tensors = [source], {}
    while pending:
        node = pending.pop()
        pending += node.all_input_nodes
        if node.op == "get_attr":
            tensors[node.target] = constants.of(node).numel()
        elif node.op == "call_module":
            tensors[f"{node.target}.weight"] = 0  # a parametrization: its path, if nothing larger shows
    largest = max(tensors, key=tensors.get, default="")
    return largest.rpartition(".")[0]


def _targets_beside(traced: fx.GraphModule, products: Mapping[fx.Node, _Product]) -> set[str]:
    """Return the modules and parameters that are still read when the products have become layers."""
    pending = [node for node in traced.graph.nodes if node.op == "output"]
    live: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in live:
            live.add(node)
            pending += [products[node].values] if node in products else node.all_input_nodes
    return {node.target for node in live if node.op in ("get_attr", "call_module")}


def _free_path(product: _Product, used: set[str]) -> str:
    """Return the owner's path where nothing else of it is in use, otherwise one below it."""

    def is_free(path: str) -> bool:
        return bool(path) and not any(f"{other}.".startswith(f"{path}.") for other in used)

    below = ".".join(filter(None, (product.owner, product.name)))
    if is_free(product.owner):
        return product.owner
    number = 1
    while not is_free(below if number == 1 else f"{below}{number}"):
        number += 1
    return below if number == 1 else f"{below}{number}"
