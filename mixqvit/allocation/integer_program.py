"""The multiple-choice knapsack as a 0/1 program for HiGHS: one binary variable per layer and choice."""

import time

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

__all__ = ["solve_integer_program"]

_OBJECTIVE_SCALE = 1e8
_SECONDS = 10.0
_OPTIMAL, _INFEASIBLE = 0, 2  # states that scipy reports


def solve_integer_program(
    harm: np.ndarray, amounts: np.ndarray, rooms: np.ndarray, seconds: float = _SECONDS
) -> tuple[np.ndarray | None, bool]:
    """Return the choice of every layer `[L]` with the least sum of harm within every ceiling, None if none was found.

    Args:
        harm: Harm of every choice `[L, K]`, infinite where a layer has fewer choices.
        amounts: What every choice takes of every ceiling `[M, L, K]`.
        rooms: The ceilings `[M]`.
        seconds: When to stop.

    Returns:
        The choices, and whether it is proven that nothing is better, or that nothing fits.
    """
    stop = time.monotonic() + seconds
    layer_of, choice_of = np.nonzero(np.isfinite(harm))
    layers, variables = len(harm), len(layer_of)
    one_each = csr_array((np.ones(variables), (layer_of, np.arange(variables))), shape=(layers, variables))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for row, room in zip(amounts[:, layer_of, choice_of], rooms, strict=True):
        # Scaled to about 1, so that the solver's absolute tolerances mean the same for bits and for BitOps.
        scale = max(abs(room), row.max(), 1.0)
        constraints.append(LinearConstraint(row[None, :] / scale, -np.inf, room / scale))
    # A constant per layer changes nothing, and HiGHS stops within absolute tolerances of about 1e-7: without the
    # constant and scaled up, they are far below any difference between allocations that matters.
    excess = (harm - harm.min(axis=1, keepdims=True))[layer_of, choice_of]
    excess *= _OBJECTIVE_SCALE / (excess.max() or 1.0)
    while True:
        result = milp(
            excess,
            constraints=constraints,
            integrality=np.ones(variables),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0, "time_limit": max(stop - time.monotonic(), 0.01)},
        )
        if result.x is None:
            return None, result.status == _INFEASIBLE
        taken = np.zeros_like(harm)
        taken[layer_of, choice_of] = result.x
        chosen = taken.argmax(axis=1)
        if (amounts[:, np.arange(layers), chosen].sum(axis=1) <= rooms).all():
            return chosen, result.status == _OPTIMAL
        # The solver tolerates a violation of about one in a million; a ceiling tolerates none: forbid this one.
        row = (choice_of == chosen[layer_of]).astype(float)[None, :]
        constraints.append(LinearConstraint(row, -np.inf, layers - 1))
