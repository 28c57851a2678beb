"""One self-contained HTML page of any set of runs: no scripts, no links, plots inside."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from matplotlib.figure import Figure

from glray.errors import UserError
from glray.files import AnyPath, write_text
from glray.report import length_plots, look, sheets, training_plots
from glray.report.arms import eval_seq_lens, labelled, longest_trained
from glray.report.far_context import far_sentence, far_sheet
from glray.report.headline import headline
from glray.report.heldout_plots import has_curves, heldout_over_time
from glray.report.long_losses import LongLosses, long_sheet
from glray.report.rates import TunedRate
from glray.report.render import html
from glray.report.sheets import Sheet
from glray.report.verdict import Judgement, sentences
from glray.run.run import Run
from glray.spec.loading import to_yaml


@dataclass(frozen=True)
class Report:
    """Any set of runs side by side, for a terminal and as a page."""

    runs: list[Run]
    title: str = ""
    """Of a comparison, which also has the three below."""
    judgements: Sequence[Judgement] = ()
    long_losses: LongLosses = field(default_factory=dict)
    rates: Sequence[TunedRate] = ()

    @cached_property
    def sentences(self) -> list[str]:
        """The verdicts, and what else the numbers say."""
        rates = [rate.sentence for rate in self.rates]
        verdicts = sentences(self.judgements)
        said = [*verdicts, *headline(self.runs), *rates, far_sentence(self.runs)]
        return [sentence for sentence in said if sentence]

    def sheets(self) -> list[Sheet]:
        """For a terminal: what each run took, its held-out loss and that on long documents."""
        return [*sheets.summary(self.runs), *self._scored_further()]

    def write(self, directory: AnyPath) -> AnyPath:
        """Write the plots and ``report.html`` into ``directory``; returns the page's path.

        Raises UserError if there is no run.
        """
        runs = self.runs
        if not runs:
            raise UserError(f"{directory}: 0 runs to report, a report needs at least 1; name one")
        seq_lens = eval_seq_lens(runs)
        results = [sheets.training(runs), sheets.heldout(runs, seq_lens, seq_lens)]
        details = [sheets.stage_ends(runs), sheets.boundaries(runs), sheets.jumps(runs)]
        details += [sheets.stages(runs), sheets.identities(runs)]
        latest = [run.latest for run in runs if run.latest is not None]
        scored = sorted({(last.num_target_tokens, last.num_documents) for last in latest})
        page = html(
            "page.html.j2",
            title=self.title or " and ".join(dict.fromkeys(run.manifest.pipeline for run in runs)),
            sentences=self.sentences,
            results=[sheet for sheet in [*results, *self._scored_further()] if sheet.rows],
            plots=embedded(self.draw(directory)),
            details=[sheet for sheet in details if sheet.rows],
            specs=[(label, to_yaml(run.spec)) for label, run in labelled(runs)],
            targets=" or ".join(f"{t:,} tokens of {d:,} documents" for t, d in scored),
            are_rates_tuned=bool(self.rates),
            num_seeds=len({run.seed for run in runs}),
            seq_lens=seq_lens,
            longest=longest_trained(runs),
        )
        path = directory / "report.html"
        write_text(path, page)
        return path

    def draw(self, directory: AnyPath) -> list[AnyPath]:
        """Write the plots that the runs have data for as PNG files; returns their paths."""
        runs = self.runs
        directory.mkdir(parents=True, exist_ok=True)
        figures: dict[str, Figure] = {}
        if self.long_losses:
            figures["long_documents.png"] = length_plots.loss_on_long_documents(
                runs, self.long_losses
            )
        if has_curves(runs):
            figures["heldout_over_time.png"] = heldout_over_time(runs)
        if any(len(run.log.step) for run in runs):
            figures["loss_over_time.png"] = training_plots.loss_over_time(runs)
            figures["loss_over_tokens.png"] = training_plots.loss_over_tokens(runs)
        if eval_seq_lens(runs):
            figures["loss_by_length.png"] = length_plots.loss_by_length(runs)
            figures["loss_by_position.png"] = length_plots.loss_by_position(runs)
        if any(run.boundaries for run in runs):
            figures["around_boundaries.png"] = training_plots.around_boundaries(runs)
        return [look.save(figure, directory / name) for name, figure in figures.items()]

    def _scored_further(self) -> list[Sheet]:
        """Far context and long documents, where they were scored."""
        scored = [far_sheet(self.runs)]
        if self.long_losses:
            scored.append(long_sheet(self.runs, self.long_losses))
        return [sheet for sheet in scored if sheet.rows]


def embedded(plots: Sequence[AnyPath]) -> dict[str, str]:
    """PNG files in base64, by their names without ``.png``."""
    return {plot.stem: base64.b64encode(plot.read_bytes()).decode() for plot in plots}
