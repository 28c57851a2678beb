"""The trials of a search: schedules as runs of one pipeline, ranked by held-out loss.

A trial is one run of an arm, so everything is read from the runs. Trials have one seed: only the
noise of the held-out documents is known, and differences are paired by document.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from statistics import median

from glray.errors import UserError
from glray.report.arms import eval_seq_lens, latest_loss
from glray.report.comparison import share_targets
from glray.report.headline import seconds_to_loss
from glray.run.records import LengthLoss
from glray.run.run import Run
from glray.run.statistics import Estimate, crossed, holm

MAX_P = 0.05
"""Largest p value, adjusted for the number of trials, at which one counts as worse than the
best."""


FAR = 4.0
"""Losses more than this many times as far above the lowest as the median is are far off, for
example under a rate that was hardly stable. Plots end before them, and surfaces leave them out."""

UNRANKED = ("diverged", "stopped", "unfinished")
"""Why a trial may have no loss."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One schedule and its run."""

    run: Run
    seq_len: int
    """Window length in tokens of the loss that it is ranked by."""

    @property
    def name(self) -> str:
        """Its arm's: ``128x15-256x25-1024x60``."""
        return self.run.arm

    @property
    def seq_lens(self) -> tuple[int, ...]:
        """Length of each stage in tokens, without those of a parent, which all trials have."""
        return tuple(stage.seq_len for stage in self.run.plan.own_stages)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Share of the budget of each stage, 0 to 1, as declared."""
        ratios = [stage.ratio for stage in self.run.spec.arms[0].stages]
        return tuple(ratio / sum(ratios) for ratio in ratios)

    @property
    def boundaries(self) -> tuple[float, ...]:
        """Where in the budget each stage but the last ends, 0 to 1."""
        return tuple(round(end, 9) for end in accumulate(self.shares[:-1]))

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.run.optimizer.lr

    @property
    def measured_seconds(self) -> float:
        """Training seconds measured over its whole path, without the parent's."""
        parents = self.run.log.measured_seconds[: self.run.plan.first_step]
        return self.run.measured_seconds - (float(parents[-1]) if len(parents) else 0.0)

    @cached_property
    def scored(self) -> LengthLoss | None:
        """Its loss at the end; None if it has diverged, was stopped or is unfinished.

        Raises UserError if it was not scored at the length that ranks trials.
        """
        if not self.run.is_finished or self.run.divergence:
            return None
        score = latest_loss(self.run, self.seq_len)
        if score is None:
            raise UserError(
                f"{self.run.evaluation_path(self.run.plan.num_steps)}: not scored at "
                f"{self.seq_len:,} tokens, so the trial cannot be ranked; delete it, and the same "
                "command scores again"
            )
        return score if math.isfinite(score.loss) else None

    @property
    def loss(self) -> float:
        """Held-out loss at the end, nats per token; NaN where there is none."""
        return self.scored.loss if self.scored else math.nan

    def loss_at(self, seq_len: int) -> float:
        """The same at another length, NaN if it was not scored there."""
        score = latest_loss(self.run, seq_len) if self.scored else None
        return score.loss if score else math.nan

    @property
    def unranked(self) -> str:
        """Why it has no loss: one of ``UNRANKED``; empty if it has one."""
        if self.scored:
            return ""
        diverged, stopped, unfinished = UNRANKED
        if self.run.divergence or self.run.is_finished:  # with a loss that is not a number
            return diverged
        return stopped if self.run.stopped else unfinished


@dataclass(frozen=True)
class Cost:
    """Seconds that a search took."""

    path_seconds: float
    """Measured training seconds of all trials, each over its whole path, without a parent's."""
    shared_seconds: float
    """Seconds of these that another trial had already trained, so that they were not spent
    again."""
    wall_seconds: float | None = None
    """From the command to the end of the search, before its best are confirmed; None if not
    known."""
    at_once: int = 1
    """Trials that were trained at the same time."""

    @property
    def trained_seconds(self) -> float:
        """Seconds that were really trained."""
        return self.path_seconds - self.shared_seconds

    @property
    def other_seconds(self) -> float | None:
        """Seconds of all groups that were not training: start-up, calibration, evaluation,
        checkpoints, waiting. None if the wall clock is not known or does not cover all training."""
        if self.wall_seconds is None or self.wall_seconds * self.at_once < self.trained_seconds:
            return None
        return self.wall_seconds * self.at_once - self.trained_seconds


