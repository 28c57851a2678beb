"""Commands that take trained runs: eval, report, export."""

from enum import StrEnum
from typing import Annotated

import typer

from glray.cli.app import app, console, naming_options, parsed_lengths, show, show_runs
from glray.errors import UserError
from glray.files import as_path
from glray.progress import working
from glray.storage import reached

EVAL_OPTIONS = {
    r"^seq_lens\b": "--seq-lens",
    r"^num_tokens\b": "--num-tokens",
    r"^(stride|positions|bos)\b": r"--\1",
    r"^documents\b|(?<=name )documents$|corpus\.paths": "--documents",
    r"corpus\.column": "--column",
}
"""The options of ``glray eval`` by what the library calls them in its errors."""


class EvalProtocol(StrEnum):
    """How ``glray eval`` goes through a document."""

    WHOLE = "whole"
    SLIDING = "sliding"


@app.command("eval")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run's directory, runs/quickstart/growlength-seed0, or a folder that "
            "transformers loads, with tokenizer.json.",
        ),
    ],
    seq_lens: Annotated[str, typer.Option(help="Window lengths: 128,256,512,1024,2048.")],
    positions: Annotated[
        str,
        typer.Option(
            help="RoPE scaling beyond the longest length trained, several with commas: "
            "as trained, extrapolation, interpolation, ntk, yarn, theta=NUMBER."
        ),
    ] = "as trained",
    protocol: Annotated[
        EvalProtocol, typer.Option(help="Cut documents into whole windows, or slide one over them.")
    ] = EvalProtocol.WHOLE,
    stride: Annotated[
        int | None, typer.Option(help="Tokens by which a sliding window moves; 256 by default.")
    ] = None,
    documents: Annotated[
        list[str] | None,
        typer.Option(
            help="Score these instead of the held-out text: *.txt, *.jsonl, *.parquet or *.arrow, "
            "local or at a URI. May be repeated."
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column or key of their text. Default: text.")
    ] = None,
    num_tokens: Annotated[
        int | None,
        typer.Option(
            help="Target tokens. Default: as in the run's evaluations; 65,536 for a folder."
        ),
    ] = None,
    bos: Annotated[
        bool,
        typer.Option(
            "--bos",
            help="Begin each window with what the folder's tokenizer prepends to a text, such as "
            "<s>, in place of its first token.",
        ),
    ] = False,
    out: Annotated[
        str | None, typer.Option(help="Folder for context.json and the plot context.png.")
    ] = None,
) -> None:
    """Score a model at any window lengths, on its run's held-out text or other documents."""
    with working("importing the model's code"):
        from glray.data.read.sources import corpus_of_files
        from glray.report.context import context_sheets, write_context
        from glray.train.scoring import ScoringProtocol, score_model

    is_sliding = protocol is EvalProtocol.SLIDING
    if stride is not None and not is_sliding:
        raise UserError(f"--stride {stride}: whole windows do not move; add --protocol sliding")
    if column is not None and not documents:
        raise UserError(
            f"--column {column}: held-out text has no columns; add --documents, or leave it out"
        )
    lengths = parsed_lengths(seq_lens)
    if stride is None and is_sliding:
        stride = min(256, max(lengths))
    folder = None if out is None else reached(as_path(out))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # what cannot be is said before hours of scoring
    chosen = ScoringProtocol(
        seq_lens=lengths,
        stride=stride,
        positions=tuple(dict.fromkeys(name.strip() for name in positions.split(","))),
        documents=corpus_of_files(documents, column or "text") if documents else None,
        num_tokens=num_tokens,
        bos=bos,
    )
    with naming_options(EVAL_OPTIONS):
        scores = score_model(reached(as_path(model)), chosen)
    show(*context_sheets(scores, chosen))
    if folder is not None:
        about = {"model": model, "documents": documents}
        paths = write_context(scores, chosen, about, folder)
        console.print(f"written: {' and '.join(map(str, paths))}")


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run directories, or pipeline directories of runs."),
    ],
    out: Annotated[str, typer.Option(help="Folder for report.html and the plots.")] = "report",
) -> None:
    """Show any runs as tables, plots and one HTML page."""
    show_runs([reached(as_path(run)) for run in runs], reached(as_path(out)))


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's directory: runs/quickstart/growlength-seed0."),
    ],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The new folder.")],
) -> None:
    """Write a run's latest model as a folder that transformers loads."""
    with working("importing the model's code"):
        from glray.train.export import export_run

    step = export_run(reached(as_path(run)), reached(as_path(directory)))
    console.print(f"{directory}: model and tokenizer of {run} at step {step:,}")
