"""Small tables of layers with harms, and the definition of an optimum: every combination tried."""

from itertools import product

import numpy as np

from mixqvit.allocation.costs import Storage, cost, uniform_bitops
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.network.layers import Layer
from mixqvit.quantization.roles import ChannelParameters

MOVED = ChannelParameters(8, moves_input=True)
REST = Storage({"post_layer_norm": MOVED, "attention_output": MOVED, "value": ChannelParameters(8)}, 400, 600)


def layer(index, kind="fc1", parameters=64, macs=1000):
    matmul = kind.startswith("matmul")
    return Layer(
        f"layer{index}",
        kind,
        0,
        0 if matmul else parameters,
        0 if matmul else 8,
        macs,
        (1, 8),
        (1, 8),
        f"n{index}",
        None,
    )


def table(count, seed=0, kinds=("patch_embed", "qkv", "matmul1", "fc1")):
    """Return layers of random sizes, and Λ by bit-width that is not always monotone."""
    random = np.random.default_rng(seed)
    layers = [
        layer(index, kinds[index % len(kinds)], int(random.integers(1, 40)) * 8, int(random.integers(100, 5000)))
        for index in range(count)
    ]
    harms = {one.name: {bits: float(random.random() * 4.0**-bits) for bits in BIT_WIDTHS} for one in layers}
    return layers, harms


def transformer(depth, width=96, tokens=65, heads=3, patch=16, classes=10):
    """Return the layers of a vision transformer, 6 `depth` + 2 of them; `patch` is the number of values in a patch."""

    def linear(name, kind, outputs, inputs, block, rows=tokens):
        shapes = (1, rows, inputs), (1, rows, outputs)
        return Layer(name, kind, block, outputs * inputs, outputs, outputs * inputs * rows, *shapes, name, None)

    def product_of(name, kind, block, inner, outputs):
        shapes = (1, heads, tokens, inner), (1, heads, tokens, outputs)
        return Layer(name, kind, block, 0, 0, heads * tokens * inner * outputs, *shapes, name, None, False)

    layers = [linear("patch_embed", "patch_embed", width, patch, None, tokens - 1)]
    for block in range(depth):
        name = f"blocks.{block}."
        layers += [
            linear(name + "qkv", "qkv", 3 * width, width, block),
            product_of(name + "matmul1", "matmul1", block, width // heads, tokens),
            product_of(name + "matmul2", "matmul2", block, tokens, width // heads),
            linear(name + "proj", "proj", width, width, block),
            linear(name + "fc1", "fc1", 4 * width, width, block),
            linear(name + "fc2", "fc2", width, 4 * width, block),
        ]
    return [*layers, linear("head", "head", classes, width, None, 1)]


def sensitivities(layers, seed, low=2.5, high=6.0):
    """Return Λ by layer and bit-width that falls by a factor of its own per bit, roughly."""
    random = np.random.default_rng(seed)
    found = {}
    for one in layers:
        scale, base = 10.0 ** random.uniform(-1, 1), random.uniform(low, high)
        found[one.name] = {bits: float(scale * base**-bits * random.uniform(0.8, 1.2)) for bits in BIT_WIDTHS}
    return found


def fits(layers, bits, budget):
    """Return whether costs, computed by their definition, are within a budget."""
    costs = cost(layers, bits, REST)
    weight_bits = sum(one.parameters * bits[one.name][0] for one in layers)
    parameters = sum(one.parameters for one in layers)
    return (
        (budget.average_bits is None or weight_bits / parameters <= budget.average_bits)
        and (budget.size_bytes is None or costs.size_bytes <= budget.size_bytes)
        and (budget.bitops is None or costs.bitops <= budget.bitops)
        and (
            budget.average_bits is None
            or not budget.cap_bitops
            or costs.bitops <= uniform_bitops(layers, budget.average_bits)
        )
    )


def every_combination(layers, harms, budget, allowed=lambda layer, bits: True):
    """Yield (bits, sum of harm) of every combination of choices within a budget."""
    options = [[(b, h) for b, h in harms[one.name].items() if allowed(one, b)] for one in layers]
    for combination in product(*options):
        bits = {one.name: pair for one, (pair, _) in zip(layers, combination, strict=True)}
        if fits(layers, bits, budget):
            yield bits, sum(harm for _, harm in combination)


def brute_force(layers, harms, budget, allowed=lambda layer, bits: True):
    """Return the least harm within a budget, None if nothing fits."""
    return min((harm for _, harm in every_combination(layers, harms, budget, allowed)), default=None)
