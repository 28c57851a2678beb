"""The command that trains a comparison's runs and judges its claims: compare."""

from typing import Annotated

import typer
from rich.console import Console

from glray.cli.app import Overrides, absolute, app, console
from glray.cli.long_documents import check_documents, scored_long_documents
from glray.cli.training import trained_runs
from glray.errors import UserError
from glray.spec import ComparisonSpec, load_comparison
from glray.storage import storage_path


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
        typer.Option(min=1, help="Seeds 0, 1 … of every arm. Default: the comparison's."),
    ] = None,
) -> None:
    """Train what comparisons need, judge their claims and report. Run again to resume.

    --set applies to every pipeline of a comparison, --set context.… to its long documents. Runs
    that are finished are not trained again, whichever comparison asked for them first.
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
        check_documents(spec)
    for spec in specs:
        _compare(spec)


def _compare(spec: ComparisonSpec) -> None:
    from glray.report.compared import compared, labelled_runs, write_comparison
    from glray.report.render import terminal

    places = {
        (pipeline.name, run.arm, run.seed): run.directory
        for pipeline in spec.pipelines
        for run in trained_runs(pipeline)
    }
    directory = storage_path(spec.arms[0].pipeline.compute) / "comparisons" / spec.name
    runs = labelled_runs(spec, places)
    long_losses = scored_long_documents(spec, runs, directory / "long_documents")
    comparison = compared(spec, runs, long_losses)
    page = write_comparison(comparison, directory)
    out = Console(highlight=False, markup=False)
    out.print(f"\n{spec.name}: {spec.title}", style="bold")
    out.print(terminal(*comparison.sheets(), *comparison.sentences()))
    console.print(f"report: {page}\nnumbers: {directory / 'comparison.json'}")
