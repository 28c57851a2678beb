"""Windows: rows of ``seq_len + 1`` tokens read from token blocks at given places of the corpus.

A window's inputs and targets are two views of it. A window never crosses a block: it lies inside
a chunk, chunks divide blocks, and each block carries the first token of the next one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from glray.data.blocks.token_blocks import read_block
from glray.data.corpus import BlockRefs, PreparedCorpus
from glray.data.order import ChunkOrder
from glray.plan import Plan
from glray.spec.pipeline import BLOCK_TOKENS


@dataclass(frozen=True)
class Batch:
    """This rank's windows of one step; either array may have no rows."""

    step: int
    seq_len: int
    tokens_per_batch: int
    """Tokens of the step over all ranks."""
    offsets: np.ndarray
    """int64[rows]: where each window starts in the corpus."""
    tokens: np.ndarray
    """uint16 or uint32[rows, seq_len + 1]; may be read-only and shared: never write to it."""


@dataclass(frozen=True)
class StageReads:
    """A run of steps of one stage, and where one rank's windows of each lie."""

    first_step: int
    seq_len: int
    tokens_per_batch: int
    """Tokens of each step over all ranks."""
    offsets: np.ndarray
    """int64[steps, rows of the rank]."""


@lru_cache(maxsize=512)
def _block(path: str, sha256: str) -> np.ndarray:
    return read_block(Path(path), sha256)


def read_windows(blocks: BlockRefs, offsets: np.ndarray, seq_len: int) -> np.ndarray:
    """The windows that start at ``offsets`` (int64[rows]): uint[rows, seq_len + 1], copied.

    ``blocks`` has those that the windows lie in; each is checked on its first read in a process.
    Raises UserError for a damaged one.
    """
    block_of = offsets // BLOCK_TOKENS
    windows = None
    for number in np.unique(block_of).tolist():
        inside = block_of == number
        block = _block(*blocks[number])
        if windows is None:
            windows = np.empty((len(offsets), seq_len + 1), dtype=block.dtype)
        cuts = np.lib.stride_tricks.sliding_window_view(block, seq_len + 1)
        windows[inside] = cuts[offsets[inside] - number * BLOCK_TOKENS]
    assert windows is not None, "no windows asked for"
    return windows


def stage_reads(
    order: ChunkOrder,
    plan: Plan,
    *,
    first_step: int,
    steps_per_segment: int,
    rank: int,
    world_size: int,
) -> Iterator[StageReads]:
    """What a rank reads from ``first_step`` to the end of the plan, a bounded segment at a time.
    ``order`` is the plan's.

    A segment never crosses a stage boundary.
    """
    for stage in plan.stages:
        start = max(first_step, stage.first_step)
        while start < stage.end_step:
            num_steps = min(steps_per_segment, stage.end_step - start)
            offsets = order.window_offsets(
                first_token=plan.tokens_after(start),
                num_steps=num_steps,
                tokens_per_batch=stage.tokens_per_batch,
                seq_len=stage.seq_len,
                rank=rank,
                world_size=world_size,
            )
            yield StageReads(start, stage.seq_len, stage.tokens_per_batch, offsets)
            start += num_steps


def local_batches(corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Iterator[Batch]:
    """The batches of ``segments`` read directly: the reference that Ray Data's stream must equal,
    and the stream of the local worker context."""
    for reads in segments:
        blocks = corpus.block_refs(reads.offsets)
        for index, offsets in enumerate(reads.offsets):
            tokens = (
                read_windows(blocks, offsets, reads.seq_len)
                if len(offsets)
                else np.empty((0, reads.seq_len + 1), dtype=corpus.vocabulary.dtype)
            )
            step = reads.first_step + index
            yield Batch(step, reads.seq_len, reads.tokens_per_batch, offsets, tokens)
