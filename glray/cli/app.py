"""The application that commands are added to, and what several of them take and do."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from glray import __version__
from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.spec import PipelineSpec, TokenizerFile, load_pipeline
from glray.storage import storage_path

app = typer.Typer(
    name="glray",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(highlight=False, soft_wrap=True)


def _say_version(wanted: bool) -> None:
    if wanted:
        console.print(f"glray {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Grow the sequence length while pretraining a language model, on Ray."""


PipelineFile = Annotated[
    Path,
    typer.Argument(
        metavar="PIPELINE",
        help="A pipeline's .py file, FILE.py:NAME for another function of it, or its "
        "resolved .yaml.",
    ),
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


def load_spec(pipeline: Path, overrides: list[str] | None) -> PipelineSpec:
    """The resolved spec, all its paths absolute: its YAML runs from any folder."""
    return absolute(load_pipeline(pipeline, overrides))


def absolute(spec: PipelineSpec) -> PipelineSpec:
    """The resolved spec with absolute paths."""
    spec = spec.resolved()
    declared = spec.model_dump()
    declared["compute"]["storage"] = str(storage_path(spec.compute))
    sources = declared["corpus"].get("sources")
    for corpus in [source["corpus"] for source in sources] if sources else [declared["corpus"]]:
        make_paths_absolute(corpus)
    if isinstance(spec.tokenizer, TokenizerFile):
        declared["tokenizer"]["path"] = _absolute(spec.tokenizer.path)
    if spec.init is not None:
        declared["init"] = _absolute(spec.init)
    return PipelineSpec.model_validate(declared)


def make_paths_absolute(corpus: dict[str, Any]) -> None:
    """Write the local paths of a declared corpus, where it has any, from the root."""
    if "paths" in corpus:
        corpus["paths"] = [_absolute(path) for path in corpus["paths"]]


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def prepared_corpus(spec: PipelineSpec) -> PreparedCorpus:
    """The spec's token blocks: found, or made by Ray tasks."""
    from glray.data.blocks.snapshot import find_prepared

    corpus = find_prepared(spec)
    if corpus is not None:
        names = ", ".join(source.blocks.fingerprint for source in corpus.sources)
        console.print(f"prepare: token blocks {names} are there, nothing to do")
    else:
        from glray.ray.cluster import connect
        from glray.ray.prepare import prepare

        connect(spec.compute, console.print)
        corpus = prepare(spec, console.print)
    return corpus


def parsed_lengths(text: str) -> tuple[int, ...]:
    """The lengths of ``--seq-lens``. Raises UserError."""
    try:
        return tuple(int(length) for length in text.split(","))
    except ValueError:
        raise UserError(f"--seq-lens {text}: write lengths as 128,256,512") from None


def write_and_show(runs: list[Path], out: Path) -> None:
    """Print what came of the runs and write the page."""
    from glray.report.headline import headline
    from glray.report.page import write_report
    from glray.report.render import terminal
    from glray.report.sheets import summary
    from glray.run.run import open_runs

    records = open_runs(runs)
    page = write_report(records, out)
    Console(highlight=False).print(terminal(*summary(records), *headline(records)))
    console.print(f"report: {page}")
