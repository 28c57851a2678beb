"""How sure a mean is: over seeds, over held-out documents, and by what else varies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
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
    """Number of seeds, documents or calibrations."""
    degrees: int
    """Degrees of freedom."""

    @property
    def half(self) -> float:
        """Half of a 95% interval that only this part would make."""
        return student_t(self.degrees) * self.standard_error


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is, by what varies."""

    mean: float
    parts: Mapping[str, Part]
    """By what varies: ``seeds``, ``documents``, ``calibrations``. Without any, nothing is known of
    the mean's error."""

    @cached_property
    def half(self) -> float:
        """Half of the 95% interval; infinite where nothing was seen to vary."""
        halves = [part.half for part in self._parts]
        if len(halves) < 2:
            return halves[0] if halves else (0.0 if self.parts else math.inf)
        from scipy.optimize import brentq

        # Together the parts are surer than each at its worst.
        widest = sum(halves)
        return float(brentq(lambda x: self._tail(x) - 0.025, 0, 2 * widest, xtol=1e-9 * widest))

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return self.mean + self.half

    def p_above(self, bound: float) -> float:
        """One-sided p value: the probability of a mean at least this far above ``bound`` if the
        true mean is ``bound``."""
        return self._tail(self.mean - bound)

    def p_below(self, bound: float) -> float:
        """The same, below ``bound``."""
        return self._tail(bound - self.mean)

    @property
    def _parts(self) -> list[Part]:
        """Those that matter, ascending; what sums of floats leave behind is none."""
        parts = sorted(self.parts.values(), key=lambda part: part.half)
        return [part for part in parts if part.half > 1e-9 * parts[-1].half]

    def _tail(self, distance: float) -> float:
        """The chance that the parts, each its standard error times Student's t under its own
        degrees of freedom, sum to more than ``distance`` (Behrens 1929, Fisher 1935).

        Two or three seeds may agree by chance. A single t whose degrees are pooled by the size of
        the parts (Welch, Satterthwaite) then takes the many documents' degrees for the whole, and
        finds too much.
        """
        from scipy.special import stdtr

        if not self.parts:
            return 0.5
        if not (parts := self._parts):
            return 0.5 if distance == 0 else float(distance < 0)
        left, share = np.array([distance]), np.array([1.0])
        for part in parts[:-1]:
            drawn, chances = _students(part.degrees)
            left = (left[:, None] - part.standard_error * drawn).ravel()
            share = (share[:, None] * chances).ravel()
        return float(share @ stdtr(parts[-1].degrees, -left / parts[-1].standard_error))


NODES = 200
"""Points at which the chance of each part but the largest is taken."""


@cache
def _students(degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """Student's t at ``NODES`` points that stand for its distribution, and the chance of each
    (Gauss and Legendre's, of its cumulated chance)."""
    from scipy.special import roots_legendre, stdtrit

    nodes, weights = roots_legendre(NODES)
    return stdtrit(degrees, (nodes + 1) / 2), weights / 2


def crossed(values: np.ndarray, document_tokens: np.ndarray) -> Estimate:
    """The mean of ``values``, float64[seeds, documents], documents weighted by ``document_tokens``,
    int64[documents]; seeds and documents both vary."""
    weights = document_tokens / document_tokens.sum(dtype=np.float64)
    by_seed, by_document = values @ weights, values.mean(axis=0)
    num_seeds, num_documents = values.shape
    parts = {}
    if num_seeds > 1:
        error = float(by_seed.std(ddof=1)) / num_seeds**0.5
        parts["seeds"] = Part(error, num_seeds, num_seeds - 1)
    of_documents = standard_error(document_tokens, by_document)
    if of_documents is not None:
        # A few documents may have most of the tokens: then there are hardly more than these (Kish
        # 1965, section 11.7).
        degrees = max(1, math.floor(1 / float((weights**2).sum()) - 1 + 1e-9))
        parts["documents"] = Part(of_documents, num_documents, degrees)
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
