"""The best schedules of a search, trained again on fresh seeds: what is left of their lead."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from glray.report.comparison import (
    ArmScore,
    compare,
    paired_difference,
    share_targets,
)
from glray.report.formats import counted
from glray.report.trials import Trial, Trials
from glray.run.run import Run
from glray.run.statistics import Estimate


@dataclass(frozen=True, eq=False)
class Confirmed:
    """One schedule under fresh seeds."""

    trial: Trial
    """Its trial in the search."""
    score: ArmScore
    against_fixed: Estimate | None
    """Its loss less that of the longest length throughout at its best rate, paired by seed and
    document; None for that one, and if it was not trained again."""

    @property
    def name(self) -> str:
        """The trial's name."""
        return self.trial.name

    @property
    def lost(self) -> float:
        """How far its loss on fresh seeds is above the search's, in nats per token."""
        return self.score.loss - self.trial.loss


@dataclass(frozen=True, eq=False)
class Confirmation:
    """All schedules that were trained again, the best on fresh seeds first."""

    schedules: tuple[Confirmed, ...]
    baselines: frozenset[str]
    without: tuple[str, ...] = ()
    """Fresh runs without a loss, each with the reason; their seeds are left out in all arms."""

    @classmethod
    def of(cls, trials: Trials, runs: Sequence[Run]) -> "Confirmation | None":
        """Of the runs under fresh seeds, whose arms have the names of their trials; None if none of
        them compares with a trial."""
        searched = {trial.name: trial for trial in trials.scored}
        scores = [
            score
            for score in compare(runs)
            if score.seq_len == trials.seq_len and score.runs[0].arm in searched
        ]
        compared = [run for score in scores for run in score.runs]
        if not scores or not share_targets([*compared, trials.scored[0].run]):
            return None
        fixed = min(
            (score for score in scores if trials.is_fixed(searched[score.runs[0].arm])),
            key=lambda score: score.loss,
            default=None,
        )
        schedules = [
            Confirmed(
                searched[score.runs[0].arm],
                score,
                None if fixed in (None, score) else paired_difference(score, fixed),
            )
            for score in scores
        ]
        ordered = sorted(schedules, key=lambda each: (each.score.loss, each.name))
        without = [
            f"{run.name} {'diverged' if run.divergence else 'is unfinished'}"
            for run in runs
            if not run.is_finished
        ]
        return cls(tuple(ordered), trials.baselines, tuple(without))

    @property
    def num_seeds(self) -> int:
        """Fresh seeds of each schedule."""
        return len(self.schedules[0].score.runs)

    @property
    def curse(self) -> str:
        """The winner's curse: how much the loss of the chosen schedules rises on fresh seeds,
        beside that of the baselines."""
        chosen = [each for each in self.schedules if each.name not in self.baselines]
        others = [each for each in self.schedules if each.name in self.baselines]
        if not chosen:
            chosen, others = others, []
        searched = fmean(each.trial.loss for each in chosen)
        confirmed = fmean(each.score.loss for each in chosen)
        subject, its = "the chosen schedule has", "its search score"
        if len(chosen) > 1:
            subject, its = f"the {len(chosen)} chosen schedules have", "their mean search score"
        beside = ""
        if others:
            theirs = "baseline is" if len(others) == 1 else f"{len(others)} baselines are"
            lost = _moved(fmean(each.lost for each in others))
            beside = f"; the {theirs} {lost} {'its' if len(others) == 1 else 'their'} own"
        return (
            f"Winner's curse: on {counted(self.num_seeds, 'fresh seed')} {subject} a mean loss of "
            f"{confirmed:.3f}, {_moved(confirmed - searched)} {its} of {searched:.3f}{beside}."
        )

    @property
    def sentence(self) -> str:
        """How the best on fresh seeds compares with the longest length throughout."""
        best = self.schedules[0]
        seeds = counted(self.num_seeds, "fresh seed")
        text = f"On {seeds} {best.name} is lowest, {best.score.loss:.3f}"
        if (apart := best.against_fixed) is not None:
            over = f" (95% {apart.low:+.3f} to {apart.high:+.3f})" if apart.parts else ""
            paired = "paired by seed and document" if self.num_seeds > 1 else "paired by document"
            text += f": {apart.mean:+z.3f}{over} from the longest length throughout, {paired}"
        elif len(best.trial.seq_lens) == 1:
            text += ", the longest length throughout"
        left_out = f" Left out: {', '.join(self.without)}." if self.without else ""
        return f"{text}.{left_out}"


def _moved(difference: float) -> str:
    """``0.012 above``."""
    return f"{abs(difference):.3f} {'above' if difference >= 0 else 'below'}"
