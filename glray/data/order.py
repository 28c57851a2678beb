"""The order of the tokens: which windows step *n* trains on, as arithmetic.

The token stream is cut into chunks of ``chunk_len`` tokens, read as ``chunk_len + 1``, so that each
token but the stream's first is a target once. Chunks are the unit that is shuffled: epoch after
epoch, chunk number *i* of training is ``permutation(i mod num_chunks)``. Step *n* takes the chunks
``n·k … (n+1)·k`` with ``k = tokens_per_batch / chunk_len``, whatever the stage's length; a stage
only cuts them into rows of ``seq_len``. Everything follows from the step: nothing is stored.

The permutation is a keyed Feistel network on the smallest power of 4 that holds ``num_chunks``,
walked until it falls below ``num_chunks`` (Black & Rogaway 2002, "Ciphers with Arbitrary Finite
Domains", cycle walking): no memory, at most a few rounds per chunk.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

FEISTEL_ROUNDS = 6


@dataclass(frozen=True)
class ChunkOrder:
    """The shuffled order of the chunks of a stream of ``num_tokens`` tokens."""

    num_tokens: int
    chunk_len: int
    seed: int

    @property
    def num_chunks(self) -> int:
        """Whole chunks of an epoch; each needs one token more than its length."""
        return max(self.num_tokens - 1, 0) // self.chunk_len

    @property
    def num_lost_targets(self) -> int:
        """Tokens that are never targets: the stream's first and the tail shorter than a chunk."""
        return self.num_tokens - self.num_chunks * self.chunk_len

    def chunks(self, start: int, stop: int) -> np.ndarray:
        """Chunk numbers at places ``start`` to ``stop`` of the endless training order, int64."""
        places = np.arange(start, stop, dtype=np.int64)
        epochs = places // self.num_chunks
        result = np.empty_like(places)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            keys = _round_keys(self.seed, int(epoch))
            result[inside] = permute(places[inside] % self.num_chunks, self.num_chunks, keys)
        return result

    def window_offsets(
        self,
        *,
        first_step: int,
        num_steps: int,
        tokens_per_batch: int,
        seq_len: int,
        rank: int,
        world_size: int,
    ) -> np.ndarray:
        """Where this rank's windows start in the stream: int64[num_steps, rows of the rank].

        The rows of a step are dealt to the ranks as contiguous runs whose sizes differ by at
        most one; a rank may have none.
        """
        chunks_per_step = tokens_per_batch // self.chunk_len
        chunks = self.chunks(
            first_step * chunks_per_step, (first_step + num_steps) * chunks_per_step
        )
        starts = chunks.reshape(num_steps, chunks_per_step, 1) * self.chunk_len
        cuts = np.arange(0, self.chunk_len, seq_len, dtype=np.int64)
        rows = (starts + cuts).reshape(num_steps, tokens_per_batch // seq_len)
        first, last = row_range(rows.shape[1], rank, world_size)
        return rows[:, first:last]


def row_range(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and past-the-last row of ``rank`` out of ``num_rows``."""
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size


def permute(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of ``range(size)`` under ``keys`` (uint64[rounds]), applied to ``indices``."""
    half_bits = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    result = _feistel(indices.astype(np.uint64), half_bits, keys)
    outside = result >= size
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = result >= size
    return result.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_scramble(right + key) & mask)
    return (left << half_bits) | right


def _scramble(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea & Flood 2014): each output bit hangs on all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> np.ndarray:
    digest = hashlib.sha512(f"glray chunk order {seed} {epoch}".encode()).digest()
    return np.frombuffer(digest, dtype="<u8")[:FEISTEL_ROUNDS].astype(np.uint64)
