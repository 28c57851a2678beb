"""Whether a claim held, computed from the runs' records: paired by seed, with a 95% interval.

A verdict takes three seeds and, where losses compare, a baseline that uses its context: it must
score the same targets better in windows of its own length than in the shortest. That is the longest
fixed length among the compared arms of the pipeline that the arm measured against is of; where none
is compared, the claim's own arm. Otherwise the claim cannot be told, whatever the figures look
like.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from glray.report.comparison import share_targets
from glray.report.formats import seconds_text
from glray.report.interval import SEEDS_FOR_A_VERDICT, mean_interval
from glray.report.long_losses import LongLosses, long_loss, share_long_targets
from glray.report.run_record import RunRecord
from glray.spec.comparison import ClaimSpec


class Verdict(StrEnum):
    """What came of a claim."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    WITHIN_NOISE = "within noise"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Judgement:
    """A claim and what the figures say of it."""

    claim: ClaimSpec
    verdict: Verdict
    reason: str
    """Why it cannot be told; empty with any other verdict."""
    at: int | None
    """Window length of the losses, in tokens."""
    figures: tuple[float, float] | None
    """Of the arm and of what it is measured against, means over seeds: nats, or seconds."""
    difference: float | None
    """The arm's less the other's, mean over seeds: nats, or a share of the other's seconds."""
    half: float | None
    """Half of its 95% interval over seeds; None for one seed."""
    num_seeds: int

    @property
    def sentence(self) -> str:
        """The claim, its verdict and the figures."""
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.claim.says}: {self.verdict.upper()}{why}. {self._figures()}".rstrip()

    def record(self) -> dict[str, object]:
        """Plain values for JSON."""
        return self.claim.model_dump(mode="json") | {
            "verdict": self.verdict.value,
            "reason": self.reason,
            "at": self.at,
            "figures": self.figures,
            "difference": self.difference,
            "half_of_95_percent_interval": self.half,
            "num_seeds": self.num_seeds,
            "sentence": self.sentence,
        }

    def _figures(self) -> str:
        if self.figures is None or self.difference is None:
            return ""
        claim, (ours, theirs) = self.claim, self.figures
        if claim.measure == "seconds":
            compared = (
                f"{claim.arm} {seconds_text(ours)} s, {claim.against} {seconds_text(theirs)} s "
                "measured"
            )
            text, unit = f"{self.difference:+.1%}", "%"
        else:
            where = "at a stage boundary" if claim.measure == "jump" else f"at {self.at:,} tokens"
            sign = "+" if claim.measure == "jump" else ""
            compared = (
                f"{claim.arm} {ours:{sign}.3f}, {claim.against} {theirs:{sign}.3f} nats {where}"
            )
            text, unit = f"{self.difference:+.3f}", ""
        if self.half is None:
            return f"{compared}: {text}."
        low, high = self.difference - self.half, self.difference + self.half
        interval = f"{low:+.1%} to {high:+.1%}" if unit else f"{low:+.3f} to {high:+.3f}"
        return f"{compared}: {text} (95% over {self.num_seeds} seeds, paired: {interval})."


def judge(
    claims: Sequence[ClaimSpec],
    arms: Mapping[str, Sequence[RunRecord]],
    long_losses: LongLosses,
) -> list[Judgement]:
    """A judgement of each claim; ``arms`` are the runs by label, in the order of the seeds."""
    longest = max(run.longest_seq_len for runs in arms.values() for run in runs)
    return [_judged(claim, arms, long_losses, claim.at or longest) for claim in claims]


def _judged(
    claim: ClaimSpec,
    arms: Mapping[str, Sequence[RunRecord]],
    long_losses: LongLosses,
    seq_len: int,
) -> Judgement:
    ours, theirs = (
        [_figure(claim, run, seq_len, long_losses) for run in arms[label]]
        for label in (claim.arm, claim.against)
    )
    at = None if claim.measure in ("seconds", "jump") else seq_len
    missing = [
        label
        for label, figures in ((claim.arm, ours), (claim.against, theirs))
        if not all(math.isfinite(figure) for figure in figures)
    ]
    if missing:
        reason = f"{' and '.join(missing)} is unfinished, not scored or diverged"
        return Judgement(claim, Verdict.INCONCLUSIVE, reason, at, None, None, None, len(ours))
    scale = [figure if claim.measure == "seconds" else 1.0 for figure in theirs]
    difference, half = mean_interval(
        [(own - other) / by for own, other, by in zip(ours, theirs, scale, strict=True)]
    )
    reason = _why_not(claim, arms, long_losses, half)
    verdict = Verdict.INCONCLUSIVE if reason else _verdict(claim, difference, half or 0.0)
    figures = (fmean(ours), fmean(theirs))
    return Judgement(claim, verdict, reason, at, figures, difference, half, len(ours))


