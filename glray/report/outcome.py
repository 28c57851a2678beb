"""What the numbers behind a claim lean to, and whether they lean so far by chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from glray.run.statistics import Estimate

SIGNIFICANT = 0.05
"""Below it a p value decides, once it is adjusted for all primary claims of a page."""
GAIN_MARGIN = 0.02
"""Nats by which a far-context gain may be less than another's and still count as no worse."""


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
    """By Holm, for all tests of the page's primary claims."""
    family: int = 0
    """How many these are; 0 where the claim is not among them."""

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
    def odds(self) -> str:
        """``p 0.010, by Holm of 3 tests 0.030``; empty where nothing is tested."""
        if self.p is None:
            return ""
        if self.p_adjusted is None or self.family == 1:
            return f"p {self.p:.3f}"
        return f"p {self.p:.3f}, by Holm of {self.family} tests {self.p_adjusted:.3f}"

    def record(self) -> dict[str, object]:
        """Plain values for JSON; ``leaning`` and ``otherwise`` let a page of more claims decide
        again."""
        return {**vars(self), "verdict": self.verdict}


def inconclusive(reason: str) -> Outcome:
    """No test, for that reason."""
    return Outcome(Verdict.INCONCLUSIVE, reason=reason)


def of_difference(estimate: Estimate, within: float | None = None) -> Outcome:
    """Whether an arm is lower than another by their difference. With ``within``, whether both are
    the same up to that: two one-sided tests (Schuirmann 1987)."""
    mean = estimate.mean
    if within is None:
        lower = mean < 0
        p = 2 * (estimate.p_below(0) if lower else estimate.p_above(0))
        return Outcome(Verdict.SUPPORTED if lower else Verdict.NOT_SUPPORTED, min(1.0, p))
    otherwise = Verdict.UNDERPOWERED if estimate.half > within else Verdict.WITHIN_NOISE
    if abs(mean) <= within:
        p = max(estimate.p_below(within), estimate.p_above(-within))
        return Outcome(Verdict.SUPPORTED, p, otherwise)
    p = 2 * (estimate.p_above(within) if mean > 0 else estimate.p_below(-within))
    return Outcome(Verdict.NOT_SUPPORTED, min(1.0, p), otherwise)


def of_gain(gain: Estimate, less: Estimate | None) -> Outcome:
    """Whether long context was learnt by an arm with that far-context ``gain``, which is ``less``
    than that of training long throughout by no more than the margin."""
    behind = less is not None and less.mean <= -GAIN_MARGIN
    if gain.mean <= 0 or behind:
        p = less.p_below(0) if less is not None and behind else gain.p_below(GAIN_MARGIN)
        return Outcome(Verdict.NOT_SUPPORTED, min(1.0, 2 * p))
    ps = [2 * gain.p_above(0)]
    otherwise = Verdict.WITHIN_NOISE
    if less is not None:
        ps.append(less.p_above(-GAIN_MARGIN))
        otherwise = Verdict.UNDERPOWERED if less.half > GAIN_MARGIN else otherwise
    return Outcome(Verdict.SUPPORTED, min(1.0, max(ps)), otherwise)


def of_seconds(shares: Sequence[float], within: float | None) -> Outcome:
    """Whether an arm takes less time than another, by each repetition's difference as a share of
    the other's. A seed does not change how long a step takes, so no interval is made over them:
    all repetitions must agree."""
    low, high = min(shares), max(shares)
    if within is not None:
        outside, supported = low > within or high < -within, -within <= low and high <= within
    else:
        outside, supported = low > 0, high < 0
    if supported:
        return Outcome(Verdict.SUPPORTED)
    return Outcome(Verdict.NOT_SUPPORTED if outside else Verdict.WITHIN_NOISE)
