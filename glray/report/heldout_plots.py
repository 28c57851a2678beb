"""Held-out loss of the latest evaluation, by window length and by position in the window."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from glray.report.arms import by_arm, eval_seq_lens, longest_trained
from glray.report.figure import (
    arm_styles,
    arms_legend,
    grey_handle,
    length_axis,
    new_figure,
    shade_unseen,
    shifted,
    styled,
)
from glray.run.run import Run

_RING: dict[str, Any] = {"marker": "o", "markerfacecolor": "none"}
_UNSEEN = grey_handle("longer than the arm trained on", marker="o", markerfacecolor="white")


@styled
def loss_by_length(runs: Sequence[Run]) -> Figure:
    """Held-out loss over window length, with standard errors over documents."""
    figure = new_figure()
    axes = figure.subplots()
    axes.set(xlabel="window length (tokens)", ylabel="held-out loss (nats per token)")
    arms = by_arm(runs)
    styles = arm_styles(arms)
    length_axis(axes, eval_seq_lens(runs), longest_trained(runs))
    for index, arm in enumerate(arms):
        for run in arm.runs:
            scores = run.latest.lengths if run.latest is not None else ()
            lengths = np.array([score.seq_len for score in scores], dtype=np.int64)
            x = shifted(lengths, index, len(arms))
            y = np.array([score.loss for score in scores])
            errors = [score.standard_error or 0.0 for score in scores]
            style, own = styles[arm.label], lengths == run.longest_seq_len
            if scores:
                style.draw(axes, x, y, errors=errors, seen=lengths <= run.longest_seq_len)
                style.draw(axes, x[own], y[own], linestyle="none", markersize=13, **_RING)
    longest = grey_handle("longest trained", markersize=11, **_RING)
    arms_legend(figure, arms, styles, longest, _UNSEEN)
    return figure


@styled
def loss_by_position(runs: Sequence[Run]) -> Figure:
    """Held-out loss by place in the longest window, means over doubling ranges of positions."""
    longest_window, longest = eval_seq_lens(runs)[-1], longest_trained(runs)
    figure = new_figure()
    axes = figure.subplots()
    axes.set(
        xlabel=f"position in a window of {longest_window:,} tokens (means over ranges that double)",
        ylabel="held-out loss (nats per token)",
    )
    arms = by_arm(runs)
    styles = arm_styles(arms)
    length_axis(axes, [2**power for power in range(longest_window.bit_length())])
    for arm in arms:
        for run in arm.runs:
            score = run.latest.at(longest_window) if run.latest is not None else None
            if score is not None:
                x, y = bucketed(score.loss_by_position)
                style, own = styles[arm.label], run.longest_seq_len
                style.draw(axes, x, y, seen=x <= own)
                nearest = np.interp(np.log(own), np.log(x), y)
                style.draw(axes, [own], [nearest], marker="|", markersize=13, markeredgewidth=1.6)
    axes.set_xlim(left=0.9, right=longest_window * 1.1)
    if longest_window > longest:
        shade_unseen(axes, longest, longest_window * 1.1)
    end = grey_handle("longest trained", marker="|", markersize=12)
    arms_legend(figure, arms, styles, end, _UNSEEN)
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
