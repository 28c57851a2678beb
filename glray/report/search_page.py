"""The page of a search: which schedule, how sure that is, what matters, and what it cost."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from matplotlib.figure import Figure

from glray.errors import UserError
from glray.files import AnyPath, write_text
from glray.report import answers, look, search_plots, search_sheets
from glray.report.confirmation import Confirmation
from glray.report.effects import Effects, effects_of
from glray.report.page import Report, embedded
from glray.report.render import html
from glray.report.sheets import Sheet
from glray.report.trials import Cost, Trials
from glray.report.verdict import sentences
from glray.run.run import Run
from glray.spec.loading import to_yaml


@dataclass(frozen=True)
class SearchReport:
    """A search's trials, for a terminal and as a page; while it goes on, those so far."""

    title: str
    trials: Trials
    cost: Cost
    confirmation: Confirmation | None = None
    verdicts: Sequence[str] = ()
    """Of the comparison that confirmed the best."""

    @cached_property
    def effects(self) -> list[Effects]:
        """A surface for each list of lengths."""
        return effects_of(self.trials.ranked)

    @cached_property
    def sentences(self) -> list[str]:
        """The answer, and what else the numbers say."""
        return answers.sentences(
            self.trials, self.effects, self.confirmation, self.verdicts, self.cost
        )

    def sheets(self) -> list[Sheet]:
        """For a terminal: the trials by loss, the best confirmed, the effects."""
        return [search_sheets.ranking(self.trials).first(5), *self._answers()]

    def write(self, directory: AnyPath) -> AnyPath:
        """Write the plots and ``report.html`` into ``directory``; returns the page's path.

        Raises UserError if there is no trial.
        """
        trials = self.trials
        if not trials.ranked:
            raise UserError(f"{directory}: 0 trials to report, a report needs at least 1; run one")
        page = html(
            "search.html.j2",
            title=self.title,
            sentences=self.sentences,
            results=self._answers(),
            plots=embedded(self.draw(directory)),
            details=[search_sheets.ranking(trials), search_sheets.cost(self.cost)],
            specs=[(trials.best.name, to_yaml(trials.best.run.spec))] if trials.best else [],
            seq_len=trials.seq_len,
            is_confirmed=self.confirmation is not None,
        )
        path = directory / "report.html"
        write_text(path, page)
        return path

    def draw(self, directory: AnyPath) -> list[AnyPath]:
        """Write the plots that there is data for as PNG files; returns their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        trials = self.trials
        figures: dict[str, Figure] = {}
        if len(trials.scored) > 1:
            figures["trials.png"] = search_plots.trials_by_loss(trials)
            figures["shares.png"] = search_plots.shares_of_all(trials)
            if trials.front:
                figures["front.png"] = search_plots.short_against_long(trials)
            if any(its.is_fitted for its in self.effects):
                figures["effects.png"] = search_plots.loss_by_factor(trials, self.effects)
            if search_plots.lists_of_three(trials):
                figures["map.png"] = search_plots.loss_by_shares(trials)
        return [look.save(figure, directory / name) for name, figure in figures.items()]

    def _answers(self) -> list[Sheet]:
        found = [search_sheets.effects(self.effects)]
        if self.confirmation:
            found.insert(0, search_sheets.confirmed(self.confirmation))
        return [sheet for sheet in found if sheet.rows]


def search_report(
    runs: Sequence[Run],
    seq_len: int,
    *,
    title: str,
    baselines: Collection[str] = (),
    confirmed: Report | None = None,
    wall_seconds: float | None = None,
    at_once: int = 1,
) -> SearchReport:
    """Rank the runs of a search by their held-out loss at ``seq_len`` tokens.

    ``runs`` are a pipeline's, one for each schedule that has begun; ``baselines`` the names of the
    arms that every search trains. ``confirmed`` is the comparison of the best on fresh seeds, whose
    arms have the same names. ``wall_seconds`` are those from the command to the end of the search,
    with ``at_once`` runs trained at the same time. Raises UserError if the runs cannot be ranked.
    """
    trials = Trials.of(runs, seq_len, baselines)
    return SearchReport(
        title,
        trials,
        trials.cost(wall_seconds, at_once),
        Confirmation.of(trials, confirmed.runs) if confirmed else None,
        sentences(confirmed.judgements) if confirmed else (),
    )
