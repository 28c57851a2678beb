"""The plots of a report, as PNG files.

``long_documents``: a comparison's long documents. ``loss_over_time`` and ``loss_over_tokens``: loss
while the arms train. ``loss_by_length`` and ``loss_by_position``: held-out loss of the last model.
``around_boundaries``: training near the boundaries between stages. A plot without data is left out.
"""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from matplotlib.figure import Figure

from glray.report.arms import eval_seq_lens
from glray.report.boundary_plot import around_boundaries
from glray.report.figure import save
from glray.report.length_plots import loss_by_length, loss_by_position, loss_on_long_documents
from glray.report.long_losses import LongLosses
from glray.report.training_plots import loss_over_time, loss_over_tokens
from glray.run.run import Run


def draw(
    runs: Sequence[Run], directory: Path, long_losses: LongLosses = MappingProxyType({})
) -> list[Path]:
    """Write the plots that the runs have data for; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    if long_losses:
        figures["long_documents.png"] = loss_on_long_documents(runs, long_losses)
    if any(len(run.log.step) for run in runs):
        figures["loss_over_time.png"] = loss_over_time(runs)
        figures["loss_over_tokens.png"] = loss_over_tokens(runs)
    if eval_seq_lens(runs):
        figures["loss_by_length.png"] = loss_by_length(runs)
        figures["loss_by_position.png"] = loss_by_position(runs)
    if any(run.boundaries for run in runs):
        figures["around_boundaries.png"] = around_boundaries(runs)
    return [save(figure, directory / name) for name, figure in figures.items()]
