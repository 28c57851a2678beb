"""Verdicts on claims, computed from the runs' records: paired by seed, with a 95% interval.

A verdict takes three seeds. Where losses compare it also takes a baseline that uses its context:
the longest fixed-length arm among the compared arms of ``against``'s pipeline, or the claim's own
arm if there is none. It must have lower loss in windows of its own length than in the shortest
evaluated ones; otherwise the verdict is INCONCLUSIVE.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

import numpy as np

from glray.report.arms import Arm, by_arm, eval_seq_lens, latest_loss, longest_trained
from glray.report.comparison import share_targets
from glray.report.formats import seconds_text
from glray.report.long_losses import LongLosses, long_loss, share_long_targets
from glray.run.run import Run
from glray.run.statistics import SEEDS_FOR_A_VERDICT, mean_interval
from glray.spec.comparison import ClaimSpec


class Verdict(StrEnum):
    """The outcome of a claim."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    WITHIN_NOISE = "within noise"
    INCONCLUSIVE = "inconclusive"


def verdict_of(difference: float, half: float, within: float | None = None) -> Verdict:
    """Whether an arm is lower than another by where the interval of their ``difference``, ±
    ``half``, lies: below 0. With ``within``, whether both are the same: inside ± that."""
    low, high = difference - half, difference + half
    if within is not None:
        if -within <= low and high <= within:
            return Verdict.SUPPORTED
        outside = low > within or high < -within
        return Verdict.NOT_SUPPORTED if outside else Verdict.WITHIN_NOISE
    if high < 0:
        return Verdict.SUPPORTED
    return Verdict.NOT_SUPPORTED if low > 0 else Verdict.WITHIN_NOISE


@dataclass(frozen=True)
class Judgement:
    """A claim, its verdict and the numbers behind it."""

    claim: ClaimSpec
    verdict: Verdict
    reason: str
    """Why it is inconclusive; empty with any other verdict."""
    at: int | None
    """Window length of the losses, in tokens."""
    means: tuple[float, float]
    """Of the arm and of what it is measured against, over seeds: nats, or seconds; NaN where a
    run lacks it."""
    difference: float
    """The arm's less the other's, mean over seeds: nats, or a share of the other's seconds."""
    half: float | None
    """Half of its 95% interval over seeds; None for one seed."""
    num_seeds: int

    @property
    def sentence(self) -> str:
        """The claim, its verdict and the numbers."""
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.claim.says}: {self.verdict.upper()}{why}. {self._numbers()}".rstrip()

    def record(self) -> dict[str, object]:
        """Plain values for JSON."""
        numbers = {**vars(self), "sentence": self.sentence}
        del numbers["claim"]
        return self.claim.model_dump(mode="json") | numbers

    def _numbers(self) -> str:
        if math.isnan(self.difference):
            return ""
        claim, form = self.claim, "+.3f"
        if claim.measure == "seconds":
            form, unit = "+.1%", "measured"
            ours, theirs = (f"{seconds_text(seconds)} s" for seconds in self.means)
        elif claim.measure == "jump":
            unit = "nats at a stage boundary"
            ours, theirs = (f"{jump:+.3f}" for jump in self.means)
        else:
            unit = f"nats at {self.at:,} tokens"
            ours, theirs = (f"{loss:.3f}" for loss in self.means)
        text = f"{claim.arm} {ours}, {claim.against} {theirs} {unit}: {self.difference:{form}}"
        if self.half is None:
            return f"{text}."
        low, high = self.difference - self.half, self.difference + self.half
        interval = f"{low:{form}} to {high:{form}}"
        return f"{text} (95% over {self.num_seeds} seeds, paired: {interval})."


def judge(
    claims: Sequence[ClaimSpec], runs: Sequence[Run], long_losses: LongLosses
) -> list[Judgement]:
    """A judgement of each claim; each arm's runs are in the order of the seeds."""
    arms = {arm.label: arm for arm in by_arm(runs)}
    longest = longest_trained(runs)
    return [_judged(claim, arms, long_losses, claim.at or longest) for claim in claims]


