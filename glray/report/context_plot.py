"""What ``glray eval`` leaves: loss over window length, a curve for each placing of positions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glray.files import write_json
from glray.report.figure import length_axis, line_styles, new_figure, save, shade_unseen

LengthRecords = Sequence[Mapping[str, Any]]
"""One record a window length: ``seq_len``, ``loss`` (nats per token), ``standard_error`` …"""


def write_context(
    by_positions: Mapping[str, LengthRecords],
    trained_len: int,
    about: Mapping[str, Any],
    directory: Path,
) -> list[Path]:
    """Write ``context.json``, whose head is ``about``, and ``context.png``; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / "context.json"
    write_json(record, {**about, "trained_len": trained_len, "positions": by_positions})
    return [record, save(loss_by_context(by_positions, trained_len), directory / "context.png")]


def loss_by_context(by_positions: Mapping[str, LengthRecords], trained_len: int) -> Figure:
    """Loss over window length, with standard errors over documents."""
    figure, axes = new_figure("window length (tokens)", "loss (nats per token)")
    seq_lens = [record["seq_len"] for record in next(iter(by_positions.values()))]
    length_axis(axes, seq_lens)
    styles = line_styles(list(by_positions))
    for index, (name, records) in enumerate(by_positions.items()):
        # Error bars side by side: curves are moved apart by a few hundredths of a doubling.
        shift = 2.0 ** (0.05 * (index - (len(by_positions) - 1) / 2))
        axes.errorbar(
            [record["seq_len"] * shift for record in records],
            [record["loss"] for record in records],
            [record["standard_error"] or 0.0 for record in records],
            color=styles[name].colour,
            linestyle=styles[name].line,
            marker=styles[name].marker,
            markersize=5.5,
            linewidth=1.5,
            capsize=2.5,
            label=name,
        )
    axes.set_xlim(left=seq_lens[0] / 2**0.3)
    if seq_lens[-1] > trained_len:
        shade_unseen(axes, trained_len * 2**0.5, seq_lens[-1] * 2**0.3)
    if len(by_positions) > 1:
        handles = [
            Line2D([], [], color=s.colour, linestyle=s.line, marker=s.marker, label=name)
            for name, s in styles.items()
        ]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=min(4, len(styles)), frameon=False
        )
    return figure
