"""The arms' held-out loss at one length: which arms compare, over which seeds, and how far apart.

Only finished runs compare, at the longest length that any of them was trained on. With several
seeds an arm's loss is the mean over the seeds that every arm has finished.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from glray.report.arms import Arm, by_arm, eval_seq_lens, latest_loss, longest_trained
from glray.run.records import Evaluation
from glray.run.run import Run
from glray.run.statistics import standard_error


@dataclass(frozen=True)
class ArmScore:
    """One arm's held-out loss, in nats per token."""

    label: str
    runs: tuple[Run, ...]
    loss: float
    """Mean over seeds."""
    standard_error: float | None
    """Over documents: the mean of the seeds' errors (all seeds are scored on the same documents,
    so that more seeds do not make it smaller). None for one document."""
    seed_losses: tuple[float, ...]
    document_losses: np.ndarray | None
    """float64[documents]: mean over seeds. None if they were not scored on the same targets."""
    bits_per_byte: float

    @property
    def tokens(self) -> float:
        """Tokens trained, mean over seeds."""
        return fmean([run.tokens for run in self.runs])

    @property
    def measured_seconds(self) -> float:
        """Training seconds measured, mean over seeds."""
        return fmean([run.measured_seconds for run in self.runs])

    @property
    def seq_lens(self) -> list[int]:
        """The lengths of its stages, in their order."""
        return [stage.seq_len for stage in self.runs[0].plan.stages]


@dataclass(frozen=True)
class Comparison:
    """The arms' scores at one window length."""

    seq_len: int
    seeds: tuple[int, ...]
    num_documents: int
    scores: tuple[ArmScore, ...]
    """In the order of the arms."""

    @property
    def runs(self) -> list[Run]:
        """All runs compared."""
        return [run for score in self.scores for run in score.runs]

    @property
    def longest_fixed(self) -> ArmScore | None:
        """The arm of the longest fixed length, which the others are measured against."""
        fixed = [score for score in self.scores if len(score.seq_lens) == 1]
        return max(fixed, key=lambda score: score.seq_lens, default=None)

    @property
    def ranked(self) -> list[ArmScore]:
        """Arms whose loss is a number, lowest first."""
        finite = [score for score in self.scores if math.isfinite(score.loss)]
        return sorted(finite, key=lambda score: score.loss)


def compare(runs: Sequence[Run]) -> Comparison | None:
    """The comparison of the finished runs; None if no seed is finished in every arm that has a
    finished run, or they share no evaluated length."""
    arms = by_arm([run for run in runs if run.is_finished and run.latest is not None])
    if not arms:
        return None
    seeds = set.intersection(*({run.seed for run in arm.runs} for arm in arms))
    compared = [run for arm in arms for run in arm.runs if run.seed in seeds]
    shared = [
        seq_len
        for seq_len in eval_seq_lens(compared)
        if all(latest_loss(run, seq_len) for run in compared)
    ]
    if not shared:
        return None
    within = [seq_len for seq_len in shared if seq_len <= longest_trained(compared)]
    seq_len = max(within) if within else min(shared)
    return Comparison(
        seq_len=seq_len,
        seeds=tuple(sorted(seeds)),
        num_documents=_latest(compared[0]).num_documents,
        scores=tuple(_arm_score(arm, seeds, seq_len) for arm in arms),
    )


def paired_error(first: ArmScore, second: ArmScore) -> float | None:
    """The standard error over documents of the difference of two losses on the same documents.

    What makes a document hard for both cancels. None for one document, or targets that differ.
    """
    tokens = _latest(first.runs[0]).document_tokens
    if first.document_losses is None or second.document_losses is None:
        return None
    return standard_error(tokens, first.document_losses - second.document_losses)


def share_targets(runs: Sequence[Run]) -> bool:
    """Whether all runs' latest evaluations scored the same held-out tokens."""
    return len({_latest(run).targets_sha256 for run in runs}) == 1


def clock_drift(run: Run) -> float:
    """Measured over calibrated training seconds, less 1; 0.0 where nothing is calibrated."""
    calibrated = run.calibrated_seconds
    return run.measured_seconds / calibrated - 1.0 if calibrated else 0.0


def _arm_score(arm: Arm, seeds: set[int], seq_len: int) -> ArmScore:
    runs = tuple(run for run in arm.runs if run.seed in seeds)
    scores = [score for run in runs if (score := latest_loss(run, seq_len))]
    errors = [score.standard_error for score in scores if score.standard_error is not None]
    return ArmScore(
        label=arm.label,
        runs=runs,
        loss=fmean([score.loss for score in scores]),
        standard_error=fmean(errors) if len(errors) == len(scores) else None,
        seed_losses=tuple(score.loss for score in scores),
        document_losses=np.mean([score.document_losses for score in scores], axis=0)
        if share_targets(runs)
        else None,
        bits_per_byte=fmean([score.bits_per_byte for score in scores]),
    )


def _latest(run: Run) -> Evaluation:
    assert run.latest is not None
    return run.latest
