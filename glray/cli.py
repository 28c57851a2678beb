"""The ``glray`` command."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import sole_writer
from glray.spec import PipelineSpec, TokenizerFile, load_pipeline
from glray.storage import storage_path

if TYPE_CHECKING:
    from glray.training.run_directory import Run

app = typer.Typer(
    name="glray",
    help="Grow the sequence length while pretraining a language model, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(highlight=False, soft_wrap=True)

GUARDED_STATUS = 3
"""Of ``glray run`` when the held-out loss has risen by more than ``evaluation.max_rise``."""

PipelineFile = Annotated[
    Path, typer.Argument(metavar="PIPELINE", help="A pipeline's .py file, or its resolved .yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override a field of the spec: --set budget.seconds=60 "
        "--set arms.growlength.stages.0.ratio=2. May be repeated.",
    ),
]
RunDirectories = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Run directories, or pipeline directories of runs."),
]
RunDirectory = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's directory: runs/quickstart/growlength-seed0.")
]


@app.command()
def plan(pipeline: PipelineFile, overrides: Overrides = None) -> None:
    """Print each arm's stages in steps and tokens. Touches nothing."""
    from glray.report.plan_table import plan_tables

    Console(highlight=False).print(plan_tables(load_pipeline(pipeline, overrides)))


@app.command()
def prepare(pipeline: PipelineFile, overrides: Overrides = None) -> None:
    """Turn the corpus into token blocks, unless they are there."""
    _prepared(_load(pipeline, overrides))


@app.command()
def data(
    pipeline: PipelineFile,
    overrides: Overrides = None,
    step: Annotated[int, typer.Option(help="Whose windows to show.")] = 0,
    seq_len: Annotated[
        int | None, typer.Option(help="Their length. Default: the first arm's first stage's.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many of them.")] = 3,
) -> None:
    """Look into the corpus: sources, document lengths, decoded windows of any step."""
    from glray.data.inspection import shown_windows, source_ledgers
    from glray.report.data_tables import lengths_table, sources_table, windows_text

    spec = _load(pipeline, overrides)
    corpus = _prepared(spec)
    length = seq_len if seq_len is not None else spec.arms[0].stages[0].seq_len
    windows = list(shown_windows(spec, corpus, step=step, seq_len=length, num_rows=rows))
    ledgers = source_ledgers(corpus)
    out = Console(highlight=False)
    out.print(sources_table(ledgers), lengths_table(ledgers), windows_text(windows, step, length))


@app.command()
def run(pipeline: PipelineFile, overrides: Overrides = None) -> None:
    """Prepare, train, evaluate and report every arm. Run again to resume."""
    from glray.model.config import starting_model
    from glray.report.plan_table import plan_tables
    from glray.training.guard import excessive_rise
    from glray.training.run_directory import pipeline_directory, settle, with_calibration

    spec = with_calibration(_load(pipeline, overrides))
    Console(highlight=False).print(plan_tables(spec))
    starting_model(spec)  # what is wrong with its folder is said before the corpus is prepared
    corpus = _prepared(spec)
    runs = settle(spec, corpus)
    order = corpus.order(spec.chunk_tokens, seed=0)
    for index, source in enumerate(corpus.sources):
        console.print(
            f"an epoch of {source.name}: {order.num_chunks(index):,} chunks × "
            f"{order.chunk_len:,} tokens; {order.num_lost_targets(index):,} of "
            f"{source.blocks.num_tokens:,} tokens are never targets"
        )
    if runs is not None and all(run.is_finished for run in runs):
        console.print("every run is finished, nothing to train")
    elif runs is None or not all(run.is_finished or excessive_rise(run) for run in runs):
        exit_status = _train(spec, corpus)
        runs = settle(spec, corpus)
        if exit_status or runs is None:
            _say_stopped(exit_status)
    refuse_risen(runs)
    if not all(run.is_finished for run in runs):
        _say_stopped(0)
    _report([run.directory for run in runs], pipeline_directory(spec))


