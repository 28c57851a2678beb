"""What training does around the boundaries between stages."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from glray.plan import WATCHED_STEPS
from glray.report.figure import GREY, LINES, Style, add_legend, new_figure, styled, styled_arms
from glray.run.run import Run

PANELS = {
    "loss": "training loss (nats per token)",
    "grad_norm": "gradient norm before clipping",
    "update_norm": "norm of the update",
    "lr": "learning rate",
}


@styled
def around_boundaries(runs: Sequence[Run]) -> Figure:
    """Loss, gradient norm, update norm and learning rate of the steps before and after each
    boundary, within its two stages; a line an arm and boundary, the mean over its seeds."""
    lines: dict[str, Style] = {}
    sides: dict[str, list[tuple[Run, slice, int]]] = {}
    for arm, style in styled_arms(runs):
        for run in arm.runs:
            ends = [0, *(boundary.step for boundary in run.boundaries), run.plan.num_steps]
            for index, boundary in enumerate(run.boundaries):
                name = f"{arm.label} {boundary.from_seq_len:,}→{boundary.to_seq_len:,}"
                line = LINES[index % len(LINES)]
                lines[name] = replace(style, line=line, marker="")
                both = slice(ends[index], ends[index + 2])
                sides.setdefault(name, []).append((run, both, boundary.step))
    figure = new_figure(8, 6.6)
    offsets = np.arange(-WATCHED_STEPS, WATCHED_STEPS)
    panels = zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items(), strict=True)
    for axes, (column, label) in panels:
        axes.set_ylabel(label)
        axes.axvline(-0.5, color=GREY, linewidth=0.8, linestyle=":")
        for name, style in lines.items():
            values = np.array(
                [_around(run, column, both, step, offsets) for run, both, step in sides[name]]
            )
            known = np.isfinite(values).all(axis=0)
            style.draw(axes, offsets[known], values[:, known].mean(axis=0))
    figure.supxlabel("steps from the first of the stage after the boundary")
    add_legend(figure, lines)
    return figure


def _around(run: Run, column: str, stages: slice, step: int, offsets: np.ndarray) -> np.ndarray:
    """float64[offsets]: NaN where the two stages have no such step."""
    logged = getattr(run.log, column)[: stages.stop]  # line i is of step i, from 0
    steps = step + offsets
    inside = (steps >= stages.start) & (steps < len(logged))
    values = np.full(len(offsets), np.nan)
    values[inside] = logged[steps[inside]]
    return values
