"""Loss over the window length or the position in the window: held out, on long documents, and of
one model that ``glray eval`` scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from glray.report.arms import eval_seq_lens, latest_loss, longest_trained
from glray.report.figure import (
    LINES,
    add_legend,
    arms_legend,
    grey_handle,
    length_axis,
    new_figure,
    one_panel,
    shade_unseen,
    shifted,
    styled,
    styled_arms,
    styles_of,
)
from glray.report.long_losses import (
    PROTOCOLS,
    SCALINGS,
    LongLosses,
    long_seq_lens,
    mean_long_loss,
)
from glray.run.run import Run

LengthRecords = Sequence[Mapping[str, Any]]
"""One record a window length: ``seq_len``, ``loss`` (nats per token), ``standard_error`` …"""
_RING: dict[str, Any] = {"marker": "o", "markerfacecolor": "none"}
_UNSEEN = grey_handle("longer than the arm trained on", marker="o", markerfacecolor="white")


@styled
def loss_by_length(runs: Sequence[Run]) -> Figure:
    """Held-out loss over window length, with standard errors over documents."""
    figure, axes = one_panel("window length (tokens)", "held-out loss (nats per token)")
    length_axis(axes, eval_seq_lens(runs), longest_trained(runs))
    arms = styled_arms(runs)
    for index, (arm, style) in enumerate(arms):
        for run in arm.runs:
            if run.latest is None:
                continue
            scores = run.latest.lengths
            lengths = np.array([score.seq_len for score in scores])
            x = shifted(lengths, index, len(arms))
            y = np.array([score.loss for score in scores])
            errors = [score.standard_error or 0.0 for score in scores]
            own = lengths == run.longest_seq_len
            style.draw(axes, x, y, errors=errors, seen=lengths <= run.longest_seq_len)
            style.draw(axes, x[own], y[own], linestyle="none", markersize=13, **_RING)
    arms_legend(figure, arms, grey_handle("longest trained", markersize=11, **_RING), _UNSEEN)
    return figure


@styled
def loss_by_position(runs: Sequence[Run]) -> Figure:
    """Held-out loss by position in the longest window, means over ranges that double."""
    longest_window, longest = eval_seq_lens(runs)[-1], longest_trained(runs)
    figure, axes = one_panel(
        f"position in a window of {longest_window:,} tokens (means over ranges that double)",
        "held-out loss (nats per token)",
    )
    length_axis(axes, [2**power for power in range(longest_window.bit_length())])
    arms = styled_arms(runs)
    for arm, style in arms:
        for run in arm.runs:
            score = latest_loss(run, longest_window)
            if score is not None:
                x, y = bucketed(score.loss_by_position)
                own = run.longest_seq_len
                style.draw(axes, x, y, seen=x <= own)
                nearest = np.interp(np.log(own), np.log(x), y)
                style.draw(axes, [own], [nearest], marker="|", markersize=13, markeredgewidth=1.6)
    axes.set_xlim(left=0.9, right=longest_window * 1.1)
    if longest_window > longest:
        shade_unseen(axes, longest, longest_window * 1.1)
    arms_legend(figure, arms, grey_handle("longest trained", marker="|", markersize=12), _UNSEEN)
    return figure


@styled
def loss_on_long_documents(runs: Sequence[Run], losses: LongLosses) -> Figure:
    """Whole windows to the left and sliding ones to the right; full lines extrapolate positions,
    dashed ones interpolate them. Means over seeds."""
    lengths, arms = long_seq_lens(losses), styled_arms(runs)
    lines = dict(zip(SCALINGS, LINES, strict=False))
    figure = new_figure(9, 4.7)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, protocol in zip(panels, PROTOCOLS, strict=True):
        axes.set_xlabel(f"window length (tokens), {protocol} windows")
        length_axis(axes, lengths, longest_trained(runs))
        for arm, style in arms:
            for scaling, line in lines.items():
                means = [mean_long_loss(losses, arm, n, protocol, scaling) for n in lengths]
                style.draw(axes, lengths, means, seen=True, linestyle=line)
    panels[0].set_ylabel("loss on long documents (nats per token)")
    marks = [grey_handle(name, linestyle=line) for name, line in lines.items()]
    arms_legend(figure, arms, *marks)
    return figure


@styled
def loss_by_context(
    by_positions: Mapping[str, LengthRecords], trained_len: int, how: str
) -> Figure:
    """Loss of one model over window length under each scaling of positions, with standard errors
    over documents; the x axis says ``how`` windows go over them."""
    figure, axes = one_panel(f"window length (tokens), {how}", "loss (nats per token)")
    seq_lens = [record["seq_len"] for record in next(iter(by_positions.values()))]
    length_axis(axes, seq_lens, trained_len)
    styles = styles_of(by_positions)
    for index, (name, records) in enumerate(by_positions.items()):
        losses = [record["loss"] for record in records]
        errors = [record["standard_error"] or 0.0 for record in records]
        x = shifted(seq_lens, index, len(by_positions))
        styles[name].draw(axes, x, losses, errors=errors, seen=True)
    add_legend(figure, styles)
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