def _say_stopped(exit_status: int) -> NoReturn:
    console.print("stopped; the same command resumes")
    raise typer.Exit(exit_status)


def refuse_risen(runs: "list[Run]") -> None:
    """Exit with status 3 if the guard has stopped a run."""
    from glray.training.guard import excessive_rise

    risen = [(run, rise) for run in runs if (rise := excessive_rise(run))]
    for run, rise in risen:
        console.print(
            f"{run.name}: {rise}: stopped with a checkpoint, as evaluation.max_rise is "
            f"{run.spec.evaluation.max_rise:g}; with a higher one, or null, the same command goes "
            "on"
        )
    if risen:
        raise typer.Exit(GUARDED_STATUS)


class EvalProtocol(StrEnum):
    """How ``glray eval`` goes through a document."""

    WHOLE = "whole"
    SLIDING = "sliding"


@app.command("eval")
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A run's directory, runs/quickstart/growlength-seed0, or a folder that "
            "transformers loads, with tokenizer.json.",
        ),
    ],
    seq_lens: Annotated[
        str, typer.Option("--seq-lens", help="Window lengths: 128,256,512,1024,2048.")
    ],
    positions: Annotated[
        str,
        typer.Option(
            help="How positions are placed beyond the longest length trained, several with commas: "
            "as trained, extrapolation, interpolation, ntk, yarn, theta=NUMBER."
        ),
    ] = "as trained",
    protocol: Annotated[
        EvalProtocol,
        typer.Option(help="Cut documents into whole windows, or slide one over them."),
    ] = EvalProtocol.WHOLE,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens by which a sliding window moves; 256 by default."),
    ] = None,
    documents: Annotated[
        list[str] | None,
        typer.Option(
            help="Score these instead of the held-out text: *.txt, *.jsonl, *.parquet or *.arrow, "
            "local or at a URI. May be repeated."
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="Where their text lies.")] = "text",
    num_tokens: Annotated[
        int | None,
        typer.Option(
            help="Target tokens. Default: as many as the run's evaluations, 65,536 of a folder."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for context.json and the plot context.png.")
    ] = None,
) -> None:
    """Score a model at any window lengths, on its run's held-out text or other documents."""
    from glray.data.sources import corpus_of
    from glray.report.context import context_remarks, context_tables, write_context
    from glray.training.scoring import ScoringProtocol, score_model

    is_sliding = protocol is EvalProtocol.SLIDING
    if stride is not None and not is_sliding:
        raise UserError(f"--stride {stride}: whole windows do not move; add --protocol sliding")
    lengths = _lengths(seq_lens)
    if stride is None and is_sliding:
        stride = min(256, max(lengths))
    if out is not None:
        _make_folder(out)  # before hours of scoring
    chosen = ScoringProtocol(
        seq_lens=lengths,
        stride=stride,
        positions=tuple(dict.fromkeys(name.strip() for name in positions.split(","))),
        documents=corpus_of(documents, column) if documents else None,
        num_tokens=num_tokens,
    )
    scores = score_model(model, chosen)
    Console(highlight=False).print(*context_tables(scores, chosen), sep="\n")
    for line in context_remarks(scores, chosen):
        console.print(line)
    if out is not None:
        about = {"model": str(model), "documents": documents}
        paths = write_context(scores, chosen, about, out)
        console.print(f"written: {' and '.join(map(str, paths))}")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {out}: no folder can be made there ({error.strerror}), nothing could be kept; "
            "name another"
        ) from None


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(length) for length in text.split(","))
    except ValueError:
        raise UserError(f"--seq-lens {text}: write lengths as 128,256,512") from None


@app.command()
def report(
    runs: RunDirectories,
    out: Annotated[Path, typer.Option(help="Folder for report.html and the plots.")] = Path(
        "report"
    ),
) -> None:
    """Tables, plots and one HTML page of any set of runs."""
    _report(runs, out)


