"""Values sorted once, so that the squared error of any scalar quantizer costs one look-up per level."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SortedValues"]


@dataclass(frozen=True)
class SortedValues:
    """The values of an operand in ascending order with their running sums: Σ (x - level)² needs no pass over them.

    Attributes:
        values: `[N]` in float64.
        sums: Running sums from zero, `[N + 1]`.
        dtype: Of the values it was made of; fitted quantizers get it.
    """

    values: Tensor
    sums: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, values: Tensor) -> "SortedValues":
        """Sort `values` of any shape."""
        ordered = values.flatten().sort().values.double()
        return cls(ordered, torch.cat([ordered.new_zeros(1), ordered.cumsum(0)]), values.dtype)

    @property
    def smallest(self) -> float:
        """The smallest value."""
        return float(self.values[0])

    @property
    def largest(self) -> float:
        """The largest value."""
        return float(self.values[-1])

    def squared_errors(self, levels: Tensor, thresholds: Tensor) -> Tensor:
        """Return Σ (x - q(x))² of several quantizers.

        Args:
            levels: Values that each quantizer can take, ascending, `[candidates, L]`.
            thresholds: Where one level gives way to the next, ascending, `[candidates, L - 1]`.

        Returns:
            The errors in float64, `[candidates]`.
        """
        count = len(self.values)
        edges = torch.searchsorted(self.values, thresholds.double())
        edges = torch.nn.functional.pad(torch.nn.functional.pad(edges, (1, 0)), (0, 1), value=count)
        levels = levels.double()
        crossed = (levels * (levels * edges.diff() - 2 * self.sums[edges].diff())).sum(dim=1)
        return self.values.square().sum() + crossed
