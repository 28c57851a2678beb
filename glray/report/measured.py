"""What a claim compares of the runs' records: losses by seed and document, on the same targets."""

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from glray.report.arms import Arm, latest_loss
from glray.report.far_context import far_contexts, far_losses
from glray.report.long_losses import LongLosses, long_record
from glray.run.run import Run
from glray.run.statistics import Part
from glray.spec.comparison import ClaimSpec


@dataclass(frozen=True)
class Losses:
    """One arm's losses by seed and document."""

    values: np.ndarray
    """float64[seeds, documents], nats per token."""
    document_tokens: np.ndarray
    """int64[documents]."""
    targets: tuple[object, ...]
    """Names what was scored: losses compare only on the same."""

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float((self.values.mean(axis=0) * self.document_tokens).sum()) / float(
            self.document_tokens.sum()
        )


def measured(claim: ClaimSpec, arm: Arm, long_losses: LongLosses) -> Losses | None:
    """What the claim compares of one arm; None if a run lacks it, is unfinished or has diverged."""
    if not all(run.is_finished for run in arm.runs):
        return None
    found = _found(claim, arm, long_losses)
    return found if found is not None and np.isfinite(found.values).all() else None


def _found(claim: ClaimSpec, arm: Arm, long_losses: LongLosses) -> Losses | None:
    if claim.measure == "jump":
        jumps = [[b.jump.jump if b.jump else math.nan for b in run.boundaries] for run in arm.runs]
        if not all(jumps):
            return None
        highest = [[np.max(each)] for each in jumps]  # one that is NaN makes all NaN
        return Losses(np.array(highest), np.array([1]), ())
    if claim.measure == "long_loss":
        assert claim.at is not None, "the spec has checked it"
        return _long(arm, claim.at, long_losses)
    if claim.at is None:
        contexts = far_contexts(arm)
        if not contexts:
            return None
        last = arm.runs[0].evaluations[-1]
        tokens = contexts[0].document_tokens
        scored = (last.targets_sha256, contexts[0].tokens_before)
        return Losses(far_losses(contexts, -1), tokens, scored)
    return heldout(arm, claim.at)


def heldout(arm: Arm, seq_len: int) -> Losses | None:
    """The arm's latest losses in whole windows of one length; None if a run lacks it."""
    scores = [latest_loss(run, seq_len) for run in arm.runs]
    found = [score.document_losses for score in scores if score is not None]
    if len(found) < len(scores):
        return None
    last = arm.runs[0].evaluations[-1]
    return Losses(np.array(found), last.document_tokens, (last.targets_sha256,))


def _long(arm: Arm, seq_len: int, long_losses: LongLosses) -> Losses | None:
    records = [long_record(long_losses, run, seq_len) for run in arm.runs]
    found = [record for record in records if record is not None]
    if len(found) < len(records):
        return None
    whole: dict[str, Any] = dict(long_losses[arm.runs[0].directory, "whole"])
    values = np.array([record["document_losses"] for record in found], dtype=np.float64)
    return Losses(values, np.array(whole["document_tokens"]), (whole["targets_sha256"],))


def clock_part(ours: Arm, theirs: Arm) -> Part | None:
    """What the calibration's own spread does to the difference of two losses at equal time: how far
    the arms' tokens would have moved apart, times what a token is worth. None where the budget is
    in tokens, the calibration was not repeated, or no fixed arm of the two was scored on the way.
    """
    logs = [_log_tokens(arm.runs[0]) for arm in (ours, theirs)]
    slopes = [slope for arm in (theirs, ours) if (slope := _slope(arm)) is not None]
    first, second = logs
    if first is None or second is None or len(first) != len(second) or not slopes:
        return None
    apart = first - second
    error = slopes[0] * float(apart.std(ddof=1)) / len(apart) ** 0.5
    return Part(error, len(apart))


def _log_tokens(run: Run) -> np.ndarray | None:
    """float64[calibrations]: the logarithm of the tokens that each calibration would have given,
    but for a constant."""
    calibration = run.calibration
    if run.plan.budget_microseconds is None or calibration is None:
        return None
    repeated = calibration.repetitions
    steps = {stage.seq_len: stage.num_steps for stage in run.plan.stages}
    if len(repeated) < 2 or not all(steps.keys() <= costs.keys() for costs in repeated):
        return None
    total = sum(steps.values())
    return np.array(
        [
            -sum(count / total * math.log(costs[n]) for n, count in steps.items())
            for costs in repeated
        ]
    )


def _slope(arm: Arm) -> float | None:
    """Nats that a fixed arm's loss falls for each factor e of tokens, by the half of the run before
    its end; more than its budget is worth, as the rate decays there. None without an evaluation
    near the half."""
    if len(arm.seq_lens) != 1:
        return None
    slopes = []
    for run in arm.runs:
        last, seq_len = run.evaluations[-1], run.longest_seq_len
        before = [scored for scored in run.evaluations[:-1] if scored.tokens <= 0.75 * last.tokens]
        half = min(before, key=lambda e: abs(e.tokens - last.tokens / 2), default=None)
        then, now = half.at(seq_len) if half else None, last.at(seq_len)
        if half is None or then is None or now is None:
            return None
        slopes.append(max(0.0, then.loss - now.loss) / math.log(last.tokens / half.tokens))
    return fmean(slopes)
