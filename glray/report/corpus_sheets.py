"""A prepared corpus: its sources, its document lengths, and decoded windows."""

from glray.data.inspection import ShownWindow, SourceStats
from glray.report.formats import tokens_text
from glray.report.sheets import Sheet

LENGTHS = (1, 128, 512, 1024, 4096, 16384)
"""Document lengths in tokens that are asked about."""
BAR_WIDTH = 20
TEXT_SHOWN = 400
"""Characters of a window that are printed, half from its start and half from its end."""


def sources(all_stats: list[SourceStats]) -> Sheet:
    """What was made of each source, and where it came from."""
    rows, places = [], []
    for stats in all_stats:
        heldout = f"{stats.num_heldout_documents:,} ({tokens_text(stats.num_heldout_tokens)})"
        rows.append(
            [
                stats.name,
                str(stats.weight),
                f"{stats.num_documents:,}",
                f"{stats.num_bytes / 1e6:,.1f}",
                tokens_text(stats.num_tokens),
                heldout,
            ]
        )
        skipped = f", {stats.num_skipped:,} texts skipped" if stats.num_skipped else ""
        places.append(
            f"{stats.name}: {stats.num_files:,} files, {stats.place}{skipped}; "
            f"{stats.num_blocks:,} blocks of {stats.vocab_size:,} ids in {stats.directory}"
        )
    columns = ("source", "weight", "documents", "MB", "tokens", "held out")
    return Sheet("Sources", columns, rows, places)


def document_lengths(all_stats: list[SourceStats]) -> Sheet:
    """How many training tokens sit in documents of at least each length."""
    rows = []
    whole = sum(stats.num_tokens for stats in all_stats)
    for length in LENGTHS:
        counts = [stats.at_least(length) for stats in all_stats]
        documents, tokens = (sum(column) for column in zip(*counts, strict=True))
        share = tokens / whole if whole else 0.0
        bar = "█" * round(share * BAR_WIDTH)
        rows.append([f"{length:,}", f"{documents:,}", tokens_text(tokens), f"{share:.0%}", bar])
    note = (
        "Windows longer than most documents pack unrelated text and add little long-range signal."
    )
    title = "Training tokens in documents of at least …"
    return Sheet(title, ("length", "documents", "tokens", "share", ""), rows, [note], left=(4,))


def windows_text(windows: list[ShownWindow], step: int, seq_len: int) -> str:
    """Decoded windows of a step, one under another."""
    lines = [f"\nStep {step:,} at seq_len {seq_len:,}"]
    for window in windows:
        lines += [
            f"row {window.row}: {window.source}, epoch {window.epoch}, chunk {window.chunk:,}, "
            f"tokens {window.first_token:,} to {window.first_token + seq_len:,}",
            _shortened(window.text),
        ]
    return "\n".join(lines)


def _shortened(text: str) -> str:
    if len(text) <= TEXT_SHOWN:
        return text
    half = TEXT_SHOWN // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
