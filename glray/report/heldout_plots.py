"""Held-out loss of the latest evaluation, by window length and by position in the window."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glray.report.arms import by_arm, eval_seq_lens, longest_trained
from glray.report.figure import (
    ArmStyle,
    add_legend,
    arm_styles,
    grey_handle,
    length_axis,
    new_figure,
    shade_unseen,
)
from glray.report.run_record import Evaluation, RunRecord


def loss_by_length(runs: Sequence[RunRecord]) -> Figure:
    """Held-out loss over window length, with standard errors over documents."""
    figure, axes = new_figure("window length (tokens)", "held-out loss (nats per token)")
    arms, seq_lens, longest = by_arm(runs), eval_seq_lens(runs), longest_trained(runs)
    styles = arm_styles(arms)
    length_axis(axes, seq_lens)
    for index, arm in enumerate(arms):
        # Error bars side by side: arms are moved apart by a few hundredths of a doubling.
        shift = 2.0 ** (0.05 * (index - (len(arms) - 1) / 2) / max(1, len(arms) / 4))
        for run in arm.runs:
            if run.latest is not None:
                _plot_lengths(axes, run, run.latest, styles[arm.label], shift)
    axes.set_xlim(left=seq_lens[0] / 2**0.3)
    if seq_lens[-1] > longest:
        shade_unseen(axes, longest * 2**0.5, seq_lens[-1] * 2**0.3)
    ring = grey_handle(
        "longest trained", linestyle="none", marker="o", markersize=11, markerfacecolor="none"
    )
    add_legend(figure, arms, styles, [ring, _unseen_handle()])
    return figure


def loss_by_position(runs: Sequence[RunRecord]) -> Figure:
    """Held-out loss by place in the longest window, means over doubling ranges of positions."""
    longest_window = eval_seq_lens(runs)[-1]
    figure, axes = new_figure(
        f"position in a window of {longest_window:,} tokens (means over ranges that double)",
        "held-out loss (nats per token)",
    )
    arms, longest = by_arm(runs), longest_trained(runs)
    styles = arm_styles(arms)
    edges = [2**power for power in range(longest_window.bit_length())]
    length_axis(axes, edges)
    for arm in arms:
        for run in arm.runs:
            score = run.latest.at(longest_window) if run.latest is not None else None
            if score is not None:
                _plot_positions(axes, run, score.loss_by_position, styles[arm.label])
    axes.set_xlim(left=0.9)
    if longest_window > longest:
        shade_unseen(axes, longest, longest_window * 1.1)
    end = grey_handle("longest trained", linestyle="none", marker="|", markersize=12)
    add_legend(figure, arms, styles, [end, _unseen_handle()])
    return figure


def bucketed(by_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over positions 1, 2, 3–4, 5–8, 9–16 … (counted from 1), and where to draw them: the
    geometric centre of each range."""
    centres, means = [], []
    start = 0
    while start < len(by_position):
        end = min(max(2 * start, 1), len(by_position))
        centres.append(((start + 1) * end) ** 0.5)
        means.append(by_position[start:end].mean())
        start = end
    return np.array(centres), np.array(means)


def _plot_lengths(
    axes: Axes, run: RunRecord, evaluation: Evaluation, style: ArmStyle, shift: float
) -> None:
    x = np.array([score.seq_len for score in evaluation.lengths]) * shift
    y = np.array([score.loss for score in evaluation.lengths])
    errors = [score.standard_error or 0.0 for score in evaluation.lengths]
    seen = np.array([score.seq_len <= run.longest_seq_len for score in evaluation.lengths])
    axes.errorbar(
        x, y, errors, color=style.colour, linestyle=style.line, linewidth=1.5, capsize=2.5
    )
    _plot_marks(axes, x, y, seen, style)
    trained = [score.seq_len == run.longest_seq_len for score in evaluation.lengths]
    axes.plot(
        x[trained],
        y[trained],
        linestyle="none",
        marker="o",
        markersize=13,
        markerfacecolor="none",
        color=style.colour,
        markeredgewidth=1.1,
    )


def _plot_positions(axes: Axes, run: RunRecord, by_position: np.ndarray, style: ArmStyle) -> None:
    x, y = bucketed(by_position)
    axes.plot(x, y, color=style.colour, linestyle=style.line, linewidth=1.5)
    _plot_marks(axes, x, y, x <= run.longest_seq_len, style)
    nearest = np.interp(np.log(run.longest_seq_len), np.log(x), y)
    axes.plot(
        run.longest_seq_len,
        nearest,
        linestyle="none",
        marker="|",
        markersize=13,
        color=style.colour,
        markeredgewidth=1.6,
    )


def _plot_marks(
    axes: Axes, x: np.ndarray, y: np.ndarray, seen: np.ndarray, style: ArmStyle
) -> None:
    """Filled marks where the arm was trained, open ones beyond."""
    for mask, face in ((seen, style.colour), (~seen, "white")):
        axes.plot(
            x[mask],
            y[mask],
            linestyle="none",
            marker=style.marker,
            markersize=5.5,
            color=style.colour,
            markerfacecolor=face,
        )


def _unseen_handle() -> Line2D:
    return grey_handle(
        "longer than the arm trained on",
        linestyle="none",
        marker="o",
        markersize=5.5,
        markerfacecolor="white",
    )