@app.command()
def export(
    run: RunDirectory,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder.")],
) -> None:
    """Write a run's latest model as a folder that transformers loads."""
    from glray.training.export import export_run

    step = export_run(run, directory)
    console.print(f"{directory}: model and tokenizer of {run} at step {step:,}")


@app.command()
def tune(pipeline: PipelineFile, overrides: Overrides = None) -> None:
    """Search an arm's stages; writes best.yaml.

    Draws the ratios or boundaries that the pipeline's `search=SearchSpec(…)` declares, trains each
    trial for the budget (in seconds), ranks by held-out loss, and leaves the winner as best.yaml in
    the pipeline's directory, which glray run takes.
    """
    from glray.cluster import connect, require_workers
    from glray.model.config import starting_model
    from glray.search.space import refuse_search
    from glray.search.tuner import search
    from glray.training.run_directory import pipeline_directory

    spec = _load(pipeline, overrides)
    refuse_search(spec)
    starting_model(spec)
    corpus = _prepared(spec)
    with sole_writer(pipeline_directory(spec)):
        connect(spec.compute, console.print)
        require_workers(spec.compute, console.print)
        result = search(spec, corpus, console.print)
    Console(highlight=False).print(result.table())
    console.print(f"best schedule: glray run {result.best_yaml}")


def _load(pipeline: Path, overrides: list[str] | None) -> PipelineSpec:
    """The resolved spec, all its paths absolute: its YAML runs from any folder."""
    spec = load_pipeline(pipeline, overrides).resolved()
    declared = spec.model_dump()
    declared["compute"]["storage"] = str(storage_path(spec.compute))
    sources = declared["corpus"].get("sources")
    for corpus in [source["corpus"] for source in sources] if sources else [declared["corpus"]]:
        if "paths" in corpus:
            corpus["paths"] = [_absolute(path) for path in corpus["paths"]]
    if isinstance(spec.tokenizer, TokenizerFile):
        declared["tokenizer"]["path"] = _absolute(spec.tokenizer.path)
    if spec.init is not None:
        declared["init"] = _absolute(spec.init)
    return PipelineSpec.model_validate(declared)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _prepared(spec: PipelineSpec) -> PreparedCorpus:
    """The spec's token blocks: found, or made by a Ray Data job."""
    from glray.data.listing import find_prepared

    corpus = find_prepared(spec)
    if corpus is not None:
        names = ", ".join(source.blocks.fingerprint for source in corpus.sources)
        console.print(f"prepare: token blocks {names} are there, nothing to do")
    else:
        from glray.cluster import connect
        from glray.data.prepare import prepare

        connect(spec.compute, console.print)
        corpus = prepare(spec, console.print)
    return corpus


def _train(spec: PipelineSpec, corpus: PreparedCorpus) -> int:
    """Train what is unfinished. Returns 0, or the exit status of the signal that stopped it."""
    from glray.cluster import connect, require_workers
    from glray.stopping import in_a_thread, stop_on_signals
    from glray.training.edge import fit, stop_file
    from glray.training.run_directory import pipeline_directory
    from glray.watch import watching

    directory = pipeline_directory(spec)
    with sole_writer(directory):
        connect(spec.compute, console.print)
        require_workers(spec.compute, console.print)
        with (
            stop_on_signals(stop_file(spec), console.print) as stop,
            watching(directory, console),
        ):
            in_a_thread(lambda: fit(spec, corpus))
    return stop.exit_status


def _report(runs: list[Path], out: Path) -> None:
    from glray.report.page import write_report
    from glray.report.records import load_runs
    from glray.report.table import headline, summary

    records = load_runs(runs)
    page = write_report(records, out)
    Console(highlight=False).print(*summary(records), *headline(records), sep="\n")
    console.print(f"report: {page}")


def main() -> None:
    """Run the command; what a person can mend is one line on stderr and status 2."""
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}")


def _refuse(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
