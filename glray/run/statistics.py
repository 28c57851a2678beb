"""How sure a mean is: over seeds, and over held-out documents."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np

SEEDS_FOR_A_VERDICT = 3
"""With fewer an interval is too wide to say anything."""
ENOUGH_DOCUMENTS = 100
"""With fewer the standard error over documents is itself off by more than 1 / √198, or 7%, even
where their losses are normal, and a few documents decide the mean."""


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and half of its 95% interval by Student's t.

    The half is None for one value; with a value that is not finite, the mean is NaN too.
    """
    if len(values) < 2:
        return float(values[0]), None
    if not all(map(math.isfinite, values)):
        return math.nan, None
    return mean(values), student_t(len(values) - 1) * stdev(values) / len(values) ** 0.5


def student_t(degrees: int) -> float:
    """Student's t of a 95% interval under so many degrees of freedom.

    Three decimals, as printed tables have it: kept results stay as they were to the last digit.
    """
    from scipy.special import stdtrit  # half a second, which training need not wait for

    return round(float(stdtrit(degrees, 0.975)), 3)


def standard_error(document_tokens: np.ndarray, document_losses: np.ndarray) -> float | None:
    """The standard error over documents of a mean loss per token, or of a difference of two.

    ``document_tokens`` int64[documents] are the weights of ``document_losses`` float64[documents],
    as the mean is a ratio of sums (Cochran 1977, section 6.4). None for one document.
    """
    num_documents = len(document_tokens)
    if num_documents < 2:
        return None
    weights = document_tokens / document_tokens.sum()
    deviations = weights * (document_losses - (weights * document_losses).sum())
    return float(np.sqrt(num_documents / (num_documents - 1) * (deviations**2).sum()))
