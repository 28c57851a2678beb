"""The arms' held-out loss at one length: which arms compare, over which seeds, and how far apart.

Only finished runs compare, at the longest length that any of them was trained on. With several
seeds an arm's loss is the mean over the seeds that every arm has finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from glray.report.arms import Arm, by_arm, eval_seq_lens, latest_loss, longest_trained
from glray.run.records import LengthLoss
from glray.run.run import Run
from glray.run.statistics import Estimate, crossed


@dataclass(frozen=True)
class ArmScore(Arm):
    """One arm's held-out loss, in nats per token."""

    seq_len: int
    """Window length that it is scored at."""

    @cached_property
    def scores(self) -> list[LengthLoss]:
        """A score a seed."""
        scores = [latest_loss(run, self.seq_len) for run in self.runs]
        return [score for score in scores if score is not None]

    @property
    def seed_losses(self) -> list[float]:
        """A loss a seed."""
        return [score.loss for score in self.scores]

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return fmean(self.seed_losses)

    @property
    def standard_error(self) -> float | None:
        """Over documents: the mean of the seeds' errors (all seeds are scored on the same
        documents, so that more seeds do not make it smaller). None for one document."""
        errors = [score.standard_error for score in self.scores if score.standard_error is not None]
        return fmean(errors) if len(errors) == len(self.scores) else None


def compare(runs: Sequence[Run]) -> list[ArmScore]:
    """The finished runs' scores at one length, in the order of the arms; empty if no seed is
    finished in every arm that has a finished run, or they share no evaluated length."""
    arms = [
        Arm(arm.label, scored)
        for arm in by_arm(runs)
        if (scored := tuple(r for r in arm.runs if r.is_finished and r.latest is not None))
    ]
    if not arms:
        return []
    seeds = set.intersection(*({run.seed for run in arm.runs} for arm in arms))
    arms = [Arm(arm.label, tuple(run for run in arm.runs if run.seed in seeds)) for arm in arms]
    compared = [run for arm in arms for run in arm.runs]
    shared = [n for n in eval_seq_lens(compared) if all(latest_loss(run, n) for run in compared)]
    if not shared:
        return []
    longest = longest_trained(compared)
    seq_len = max((n for n in shared if n <= longest), default=shared[0])
    return [ArmScore(arm.label, arm.runs, seq_len) for arm in arms]


def longest_fixed(scores: Sequence[ArmScore]) -> ArmScore | None:
    """The arm of the longest fixed length, which the others are measured against."""
    fixed = [score for score in scores if len(score.seq_lens) == 1]
    return max(fixed, key=lambda score: score.seq_lens, default=None)


def paired_difference(first: ArmScore, second: ArmScore) -> Estimate:
    """The first loss less the second, paired by seed and by document, both on the same targets."""
    losses = [np.array([score.document_losses for score in arm.scores]) for arm in (first, second)]
    return crossed(losses[0] - losses[1], first.runs[0].evaluations[-1].document_tokens)


def paired_error(first: ArmScore, second: ArmScore) -> float | None:
    """The standard error over documents of the difference of two losses on the same documents.

    What makes a document hard for both cancels. None for one document.
    """
    documents = paired_difference(first, second).parts.get("documents")
    return None if documents is None else documents.standard_error


def share_targets(runs: Sequence[Run]) -> bool:
    """Whether all runs' latest evaluations scored the same held-out tokens."""
    return len({run.latest.targets_sha256 for run in runs if run.latest is not None}) == 1
