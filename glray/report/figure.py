"""The look shared by all plots: palette, axes, legend, and how a figure is saved.

Figures are matplotlib's objects with the Agg canvas; nothing touches pyplot's global state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from glray.files import committed
from glray.report.arms import Arm

# Okabe & Ito's palette, told apart under the common colour blindnesses, yellow left out (too
# light for a line). Markers say the same once more.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
_GREY = "#595959"
_UNSEEN = "#F0F0F0"


@dataclass(frozen=True)
class ArmStyle:
    """How one arm looks in every plot."""

    colour: str
    marker: str
    line: Literal["-", "--", "-.", ":"]


def arm_styles(arms: list[Arm]) -> dict[str, ArmStyle]:
    """A style for each arm's label."""
    return line_styles([arm.label for arm in arms])


def line_styles(labels: list[str]) -> dict[str, ArmStyle]:
    """A style for each label; beyond seven colours repeat under another line style."""
    return {
        label: ArmStyle(
            _COLOURS[index % len(_COLOURS)],
            _MARKERS[index % len(_MARKERS)],
            _LINES[index // len(_COLOURS) % len(_LINES)],
        )
        for index, label in enumerate(labels)
    }


def blank_figure(width_inches: float, height_inches: float) -> Figure:
    """A figure without axes."""
    figure = Figure(figsize=(width_inches, height_inches), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure of 8 × 4.7 inches with one bare set of axes."""
    figure = blank_figure(8, 4.7)
    axes = figure.add_subplot()
    bare_axes(axes, x_label, y_label)
    return figure, axes


def bare_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Label axes and take away all but their lines to the left and below."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(color=_GREY, labelsize=9.5)
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.7)
    axes.set_axisbelow(True)


def length_axis(axes: Axes, lengths: list[int]) -> None:
    """A logarithmic x axis whose ticks are exactly ``lengths``."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{length:,}" for length in lengths])


def shade_unseen(axes: Axes, start: float, end: float) -> None:
    """Shade the lengths from ``start`` to ``end``, longer than any arm was trained on."""
    axes.set_xlim(right=end)
    axes.axvspan(start, end, color=_UNSEEN, zorder=0)
    axes.annotate(
        "longer than any trained",
        (end, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=_GREY,
    )


def add_legend(
    figure: Figure, arms: list[Arm], styles: dict[str, ArmStyle], marks: list[Line2D]
) -> None:
    """One legend above the axes, where it covers no data: rows of arms, then ``marks``."""
    handles = [_style_handle(styles[arm.label], _legend_label(arm)) for arm in arms]
    together = len(handles) + len(marks)
    widest = max(len(str(handle.get_label())) for handle in handles)
    most = 4 if widest <= 14 else 3  # as many as the figure is wide
    num_columns = together if together <= most else min(most, max(len(handles), len(marks)))
    blank = [grey_handle("", linestyle="none")]
    cells = handles if together <= most else handles + blank * (-len(handles) % num_columns)
    cells = cells + marks + blank * (-(len(cells) + len(marks)) % num_columns)
    figure.legend(
        # matplotlib fills a legend column by column
        handles=[cell for column in range(num_columns) for cell in cells[column::num_columns]],
        loc="outside upper left",
        ncols=num_columns,
        frameon=False,
        fontsize=9.5,
        handlelength=2.2,
        columnspacing=1.6,
    )


def style_legend(
    figure: Figure, styles: dict[str, ArmStyle], columns: int, marks: Sequence[Line2D] = ()
) -> None:
    """One legend above the axes: each label in its style, then ``marks``."""
    handles = [*(_style_handle(style, label) for label, style in styles.items()), *marks]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(columns, len(handles)),
        frameon=False,
        fontsize=9.5,
    )


def _style_handle(style: ArmStyle, label: str) -> Line2D:
    return Line2D(
        [],
        [],
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markersize=5.5,
        label=label,
    )


def _legend_label(arm: Arm) -> str:
    unfinished = sum(not run.is_finished for run in arm.runs)
    if not unfinished:
        return arm.label
    if len(arm.runs) == 1:
        return f"{arm.label} (unfinished)"
    return f"{arm.label} ({unfinished} of {len(arm.runs)} unfinished)"


def grey_handle(label: str, **style: object) -> Line2D:
    """A legend entry for what a mark means whatever its arm."""
    return Line2D([], [], color=_GREY, label=label, **style)  # type: ignore[arg-type]


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, complete or not at all."""
    with committed(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
    return path
