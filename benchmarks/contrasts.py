"""The analysis of the study (``benchmarks/study.py``): pure functions of the losses.

Contrasts are paired by seed: Student's t over seeds, adjusted by Holm, with an exact test that
assumes nothing of their distribution beside it, and the interval over seeds and documents. What an
arm is worth is read off the budget curve of the full length: how many of its tokens come to the
arm's loss, and whether the arm takes less time for it where steps at full length cost more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from glray.report.outcome import SIGNIFICANT, Outcome, Verdict, adjusted, judge_difference
from glray.run.statistics import Estimate, Part, crossed

Points = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Contrast:
    """One arm's loss less another's, paired by seed and document."""

    arm: str
    against: str
    differences: np.ndarray
    """float64[seeds, documents], nats per token."""
    document_tokens: np.ndarray
    """int64[documents]."""
    margin: float
    """Nats per token within which the two count as the same."""
    outcome: Outcome

    @cached_property
    def by_seed(self) -> np.ndarray:
        """float64[seeds]: each seed's difference, documents weighted by their tokens."""
        return self.differences @ (self.document_tokens / self.document_tokens.sum())

    @cached_property
    def over_seeds(self) -> Estimate:
        """The mean, and how sure it is by the seeds alone: what the verdict stands on."""
        return over_seeds(self.by_seed)

    @cached_property
    def over_documents(self) -> Estimate:
        """The same where the documents are a sample too."""
        return crossed(self.differences, self.document_tokens)

    @property
    def p_flips(self) -> float:
        """Two-sided p value of the exact sign-flip test."""
        return sign_flip_p(self.by_seed)

    @property
    def p_same(self) -> float:
        """p value of two one-sided tests that the two differ by less than the margin (Schuirmann
        1987): below 0.05 the 90% interval lies within ± the margin. Not adjusted."""
        estimate = self.over_seeds
        return max(estimate.p_below(self.margin), estimate.p_above(-self.margin))

    @property
    def is_same(self) -> bool:
        """Whether the two are the same within the margin."""
        return self.p_same < SIGNIFICANT

    @property
    def verdict(self) -> Verdict:
        """Of the claim that the arm's loss is lower."""
        found = self.outcome.verdict
        if found is Verdict.WITHIN_NOISE and not self.is_same:
            wide = self.over_seeds.half > self.margin
            return Verdict.UNDERPOWERED if wide else found
        return found


def contrasts(
    losses: Mapping[str, np.ndarray],
    document_tokens: np.ndarray,
    pairs: Sequence[tuple[str, str]],
    margin: float,
) -> list[Contrast]:
    """The contrasts of a family of arms' losses, float64[seeds, documents] each, adjusted for
    all. There must be two seeds at least."""
    found = [
        Contrast(
            arm,
            against,
            losses[arm] - losses[against],
            document_tokens,
            margin,
            Outcome(Verdict.INCONCLUSIVE),
        )
        for arm, against in pairs
    ]
    outcomes = adjusted([(n, judge_difference(each.over_seeds)) for n, each in enumerate(found)])
    return [replace(each, outcome=outcomes[n]) for n, each in enumerate(found)]


def over_seeds(values: np.ndarray) -> Estimate:
    """The mean of one value a seed, with its error by Student's t."""
    count = len(values)
    error = float(values.std(ddof=1)) / count**0.5
    return Estimate(float(values.mean()), {"seeds": Part(error, count, count - 1)})


def sign_flip_p(differences: np.ndarray) -> float:
    """The share of all choices of signs under which the differences sum to at least as much, in
    either direction (Fisher 1935, section 21): exact if each is as likely with the other sign. Of 8
    it is 2/256 or more."""
    signs = 1 - 2 * (np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1)
    sums = np.abs(signs @ differences)
    seen = abs(differences.sum())
    return float((sums >= seen - 1e-12 * max(seen, 1.0)).mean())


