"""The command that trains a comparison's runs and judges its claims: compare."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice, product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glray.cli.app import Overrides, absolute, app, console, write_and_show
from glray.cli.training import exit_if_diverged, trained_runs
from glray.errors import UserError
from glray.files import AnyPath, read_json, write_json
from glray.progress import working
from glray.report.long_losses import SCALINGS, SLIDING, WHOLE, LongLosses
from glray.run.run import Run
from glray.spec import ComparisonSpec, RateGrid, load_comparison
from glray.spec.comparison import pooled
from glray.storage import storage_path

if TYPE_CHECKING:
    from glray.report.page import Report
    from glray.report.rates import TunedRate


@app.command()
def compare(
    comparisons: Annotated[
        list[str],
        typer.Argument(
            metavar="COMPARISON...",
            help="Functions that return a ComparisonSpec: pipelines/paper.py:mini.figure1.",
        ),
    ],
    overrides: Overrides = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Use seeds 0 to N - 1. Default: the comparison's."),
    ] = None,
) -> None:
    """Train what comparisons need, judge their claims and report. Run again to resume.

    --set applies to every pipeline of a comparison, --set context.… to its long documents and
    --set rates.… to the peak rates that it tries first. Runs that are finished are not trained
    again, whichever comparison asked for them first.
    """
    specs: list[ComparisonSpec] = [
        absolute(load_comparison(name, overrides, seeds)) for name in comparisons
    ]
    names = [spec.name for spec in specs]
    for reference, spec in zip(comparisons, specs, strict=True):
        if names.count(spec.name) > 1:
            raise UserError(
                f"{reference}: {names.count(spec.name)} of these comparisons are named "
                f"{spec.name!r}, one would replace the other; leave one out or rename it"
            )
        _document_files(spec)  # said before anything is trained
    for pipeline in pooled(specs):
        trained_runs(pipeline)
    exit_if_diverged([run for spec in specs for run in compare_runs(spec).runs])


def compare_runs(spec: ComparisonSpec) -> "Report":
    """Train, judge and report."""
    from glray.report.compared import compared, comparison_record

    rates = [] if spec.rates is None else _tuned_rates(spec, spec.rates)
    runs = _trained(spec.at_rates({rate.label: rate.lr for rate in rates}) if rates else spec)
    directory = storage_path(spec.arms[0].pipeline.compute) / "comparisons" / spec.name
    long_losses = _scored_long_documents(spec, runs, directory / "long_documents")
    with working("judging the claims"):
        report = compared(spec, runs, long_losses, rates)
    numbers = directory / "comparison.json"
    write_json(numbers, comparison_record(spec, report))
    console.print(f"\n{report.title}", style="bold", markup=False)
    write_and_show(report, directory)
    console.print(f"numbers: {numbers}")
    return report


def _trained(spec: ComparisonSpec) -> list[Run]:
    """The comparison's runs, arm by arm: finished, or diverged."""
    from glray.report.compared import labelled_runs

    for pipeline in spec.pipelines:
        trained_runs(pipeline)
    return labelled_runs(spec)


def _tuned_rates(spec: ComparisonSpec, grid: RateGrid) -> "list[TunedRate]":
    """Each arm's best peak rate, of the grid or one step beyond it; says what it was chosen by."""
    from glray.report.rates import tuned_rate

    runs = _pilot_runs(spec, {arm.label: grid.lrs for arm in spec.arms})
    best = {label: tuned_rate(label, its).lr for label, its in runs.items()}
    beyond = {label: (lr,) for label in best if (lr := grid.beyond(best[label])) is not None}
    further = _pilot_runs(spec, beyond)
    rates = [tuned_rate(label, [*runs[label], *further.get(label, [])]) for label in runs]
    console.print()
    for rate in rates:
        console.print(rate.sentence, markup=False)
    return rates


def _pilot_runs(spec: ComparisonSpec, lrs: Mapping[str, tuple[float, ...]]) -> dict[str, list[Run]]:
    """The runs of each arm at each of its peak rates: finished, or diverged."""
    runs = iter(_trained(spec.pilot(lrs)) if lrs else [])
    return {label: list(islice(runs, len(its))) for label, its in lrs.items()}


def _scored_long_documents(spec: ComparisonSpec, runs: list[Run], directory: AnyPath) -> LongLosses:
    """Every run's loss on the long documents, in whole and in sliding windows.

    What ``directory`` has of the same run, documents and protocol is read. A run that diverged is
    left out. Raises UserError.
    """
    if (context := spec.context) is None:
        return {}
    from glray.report.context import context_record
    from glray.train.scoring import ScoringProtocol, score_model

    files = _document_files(spec)
    losses = {}
    for run, (name, stride) in product(runs, ((WHOLE, None), (SLIDING, context.stride))):
        if run.result is None or _is_not_finite(run):
            continue
        own = run.latest.targets_sha256 if run.latest else None
        scored_as = {
            "format": 2,  # with far context
            "heldout": own if context.documents is None else None,
            "fingerprint": run.manifest.fingerprint,
            "trained_in_seconds": run.result.wall_seconds,  # trained again it may end elsewhere
            "context": context.model_dump(mode="json"),
            "files": files,
        }
        path = directory / f"{run.name}-{name}.json"
        record = read_json(path)
        if not isinstance(record, dict) or record.get("scored_as") != scored_as:
            console.print(f"{run.name}: long documents, {name} windows")
            protocol = ScoringProtocol(
                context.seq_lens,
                stride,
                SCALINGS,
                context.documents,
                context.num_tokens,
                far_context=stride is None,
            )
            scores = score_model(run.directory, protocol)
            record = {"scored_as": scored_as, **context_record(scores, protocol)}
            write_json(path, record)
        losses[run.directory, name] = record
    return losses


def _document_files(spec: ComparisonSpec) -> list[dict[str, Any]]:
    """The long documents' files as they are now; empty for held-out text, which is the corpus's.

    Raises UserError if they are not there.
    """
    from glray.data.read.sources import list_source

    if spec.context is None or spec.context.documents is None:
        return []
    return [asdict(file) for file in list_source(spec.context.documents)]


def _is_not_finite(run: Run) -> bool:
    """Whether the run's last evaluation has a loss that is not a number."""
    return run.latest is None or not all(math.isfinite(score.loss) for score in run.latest.lengths)
