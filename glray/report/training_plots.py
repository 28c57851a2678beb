"""Loss while the arms train, over time and over tokens."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glray.report.arms import Arm
from glray.report.figure import Style, arms_legend, grey_handle, one_panel, styled, styled_arms
from glray.run.run import Run

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
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, loss, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    ends = np.arange(1, len(loss) + 1)
    starts = np.maximum(ends - num_steps, 0)
    counted = (counts[ends] - counts[starts]).astype(np.float64)
    counted[counted == 0] = np.nan
    return (sums[ends] - sums[starts]) / counted


@styled
def _loss_over(runs: Sequence[Run], column: str, scale: float, x_label: str) -> Figure:
    steps = max(1, max(run.plan.num_steps for run in runs) // 50)
    mean = f"mean of the last {steps} steps" if steps > 1 else "each step"
    figure, axes = one_panel(x_label, f"loss (nats per token)\ntraining: {mean}")
    arms = styled_arms(runs)
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
            late += _draw_evaluations(axes, together, x, style)
    finite = [value for value in late if np.isfinite(value)]
    if finite and min(finite) < max(finite):
        margin = 0.06 * (max(finite) - min(finite))
        axes.set_ylim(min(finite) - margin, max(finite) + margin)
    axes.set_xlim(0, right * 1.02)
    _mark_stages(axes, arms, column, scale)
    mark = grey_handle("held-out, at the length in training", marker="o", markerfacecolor="white")
    arms_legend(figure, arms, mark)
    return figure


def _seeds_together(arm: Arm) -> list[list[Run]]:
    """The arm's runs under all seeds, if they have trained as far; else each on its own."""
    as_far = len({len(run.log.step) for run in arm.runs}) == 1
    return [list(arm.runs)] if as_far else [[run] for run in arm.runs]


def _draw_evaluations(axes: Axes, runs: Sequence[Run], x: np.ndarray, style: Style) -> list[float]:
    """Held-out loss at each evaluation, at the length just trained; returns the losses drawn.

    A bar is the standard error over documents, of several runs the range over seeds.
    """
    drawn = []
    for evaluations in zip(*(run.evaluations for run in runs), strict=False):
        scores = [evaluation.at(evaluation.trained_seq_len) for evaluation in evaluations]
        place = int(np.searchsorted(runs[0].log.step, evaluations[0].step))
        losses = [score.loss for score in scores if score is not None]
        if len(losses) < len(runs) or place >= len(x):
            continue
        mean = float(np.mean(losses))
        errors = [[mean - min(losses)], [max(losses) - mean]]
        if len(runs) == 1 and scores[0] is not None:
            errors = [[scores[0].standard_error or 0.0]] * 2
        style.draw(
            axes,
            [x[place]],
            [mean],
            errors=errors,
            marker=style.marker,
            markersize=6.5,
            markerfacecolor="white",
            capsize=0,
            elinewidth=1.2,
            clip_on=False,
            zorder=4,
        )
        drawn += losses
    return drawn


def _mark_stages(axes: Axes, arms: list[tuple[Arm, Style]], column: str, scale: float) -> None:
    """A dotted line where a stage of the arm's first run starts, its length above the axes; arms
    whose stages start together share their labels."""
    row, right = 0, axes.get_xlim()[1]
    labelled: set[tuple[int, ...]] = set()
    for arm, style in arms:
        run, colour, last = arm.runs[0], style.colour, -right
        if len(run.plan.stages) == 1:
            continue
        lengths = tuple(stage.seq_len for stage in run.plan.stages)
        is_new = lengths not in labelled or column == "tokens"
        labelled.add(lengths)
        for stage in run.plan.stages:
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
            axes.annotate(
                f"{stage.seq_len:,} tokens" if stage.first_step == 0 else f"{stage.seq_len:,}",
                (x, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 3 + 11 * row),
                textcoords="offset points",
                color=colour,
                fontsize=8.5,
            )
        row += is_new
