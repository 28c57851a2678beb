"""Training while it runs: loss over time and over tokens, and what the boundaries between stages
do."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glray.plan import WATCHED_STEPS
from glray.report import look
from glray.report.arms import Arm, eval_seq_lens, longest_trained
from glray.report.folding import spans
from glray.run.run import Run

PANELS = {
    "loss": "training loss (nats per token)",
    "grad_norm": "gradient norm before clipping",
    "update_norm": "norm of the update",
    "lr": "learning rate",
}
_OPEN: dict[str, Any] = {"markerfacecolor": "white", "capsize": 0, "clip_on": False, "zorder": 4}
START_SHARE = 0.12
"""Share of the x axis whose (much higher) losses do not set the y axis."""


def loss_over_time(runs: Sequence[Run]) -> Figure:
    """Training loss over calibrated seconds; over measured ones if a run has no others."""
    calibrated = all(run.log.calibrated_seconds is not None for run in runs)
    clock = "calibrated" if calibrated else "measured"
    return _loss_over(runs, f"{clock}_seconds", 1.0, f"{clock} training time (seconds)")


def loss_over_tokens(runs: Sequence[Run]) -> Figure:
    """Training loss over tokens trained."""
    scale, unit = (1e9, "billions") if max(run.tokens for run in runs) >= 1e9 else (1e6, "millions")
    return _loss_over(runs, "tokens", scale, f"tokens trained ({unit})")


def smoothed(loss: np.ndarray, num_steps: int) -> np.ndarray:
    """Mean of each step and the ``num_steps - 1`` before it (fewer at the start).

    Steps whose loss is not a number are left out of the means.
    """
    finite = np.isfinite(loss)
    sums, counts = (
        np.concatenate([np.zeros(num_steps), np.cumsum(values)])
        for values in (np.where(finite, loss, 0.0), finite)
    )
    with np.errstate(invalid="ignore"):  # without a loss that is a number, 0 / 0 is NaN
        return (sums[num_steps:] - sums[:-num_steps]) / (counts[num_steps:] - counts[:-num_steps])


@look.styled
def around_boundaries(runs: Sequence[Run]) -> Figure:
    """Loss, gradient norm, update norm and learning rate of the steps before and after each
    boundary, within its two stages; a line an arm and boundary, the mean over its seeds."""
    lines: dict[str, look.Style] = {}
    sides: dict[str, list[tuple[Run, list[int]]]] = {}
    for arm, style in look.styled_arms(runs):
        for run in arm.runs:
            ends = [0, *run.plan.stage_ends]
            for index, boundary in enumerate(run.boundaries):
                name = f"{arm.label} {boundary.from_seq_len:,}→{boundary.to_seq_len:,}"
                lines[name] = replace(style, line=look.LINES[index % len(look.LINES)], marker="")
                place = ends.index(boundary.step)
                sides.setdefault(name, []).append((run, ends[place - 1 : place + 2]))
    figure = Figure(figsize=(8, 6.6))
    offsets = np.arange(-WATCHED_STEPS, WATCHED_STEPS)
    panels = zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items(), strict=True)
    for axes, (column, label) in panels:
        axes.set_ylabel(label)
        axes.axvline(-0.5, color=look.GREY, linewidth=0.8, linestyle=":")
        for name, style in lines.items():
            values = np.array([_around(run, column, *ends) for run, ends in sides[name]])
            known = np.isfinite(values).all(axis=0)
            style.draw(axes, offsets[known], values[:, known].mean(axis=0))
    figure.supxlabel("steps from the first of the stage after the boundary")
    look.add_legend(figure, lines)
    return figure


@look.styled
def _loss_over(runs: Sequence[Run], column: str, scale: float, x_label: str) -> Figure:
    steps = max(1, max(run.plan.num_steps for run in runs) // 50)
    mean = f"mean of the last {steps} steps" if steps > 1 else "each step"
    figure, axes = look.one_panel(x_label, f"loss (nats per token)\ntraining: {mean}")
    arms = look.styled_arms(runs)
    seq_len = min(longest_trained(runs), max(eval_seq_lens(runs), default=0))
    late: list[float] = []  # what sets the y axis
    right = max(getattr(run.log, column)[-1] for run in runs if len(run.log.step)) / scale
    for arm, style in arms:
        for together in _seeds_together(arm):
            x = np.mean([getattr(run.log, column) for run in together], axis=0) / scale
            y = np.array([smoothed(run.log.loss, steps) for run in together])
            style.draw(axes, x, y.mean(axis=0))
            if len(together) > 1:
                band = (y.min(axis=0), y.max(axis=0))
                axes.fill_between(x, *band, color=style.colour, alpha=0.18, linewidth=0)
            late += y[:, x > START_SHARE * right].ravel().tolist()
            late += _draw_evaluations(axes, together, x, style, seq_len)
    finite = [value for value in late if np.isfinite(value)]
    if finite and min(finite) < max(finite):
        margin = 0.06 * (max(finite) - min(finite))
        axes.set_ylim(min(finite) - margin, max(finite) + margin)
    axes.set_xlim(0, right * 1.02)
    _mark_stages(axes, arms, column, scale)
    mark = look.grey_handle(
        f"held-out, in windows of {seq_len:,}", marker="o", markerfacecolor="white"
    )
    look.arms_legend(figure, arms, mark)
    return figure


def _seeds_together(arm: Arm) -> list[list[Run]]:
    """The arm's runs under all seeds, if they have trained as far; else each on its own."""
    as_far = len({len(run.log.step) for run in arm.runs}) == 1
    return [list(arm.runs)] if as_far else [[run] for run in arm.runs]


