"""Turns an estimate into a verdict: which way it points, and whether chance could explain it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from glray.report.far_context import GAIN_MARGIN
from glray.run.statistics import Estimate, holm

SIGNIFICANT = 0.05
"""A p value below it decides, once it is adjusted for all primary claims of a page."""


class Verdict(StrEnum):
    """The outcome of a claim."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    WITHIN_NOISE = "within noise"
    UNDERPOWERED = "underpowered"
    INCONCLUSIVE = "inconclusive"
    DESCRIPTIVE = "descriptive"


@dataclass(frozen=True)
class Outcome:
    """What the numbers lean to, and how likely they are to lean so far by chance."""

    leaning: Verdict
    p: float | None = None
    """None where nothing is tested: ``leaning`` is the verdict."""
    otherwise: Verdict = Verdict.WITHIN_NOISE
    """The verdict where ``p`` is not small enough."""
    reason: str = ""
    """Why it is inconclusive."""
    p_adjusted: float | None = None
    """By Holm, for all tests of the page's primary claims; None if this is not one of them."""
    family: int = 0
    """How many these are."""

    @property
    def verdict(self) -> Verdict:
        """The outcome."""
        if self.p is None:
            return self.leaning
        if self.p_adjusted is None:
            return Verdict.DESCRIPTIVE
        return self.leaning if self.p_adjusted < SIGNIFICANT else self.otherwise

    @property
    def text(self) -> str:
        """``SUPPORTED``, and why not if it is inconclusive."""
        return self.verdict.upper() + (f" ({self.reason})" if self.reason else "")

    @property
    def p_text(self) -> str:
        """``p = 0.010; 0.030 by Holm for 3 tests``; empty where nothing is tested."""
        if self.p is None:
            return ""
        alone = f"p {_p(self.p)}"
        if self.p_adjusted is None or self.family == 1:
            return alone
        return f"{alone}; {_p(self.p_adjusted).removeprefix('= ')} by Holm for {self.family} tests"

    def record(self) -> dict[str, object]:
        """Plain values for JSON; ``leaning`` and ``otherwise`` let a page of more claims decide
        again."""
        return {**vars(self), "verdict": self.verdict}


def inconclusive(reason: str) -> Outcome:
    """Nothing was tested, for that reason."""
    return Outcome(Verdict.INCONCLUSIVE, reason=reason)


def adjusted(tests: Sequence[tuple[Hashable, Outcome]]) -> Mapping[Hashable, Outcome]:
    """The outcomes of a page's primary claims, each with its p value adjusted for all. What is
    named twice is one test: several claims may ask for the same arm's long context."""
    family = {name: outcome.p for name, outcome in tests if outcome.p is not None}
    by_holm = dict(zip(family, holm(list(family.values())), strict=True))
    return {
        name: replace(outcome, p_adjusted=by_holm.get(name), family=len(family))
        for name, outcome in tests
    }


def judge_difference(estimate: Estimate, within: float | None = None) -> Outcome:
    """Whether an arm is lower than another by their difference. With ``within``, whether both are
    the same up to that: two one-sided tests (Schuirmann 1987), each at half the level, so that the
    95% interval lies inside the margin."""
    mean = estimate.mean
    if within is None:
        lower = mean < 0
        p = estimate.p_below(0) if lower else estimate.p_above(0)
        return Outcome(Verdict.SUPPORTED if lower else Verdict.NOT_SUPPORTED, _two_sided(p))
    otherwise = Verdict.UNDERPOWERED if estimate.half > within else Verdict.WITHIN_NOISE
    if abs(mean) <= within:
        p = max(estimate.p_below(within), estimate.p_above(-within))
        return Outcome(Verdict.SUPPORTED, _two_sided(p), otherwise)
    p = estimate.p_above(within) if mean > 0 else estimate.p_below(-within)
    return Outcome(Verdict.NOT_SUPPORTED, _two_sided(p), otherwise)


def judge_gain(gain: Estimate, difference: Estimate | None) -> Outcome:
    """Whether long context was learnt: the arm's far-context ``gain`` is above 0 and, where there
    is one, its ``difference`` from the gain of training long throughout is above -GAIN_MARGIN. It
    was not if the gain is below GAIN_MARGIN and not above 0, or the difference below
    -GAIN_MARGIN."""
    for_it = [gain.p_above(0)]
    against = [gain.p_below(GAIN_MARGIN)] if _two_sided(for_it[0]) >= SIGNIFICANT else []
    wide = gain.half > GAIN_MARGIN and bool(against)
    if difference is not None:
        for_it.append(difference.p_above(-GAIN_MARGIN))
        against.append(difference.p_below(-GAIN_MARGIN))
        wide = wide or difference.half > GAIN_MARGIN
    otherwise = Verdict.UNDERPOWERED if wide else Verdict.WITHIN_NOISE
    supports, refutes = max(for_it), min([1.0, *(len(against) * p for p in against)])
    if supports <= refutes:
        return Outcome(Verdict.SUPPORTED, _two_sided(supports), otherwise)
    return Outcome(Verdict.NOT_SUPPORTED, _two_sided(refutes), otherwise)


def judge_seconds(shares: Sequence[float], within: float | None) -> Outcome:
    """Whether an arm takes less time than another, by each repetition's difference as a share of
    the other's. A seed does not change how long a step takes, so nothing is tested over seeds: all
    repetitions must agree."""
    low, high = min(shares), max(shares)
    if within is not None:
        outside, supported = low > within or high < -within, -within <= low and high <= within
    else:
        outside, supported = low > 0, high < 0
    if supported:
        return Outcome(Verdict.SUPPORTED)
    return Outcome(Verdict.NOT_SUPPORTED if outside else Verdict.WITHIN_NOISE)


def _two_sided(p: float) -> float:
    return min(1.0, 2 * p)


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"