def _judged(
    claim: ClaimSpec, arms: Mapping[str, Arm], long_losses: LongLosses, seq_len: int
) -> Judgement:
    measured = {
        label: [_measured(claim, run, seq_len, long_losses) for run in arms[label].runs]
        for label in (claim.arm, claim.against)
    }
    ours, theirs = measured.values()
    scale = theirs if claim.measure == "seconds" else [1.0] * len(theirs)
    difference, half = mean_interval(
        [(own - other) / by for own, other, by in zip(ours, theirs, scale, strict=True)]
    )
    missing = [label for label, values in measured.items() if not all(map(math.isfinite, values))]
    reason = (
        f"unfinished, not scored or diverged: {' and '.join(missing)}"
        if missing
        else _why_not(claim, arms, long_losses)
    )
    verdict = Verdict.INCONCLUSIVE if reason else verdict_of(difference, half or 0.0, claim.within)
    at = None if claim.measure in ("seconds", "jump") else seq_len
    means = (fmean(ours), fmean(theirs))
    return Judgement(claim, verdict, reason, at, means, difference, half, len(ours))


def _measured(claim: ClaimSpec, run: Run, seq_len: int, long_losses: LongLosses) -> float:
    """What the claim compares of one run; NaN if it is not there."""
    if not run.is_finished:
        return math.nan
    if claim.measure == "seconds":
        return run.measured_seconds
    if claim.measure == "jump":
        jumps = [boundary.jump.jump if boundary.jump else math.nan for boundary in run.boundaries]
        return float(np.max(jumps)) if jumps else math.nan  # one that is NaN makes all NaN
    if claim.measure == "long_loss":
        return long_loss(long_losses, run, seq_len)
    return _heldout(run, seq_len)


def _heldout(run: Run, seq_len: int) -> float:
    score = latest_loss(run, seq_len)
    return math.nan if score is None else score.loss


def _why_not(claim: ClaimSpec, arms: Mapping[str, Arm], long_losses: LongLosses) -> str:
    """Why no verdict can be given; empty if one can."""
    compared = [*arms[claim.arm].runs, *arms[claim.against].runs]
    seeds = len(arms[claim.arm].runs)
    if seeds < SEEDS_FOR_A_VERDICT:
        return f"a verdict takes {SEEDS_FOR_A_VERDICT} seeds, here {seeds}"
    if claim.measure in ("seconds", "jump"):
        return ""
    if claim.measure == "loss" and not share_targets(compared):
        return "they are not scored on the same held-out targets"
    if claim.measure == "long_loss" and not share_long_targets(compared, long_losses):
        return "they are not scored on the same tokens of the long documents"
    return _unused_context(_baseline(claim, arms))


def _baseline(claim: ClaimSpec, arms: Mapping[str, Arm]) -> Arm:
    """The longest fixed length among the compared arms of ``against``'s pipeline; where none is
    longer than the shortest length scored, the claim's own arm."""
    directory = arms[claim.against].runs[0].directory.parent
    fixed = [
        arm
        for arm in arms.values()
        if arm.runs[0].directory.parent == directory
        and len(arm.seq_lens) == 1
        and arm.seq_lens[0] > _shortest(arm)
    ]
    return max(fixed, key=lambda arm: arm.seq_lens, default=arms[claim.arm])


def _unused_context(arm: Arm) -> str:
    """What is wrong if an arm scores no better in windows of its own length than in the shortest;
    empty if it does."""
    longest, shortest = max(arm.seq_lens), _shortest(arm)
    if longest == shortest:
        return f"{arm.label} is scored at no length but its own, {longest:,}"
    gain, half = mean_interval(
        [_heldout(run, shortest) - _heldout(run, longest) for run in arm.runs]
    )
    if not math.isfinite(gain):
        return (
            f"{arm.label}, the baseline, is not scored at {shortest:,} and {longest:,}, or diverged"
        )
    if half is not None and verdict_of(-gain, half) is Verdict.SUPPORTED:
        return ""
    return (
        f"at this scale {arm.label} does not use its context: its loss at {longest:,} tokens is "
        f"{gain:.3f} ± {half or 0.0:.3f} below that at {shortest:,}"
    )


def _shortest(arm: Arm) -> int:
    """The shortest window length that the arm is scored at."""
    return min(eval_seq_lens(arm.runs), default=max(arm.seq_lens))