def _draw_evaluations(
    axes: Axes, runs: Sequence[Run], x: np.ndarray, style: look.Style, seq_len: int
) -> list[float]:
    """Held-out loss of each evaluation in windows of one length, the same for all arms, and of
    several runs its range over seeds. Returns the losses of the last stage, which set the y axis:
    before it a growing arm has not seen such windows, and may lie far above."""
    drawn = []
    for evaluations in zip(*(run.evaluations for run in runs), strict=False):
        scores = [evaluation.at(seq_len) for evaluation in evaluations]
        place = int(np.searchsorted(runs[0].log.step, evaluations[0].step))
        losses = [score.loss for score in scores if score is not None]
        if len(losses) < len(runs) or place >= len(x):
            continue
        mean = float(np.mean(losses))
        bars = [[mean - min(losses)], [max(losses) - mean]]
        is_last = evaluations[0].trained_seq_len == runs[0].seq_lens[-1]
        how = _OPEN if is_last else _OPEN | {"clip_on": True}
        style.draw(axes, [x[place]], [mean], bars=bars, marker=style.marker, **how)
        drawn += losses if is_last else []
    return drawn


def _mark_stages(axes: Axes, arms: list[tuple[Arm, look.Style]], column: str, scale: float) -> None:
    """A dotted line where a stage of the arm's first run starts, its length above the axes; of
    stages without a marked end between them, the first alone. Arms whose stages start together
    share their labels."""
    row, right = 0, axes.get_xlim()[1]
    labelled: set[tuple[int, ...]] = set()
    for arm, style in arms:
        run, colour, last = arm.runs[0], style.colour, -right
        if len(arm.seq_lens) == 1:
            continue
        is_new = arm.seq_lens not in labelled or column == "tokens"
        labelled.add(arm.seq_lens)
        for stage, *others in spans(run.plan.stages):
            # The stage starts where the step before its first one ends.
            place = int(np.searchsorted(run.log.step, stage.first_step))
            if place >= len(run.log.step):
                break
            x = getattr(run.log, column)[place] / scale if stage.first_step else 0.0
            if stage.first_step:
                axes.axvline(x, color=colour, linestyle=":", linewidth=1.1, zorder=1)
            if x - last < 0.05 * right or not is_new:
                continue  # no room for its label, or it stands there
            last = x
            length = f"{len(others) + 1} stages" if others else f"{stage.seq_len:,}"
            length += "" if others or stage.first_step else " tokens"
            look.above(axes, x + 0.004 * right, length, row, color=colour)
        row += is_new


def _around(run: Run, column: str, start: int, step: int, end: int) -> np.ndarray:
    """float64[2 × WATCHED_STEPS] around ``step``: NaN where the two stages from ``start`` to
    ``end`` have no such step."""
    both = getattr(run.log, column)[start:end]  # line i is of step i, from 0
    padded = np.pad(both, WATCHED_STEPS, constant_values=np.nan)
    return np.asarray(padded[step - start :][: 2 * WATCHED_STEPS])
