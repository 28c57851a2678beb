"""How sure a mean is: over seeds, over held-out documents, and by what else varies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def p_above(t: float, degrees: int) -> float:
    """The chance of a Student's t above ``t`` under so many degrees of freedom."""
    from scipy.special import stdtr

    return float(stdtr(degrees, -t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each of the p values of a family, adjusted so that below 0.05 at most one family in twenty
    has a false one (Holm 1979, https://www.jstor.org/stable/4615733)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class Part:
    """What one thing that varies adds to a mean's error."""

    standard_error: float
    count: int
    """How many of it were drawn: seeds, documents, calibrations."""

    @property
    def degrees(self) -> int:
        """Of freedom."""
        return self.count - 1

    @property
    def half(self) -> float:
        """Half of a 95% interval that only this part would make."""
        return student_t(self.degrees) * self.standard_error


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is, by what varies."""

    mean: float
    parts: Mapping[str, Part]
    """By what varies: ``seeds``, ``documents``, ``calibrations``."""

    @property
    def standard_error(self) -> float:
        """All parts together, as if each varied on its own; infinite where nothing was seen to
        vary."""
        errors = [part.standard_error for part in self.parts.values()]
        return math.hypot(*errors) if errors else math.inf

    @property
    def degrees(self) -> int:
        """Of freedom, all parts together (Welch 1947 and Satterthwaite 1946), rounded down."""
        shares = [
            (part.standard_error / self.standard_error) ** 4 / part.degrees
            for part in self.parts.values()
            if part.standard_error > 0
        ]
        if not shares:
            return min((part.degrees for part in self.parts.values()), default=1)
        return max(1, math.floor(1 / sum(shares) + 1e-9))  # of one part exactly its own

    @property
    def half(self) -> float:
        """Half of the 95% interval."""
        return student_t(self.degrees) * self.standard_error

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return self.mean + self.half

    def p_above(self, bound: float) -> float:
        """How likely a mean so far above ``bound`` or further is where the true one is there."""
        distance = self.mean - bound
        if self.standard_error == 0:
            return 0.5 if distance == 0 else float(distance < 0)
        return p_above(distance / self.standard_error, self.degrees)

    def p_below(self, bound: float) -> float:
        """The same of one so far below."""
        return 1.0 - self.p_above(bound)


def crossed(values: np.ndarray, document_tokens: np.ndarray) -> Estimate:
    """The mean of ``values``, float64[seeds, documents], documents weighted by ``document_tokens``,
    int64[documents]; seeds and documents both vary.

    What varies between seeds and documents at once is in both parts, so the interval is a little
    too wide rather than too narrow.
    """
    weights = document_tokens / document_tokens.sum()
    by_seed, by_document = values @ weights, values.mean(axis=0)
    num_seeds, num_documents = values.shape
    parts = {}
    if num_seeds > 1:
        parts["seeds"] = Part(float(by_seed.std(ddof=1)) / num_seeds**0.5, num_seeds)
    error = standard_error(document_tokens, by_document)
    if error is not None:
        parts["documents"] = Part(error, num_documents)
    return Estimate(float(by_seed.mean()), parts)


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
