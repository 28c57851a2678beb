"""A prepared corpus: its sources, its document lengths, and decoded windows."""

from glray.data.corpus import PreparedCorpus
from glray.data.inspection import ShownWindow
from glray.report.formats import counted, tokens_text
from glray.report.sheets import Sheet
from glray.run.records import ParentRecord

LENGTHS = (1, 128, 512, 1024, 4096, 16384)
"""Document lengths in tokens that are asked about."""
BAR_WIDTH = 20
TEXT_SHOWN = 400
"""Characters of a window that are printed, half from its start and half from its end."""


def sources(corpus: PreparedCorpus) -> Sheet:
    """What each source holds, and where it came from."""
    rows, places = [], []
    for source in corpus.sources:
        blocks = source.blocks
        spans = " spans" if blocks.heldout_span_tokens else ""
        heldout = f"{blocks.heldout_documents:,}{spans} ({tokens_text(blocks.heldout_tokens)})"
        rows.append(
            [
                source.name,
                str(source.weight),
                f"{blocks.documents:,}",
                f"{blocks.bytes / 1e6:,.1f}",
                tokens_text(blocks.num_tokens),
                heldout,
            ]
        )
        num_skipped = blocks.empty_skipped + blocks.not_utf8_skipped + blocks.no_column_skipped
        skipped = f", {num_skipped:,} texts skipped" if num_skipped else ""
        if blocks.unknown_characters:
            skipped += f", {blocks.unknown_characters:,} characters without a token"
        places.append(
            f"{source.name}: {counted(blocks.files, 'file')}, {blocks.source}{skipped}; "
            f"{counted(blocks.num_blocks, 'block')} of {blocks.vocab_size:,} ids in "
            f"{blocks.directory}"
        )
    check = corpus.heldout_check()
    if check is not None:
        places.append(f"{check.sentence}.")
    columns = ("source", "weight", "documents", "MB", "tokens", "held out")
    return Sheet("Sources", columns, rows, places)


def document_lengths(corpus: PreparedCorpus) -> Sheet:
    """How many training tokens sit in documents of at least each length."""
    rows = []
    whole = sum(source.blocks.num_tokens for source in corpus.sources)
    for length in LENGTHS:
        counts = [source.blocks.at_least(length) for source in corpus.sources]
        documents, tokens = (sum(column) for column in zip(*counts, strict=True))
        share = tokens / whole if whole else 0.0
        bar = "█" * round(share * BAR_WIDTH)
        rows.append([f"{length:,}", f"{documents:,}", tokens_text(tokens), f"{share:.0%}", bar])
    note = (
        "Windows longer than most documents pack unrelated text and add little long-range signal."
    )
    title = "Training tokens in documents of at least …"
    return Sheet(title, ("length", "documents", "tokens", "share", ""), rows, [note], left=(4,))


def parent_text(parent: ParentRecord, step: int) -> str:
    """What the pipeline's runs go on from, and which run reads the windows of ``step``."""
    whose = f"is one of {parent.run}'s" if step < parent.step else "is read by the pipeline's runs"
    return f"\nEvery run {parent.sentence}: step {step:,} {whose}."


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
