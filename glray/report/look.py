"""The look shared by all plots: an arm's colour by its name, its line, axes and the legend.

Figures are matplotlib's objects; pyplot is never touched.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike

from glray.files import AnyPath, committed
from glray.report.arms import Arm, by_arm
from glray.run.run import Run

styled = matplotlib.style.context(Path(__file__).with_name("glray.mplstyle"))
"""Decorates what draws a figure."""

GREY = "#595959"
# Okabe & Ito's palette, told apart under the common colour blindnesses, yellow left out (too
# light for a line). Markers say the same once more.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Line = Literal["-", "--", "-.", ":"] | tuple[int, tuple[int, ...]]
LINES: tuple[Line, ...] = ("-", "--", "-.", ":", (0, (10, 3)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 4)))
_ARMS = (
    ("growlength", "growlength-1", "growlength4096", "growlength8192"),
    ("llm1024", "llm4096", "llm8192"),
    ("llm128",),
    ("128-512-1024",),
    ("128-1024",),
    ("growlength-2",),
)
"""Arms of the paper and of the quickstart by their colour, on every page."""


@dataclass(frozen=True)
class Style:
    """How one arm looks in every plot."""

    colour: str
    marker: str
    line: Line

    def draw(
        self, axes: Axes, x: ArrayLike, y: ArrayLike, bars: Any = None, seen: Any = None, **how: Any
    ) -> None:
        """One line, with error ``bars`` if they are given, and marks unless ``seen`` is None:
        filled where it is true, open elsewhere."""
        x, y = np.asarray(x), np.asarray(y)
        how = {"color": self.colour, "linestyle": self.line} | how
        if bars is None:
            axes.plot(x, y, **how)
        else:
            axes.errorbar(x, y, bars, **how)
        if seen is None:
            return
        filled = np.broadcast_to(seen, x.shape)
        for mask, face in ((filled, self.colour), (~filled, "white")):
            if mask.any():
                marks = how | {"linestyle": "none", "marker": self.marker}
                axes.plot(x[mask], y[mask], **marks | {"markerfacecolor": face})


def styles_of(names: Collection[str]) -> dict[str, Style]:
    """A style for each of all the names on a page, by the name alone where that is possible.

    An arm of the paper has its own colour; another takes the one that its name hashes to, the next
    if that is taken. No two share a colour while one is left; beyond seven, lines differ.
    """
    known = {arm: colour for colour, arms in enumerate(_ARMS) for arm in arms}
    arms = {name: name.rpartition("/")[2] for name in names}  # of PIPELINE/ARM
    styles: dict[str, Style] = {}
    taken: set[int] = set()
    for name in sorted(arms, key=lambda name: (arms[name] not in known, name)):
        wanted = known.get(arms[name], crc32(name.encode()))
        places = (7 * turn + (wanted + step) % 7 for turn in count() for step in range(7))
        index = next(index for index in places if index not in taken)
        taken.add(index)
        line = LINES[index // 7 % len(LINES)]
        styles[name] = Style(_COLOURS[index % 7], _MARKERS[index % 7], line)
    return {name: styles[name] for name in names}


def styled_arms(runs: Sequence[Run]) -> list[tuple[Arm, Style]]:
    """The arms of a page's runs, each in the style that it has in all of the page's plots."""
    arms = by_arm(runs)
    return list(zip(arms, styles_of([arm.label for arm in arms]).values(), strict=True))


def one_panel(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(8, 4.7))
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def length_axis(axes: Axes, lengths: Sequence[int], trained_len: float = np.inf) -> None:
    """A logarithmic x axis whose ticks are exactly ``lengths``, shaded from between the last that
    is not longer than ``trained_len`` and the first that is."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{length:,}" for length in lengths])
    left, right = lengths[0] / 2**0.3, lengths[-1] * 2**0.3
    axes.set_xlim(left, right)
    seen = [length for length in lengths if length <= trained_len]
    if len(seen) < len(lengths):
        start = (seen[-1] * lengths[len(seen)]) ** 0.5 if seen else left
        shade_unseen(axes, start, right)


def shade_unseen(axes: Axes, start: float, end: float) -> None:
    """Shade the lengths from ``start`` to ``end``, longer than any arm was trained on."""
    axes.axvspan(start, end, color="#F0F0F0", zorder=0)
    above(axes, end, "longer than any trained", ha="right", color=GREY)


def above(axes: Axes, x: float, text: str, row: int = 0, **look: Any) -> None:
    """Small words above the axes at ``x``, in the first row or a higher one."""
    place = axes.get_xaxis_transform()
    axes.text(x, 1.01 + 0.035 * row, text, transform=place, fontsize=8.5, **look)


def shifted(lengths: Sequence[int] | np.ndarray, index: int, num_lines: int) -> np.ndarray:
    """Lengths moved by a few hundredths of a doubling, so that error bars stand side by side."""
    shift = 0.05 * (index - (num_lines - 1) / 2) / max(1, num_lines / 4)
    return np.array(lengths) * 2.0**shift


def add_legend(figure: Figure, styles: dict[str, Style], marks: Sequence[Line2D] = ()) -> None:
    """Above the axes, where it covers no data: each label in its style to the left, and to the
    right what ``marks`` mean."""
    lines = [
        Line2D([], [], color=style.colour, linestyle=style.line, marker=style.marker, label=label)
        for label, style in styles.items()
    ]
    inches = figure.get_figwidth() - (3 if marks else 0)
    widest = max(map(len, styles))
    columns = max(1, int(inches / (0.6 + 0.075 * widest)))  # of a letter and a handle
    figure.legend(handles=lines, loc="outside upper left", ncols=min(columns, len(lines)))
    if marks:
        figure.legend(handles=marks, loc="outside upper right")


def arms_legend(figure: Figure, arms: Sequence[tuple[Arm, Style]], *marks: Line2D) -> None:
    """The legend of ``arms``, with what of each is unfinished or has diverged."""
    labels = {}
    for arm, style in arms:
        ends = [
            "diverged" if run.divergence else "unfinished"
            for run in arm.runs
            if not run.is_finished
        ]
        shares = [
            end if len(arm.runs) == 1 else f"{ends.count(end)} of {len(arm.runs)} {end}"
            for end in sorted(set(ends))
        ]
        labels[f"{arm.label} ({', '.join(shares)})" if shares else arm.label] = style
    add_legend(figure, labels, marks)


def grey_handle(label: str, **look: Any) -> Line2D:
    """A legend entry for what a mark means whatever its arm."""
    return Line2D([], [], label=label, **{"color": GREY, "linestyle": "none"} | look)


def save(figure: Figure, path: AnyPath) -> AnyPath:
    """Write the figure as PNG, complete or not at all."""
    with committed(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
    return path