@dataclass(frozen=True, eq=False)
class Trials:
    """All trials of a search that have begun, under one seed each."""

    ranked: tuple[Trial, ...]
    """By loss, then by name; those without a loss last."""
    seq_len: int
    """Window length in tokens of the losses that rank them."""
    baselines: frozenset[str]
    """Names of the trials that every search has."""

    @classmethod
    def of(cls, runs: Sequence[Run], seq_len: int, baselines: Collection[str] = ()) -> "Trials":
        """Those of a pipeline's runs. Raises UserError if they cannot be ranked."""
        assert len({run.arm for run in runs}) == len(runs), "a trial is one run"
        trials = [Trial(run, seq_len) for run in runs]
        scored = [trial.run for trial in trials if trial.scored]
        if scored and not share_targets(scored):
            raise UserError(
                f"{scored[0].directory.parent}: its {len(scored)} finished runs are not scored on "
                "the same held-out targets, so they cannot be ranked; delete their last "
                "evaluations, and the same command scores again"
            )
        return cls(tuple(sorted(trials, key=_place)), seq_len, frozenset(baselines))

    @cached_property
    def scored(self) -> tuple[Trial, ...]:
        """Those with a loss, best first."""
        return tuple(trial for trial in self.ranked if trial.scored)

    @property
    def unranked(self) -> tuple[Trial, ...]:
        """Those without."""
        return self.ranked[len(self.scored) :]

    @property
    def best(self) -> Trial | None:
        """The one with the lowest loss; None if none has a loss."""
        return self.scored[0] if self.scored else None

    @cached_property
    def gaps(self) -> dict[str, Estimate]:
        """By name: how far each loss is above the best's, in nats per token, paired by document."""
        return {trial.name: _difference(trial, self.scored[0]) for trial in self.scored}

    @cached_property
    def within_noise(self) -> frozenset[str]:
        """Names of the trials that the noise of the documents does not tell apart from the best,
        without the best itself."""
        others = [trial.name for trial in self.scored[1:]]
        p_values = holm([min(1.0, 2 * self.gaps[name].p_above(0.0)) for name in others])
        return frozenset(name for name, p in zip(others, p_values, strict=True) if p > MAX_P)

    @cached_property
    def fixed(self) -> Trial | None:
        """The best one of the longest length throughout."""
        return next((trial for trial in self.scored if self.is_fixed(trial)), None)

    def is_fixed(self, trial: Trial) -> bool:
        """Whether a trial has the longest length throughout: the longest that any has."""
        longest = max((t.seq_lens for t in self.ranked if len(t.seq_lens) == 1), default=None)
        return trial.seq_lens == longest

    @property
    def equal(self) -> Trial | None:
        """The best baseline of equal shares."""
        baselines = (trial for trial in self.scored if trial.name in self.baselines)
        return next((trial for trial in baselines if len(trial.seq_lens) > 1), None)

    @property
    def far_loss(self) -> float:
        """Losses above are far off."""
        return far_limit([trial.loss for trial in self.scored])

    # ---- short against long

    @cached_property
    def short_seq_len(self) -> int | None:
        """The shortest window length at which all are scored; None if none is shorter than the one
        that ranks them."""
        lengths = [
            length
            for length in eval_seq_lens([trial.run for trial in self.scored])
            if length < self.seq_len
            and all(math.isfinite(trial.loss_at(length)) for trial in self.scored)
        ]
        return min(lengths, default=None)

    @cached_property
    def front(self) -> tuple[Trial, ...]:
        """The Pareto front, best at the ranked length first: no other trial is at least as low both
        there and at the short length, and lower at one of them."""
        if self.short_seq_len is None:
            return ()
        front: list[Trial] = []
        lowest = math.inf
        short = self.short_seq_len
        for trial in sorted(self.scored, key=lambda t: (t.loss, t.loss_at(short), t.name)):
            if trial.loss_at(short) < lowest:
                lowest = trial.loss_at(short)
                front.append(trial)
        return tuple(front)

    # ---- seconds to a target loss

    @property
    def have_curves(self) -> bool:
        """Whether all were scored between their stage boundaries: scores at boundaries alone say
        too little about when a loss was reached."""
        return all(t.run.is_scored_between for t in self.scored)

    @cached_property
    def seconds_to_target(self) -> dict[str, float | None]:
        """By name: seconds until the final loss of ``fixed`` was reached, None if it never was; no
        entry for that one, and none at all without curves."""
        if self.fixed is None or not self.have_curves:
            return {}
        return {
            trial.name: seconds_to_loss(trial.run, self.seq_len, self.fixed.loss)
            for trial in self.scored
            if trial is not self.fixed
        }

    def cost(self, wall_seconds: float | None = None, at_once: int = 1) -> Cost:
        """What they took; ``wall_seconds`` are of all calls together, as is ``at_once``, the number
        of trials that were trained at the same time."""
        forks = [trial.run.manifest.fork for trial in self.ranked if trial.run.steps_done]
        return Cost(
            sum(trial.measured_seconds for trial in self.ranked),
            sum(fork.measured_seconds for fork in forks if fork),
            wall_seconds,
            at_once,
        )


def far_limit(losses: Sequence[float]) -> float:
    """The highest loss, or ``FAR`` times as far above the lowest as the median is, if that is
    lower."""
    lowest, highest = min(losses), max(losses)
    away = FAR * (median(losses) - lowest)
    return min(highest, lowest + away) if away > 0 else highest


def _place(trial: Trial) -> tuple[float, str]:
    return trial.loss if trial.scored else math.inf, trial.name


def _difference(trial: Trial, other: Trial) -> Estimate:
    """The loss of one minus another's. One run of each says nothing about other seeds."""
    assert trial.scored is not None
    assert other.scored is not None
    losses = trial.scored.document_losses - other.scored.document_losses
    return crossed(losses[None], trial.run.evaluations[-1].document_tokens)
