"""When a trial may be stopped before its end. Pure.

Schedulers that stop the trials with the highest loss so far, such as ASHA, do not suit schedules of
lengths. A trial that grows late looks worst at the longest length until it arrives there, and may
be the best at the end (SkyLadder, arXiv:2503.15450, Figure 13). It also looks worse at any length
soon after it arrived, and at a high learning rate until that has decayed. So a trial is compared
only at the length that it is training, and only with rivals that have no such head start.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from glray.plan import Plan, learning_rate
from glray.run.records import Evaluation
from glray.run.statistics import Estimate, crossed, holm
from glray.spec.training import OptimizerSpec

MAX_P = 0.01
"""Largest p value, adjusted for the number of rivals, at which a trial counts as behind. Trials are
compared at every evaluation, so it is less than the usual 0.05."""


@dataclass(frozen=True, eq=False)
class Standing:
    """How a trial stands after some of its steps, at the length that it is training."""

    trial: str
    step: int
    """Steps trained so far."""
    seq_len: int
    """Length of the last step's windows."""
    stage_steps: int
    """How many of these were trained in the current stage."""
    lr: float
    """Learning rate of the last step."""
    document_tokens: np.ndarray
    """int64[documents]: held-out targets of each document."""
    document_losses: np.ndarray
    """float64[documents]: mean loss of each document's targets in windows of ``seq_len``."""

    @classmethod
    def of(
        cls, trial: str, plan: Plan, optimizer: OptimizerSpec, evaluation: Evaluation
    ) -> "Standing | None":
        """What an evaluation says of a trial; None if the trained length was not scored."""
        loss = evaluation.at(evaluation.trained_seq_len)
        if loss is None:
            return None
        last_step = evaluation.step - 1
        return cls(
            trial,
            evaluation.step,
            evaluation.trained_seq_len,
            evaluation.step - plan.stages[plan.stage_index(last_step)].first_step,
            learning_rate(optimizer, plan, last_step),
            evaluation.document_tokens,
            loss.document_losses,
        )

    def has_rival(self, other: "Standing") -> bool:
        """Whether the other one's lower loss would count: after the same steps, at the same length,
        where it has trained no longer, at a learning rate that is no lower."""
        return (
            other.trial != self.trial
            and (other.step, other.seq_len) == (self.step, self.seq_len)
            and other.stage_steps <= self.stage_steps
            and other.lr >= self.lr
        )

    def behind(self, rival: "Standing") -> Estimate:
        """How far its loss is above a rival's, in nats per token, paired by document. One run of
        each says nothing of how much losses vary over seeds."""
        assert np.array_equal(self.document_tokens, rival.document_tokens)
        return crossed((self.document_losses - rival.document_losses)[None], self.document_tokens)


@dataclass(frozen=True, eq=False)
class Stop:
    """Why a trial is stopped."""

    standing: Standing
    rival: Standing

    @property
    def sentence(self) -> str:
        """``is 0.31 ± 0.02 nats behind 128x50-1024x50 at 128 tokens after 400 steps``."""
        behind = self.standing.behind(self.rival)
        return (
            f"is {behind.mean:.2f} ± {behind.half:.2f} nats behind {self.rival.trial} at "
            f"{self.standing.seq_len:,} tokens after {self.standing.step:,} steps"
        )


def stop(standing: Standing, others: Iterable[Standing], max_behind: float | None) -> Stop | None:
    """Why the trial should be stopped: it is more than ``max_behind`` nats per token behind a rival
    among ``others`` (standings of any trials), beyond the noise of the documents. None if it is
    not, or if ``max_behind`` is None."""
    if max_behind is None:
        return None
    rivals = [other for other in others if standing.has_rival(other)]
    p_values = holm([standing.behind(rival).p_above(max_behind) for rival in rivals])
    worst = min(zip(p_values, range(len(rivals)), strict=True), default=None)
    if worst is None or worst[0] > MAX_P:
        return None
    return Stop(standing, rivals[worst[1]])
