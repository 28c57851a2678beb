"""The order of the tokens: which windows step *n* trains on, as arithmetic.

The token stream of a source is cut into chunks of ``chunk_len`` tokens, read as ``chunk_len + 1``,
so that each token but the stream's first is a target once. Chunks are the unit that is shuffled.
Place *i* of the endless order belongs to the source that the cycle of weights gives it, and each
source is gone through epoch after epoch of its own. The weights may change at a place: a new
cycle begins there, and each source goes on where it stands. A step takes the places after those
of the steps before it, ``tokens_per_batch / chunk_len`` of them, whatever the stage's length; a
stage only cuts them into rows of ``seq_len``. Everything follows from the number of tokens
trained before, and so from the plan and the step: nothing is stored, and no memory grows with the
corpus.

An epoch's order has two levels, so that a reader needs few blocks at a time: the blocks are
permuted, and then the chunks within each group of ``SHUFFLE_BLOCKS`` consecutive ones. Both
permutations are keyed Feistel networks on the smallest power of 4 that holds the size, walked until
they fall below it (Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", cycle walking).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from glray.spec.pipeline import BLOCK_TOKENS

FEISTEL_ROUNDS = 6

SHUFFLE_BLOCKS = 64
"""Token blocks of a group: 2^26 tokens, 128 MiB where an id takes two bytes. A chunk is shuffled
among those of 64 blocks from anywhere in its source; up to 64 blocks are shuffled as a whole."""


@dataclass(frozen=True)
class SourceStream:
    """A source's token stream as the order sees it."""

    num_tokens: int
    weight: int = 1
    """Its chunks in each cycle."""


@dataclass(frozen=True)
class Mix:
    """Weights that apply from a place in the order on."""

    first_place: int
    weights: tuple[int, ...]
    """Weight of each source; 0 leaves a source out."""


@dataclass(frozen=True)
class Chunks:
    """Chunks of the training order and where they lie; arrays int64[n]."""

    source: np.ndarray
    epoch: np.ndarray
    """How often its source was gone through before."""
    chunk: np.ndarray
    """Number of the chunk in its source's stream."""
    offset: np.ndarray
    """Of its first token in the corpus, whose sources lie one after another in whole blocks."""