@dataclass(frozen=True)
class BudgetCurve:
    """Loss by budget of one arm: straight between its points over the logarithm of the tokens, and
    beyond the first and the last as between the nearest two."""

    tokens: Sequence[float]
    """Ascending; two at least."""
    losses: Sequence[float]
    """Nats per token."""

    @property
    def falls(self) -> bool:
        """Whether each point is below the one before: then a loss has one budget."""
        return all(after < before for before, after in pairwise(self.losses))

    def loss_at(self, tokens: float) -> float:
        """Nats per token on a budget."""
        logs = np.log(self.tokens)
        piece = int(np.clip(np.searchsorted(logs, math.log(tokens)), 1, len(logs) - 1))
        return self._line(piece, logs, self.losses, math.log(tokens))

    def tokens_to(self, loss: float) -> float:
        """The budget that comes to a loss; NaN unless the curve falls throughout."""
        if not self.falls:
            return math.nan
        piece = int(
            np.clip(np.searchsorted(-np.array(self.losses), -loss), 1, len(self.losses) - 1)
        )
        return math.exp(self._line(piece, self.losses, np.log(self.tokens), loss))

    @staticmethod
    def _line(piece: int, xs: Points, ys: Points, x: float) -> float:
        """On the straight line through the points before and at ``piece``."""
        left, right = xs[piece - 1], xs[piece]
        return float(ys[piece - 1] + (ys[piece] - ys[piece - 1]) * (x - left) / (right - left))


@dataclass(frozen=True)
class Costs:
    """What a token costs by the length of its window, as a share of one at the shortest: a straight
    line to ``ratio`` at the full length, as attention's cost is in the length."""

    short: int
    full: int
    ratio: float
    """A token's cost at full length over that at the shortest."""

    def of(self, seq_len: int) -> float:
        """Of a token in windows of a length."""
        return 1 + (self.ratio - 1) * (seq_len - self.short) / (self.full - self.short)

    def time(self, tokens_by_seq_len: Mapping[int, float]) -> float:
        """Of a whole run, in tokens at the shortest length."""
        return sum(tokens * self.of(seq_len) for seq_len, tokens in tokens_by_seq_len.items())


@dataclass(frozen=True)
class Worth:
    """What an arm is worth in budgets of the full length."""

    arm: str
    tokens: Mapping[int, float]
    """Tokens that it trains at each length."""
    full_tokens: float
    """Tokens of the full length's whole run."""
    budgets: np.ndarray
    """float64[seeds]: how many of its own tokens the full length needs for the arm's loss."""

    @property
    def is_extended(self) -> bool:
        """Whether one of them is above the full length's whole run, beyond what was trained."""
        return bool((self.budgets > self.full_tokens).any())

    @cached_property
    def log_share(self) -> Estimate:
        """The logarithm of these as shares of its whole run, over seeds."""
        return over_seeds(np.log(self.budgets / self.full_tokens))

    def multiplier(self, costs: Costs) -> tuple[float, float, float]:
        """How many times its own time the full length needs for the arm's loss: the estimate and
        the ends of its 95% interval over seeds. Above 1 the arm pays."""
        whole = costs.time({costs.full: self.full_tokens})
        time = costs.time(self.tokens) / whole
        low, mean, high = self._shares
        return mean / time, low / time, high / time

    def break_even(self, short: int, full: int) -> tuple[float, float, float]:
        """The cost ratio from which on the arm pays, and the ends of its interval: below 1 it pays
        where all steps cost the same, infinite if it never does."""
        all_tokens = sum(self.tokens.values()) / self.full_tokens
        dearer = Costs(short, full, 2.0).time(self.tokens) / self.full_tokens - all_tokens

        def at(share: float) -> float:
            return (all_tokens - dearer) / (share - dearer) if share > dearer else math.inf

        low, mean, high = map(at, self._shares)
        return mean, high, low

    @property
    def _shares(self) -> tuple[float, float, float]:
        found = self.log_share
        return math.exp(found.low), math.exp(found.mean), math.exp(found.high)
