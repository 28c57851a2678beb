"""The peak learning rates that a comparison tries before it judges."""

import math
from itertools import pairwise
from typing import Any

from pydantic import Field

from glray.spec.base import Seed, Spec
from glray.spec.training import PeakRate

DIGITS = 6
"""Significant digits of a rate that the grid goes on to, so that its name has no more."""


def log_rates(lowest: float, highest: float, num: int) -> tuple[float, ...]:
    """``num`` (2 or more) learning rates from ``lowest`` to ``highest``, each the same factor above
    the one before, to three significant digits: ``log_rates(1e-3, 1e-2, num=3)`` has 1e-3, 3.16e-3
    and 1e-2."""
    factor = highest / lowest
    return tuple(float(f"{lowest * factor ** (n / (num - 1)):.3g}") for n in range(num))


class RateGrid(Spec):
    """Peak rates at which every arm is trained, for the whole budget and under a seed of their own,
    before the compared runs are: those have the rate that gave their arm the lowest held-out loss
    at its longest length. If that is at an end of the grid, one more rate is tried beyond it."""

    lrs: tuple[PeakRate, ...] = Field(min_length=2)
    """Peak learning rates, ascending."""
    seed: Seed = 100
    """Seed of these runs, none of those that are compared."""

    def beyond(self, lr: float) -> float | None:
        """The next rate outward, as far from an end of the grid as its neighbour is inward (their
        ratio); None for a rate that is at no end."""
        neighbours = {self.lrs[0]: self.lrs[1], self.lrs[-1]: self.lrs[-2]}
        return float(f"{lr * lr / neighbours[lr]:.{DIGITS}g}") if lr in neighbours else None

    @property
    def outward(self) -> tuple[float, ...]:
        """The rates beyond its ends."""
        return tuple(lr for end in (self.lrs[0], self.lrs[-1]) if (lr := self.beyond(end)))

    def model_post_init(self, context: Any) -> None:
        for lower, higher in pairwise(self.lrs):
            if lower >= higher:
                raise ValueError(
                    f"lrs lists {higher:g} after {lower:g}, but rates must ascend for the grid to "
                    "have ends; list each rate once, from lowest to highest"
                )
        for end in (self.lrs[0], self.lrs[-1]):
            outward = self.beyond(end)
            if not outward or not math.isfinite(outward) or outward in self.lrs:
                raise ValueError(
                    f"lrs ends with {end:g}, beyond which {outward:g} would be tried, which is no "
                    "further rate; give rates that lie apart, none of them extreme"
                )
