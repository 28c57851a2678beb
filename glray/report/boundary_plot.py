"""What training does around the boundaries between stages."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from glray.plan import WATCHED_STEPS
from glray.report.arms import by_arm
from glray.report.figure import bare_axes, blank_figure, line_styles
from glray.report.run_record import RunRecord

PANELS = {
    "loss": "training loss (nats per token)",
    "grad_norm": "gradient norm before clipping",
    "update_norm": "norm of the update",
    "lr": "learning rate",
}


def around_boundaries(runs: Sequence[RunRecord]) -> Figure:
    """Loss, gradient norm, update norm and learning rate of the steps before and after each
    boundary, of its two stages alone; a line an arm and boundary, the mean over its seeds."""
    lines: dict[str, list[tuple[RunRecord, slice, int]]] = {}
    for arm in by_arm(runs):
        for run in arm.runs:
            borders = [0, *(boundary.step for boundary in run.boundaries), run.num_steps]
            for boundary, first, end in zip(run.boundaries, borders, borders[2:], strict=False):
                name = f"{arm.label} {boundary.from_seq_len:,}→{boundary.to_seq_len:,}"
                lines.setdefault(name, []).append((run, slice(first, end), boundary.step))
    styles = line_styles(list(lines))
    figure = blank_figure(8, 6.6)
    offsets = np.arange(-WATCHED_STEPS, WATCHED_STEPS)
    for axes, (column, label) in zip(
        figure.subplots(2, 2, sharex=True).flat, PANELS.items(), strict=True
    ):
        bare_axes(axes, "", label)
        axes.axvline(-0.5, color="#595959", linewidth=0.8, linestyle=":")
        for name, boundaries in lines.items():
            values = np.array(
                [_around(run, column, stages, step, offsets) for run, stages, step in boundaries]
            )
            known = np.isfinite(values).all(axis=0)
            axes.plot(
                offsets[known],
                values[:, known].mean(axis=0),
                color=styles[name].colour,
                linestyle=styles[name].line,
                linewidth=1.3,
                label=name,
            )
    figure.supxlabel("steps from the first of the longer stage", fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9.5)
    return figure


def _around(
    run: RunRecord, column: str, stages: slice, step: int, offsets: np.ndarray
) -> np.ndarray:
    """float64[offsets]: NaN where the two stages have no such step."""
    values = np.full(len(offsets), np.nan)
    log = getattr(run.log, column)
    places = step + offsets  # the log's line i is of step i, from 0
    there = (places >= stages.start) & (places < min(stages.stop, len(log)))
    values[there] = log[places[there]]
    return values
