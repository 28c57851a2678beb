"""The command that trains what a comparison needs and judges its claims: compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from glray.cli.app import Overrides, absolute, app, console
from glray.cli.training import trained_runs
from glray.files import read_json, write_json
from glray.report.run_record import RunRecord
from glray.spec import ComparisonSpec, load_comparison
from glray.storage import storage_path

if TYPE_CHECKING:
    from glray.report.long_losses import LongLosses


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

    --set applies to every pipeline of a comparison. Runs that are finished are not trained again,
    whichever comparison asked for them first.
    """
    specs = [_absolute(load_comparison(name, overrides, seeds)) for name in comparisons]
    for spec in specs:
        _compare(spec)


def _absolute(spec: ComparisonSpec) -> ComparisonSpec:
    """The comparison with absolute paths."""
    declared = spec.model_dump()
    for compared, arm in zip(declared["arms"], spec.arms, strict=True):
        compared["pipeline"] = absolute(arm.pipeline).model_dump()
    return ComparisonSpec.model_validate(declared)


def _compare(spec: ComparisonSpec) -> None:
    from glray.report.compared import compared, labelled_runs, write_comparison

    places = {
        (pipeline.name, run.arm.name, run.seed): run.directory
        for pipeline in spec.pipelines
        for run in trained_runs(pipeline)
    }
    directory = storage_path(spec.arms[0].pipeline.compute) / "comparisons" / spec.name
    runs = labelled_runs(spec, places)
    comparison = compared(spec, runs, _long_losses(spec, runs, directory / "long_documents"))
    page = write_comparison(comparison, directory)
    out = Console(highlight=False)
    out.print(f"\n{spec.name}: {spec.title}", style="bold")
    out.print(*comparison.tables(), *comparison.sentences(), sep="\n")
    console.print(f"report: {page}\nfigures: {directory / 'comparison.json'}")


def _long_losses(spec: ComparisonSpec, runs: list[RunRecord], directory: Path) -> "LongLosses":
    """Every run scored on the long documents; what has been scored before is read."""
    from glray.report.context import context_record
    from glray.report.long_losses import PLACINGS, SLIDING, WHOLE
    from glray.training.scoring import ScoringProtocol, score_model

    context = spec.context
    losses: dict[tuple[Path, str], dict[str, Any]] = {}
    for run in runs if context is not None else ():
        assert context is not None
        for name, stride in ((WHOLE, None), (SLIDING, context.stride)):
            path = directory / f"{run.label}-seed{run.seed}-{name}.json"
            scored_as = {"fingerprint": run.fingerprint, "context": context.model_dump(mode="json")}
            record = read_json(path)
            if record is None or record.get("scored_as") != scored_as:
                console.print(
                    f"{run.label} seed {run.seed}: scoring long documents, {name} windows"
                )
                protocol = ScoringProtocol(
                    seq_lens=context.seq_lens,
                    stride=stride,
                    positions=PLACINGS,
                    documents=context.documents,
                    num_tokens=context.num_tokens,
                )
                scores = score_model(run.directory, protocol)
                record = {"scored_as": scored_as, **context_record(scores, protocol)}
                write_json(path, record)
            losses[run.directory, name] = record
    return losses
