"""The application that commands are added to, and what several of them take and do."""

import json
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from glray import __version__
from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import AnyPath, as_path
from glray.progress import working
from glray.report.render import terminal
from glray.report.sheets import Sheet
from glray.run.run import open_runs
from glray.spec import ComputeSpec, PipelineSpec, Spec, load_pipeline
from glray.spec.base import FILE_FIELDS
from glray.storage import reached, storage_path, validate_storage

if TYPE_CHECKING:
    from glray.report.page import Report
    from glray.report.search_page import SearchReport

app = typer.Typer(
    name="glray",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(highlight=False, soft_wrap=True)

INTERRUPTED_STATUS = 130
"""Of a command that Ctrl-C has stopped, as a shell counts it;"""
TERMINATED_STATUS = 143
"""and of one that SIGTERM has."""


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
    str,
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


def load_spec(pipeline: AnyPath | str, overrides: list[str] | None) -> PipelineSpec:
    """The resolved spec with absolute paths, so that its YAML runs from any folder."""
    spec: PipelineSpec = absolute(declared_spec(pipeline, overrides))
    reached(storage_path(spec.compute))
    return spec


def declared_spec(pipeline: AnyPath | str, overrides: list[str] | None) -> PipelineSpec:
    """The spec with its paths as they are declared. The storage of one that lies where glray left
    it is the one around it, wherever that was moved."""
    around = _storage_around(reached(as_path(str(pipeline))))
    stored = [f"compute.storage={json.dumps(str(path))}" for path in around]
    return load_pipeline(pipeline, [*stored, *(overrides or [])])


def _storage_around(pipeline: AnyPath) -> list[AnyPath]:
    """The storage that a run's or pipeline's own ``spec.yaml``, or a search's ``best.yaml``, lies
    in; empty for any other file."""
    folder = pipeline.resolve().parent
    if pipeline.name == "spec.yaml" and (folder / "run.json").exists():
        return [folder.parents[1]]
    if pipeline.name == "best.yaml":
        from glray.search.space import search_name

        return [folder.parent] if folder.with_name(search_name(folder.name)).is_dir() else []
    is_pipeline = pipeline.name == "spec.yaml" and any(folder.glob("*/run.json"))
    return [folder.parent] if is_pipeline else []


def absolute(value: Any, field: str = "") -> Any:
    """A spec, or a value of one of its fields, with absolute paths and resolved pipelines."""
    if isinstance(value, ComputeSpec):
        return value.derive(storage=str(storage_path(value)))
    if isinstance(value, PipelineSpec):
        value = value.resolved()
    if isinstance(value, Spec):
        return value.derive(**{name: absolute(below, name) for name, below in value})
    if isinstance(value, tuple):
        return tuple(absolute(item, field) for item in value)
    is_here = field == "run" and os.path.isdir(os.path.dirname(value))  # else in the storage
    if (field in FILE_FIELDS or is_here) and value and "://" not in value:
        return os.path.abspath(os.path.expanduser(value))
    return value


def validate_machine(spec: PipelineSpec) -> None:
    """Raises UserError, before any work, if this machine lacks what the spec's work will need: a
    storage that can hold it, and Weights & Biases where that is asked for."""
    validate_storage(storage_path(spec.compute))
    if spec.compute.wandb_project is not None:
        from glray.ray.cluster import joined_address
        from glray.train.trackers import validate_tracker

        # A worker of a joined cluster may be on a node that has a key while this one has none.
        validate_tracker(spec.compute, needs_key=joined_address() is None)


def prepared_corpus(spec: PipelineSpec) -> PreparedCorpus:
    """The spec's token blocks: found, or made by Ray tasks."""
    with working("looking for token blocks"):
        from glray.data.blocks.snapshot import find_prepared

        corpus = find_prepared(spec)
    if corpus is not None:
        names = ", ".join(source.blocks.fingerprint for source in corpus.sources)
        console.print(f"prepare: token blocks {names} are there, nothing to do")
    else:
        with working("importing Ray"):
            from glray.ray.cluster import connect
            from glray.ray.prepare import prepare

        validate_storage(storage_path(spec.compute))
        with resumable():
            connect(spec.compute, console.print)
        with resumable():  # once it is connected, Ray has a handler of its own for SIGTERM
            corpus = prepare(spec, console.print)
    return corpus


def say_stopped(exit_status: int) -> NoReturn:
    """Exit where a command was stopped."""
    console.print("stopped; the same command resumes")
    raise typer.Exit(exit_status)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, taken like Ctrl-C."""


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C or SIGTERM within the block is said to have stopped the command. Main thread only."""

    def terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except _Terminated:
        say_stopped(TERMINATED_STATUS)
    except KeyboardInterrupt:
        say_stopped(INTERRUPTED_STATUS)
    finally:
        if before is not None:  # else it is not Python's
            signal.signal(signal.SIGTERM, before)


def join_cluster(compute: ComputeSpec) -> None:
    """Return once Ray is connected and has room for the workers. Raises UserError; Ctrl-C and
    SIGTERM stop the command."""
    from glray.ray.cluster import connect, require_workers

    with resumable():
        connect(compute, console.print)
    with resumable():  # once it is connected, Ray has a handler of its own for SIGTERM
        require_workers(compute, console.print)


@contextmanager
def naming_options(options: Mapping[str, str]) -> Iterator[None]:
    """An error of the library names the command's options: what matches a pattern of ``options``
    becomes the option that gives it."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for pattern, option in options.items():
            message = re.sub(pattern, option, message)
        raise UserError(message) from None


def parsed_lengths(text: str) -> tuple[int, ...]:
    """The lengths of ``--seq-lens``. Raises UserError."""
    try:
        return tuple(int(length) for length in text.split(","))
    except ValueError:
        raise UserError(f"--seq-lens {text}: write lengths as 128,256,512") from None


def show(*parts: Sheet | str) -> None:
    """Print tables and sentences."""
    Console(highlight=False).print(terminal(*parts))


def write_and_show(report: "Report | SearchReport", directory: AnyPath) -> None:
    """Print what the runs say and write the page."""
    with working("writing the report"):
        page = report.write(directory)
        sheets, sentences = report.sheets(), report.sentences
    show(*sheets, *sentences)
    console.print(f"report: {page}")


def show_runs(paths: Sequence[AnyPath], directory: AnyPath) -> None:
    """Report on the runs of each path."""
    with working("reading the runs"):
        from glray.report.page import Report

        runs = open_runs(paths)
    write_and_show(Report(runs), directory)
