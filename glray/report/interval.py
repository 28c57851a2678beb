"""How sure a mean over a few seeds is."""

from collections.abc import Sequence
from math import isfinite, nan
from statistics import mean, stdev

SEEDS_FOR_A_VERDICT = 3
"""With fewer an interval is too wide to say anything."""
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t below which 97.5% lie, for 1, 2, … 10 degrees of freedom; for more it is smaller."""


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and half of its 95% interval (Student's t; from 12 values on slightly too wide).

    No interval for one value, nor where one is no number.
    """
    if len(values) < 2:
        return float(values[0]), None
    if not all(map(isfinite, values)):
        return nan, None
    t = T_975[min(len(values) - 1, len(T_975)) - 1]
    return mean(values), t * stdev(values) / len(values) ** 0.5
