"""A lower bound of a convex quadratic function over all mixtures of allocations (Frank & Wolfe 1956).

Every step asks an oracle for the allocation that is best for the gradient, then finds the best mixture of all
allocations seen so far ("fully corrective", by pairwise steps). Gradient and oracle together prove a bound each time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Relaxation", "relax"]

_CORRECTIONS = 400
_MOST_VERTICES = 150


@dataclass(frozen=True)
class Relaxation:
    """The best mixture found, and what is proven of all of them.

    Attributes:
        point: The mixture `[V]`.
        bound: Value that no mixture, and so no allocation, is below.
        gradient: Gradient that proved the bound `[V]`.
        constant: The function is at least `constant + gradient · x` everywhere.
    """

    point: np.ndarray
    bound: float
    gradient: np.ndarray
    constant: float


def relax(
    quadratic: np.ndarray,
    linear: np.ndarray,
    oracle: Callable[[np.ndarray], tuple[np.ndarray, float]],
    start: np.ndarray,
    accuracy: float,
    deadline: float,
) -> Relaxation:
    """Minimise xᵀQx + c·x over the mixtures of allocations.

    Args:
        quadratic: Q, positive semidefinite on differences of allocations `[V, V]`.
        linear: c `[V]`.
        oracle: Returns the allocation `[V]` that is best for a gradient, and a lower bound of gradient · x.
        start: An allocation `[V]`.
        accuracy: Distance of the value from its bound, relative to it, at which to stop.
        deadline: When to stop at the latest, in seconds of `time.monotonic`; one step is always made.
    """
    vertices, shares = start[None], np.ones(1)
    products = (vertices @ quadratic) @ vertices.T
    slopes = vertices @ linear
    best = None
    while True:
        shares = _corrected(products, slopes, shares)
        point = shares @ vertices
        curved = quadratic @ point
        gradient = 2.0 * curved + linear
        constant = -float(point @ curved)
        vertex, least = oracle(gradient)
        if best is None or constant + least > best.bound:
            best = Relaxation(point, constant + least, gradient, constant)
        value = constant + float(gradient @ point)
        if value - best.bound <= accuracy * abs(value) or time.monotonic() > deadline:
            return Relaxation(point, best.bound, best.gradient, best.constant)
        if len(vertices) >= _MOST_VERTICES:
            used = shares > 0
            vertices, shares, slopes, products = (
                vertices[used],
                shares[used],
                slopes[used],
                products[np.ix_(used, used)],
            )
        cross = vertices @ (quadratic @ vertex)
        products = np.block([[products, cross[:, None]], [cross[None], np.array([[vertex @ quadratic @ vertex]])]])
        vertices, shares = np.concatenate([vertices, vertex[None]]), np.append(shares, 0.0)
        slopes = np.append(slopes, vertex @ linear)


def _corrected(products: np.ndarray, slopes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return better shares of the vertices: in turn, the worst gives to the best as much as helps."""
    shares = shares.copy()
    gradient = 2.0 * products @ shares + slopes
    for _ in range(_CORRECTIONS):
        taker = int(gradient.argmin())
        giver = int(np.where(shares > 0, gradient, -np.inf).argmax())
        gain = gradient[giver] - gradient[taker]
        if gain <= 1e-12 * np.abs(gradient).max():
            break
        curvature = 2.0 * (products[taker, taker] + products[giver, giver] - 2.0 * products[taker, giver])
        step = shares[giver] if curvature <= 0 else min(shares[giver], gain / curvature)
        shares[taker] += step
        shares[giver] -= step
        gradient += 2.0 * step * (products[:, taker] - products[:, giver])
    return np.maximum(shares, 0.0) / np.maximum(shares, 0.0).sum()
