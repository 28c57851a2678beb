"""What ``glray eval`` shows and leaves: loss over window length under each scaling of positions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from glray.files import write_json
from glray.report.figure import (
    length_axis,
    line_styles,
    new_figure,
    save,
    shade_unseen,
    style_legend,
)
from glray.report.formats import plus_minus
from glray.report.table import plain_table

if TYPE_CHECKING:
    from glray.train.scoring import Scores, ScoringProtocol

LengthRecords = Sequence[Mapping[str, Any]]
"""One record a window length: ``seq_len``, ``loss`` (nats per token), ``standard_error`` …"""
MOST_SCALINGS = 4
"""Scalings of positions side by side; more go into a further table."""


def context_tables(scores: "Scores", protocol: "ScoringProtocol") -> list[RenderableType]:
    """A title, and one row a window length: nats per token under each scaling of positions, and
    bits per byte if there is one."""
    by_positions, names = scores.by_positions, list(scores.by_positions)
    placed = f", positions {names[0]}" if len(names) == 1 else ""
    parts = [names[i : i + MOST_SCALINGS] for i in range(0, len(names), MOST_SCALINGS)]
    return [
        Text(f"\nLoss (nats per token) by window length, {_how(protocol)}{placed}", style="bold"),
        *(_table({name: by_positions[name] for name in part}) for part in parts),
    ]


def context_remarks(scores: "Scores", protocol: "ScoringProtocol") -> list[str]:
    """What belongs to the figures, a line each."""
    targets = scores.targets
    whose = "held-out documents" if protocol.documents is None else "documents"
    at_step = "" if scores.step is None else f", step {scores.step:,}"
    remarks = [
        "± is the standard error over documents.",
        f"{targets.num_targets:,} targets of {targets.num_documents} {whose}; trained up to "
        f"{scores.trained_len:,}{at_step}",
    ]
    if targets.num_skipped:
        remarks.append(f"{targets.num_skipped:,} documents are left out: empty or not UTF-8")
    if scores.step is not None and not scores.own:
        remarks.append("not the targets of the run's own evaluations: do not compare with those")
    return remarks


def write_context(
    scores: "Scores", protocol: "ScoringProtocol", about: Mapping[str, Any], directory: Path
) -> list[Path]:
    """Write ``context.json``, whose head is ``about``, and ``context.png``; returns the paths."""
    plot = loss_by_context(scores.by_positions, scores.trained_len, _how(protocol))
    paths = [directory / "context.json", save(plot, directory / "context.png")]
    write_json(paths[0], {**about, **context_record(scores, protocol)})
    return paths


def context_record(scores: "Scores", protocol: "ScoringProtocol") -> dict[str, Any]:
    """What was scored and how, as plain values."""
    targets = scores.targets
    return {
        "step": scores.step,
        "protocol": "whole" if protocol.stride is None else "sliding",
        "stride": protocol.stride,
        "num_documents": targets.num_documents,
        "num_target_tokens": targets.num_targets,
        "targets_sha256": targets.sha256,
        "trained_len": scores.trained_len,
        "positions": scores.by_positions,
    }


def _how(protocol: "ScoringProtocol") -> str:
    """How windows go over a document."""
    stride = protocol.stride
    return "whole windows" if stride is None else f"windows sliding by {stride:,}"


def _table(by_positions: Mapping[str, LengthRecords]) -> Table:
    alone = len(by_positions) == 1
    table = plain_table()
    table.add_column("window", justify="right", no_wrap=True)
    for name in ("nats per token", "bits per byte") if alone else by_positions:
        table.add_column(name, justify="right", overflow="fold", min_width=13)
    for records in zip(*by_positions.values(), strict=True):
        losses = [plus_minus(record["loss"], record["standard_error"]) for record in records]
        also = [f"{records[0]['bits_per_byte']:.3f}"] if alone else []
        table.add_row(f"{records[0]['seq_len']:,}", *losses, *also)
    return table


def loss_by_context(
    by_positions: Mapping[str, LengthRecords], trained_len: int, how: str
) -> Figure:
    """Loss over window length, with standard errors over documents; ``how`` windows go over them
    is said below."""
    figure, axes = new_figure(f"window length (tokens), {how}", "loss (nats per token)")
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
    left, right = seq_lens[0] / 2**0.3, seq_lens[-1] * 2**0.3
    axes.set_xlim(left=left)
    if seq_lens[-1] > trained_len:  # from between the last length trained and the first that is not
        seen = [seq_len for seq_len in seq_lens if seq_len <= trained_len]
        first_unseen = seq_lens[len(seen)]
        shade_unseen(axes, (seen[-1] * first_unseen) ** 0.5 if seen else left, right)
    style_legend(figure, styles, columns=4)
    return figure
