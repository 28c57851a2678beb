"""What the calibration's own spread adds to the difference of two losses at equal time."""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from glray.errors import UserError
from glray.plan import make_plan
from glray.report.arms import Arm
from glray.run.run import Run
from glray.run.statistics import Part


def calibration_part(ours: Arm, theirs: Arm, arms: Sequence[Arm]) -> Part | None:
    """How far the calibrations would have moved the two arms' tokens apart, times what a token is
    worth to the first fixed one of the ``arms``. None where the calibration was not repeated, one
    repetition gives no plan, or no fixed arm was scored on the way."""
    first, second = (_log_tokens(arm.runs[0]) for arm in (ours, theirs))
    slope = next((slope for arm in arms if (slope := _slope(arm)) is not None), None)
    if first is None or second is None or len(first) != len(second) or slope is None:
        return None
    count = len(first)
    error = slope * float((first - second).std(ddof=1)) / count**0.5
    return Part(error, count, count - 1)


def _log_tokens(run: Run) -> np.ndarray | None:
    """float64[calibrations]: the logarithm of the tokens that the budget comes to by each."""
    repeated = run.calibration.repetitions if run.calibration else ()
    tokens = []
    for costs in repeated:
        spec = run.spec.derive(calibration={"step_microseconds": costs})
        try:
            plan = make_plan(spec, spec.arms[0], run.plan.inherited)
        except UserError:  # it would leave a stage without a step, or lacks a length
            return None
        assert plan is not None, "the spec has a calibration"
        tokens.append(plan.num_tokens)
    return np.log(tokens) if len(tokens) > 1 else None


def _slope(arm: Arm) -> float | None:
    """Nats by which a fixed arm's loss falls for each factor e of tokens, over the last half of its
    run: more than the budget is worth, as the rate decays there. None without an evaluation near
    the half, where the loss does not fall, or a run has not finished."""
    if len(arm.seq_lens) != 1 or arm.unfinished:
        return None
    slopes = []
    for run in arm.runs:
        *earlier, last = run.comparable_evaluations
        seq_len = run.longest_seq_len
        before = [scored for scored in earlier if scored.tokens <= 0.75 * last.tokens]
        half = min(before, key=lambda e: abs(e.tokens - last.tokens / 2), default=None)
        then, now = half.at(seq_len) if half else None, last.at(seq_len)
        if half is None or then is None or now is None:
            return None
        slopes.append((then.loss - now.loss) / math.log(last.tokens / half.tokens))
    slope = fmean(slopes)
    return slope if math.isfinite(slope) and slope > 0 else None