@dataclass(frozen=True)
class ChunkOrder:
    """The shuffled order of the chunks of one or more sources."""

    sources: tuple[SourceStream, ...]
    chunk_len: int
    seed: int
    mixes: tuple[Mix, ...] = ()
    """Where the weights change, in order; before the first, the sources' own apply."""

    def num_chunks(self, source: int) -> int:
        """Whole chunks of a source's epoch; each needs one token more than its length."""
        return max(self.sources[source].num_tokens - 1, 0) // self.chunk_len

    def num_lost_targets(self, source: int) -> int:
        """Tokens of a source that are never targets: the first, and the tail below a chunk."""
        return self.sources[source].num_tokens - self.num_chunks(source) * self.chunk_len

    def first_offset(self, source: int) -> int:
        """Where a source begins among the corpus's tokens: on a block."""
        before = self.sources[:source]
        return sum(-(-each.num_tokens // BLOCK_TOKENS) for each in before) * BLOCK_TOKENS

    def chunks(self, start: int, stop: int) -> Chunks:
        """The chunks at places ``start`` to ``stop`` of the endless order."""
        return self.chunks_at(np.arange(start, stop, dtype=np.int64))

    def chunks_at(self, places: np.ndarray) -> Chunks:
        """The chunks at some places (int64[n]) of the endless order."""
        source, places = self._dealt(places)
        epoch, chunk, offset = (np.empty_like(places) for _ in range(3))
        for index in np.unique(source).tolist():
            mine = source == index
            epoch[mine], inside = np.divmod(places[mine], self.num_chunks(index))
            chunk[mine] = self._shuffled(index, epoch[mine], inside)
            offset[mine] = self.first_offset(index) + chunk[mine] * self.chunk_len
        return Chunks(source, epoch, chunk, offset)

    def window_offsets(
        self,
        *,
        first_token: int,
        num_steps: int,
        tokens_per_batch: int,
        seq_len: int,
        rank: int,
        world_size: int,
    ) -> np.ndarray:
        """Where this rank's windows of the steps after ``first_token`` trained tokens start in the
        corpus: int64[num_steps, rows of the rank].

        The rows of a step are dealt to the ranks as contiguous runs whose sizes differ by at
        most one; a rank may have none.
        """
        chunks_per_step = tokens_per_batch // self.chunk_len
        first_row, end_row = row_range(tokens_per_batch // seq_len, rank, world_size)
        # Of all ranks' chunks, which would take memory that grows with them, only this one's.
        rows_per_chunk = self.chunk_len // seq_len
        first, end = first_row // rows_per_chunk, -(-end_row // rows_per_chunk)
        steps = first_token // self.chunk_len + np.arange(num_steps) * chunks_per_step
        chunks = self.chunks_at((steps[:, None] + np.arange(first, end)).ravel())
        starts = chunks.offset.reshape(num_steps, end - first, 1)
        cuts = np.arange(0, self.chunk_len, seq_len, dtype=np.int64)
        rows = (starts + cuts).reshape(num_steps, (end - first) * rows_per_chunk)
        return rows[:, first_row - first * rows_per_chunk : end_row - first * rows_per_chunk]

    def _dealt(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each place, and which of that source's chunks it is, over all epochs."""
        first_places = [cycle.first_place for cycle in self._cycles]
        cycle_of = np.searchsorted(first_places, places, side="right") - 1
        source, nth = np.empty_like(places), np.empty_like(places)
        for index in np.unique(cycle_of).tolist():
            mine = cycle_of == index
            source[mine], nth[mine] = self._cycles[index].dealt(places[mine])
        return source, nth

    @cached_property
    def _cycles(self) -> list["_Cycle"]:
        own = Mix(0, tuple(stream.weight for stream in self.sources))
        cycles = [_Cycle.of(own, np.zeros(len(self.sources), dtype=np.int64))]
        for mix in self.mixes:
            cycles.append(_Cycle.of(mix, cycles[-1].taken_before(mix.first_place)))
        return cycles

    def _shuffled(self, source: int, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
        result = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            inside = epochs == epoch
            result[inside] = shuffle(
                places[inside],
                num_chunks=self.num_chunks(source),
                chunks_per_block=BLOCK_TOKENS // self.chunk_len,
                blocks_per_group=SHUFFLE_BLOCKS,
                key=f"{self.seed} {source} {epoch}",
            )
        return result


@dataclass(frozen=True)
class _Cycle:
    """Places that are dealt to the sources in repeated cycles of the same weights. A source's slots
    are spread evenly: its k-th of w lies at (k + 1/2) / w of the cycle."""

    first_place: int
    weights: np.ndarray
    """int64[sources]."""
    taken: np.ndarray
    """int64[sources]: chunks of each source before ``first_place``."""
    source: np.ndarray
    """int64[slots]: source of each slot."""
    nth: np.ndarray
    """int64[slots]: how many of that source's slots come before it."""

    @classmethod
    def of(cls, mix: Mix, taken: np.ndarray) -> "_Cycle":
        slots = sorted(
            ((nth + 0.5) / weight, index, nth)
            for index, weight in enumerate(mix.weights)
            for nth in range(weight)
        )
        _, *columns = zip(*slots, strict=True)
        source, nth = (np.array(column, dtype=np.int64) for column in columns)
        return cls(mix.first_place, np.array(mix.weights, dtype=np.int64), taken, source, nth)

    def dealt(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each place, and how many chunks of that source come before it."""
        cycles, slots = np.divmod(places - self.first_place, len(self.source))
        source = self.source[slots]
        return source, self.taken[source] + cycles * self.weights[source] + self.nth[slots]

    def taken_before(self, place: int) -> np.ndarray:
        """int64[sources]: chunks of each source before a place."""
        cycles, slots = divmod(place - self.first_place, len(self.source))
        begun = np.bincount(self.source[:slots], minlength=len(self.weights))
        return self.taken + cycles * self.weights + begun


def row_range(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and past-the-last row of ``rank`` out of ``num_rows``."""
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size


def shuffle(
    places: np.ndarray, *, num_chunks: int, chunks_per_block: int, blocks_per_group: int, key: str
) -> np.ndarray:
    """The chunks at ``places`` (int64[n]) of an epoch: blocks permuted, then chunks in each group.

    The last block may be short. It takes the last slot of a group drawn by the key, so that within
    each group chunks fill the slots from the first on.
    """
    num_blocks = -(-num_chunks // chunks_per_block)
    lacking = num_blocks * chunks_per_block - num_chunks  # chunks that the last block lacks
    group_chunks = blocks_per_group * chunks_per_block
    words = _words(f"{key} blocks")
    short_group = int(words[-1]) % num_blocks // blocks_per_group
    short_slot = min((short_group + 1) * blocks_per_group, num_blocks) - 1

    beyond = places >= (short_group + 1) * group_chunks - lacking
    groups, inside = np.divmod(places + beyond * lacking, group_chunks)
    for group in np.unique(groups).tolist():
        size = min(blocks_per_group, num_blocks - group * blocks_per_group) * chunks_per_block
        size -= lacking if group == short_group else 0
        mine = groups == group
        inside[mine] = permute(inside[mine], size, _words(f"{key} group {group}"))

    slots = groups * blocks_per_group + inside // chunks_per_block
    blocks = np.full_like(slots, num_blocks - 1)
    whole = slots != short_slot
    blocks[whole] = permute(slots[whole] - (slots[whole] > short_slot), num_blocks - 1, words)
    return blocks * chunks_per_block + inside % chunks_per_block


def permute(indices: np.ndarray, size: int, words: np.ndarray) -> np.ndarray:
    """A permutation of ``range(size)`` keyed by ``words`` (uint64), applied to ``indices``."""
    half_bits = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    keys = words[:FEISTEL_ROUNDS]
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
    """The finalizer of splitmix64 (Steele, Lea & Flood 2014): each output bit depends on all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _words(key: str) -> np.ndarray:
    """Eight words that the key draws, uint64."""
    digest = hashlib.sha512(f"glray chunk order {key}".encode()).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
