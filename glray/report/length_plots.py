"""Loss over the window length or the position in the window: held out, on long documents, and of
one model that ``glray eval`` scores. A profile's costs over the length."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glray.report import look
from glray.report.arms import Arm, eval_seq_lens, latest_loss, longest_trained
from glray.report.comparison import compare, longest_fixed, share_targets
from glray.report.long_losses import PROTOCOLS, SCALINGS, LongLosses, long_seq_lens, mean_long_loss
from glray.report.measured import Losses, difference, heldout
from glray.run.profile import Profile
from glray.run.run import Run

LengthRecords = Sequence[Mapping[str, Any]]
"""One record a window length: ``seq_len``, ``loss`` (nats per token), ``standard_error`` …"""
_COSTS = (
    ("step time", "seconds"),
    ("peak memory of a step", "peak_bytes"),
    ("largest batch", "largest_batch_tokens"),
)
_RING: dict[str, Any] = {"marker": "o", "markerfacecolor": "none"}
_UNSEEN = look.grey_handle("longer than the arm trained on", marker="o", markerfacecolor="white")


@look.styled
def loss_by_length(runs: Sequence[Run]) -> Figure:
    """Held-out loss over window length, means over seeds. Below, where the runs compare, how far
    each arm is above the longest fixed one at each length, with the 95% interval over seeds and
    documents: what makes a document hard for both cancels."""
    compared = compare(runs) if share_targets(runs) else []
    base = longest_fixed(compared)
    others = [] if base is None else [score for score in compared if score is not base]
    figure = Figure(figsize=(8, 6.8 if others else 4.7))
    panels = figure.subplots(1 + bool(others), squeeze=False, sharex=True)[:, 0]
    panels[-1].set_xlabel("window length (tokens)")
    panels[0].set_ylabel("held-out loss (nats per token)")
    for axes in panels:
        look.length_axis(axes, eval_seq_lens(runs), longest_trained(runs))
    arms = look.styled_arms(runs)
    for arm, style in arms:
        scored = [run.latest for run in arm.runs if run.latest is not None]
        losses = {n: [each.at(n) for each in scored] for n in eval_seq_lens(arm.runs)}
        means = {
            n: np.mean([length.loss for length in of_runs if length])
            for n, of_runs in losses.items()
            if all(of_runs)  # seeds may be evaluated at different lengths
        }
        lengths, y = np.array(list(means), dtype=int), np.array(list(means.values()))
        longest = max(arm.seq_lens)
        style.draw(panels[0], lengths, y, seen=lengths <= longest)
        own = lengths == longest
        style.draw(panels[0], lengths[own], y[own], linestyle="none", markersize=13, **_RING)
    if base is not None and others:
        _draw_differences(panels[1], others, base, {arm.label: style for arm, style in arms})
    look.arms_legend(
        figure, arms, look.grey_handle("longest trained", markersize=11, **_RING), _UNSEEN
    )
    return figure


def _draw_differences(
    axes: Axes, others: Sequence[Arm], base: Arm, styles: Mapping[str, look.Style]
) -> None:
    """Each arm's loss less the base's, with its interval, at every length that both have."""
    axes.axhline(0, color=styles[base.label].colour, linestyle=styles[base.label].line)
    axes.set_ylabel(f"difference from {base.label}\n(paired, 95% interval)")
    for index, arm in enumerate(others):
        scored = [
            (seq_len, heldout(arm, seq_len), heldout(base, seq_len))
            for seq_len in eval_seq_lens(base.runs)
        ]
        both = [
            (seq_len, difference(ours, theirs))
            for seq_len, ours, theirs in scored
            if isinstance(ours, Losses) and isinstance(theirs, Losses)
        ]
        lengths = np.array([seq_len for seq_len, _ in both])
        found = [estimate for _, estimate in both]
        halves = [estimate.half if estimate.parts else 0.0 for estimate in found]
        x = look.shifted(lengths, index, len(others))
        means = [estimate.mean for estimate in found]
        seen = lengths <= max(arm.seq_lens)
        styles[arm.label].draw(axes, x, means, bars=halves, seen=seen)


@look.styled
def loss_by_position(runs: Sequence[Run]) -> Figure:
    """Held-out loss by position in the longest window, means over ranges that double."""
    longest_window, longest = eval_seq_lens(runs)[-1], longest_trained(runs)
    figure, axes = look.one_panel(
        f"position in a window of {longest_window:,} tokens (means over ranges that double)",
        "held-out loss (nats per token)",
    )
    look.length_axis(axes, [2**power for power in range(longest_window.bit_length())])
    arms = look.styled_arms(runs)
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
        look.shade_unseen(axes, longest, longest_window * 1.1)
    look.arms_legend(
        figure, arms, look.grey_handle("longest trained", marker="|", markersize=12), _UNSEEN
    )
    return figure


@look.styled
def loss_on_long_documents(runs: Sequence[Run], losses: LongLosses) -> Figure:
    """Whole windows to the left and sliding ones to the right; full lines extrapolate positions,
    dashed ones interpolate them. Means over seeds."""
    lengths, arms = long_seq_lens(losses), look.styled_arms(runs)
    lines = dict(zip(SCALINGS, look.LINES, strict=False))
    figure = Figure(figsize=(9, 4.7))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, protocol in zip(panels, PROTOCOLS, strict=True):
        axes.set_xlabel(f"window length (tokens), {protocol} windows")
        look.length_axis(axes, lengths, longest_trained(runs))
        for arm, style in arms:
            for scaling, line in lines.items():
                means = [mean_long_loss(losses, arm, n, protocol, scaling) for n in lengths]
                style.draw(axes, lengths, means, seen=True, linestyle=line)
    panels[0].set_ylabel("loss on long documents (nats per token)")
    marks = [look.grey_handle(name, linestyle=line) for name, line in lines.items()]
    look.arms_legend(figure, arms, *marks)
    return figure


@look.styled
def loss_by_context(
    by_positions: Mapping[str, LengthRecords], trained_len: int, how: str
) -> Figure:
    """Loss of one model over window length under each scaling of positions, with standard errors
    over documents; the x axis says ``how`` windows go over them."""
    figure, axes = look.one_panel(f"window length (tokens), {how}", "loss (nats per token)")
    seq_lens = [record["seq_len"] for record in next(iter(by_positions.values()))]
    look.length_axis(axes, seq_lens, trained_len)
    styles = look.styles_of(by_positions)
    for index, (name, records) in enumerate(by_positions.items()):
        losses = [record["loss"] for record in records]
        errors = [record["standard_error"] or 0.0 for record in records]
        x = look.shifted(seq_lens, index, len(by_positions))
        styles[name].draw(axes, x, losses, bars=errors, seen=True)
    look.add_legend(figure, styles)
    return figure


@look.styled
def costs_by_length(profile: Profile) -> Figure:
    """Three panels over the length, the paper's Tables 1 to 3: each value over that of the longest
    length that the setting fits; a line a setting."""
    figure = Figure(figsize=(11, 3.9))
    styles = look.styles_of([costs.setting.name for costs in profile.settings])
    lengths = [cost.seq_len for cost in profile.settings[0].lengths]
    for axes, (title, field) in zip(figure.subplots(1, 3), _COSTS, strict=True):
        axes.set(xlabel="sequence length (tokens)", title=f"{title}, of the longest's")
        look.length_axis(axes, lengths)
        axes.tick_params(axis="x", labelsize=8, labelrotation=45 if len(lengths) > 5 else 0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for costs in profile.settings:
            known = [cost for cost in costs.fitting if getattr(cost, field)]
            values = np.array([getattr(cost, field) for cost in known], dtype=float)
            seq_lens = [cost.seq_len for cost in known]
            styles[costs.setting.name].draw(axes, seq_lens, values / values[-1:], seen=True)
        axes.set_ylim(bottom=0)
    look.add_legend(figure, styles)
    return figure


def bucketed(by_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over positions 1, 2, 3–4, 5–8, 9–16 … (counted from 1), and where to draw them: the
    geometric centre of each range."""
    num = len(by_position)
    edges = np.array([0, *(2**power for power in range(num.bit_length()) if 2**power < num), num])
    starts, ends = edges[:-1], edges[1:]
    return np.sqrt((starts + 1) * ends), np.add.reduceat(by_position, starts) / (ends - starts)
