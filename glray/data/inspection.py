"""Looking into a prepared corpus: the windows of a step as text. No Ray."""

from collections.abc import Iterator
from dataclasses import dataclass

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
