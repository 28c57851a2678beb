"""Looking into a prepared corpus: its sources, documents' lengths, windows as text. No Ray."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from glray.data.blocks import read_manifest
from glray.data.corpus import PreparedCorpus
from glray.data.windows import read_windows
from glray.errors import UserError
from glray.spec.pipeline import PipelineSpec


@dataclass(frozen=True)
class SourceStats:
    """What was made of one source."""

    name: str
    weight: int
    place: str
    """Where its text came from."""
    num_files: int
    num_documents: int
    num_bytes: int
    """Of text in UTF-8."""
    num_training_documents: int
    num_tokens: int
    """Of the training stream."""
    num_heldout_documents: int
    num_heldout_tokens: int
    num_skipped: int
    """Texts that are empty or not UTF-8."""
    num_blocks: int
    vocab_size: int
    """Ids of the tokenizer."""
    directory: Path
    """Where its token blocks and their manifest lie."""
    length_documents: tuple[int, ...]
    """Training documents of 2^k to 2^(k+1) - 1 tokens, EOS included, by k."""
    length_tokens: tuple[int, ...]
    """Their tokens."""

    def at_least(self, num_tokens: int) -> tuple[int, int]:
        """Training documents of at least ``num_tokens``, a power of two, and their tokens."""
        power = num_tokens.bit_length() - 1
        return sum(self.length_documents[power:]), sum(self.length_tokens[power:])


def source_stats(corpus: PreparedCorpus) -> list[SourceStats]:
    """Each source's ledger, from its manifest."""
    ledgers = []
    for source in corpus.sources:
        manifest = read_manifest(source.blocks.directory)
        ledgers.append(
            SourceStats(
                name=source.name,
                weight=source.weight,
                place=manifest["source"],
                num_files=manifest["files"],
                num_documents=manifest["documents"],
                num_bytes=manifest["bytes"],
                num_training_documents=manifest["training_documents"],
                num_tokens=manifest["num_tokens"],
                num_heldout_documents=manifest["heldout_documents"],
                num_heldout_tokens=manifest["heldout_tokens"],
                num_skipped=manifest["empty_skipped"] + manifest["not_utf8_skipped"],
                num_blocks=len(source.blocks.blocks),
                vocab_size=source.blocks.vocab_size,
                directory=source.blocks.directory,
                length_documents=tuple(manifest["length_documents"]),
                length_tokens=tuple(manifest["length_tokens"]),
            )
        )
    return ledgers


@dataclass(frozen=True)
class ShownWindow:
    """One row of a step, decoded."""

    row: int
    source: str
    epoch: int
    """Of its source, from 0."""
    chunk: int
    """Of its source's stream."""
    first_token: int
    """Where it starts in its source's stream."""
    text: str
    """Of its inputs; special tokens are spelt out."""


def shown_windows(
    spec: PipelineSpec, corpus: PreparedCorpus, *, step: int, seq_len: int, num_rows: int
) -> Iterator[ShownWindow]:
    """The first ``num_rows`` rows of ``step`` at ``seq_len``, under the first seed.

    Raises UserError for a length that does not divide the chunk, and for a damaged block.
    """
    chunk_len = spec.chunk_tokens
    if seq_len < 1 or chunk_len % seq_len:
        raise UserError(
            f"--seq-len {seq_len} does not divide chunk_len {chunk_len:,}: no stage could have it; "
            "use a power of two up to that"
        )
    if step < 0:
        raise UserError(f"--step {step} is before the first step, which is 0; give 0 or more")
    order = corpus.order(chunk_len, spec.seeds[0])
    offsets = order.window_offsets(
        first_step=step,
        num_steps=1,
        tokens_per_batch=spec.tokens_per_batch,
        seq_len=seq_len,
        rank=0,
        world_size=1,
    )[0][:num_rows]
    if len(offsets) == 0:
        return
    chunks_per_step = spec.tokens_per_batch // chunk_len
    chunks = order.chunks(step * chunks_per_step, (step + 1) * chunks_per_step)
    windows = read_windows(corpus.block_refs(offsets), offsets, seq_len)
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    for row, (offset, window) in enumerate(zip(offsets.tolist(), windows, strict=True)):
        place = row * seq_len // chunk_len
        source = int(chunks.source[place])
        yield ShownWindow(
            row=row,
            source=corpus.sources[source].name,
            epoch=int(chunks.epoch[place]),
            chunk=int(chunks.chunk[place]),
            first_token=offset - order.first_offset(source),
            text=tokenizer.decode(window[:-1].tolist(), skip_special_tokens=False),
        )
