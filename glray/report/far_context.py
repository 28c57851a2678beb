"""What context further back is worth: each arm's loss on the same far targets, in sliding windows
of the short context and longer ones, up to the longest length that it was trained on.

A loss that falls with the window length says little: whole windows charge a short one for the many
targets at its start. Here every target sees at least half a window, and the targets are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from glray.report.arms import Arm, by_arm
from glray.report.comparison import share_targets
from glray.report.formats import counted, listed
from glray.report.sheets import Sheet
from glray.run.records import FarContext
from glray.run.run import Run
from glray.run.statistics import Estimate, crossed

GAIN_MARGIN = 0.02
"""Nats per token: a gain that is surely less counts as none, and one that is behind another by
surely no more as no worse."""


@dataclass(frozen=True)
class FarGain:
    """Loss in the short context less that in windows of the arm's own length, same targets."""

    values: np.ndarray
    """float64[seeds, documents], nats per token."""
    document_tokens: np.ndarray
    """int64[documents]: far targets of each."""
    short: int
    """Window length of the short context, in tokens."""

    @cached_property
    def estimate(self) -> Estimate:
        """Nats per token, over seeds and documents."""
        return crossed(self.values, self.document_tokens)

    @property
    def is_positive(self) -> bool:
        """Whether its 95% interval lies above 0."""
        return self.estimate.low > 0

    @property
    def is_none(self) -> bool:
        """Whether its 95% interval lies below what counts, and not above 0."""
        return self.estimate.high < GAIN_MARGIN and not self.is_positive

    def __str__(self) -> str:
        estimate = self.estimate
        half = f" ± {estimate.half:.3f}" if estimate.parts else ""
        return f"{estimate.mean:+z.3f}{half}"


def far_contexts(arm: Arm) -> list[FarContext]:
    """Of each of the arm's runs; empty if one lacks it, or they are scored on different targets."""
    scored = finished_contexts(arm)
    is_whole = len(scored) == len(arm.runs) and share_targets(arm.runs)
    return scored if is_whole and are_alike(scored) else []


def finished_contexts(arm: Arm) -> list[FarContext]:
    """Of those of the arm's runs that are finished and have it."""
    found = [run.latest for run in arm.runs if run.is_finished and run.latest is not None]
    return [last.far_context for last in found if last.far_context is not None]


def sees_short_alone(contexts: Sequence[FarContext]) -> bool:
    """Whether these are of an arm that is trained on no more than the short context."""
    return bool(contexts) and all(len(context.losses) == 1 for context in contexts)


def are_alike(contexts: Sequence[FarContext]) -> bool:
    """Whether all scored the same far targets in windows of the same lengths."""
    kinds = {
        (
            context.tokens_before,
            tuple(context.document_tokens.tolist()),
            tuple(loss.seq_len for loss in context.losses),
        )
        for context in contexts
    }
    return len(kinds) < 2


def gain_of(contexts: Sequence[FarContext]) -> FarGain | None:
    """Of an arm's runs; None if they were not scored, have diverged, or are trained on no more than
    the short context."""
    if not contexts or sees_short_alone(contexts):
        return None
    short, own = (far_losses(contexts, end) for end in (0, -1))
    if not np.isfinite(gains := short - own).all():
        return None
    return FarGain(gains, contexts[0].document_tokens, contexts[0].losses[0].seq_len)


def far_gain(arm: Arm) -> FarGain | None:
    """On held-out documents; see ``gain_of``."""
    return gain_of(far_contexts(arm))


def far_losses(contexts: Sequence[FarContext], index: int) -> np.ndarray:
    """float64[seeds, documents]: losses in windows of one length, -1 for the arm's longest."""
    return np.array([context.losses[index].document_losses for context in contexts])


def far_sheet(runs: Sequence[Run]) -> Sheet:
    """One row an arm: its loss on the far targets at each window length, and the gain."""
    scored = [(arm, contexts) for arm in by_arm(runs) if (contexts := far_contexts(arm))]
    lengths = sorted({loss.seq_len for _, contexts in scored for loss in contexts[0].losses})
    rows = []
    for arm, contexts in scored:
        losses = {
            loss.seq_len: float(np.mean([context.losses[index].loss for context in contexts]))
            for index, loss in enumerate(contexts[0].losses)
        }
        cells = [f"{losses[n]:.3f}" if n in losses else "-" for n in lengths]
        gain = far_gain(arm)
        rows.append([arm.label, *cells, "-" if gain is None else str(gain)])
    notes = []
    if scored:
        context = scored[0][1][0]
        targets = "The arms are not scored on the same targets: their losses do not compare."
        if share_targets([run for arm, _ in scored for run in arm.runs]):
            targets = (
                f"The same {context.document_tokens.sum():,} targets of "
                f"{counted(len(context.document_tokens), 'document')} at every length, each with "
                f"at least {context.tokens_before:,} tokens of its document before it."
            )
        notes.append(
            f"{targets} Windows slide by half their length. Gain: loss at the shortest length less "
            "that at the longest trained, ± its 95% interval over documents and, of several, seeds."
        )
    title = "Far context: loss (nats per token) by the length of sliding windows"
    return Sheet(title, ["run", *(f"{n:,}" for n in lengths), "gain"], rows, notes)


def far_sentence(runs: Sequence[Run]) -> str:
    """Which arms gain from context beyond the short one; empty if none was scored for it."""
    arms = by_arm(runs)
    gains = {arm.label: gain for arm in arms if (gain := far_gain(arm))}
    if not gains:
        return ""
    short = min(gain.short for gain in gains.values())
    beyond = f"from context beyond {short:,} tokens"
    left_out = [
        arm.label
        for arm in arms
        if arm.label not in gains
        and max(arm.seq_lens) > short
        and not sees_short_alone(finished_contexts(arm))
    ]
    numbers = ", ".join(f"{label} {gain}" for label, gain in gains.items())
    using = [label for label, gain in gains.items() if gain.is_positive]
    idle = [label for label, gain in gains.items() if gain.is_none]
    unknown = [label for label in gains if label not in (*using, *idle)]
    if len(idle) == len(gains) and not left_out:
        return f"No arm gains {beyond} at this scale: {numbers} nats."
    if len(using) == len(gains) and not left_out:
        return f"Every arm trained on more gains {beyond}: {numbers} nats."
    parts, rest = [], f" {beyond}"  # said once
    if using:
        parts.append(f"{listed(using)} {'gain' if len(using) > 1 else 'gains'}{rest}")
        rest = ""
    if idle:
        parts.append(f"{listed(idle)} {'do' if len(idle) > 1 else 'does'} not gain{rest}")
        rest = ""
    if unknown:
        whether = "whether" if parts else "Whether"
        gains_or_gain = "gain" if len(unknown) > 1 else "gains"
        parts.append(f"{whether} {listed(unknown)} {gains_or_gain}{rest} cannot be told")
    if left_out:
        parts.append(f"no gain is known for {listed(left_out)}")
    return f"{', '.join(parts)}: {numbers} nats."
