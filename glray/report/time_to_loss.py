"""Time to target loss: the target is the final loss of the longest fixed-length arm."""

from statistics import fmean

from glray.report.comparison import ArmScore, Comparison, share_targets
from glray.report.formats import seconds_text
from glray.run.records import Evaluation
from glray.run.run import Run
from glray.run.statistics import mean_interval


def seconds_to_loss(run: Run, seq_len: int, loss: float) -> float | None:
    """Training seconds until the held-out loss at ``seq_len`` first is ``loss`` or less, between
    two evaluations on the straight line between them; None if it never is.

    The seconds are calibrated ones where the run has them, else measured. A loss that the first
    evaluation is already below was reached by then. Evaluations on other targets than the last's do
    not count.
    """
    before: tuple[float, float] | None = None
    for evaluation in run.evaluations:
        score = evaluation.at(seq_len)
        if score is None or evaluation.targets_sha256 != run.evaluations[-1].targets_sha256:
            continue
        seconds = _clock(evaluation)
        if score.loss <= loss:
            if before is None:
                return seconds
            earlier, higher = before
            return earlier + (seconds - earlier) * (higher - loss) / (higher - score.loss)
        before = (seconds, score.loss)
    return None


def time_to_loss(comparison: Comparison) -> list[str]:
    """A sentence for each arm, against the arm fixed at the longest length: where runs were scored
    between their stage boundaries (``evaluation.every_tokens``), as boundaries alone say too
    little."""
    base = comparison.longest_fixed
    if base is None or not share_targets(comparison.runs):
        return []
    return [
        _sentence(score, base, comparison.seq_len)
        for score in comparison.scores
        if score is not base
        and all(len(run.evaluations) > len(run.plan.stages) for run in score.runs)
    ]


def _sentence(score: ArmScore, base: ArmScore, seq_len: int) -> str:
    """The mean over seeds of how long the arm takes, as a share of the base's whole time."""
    taken = [
        (seconds_to_loss(run, seq_len, theirs), _clock(against.evaluations[-1]))
        for run, against, theirs in zip(score.runs, base.runs, base.seed_losses, strict=True)
    ]
    reached = [(own, whole) for own, whole in taken if own is not None]
    goal = f"{base.label}'s final loss at {seq_len:,} tokens"
    if len(reached) < len(taken):
        of_seeds = f" under {len(taken) - len(reached)} of {len(taken)} seeds"
        return f"{score.label} does not reach {goal}{of_seeds if len(taken) > 1 else ''}."
    shares = [own / whole for own, whole in reached]
    share, half = mean_interval(shares)
    over_seeds = f" ± {half:.0%}, 95% over {len(shares)} seeds" if half is not None else ""
    seconds, whole = map(fmean, zip(*reached, strict=True))
    return (
        f"{score.label} reaches {goal} in {share:.0%} of {base.label}'s training time{over_seeds} "
        f"({seconds_text(seconds)} of {seconds_text(whole)} s)."
    )


def _clock(evaluation: Evaluation) -> float:
    calibrated = evaluation.calibrated_seconds
    return evaluation.measured_seconds if calibrated is None else calibrated
