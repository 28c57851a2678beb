"""Looking into a prepared corpus: the windows of a step as text. No Ray."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from glray.data.corpus import PreparedCorpus
from glray.data.windows import read_windows
from glray.errors import UserError
from glray.spec.pipeline import PipelineSpec


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
            f"seq_len {seq_len} does not divide chunk_len {chunk_len:,}: no stage could have it; "
            "use a power of two up to that"
        )
    if step < 0:
        raise UserError(f"step {step} is before the first step, which is 0; give 0 or more")
    order = corpus.order(chunk_len, spec.seeds[0])
    chunks_per_step = spec.tokens_per_batch // chunk_len
    chunks = order.chunks(step * chunks_per_step, (step + 1) * chunks_per_step)
    rows = np.arange(min(num_rows, spec.tokens_per_batch // seq_len))
    places, inside = np.divmod(rows * seq_len, chunk_len)
    offsets = chunks.offset[places] + inside
    if len(rows) == 0:
        return
    windows = read_windows(corpus.block_refs(offsets), offsets, seq_len)
    tokenizer = Tokenizer.from_file(str(corpus.vocabulary.tokenizer_path))
    for row, place in enumerate(places.tolist()):
        source = int(chunks.source[place])
        yield ShownWindow(
            row=row,
            source=corpus.sources[source].name,
            epoch=int(chunks.epoch[place]),
            chunk=int(chunks.chunk[place]),
            first_token=int(offsets[row]) - order.first_offset(source),
            text=tokenizer.decode(windows[row, :-1].tolist(), skip_special_tokens=False),
        )
