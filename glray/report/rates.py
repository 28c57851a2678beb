"""The peak rate that each arm is compared at, chosen by the held-out losses of its pilot's runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from glray.errors import UserError
from glray.report.arms import latest_loss
from glray.report.comparison import share_targets
from glray.run.run import Run
from glray.spec.training import rate_text


@dataclass(frozen=True)
class TunedRate:
    """An arm's peak rate and what it was chosen by."""

    label: str
    seed: int
    """Of the pilot's runs."""
    seq_len: int
    """Window length of the losses in tokens: the longest that the arm is trained on."""
    losses: tuple[tuple[float, float], ...]
    """Each peak rate, ascending, with its held-out loss in nats per token; NaN if it diverged."""

    @property
    def lr(self) -> float:
        """The rate with the lowest loss."""
        finite = [(loss, lr) for lr, loss in self.losses if math.isfinite(loss)]
        return min(finite)[1]

    @property
    def at_end(self) -> str | None:
        """``lowest`` or ``highest`` if no rate beyond it was tried, so that the best may lie
        there."""
        ends = {self.losses[0][0]: "lowest", self.losses[-1][0]: "highest"}
        return ends.get(self.lr)

    @property
    def sentence(self) -> str:
        """The rate, and the loss at each."""
        losses = ", ".join(
            f"{rate_text(lr)} {f'{loss:.3f}' if math.isfinite(loss) else 'diverged'}"
            for lr, loss in self.losses
        )
        beyond = (
            f" It is the {self.at_end} rate that was tried, so the best may lie beyond it."
            if self.at_end
            else ""
        )
        return (
            f"{self.label}: peak rate {rate_text(self.lr)}, by held-out loss at {self.seq_len:,} "
            f"tokens under seed {self.seed}: {losses}.{beyond}"
        )

    def record(self) -> dict[str, object]:
        """Plain values for JSON."""
        losses = [{"lr": lr, "loss": loss} for lr, loss in self.losses]
        chosen = {"lr": self.lr, "at_end": self.at_end, "sentence": self.sentence}
        return {**vars(self), "losses": losses, **chosen}


def tuned_rate(label: str, runs: Sequence[Run]) -> TunedRate:
    """The rate of an arm from its runs, which have ended and differ in nothing else. Raises
    UserError if they do not compare or all diverged."""
    seq_len = runs[0].longest_seq_len
    losses = []
    for run in runs:
        score = latest_loss(run, seq_len)
        if run.divergence:
            losses.append((run.optimizer.lr, math.nan))
            continue
        if score is None:
            raise UserError(
                f"{run.evaluation_path(run.plan.num_steps)}: not scored at {seq_len} tokens, so "
                "the run's peak rate cannot be ranked; delete it, and the same command scores again"
            )
        losses.append((run.optimizer.lr, score.loss))
    if not any(math.isfinite(loss) for _, loss in losses):
        tried = ", ".join(rate_text(lr) for lr, _ in sorted(losses))
        raise UserError(
            f"rates.lrs: {label} diverged at every rate, {tried}, under seed {runs[0].seed}, so "
            "none can be chosen; give lower ones"
        )
    if not share_targets([run for run in runs if not run.divergence]):
        raise UserError(
            f"{runs[0].directory.parent}: the runs of {label} under seed {runs[0].seed} are not "
            "scored on the same held-out targets, so their peak rates cannot be ranked; delete "
            "their last evaluations, and the same command scores again"
        )
    return TunedRate(label, runs[0].seed, seq_len, tuple(sorted(losses)))