def _verdict(claim: ClaimSpec, difference: float, half: float) -> Verdict:
    """By where the interval lies."""
    low, high = difference - half, difference + half
    if claim.within is not None:
        if -claim.within <= low and high <= claim.within:
            return Verdict.SUPPORTED
        outside = low > claim.within or high < -claim.within
        return Verdict.NOT_SUPPORTED if outside else Verdict.WITHIN_NOISE
    if high < 0:
        return Verdict.SUPPORTED
    return Verdict.NOT_SUPPORTED if low > 0 else Verdict.WITHIN_NOISE


def _figure(claim: ClaimSpec, run: RunRecord, seq_len: int, long_losses: LongLosses) -> float:
    """What the claim compares of one run; NaN if it is not there."""
    if not run.is_finished:
        return math.nan
    if claim.measure == "seconds":
        return run.measured_seconds
    if claim.measure == "jump":
        jumps = [
            math.nan if boundary.jump is None else boundary.jump.jump for boundary in run.boundaries
        ]
        return math.nan if any(map(math.isnan, jumps)) else max(jumps, default=math.nan)
    if claim.measure == "long_loss":
        return long_loss(long_losses, run, seq_len)
    return _heldout(run, seq_len)


def _heldout(run: RunRecord, seq_len: int) -> float:
    score = run.latest.at(seq_len) if run.latest is not None else None
    return math.nan if score is None else score.loss


def _why_not(
    claim: ClaimSpec,
    arms: Mapping[str, Sequence[RunRecord]],
    long_losses: LongLosses,
    half: float | None,
) -> str:
    """Why no verdict can be given; empty if one can."""
    compared = [*arms[claim.arm], *arms[claim.against]]
    seeds = len(arms[claim.arm])
    if half is None or seeds < SEEDS_FOR_A_VERDICT:
        return f"a verdict takes {SEEDS_FOR_A_VERDICT} seeds, here {seeds}"
    if claim.measure in ("seconds", "jump"):
        return ""
    if claim.measure == "loss" and not share_targets(compared):
        return "they are not scored on the same held-out targets"
    if claim.measure == "long_loss" and not share_long_targets(compared, long_losses):
        return "they are not scored on the same tokens of the long documents"
    return _unused_context(*_baseline(claim, arms))


def _baseline(
    claim: ClaimSpec, arms: Mapping[str, Sequence[RunRecord]]
) -> tuple[str, Sequence[RunRecord]]:
    """The longest fixed length among the compared arms of ``against``'s pipeline; where none is
    longer than the shortest length scored, the claim's own arm."""
    directory = arms[claim.against][0].directory.parent
    fixed = {
        label: runs
        for label, runs in arms.items()
        if runs[0].directory.parent == directory
        and len(runs[0].stages) == 1
        and runs[0].longest_seq_len > _shortest(runs[0])
    }
    if not fixed:
        return claim.arm, arms[claim.arm]
    label = max(fixed, key=lambda name: fixed[name][0].longest_seq_len)
    return label, fixed[label]


def _unused_context(label: str, runs: Sequence[RunRecord]) -> str:
    """What is wrong if these runs score no better in windows of their own length than in the
    shortest; empty if they do."""
    longest, shortest = runs[0].longest_seq_len, _shortest(runs[0])
    if longest == shortest:
        return f"{label} is scored at no length but its own, {longest:,}"
    gain, half = mean_interval([_heldout(run, shortest) - _heldout(run, longest) for run in runs])
    if not math.isfinite(gain):
        return f"{label}, the baseline, is not scored at {shortest:,} and {longest:,}, or diverged"
    if half is not None and gain - half > 0:
        return ""
    return (
        f"at this scale {label} does not use its context: its loss at {longest:,} tokens is "
        f"{gain:.3f} ± {half or 0.0:.3f} below that at {shortest:,}"
    )


def _shortest(run: RunRecord) -> int:
    """The shortest window length that the run was scored at."""
    return run.latest.lengths[0].seq_len if run.latest is not None else run.longest_seq_len
