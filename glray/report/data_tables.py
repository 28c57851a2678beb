"""A prepared corpus as a person reads it, in 80 columns."""

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from glray.data.inspection import ShownWindow, SourceStats
from glray.report.formats import tokens_text

LENGTHS = (1, 128, 512, 1024, 4096, 16384)
"""Document lengths in tokens that are asked about."""
BAR_WIDTH = 20
TEXT_SHOWN = 400
"""Characters of a window that are printed, half from its start and half from its end."""


def sources_table(ledgers: list[SourceStats]) -> RenderableType:
    """Each source's ledger, and where it came from."""
    table = _table("Sources", ("source", "weight", "documents", "MB", "tokens", "held out"))
    for ledger in ledgers:
        table.add_row(
            ledger.name,
            str(ledger.weight),
            f"{ledger.num_documents:,}",
            f"{ledger.num_bytes / 1e6:,.1f}",
            tokens_text(ledger.num_tokens),
            f"{ledger.num_heldout_documents:,} ({tokens_text(ledger.num_heldout_tokens)})",
        )
    places = []
    for ledger in ledgers:
        skipped = f", {ledger.num_skipped:,} texts skipped" if ledger.num_skipped else ""
        places.append(
            f"{ledger.name}: {ledger.num_files:,} files, {ledger.place}{skipped}; "
            f"{ledger.num_blocks:,} blocks of {ledger.vocab_size:,} ids in {ledger.directory}"
        )
    return Group(table, Text("\n".join(places) + "\n", style="dim"))


def lengths_table(ledgers: list[SourceStats]) -> RenderableType:
    """How many training tokens sit in documents of at least each length."""
    table = _table("Training tokens in documents of at least …", ("length", "documents", "tokens"))
    table.add_column("share", justify="right")
    table.add_column("")
    whole = sum(ledger.num_tokens for ledger in ledgers)
    for length in LENGTHS:
        documents, tokens = (
            sum(counts) for counts in zip(*(each.at_least(length) for each in ledgers), strict=True)
        )
        share = tokens / whole if whole else 0.0
        bar = "█" * round(share * BAR_WIDTH)
        table.add_row(f"{length:,}", f"{documents:,}", tokens_text(tokens), f"{share:.0%}", bar)
    note = "A window longer than most documents joins unrelated ones: it teaches little of its own."
    return Group(table, Text(note + "\n", style="dim"))


def windows_text(windows: list[ShownWindow], step: int, seq_len: int) -> RenderableType:
    """Decoded windows of a step, one under another."""
    parts: list[RenderableType] = [Text(f"Step {step:,} at seq_len {seq_len:,}", style="bold")]
    for window in windows:
        place = (
            f"row {window.row}: {window.source}, epoch {window.epoch}, chunk {window.chunk:,}, "
            f"tokens {window.first_token:,} to {window.first_token + seq_len:,}"
        )
        parts.append(Text(place, style="dim"))
        parts.append(Text(_shortened(window.text)))
    return Group(*parts)


def _shortened(text: str) -> str:
    if len(text) <= TEXT_SHOWN:
        return text
    half = TEXT_SHOWN // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=escape(title),
        title_justify="left",
        title_style="bold",
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "source" else "right")
    return table
