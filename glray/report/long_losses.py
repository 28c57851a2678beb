"""Compared models on long documents, in windows beyond their training: figures, table and plot.

Whole windows and sliding ones, each with positions extrapolated and interpolated.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from glray.report.arms import Arm, by_arm, longest_trained
from glray.report.figure import (
    arm_styles,
    bare_axes,
    blank_figure,
    grey_handle,
    length_axis,
    shade_unseen,
    style_legend,
)
from glray.report.run_record import RunRecord
from glray.report.table import plain_table

WHOLE, SLIDING = "whole", "sliding"
SCALINGS = ("extrapolation", "interpolation")
"""Of positions beyond the longest length trained; the first is the paper's."""

LongLosses = Mapping[tuple[Path, str], Mapping[str, Any]]
"""By run directory and protocol (``whole``, ``sliding``): ``report.context.context_record``."""


def long_loss(
    losses: LongLosses,
    run: RunRecord,
    seq_len: int,
    protocol: str = WHOLE,
    scaling: str = SCALINGS[0],
) -> float:
    """Nats per token in windows of ``seq_len``; NaN if they are not scored."""
    record = losses.get((run.directory, protocol))
    lengths = record["positions"].get(scaling, []) if record else []
    found = [length["loss"] for length in lengths if length["seq_len"] == seq_len]
    return float(found[0]) if found else math.nan


def share_long_targets(runs: Sequence[RunRecord], losses: LongLosses) -> bool:
    """Whether all runs are scored on the same tokens."""
    records = [losses.get((run.directory, WHOLE)) for run in runs]
    return len({record["targets_sha256"] if record else None for record in records}) == 1


def long_table(runs: Sequence[RunRecord], losses: LongLosses) -> Table:
    """One row an arm, protocol and scaling: the mean over its seeds at each window length."""
    lengths = _lengths(losses)
    table = plain_table("Loss on long documents (nats per token) by window length")
    for name in ("run", "windows", "positions"):
        table.add_column(name, no_wrap=True)
    for seq_len in lengths:
        table.add_column(str(seq_len), justify="right", no_wrap=True)
    for protocol in (WHOLE, SLIDING):
        for scaling in SCALINGS:
            for arm in by_arm(runs):
                values = [_mean(losses, arm, seq_len, protocol, scaling) for seq_len in lengths]
                cells = ["-" if math.isnan(value) else f"{value:.3f}" for value in values]
                table.add_row(arm.label, protocol, scaling, *cells)
    return table


def long_plot(runs: Sequence[RunRecord], losses: LongLosses) -> Figure:
    """Loss over window length, whole windows to the left and sliding ones to the right; full lines
    extrapolate positions, dashed ones interpolate them. Means over seeds."""
    arms, lengths, longest = by_arm(runs), _lengths(losses), longest_trained(runs)
    styles = arm_styles(arms)
    figure = blank_figure(9, 4.7)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, protocol in zip(panels, (WHOLE, SLIDING), strict=True):
        bare_axes(axes, f"window length (tokens), {protocol} windows", "")
        length_axis(axes, lengths)
        for arm in arms:
            for scaling, line in zip(SCALINGS, ("-", "--"), strict=True):
                axes.plot(
                    lengths,
                    [_mean(losses, arm, seq_len, protocol, scaling) for seq_len in lengths],
                    color=styles[arm.label].colour,
                    marker=styles[arm.label].marker,
                    linestyle=line,
                    linewidth=1.5,
                    markersize=5,
                )
        if lengths[-1] > longest:
            shade_unseen(axes, longest * 2**0.5, lengths[-1] * 2**0.3)
    panels[0].set_ylabel("loss on long documents (nats per token)")
    style_legend(
        figure,
        styles,
        columns=6,
        marks=[
            grey_handle(name, linestyle=line)
            for name, line in zip(SCALINGS, ("-", "--"), strict=True)
        ],
    )
    return figure


def _lengths(losses: LongLosses) -> list[int]:
    """Every window length scored, ascending."""
    return sorted(
        {
            length["seq_len"]
            for record in losses.values()
            for lengths in record["positions"].values()
            for length in lengths
        }
    )


def _mean(losses: LongLosses, arm: Arm, seq_len: int, protocol: str, scaling: str) -> float:
    """Over the arm's seeds; NaN if one is not scored."""
    return fmean(long_loss(losses, run, seq_len, protocol, scaling) for run in arm.runs)
