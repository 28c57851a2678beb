"""Windows: rows of ``seq_len + 1`` tokens read from token blocks at given places of the corpus.

A window's inputs and targets are two views of it. A window never crosses a block: it lies inside
a chunk, chunks divide blocks, and each block carries the first token of the next one.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from glray.data.blocks.block_files import pieces_of
from glray.data.blocks.reading import open_blocks
from glray.data.corpus import BlockPlaces, PreparedCorpus
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


def read_windows(
    places: BlockPlaces, offsets: np.ndarray, seq_len: int, *, whole: bool = True
) -> np.ndarray:
    """The windows that start at ``offsets`` (int64[rows]): uint[rows, seq_len + 1], copied.

    ``places`` has the blocks that they lie in; what is read of these is checked on its first read
    in a process. Raises as ``open_blocks``, where ``whole`` is explained.
    """
    numbers, inside = np.divmod(offsets, BLOCK_TOKENS)
    in_order = np.argsort(numbers, kind="stable")
    found, first_rows = np.unique(numbers[in_order], return_index=True)
    rows_of = np.split(in_order, first_rows[1:])
    wanted = [
        (places[number], pieces_of(inside[rows], seq_len + 1))
        for number, rows in zip(found.tolist(), rows_of, strict=True)
    ]
    windows = np.empty((len(offsets), seq_len + 1), dtype=wanted[0][0].dtype)
    for block, rows in zip(open_blocks(wanted, whole=whole), rows_of, strict=True):
        windows[rows] = block.windows(inside[rows], seq_len + 1)
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


def local_batches(corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Generator[Batch]:
    """The batches of ``segments`` read directly: the reference that Ray Data's stream must equal,
    and the stream of the local worker context."""
    for reads in segments:
        places = corpus.block_places(reads.offsets)
        for index, offsets in enumerate(reads.offsets):
            tokens = (
                read_windows(places, offsets, reads.seq_len)
                if len(offsets)
                else np.empty((0, reads.seq_len + 1), dtype=corpus.vocabulary.dtype)
            )
            step = reads.first_step + index
            yield Batch(step, reads.seq_len, reads.tokens_per_batch, offsets, tokens)
