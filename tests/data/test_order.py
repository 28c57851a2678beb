"""The order of the tokens: each once an epoch, the same at every length and world size."""

import tracemalloc
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glray.data.order import (
    SHUFFLE_BLOCKS,
    ChunkOrder,
    Mix,
    SourceStream,
    _words,
    permute,
    row_range,
    shuffle,
)
from glray.spec.pipeline import BLOCK_TOKENS


def one_source(num_tokens: int, chunk_len: int, seed: int = 0) -> ChunkOrder:
    return ChunkOrder((SourceStream(num_tokens),), chunk_len, seed)


@given(st.integers(1, 3000), st.text(max_size=5))
def test_permute_is_a_permutation(size: int, key: str) -> None:
    permuted = permute(np.arange(size), size, _words(key))
    assert np.array_equal(np.sort(permuted), np.arange(size))


@given(
    num_chunks=st.integers(1, 300),
    chunks_per_block=st.integers(1, 9),
    blocks_per_group=st.integers(1, 5),
    key=st.text(max_size=3),
)
def test_an_epoch_has_each_chunk_once_and_a_group_of_blocks_at_a_time(
    num_chunks: int, chunks_per_block: int, blocks_per_group: int, key: str
) -> None:
    order = shuffle(
        np.arange(num_chunks),
        num_chunks=num_chunks,
        chunks_per_block=chunks_per_block,
        blocks_per_group=blocks_per_group,
        key=key,
    )
    assert sorted(order.tolist()) == list(range(num_chunks))
    # Blocks come in groups: between a block's first and last chunk only its group is read.
    blocks = order // chunks_per_block
    first = {block: place for place, block in reversed(list(enumerate(blocks.tolist())))}
    last = {block: place for place, block in enumerate(blocks.tolist())}
    for block in first:
        assert len(set(blocks[first[block] : last[block] + 1].tolist())) <= blocks_per_group


def test_the_order_is_pinned() -> None:
    # Changing these numbers changes the meaning of every cursor ever written.
    order = one_source(17 * 1024 + 5, chunk_len=1024)
    assert order.num_chunks(0) == 17
    assert order.num_lost_targets(0) == 5
    assert order.chunks(0, 17).chunk.tolist() == [
        13, 2, 1, 10, 15, 16, 4, 12, 6, 8, 5, 14, 0, 7, 3, 11, 9,
    ]  # fmt: skip
    assert order.chunks(17, 20).chunk.tolist() == [9, 13, 2]
    two = ChunkOrder((SourceStream(9 * 8 + 1, weight=3), SourceStream(5 * 8 + 1)), 8, seed=0)
    chunks = two.chunks(0, 8)
    assert chunks.source.tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    assert chunks.chunk.tolist() == [1, 7, 0, 5, 8, 4, 1, 3]


def test_epochs_and_seeds_shuffle_anew() -> None:
    order = one_source(100 * 8 + 1, chunk_len=8)
    first, second = order.chunks(0, 100).chunk, order.chunks(100, 200).chunk
    other = one_source(100 * 8 + 1, chunk_len=8, seed=1).chunks(0, 100).chunk
    assert sorted(first) == sorted(second) == sorted(other) == list(range(100))
    for another in (second, other, np.arange(100)):
        assert (first == another).mean() < 0.1
    # Neighbours do not stay neighbours: of 99 pairs about 2 would by chance.
    assert (np.abs(np.diff(first)) == 1).sum() < 10


def chi_square(observed: np.ndarray) -> float:
    """Deviations from an even spread, in standard deviations of the chi-square statistic."""
    expected = observed.sum() / observed.size
    degrees = observed.size - 1
    return float((((observed - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize("num_chunks", [2048, 2000])  # whole groups, and a short last one
def test_any_chunk_may_come_at_any_place(num_chunks: int) -> None:
    # 128 blocks of 16 chunks in groups of 32 blocks: a quarter of an epoch is one group. Over 200
    # seeds, the place of a chunk and where its neighbour goes must be spread evenly.
    sizes = {"num_chunks": num_chunks, "chunks_per_block": 16, "blocks_per_group": 32}
    quarters = np.zeros((4, 4))
    steps = np.zeros(16)
    for seed in range(200):
        order = shuffle(np.arange(num_chunks), key=f"{seed}", **sizes)
        place = np.empty(num_chunks, dtype=np.int64)
        place[order] = np.arange(num_chunks)
        for chunk in (0, num_chunks // 3, num_chunks - 1):
            quarters[chunk * 4 // num_chunks, place[chunk] * 4 // num_chunks] += 1
        inside = order[: 32 * 16 - 16]  # the first group
        steps += np.bincount(np.diff(inside) % 16, minlength=16)
    for counts in quarters[quarters.any(axis=1)]:
        assert abs(chi_square(counts)) < 4
    assert abs(chi_square(steps)) < 4


def test_that_test_can_fail() -> None:
    # The same statistic on an order that only rotates within a block.
    steps = np.zeros(16)
    for seed in range(200):
        rotated: np.ndarray = np.roll(np.arange(496), seed)
        steps += np.bincount(np.diff(rotated) % 16, minlength=16)
    assert chi_square(steps) > 100


def test_a_trillion_tokens_need_no_memory() -> None:
    order = ChunkOrder((SourceStream(10**12), SourceStream(10**9, weight=3)), 4096, seed=0)
    tracemalloc.start()
    for start in (0, 10**6, 10**9):
        chunks = order.chunks(start, start + 4096)
        assert chunks.chunk.max() < order.num_chunks(0)
        of_first = chunks.offset[chunks.source == 0] // BLOCK_TOKENS
        assert len(np.unique(of_first)) <= 2 * SHUFFLE_BLOCKS
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * 2**20


def test_one_rank_of_many_works_out_its_own_chunks_alone() -> None:
    order = ChunkOrder((SourceStream(10**12),), 4096, seed=0)
    tracemalloc.start()
    offsets = order.window_offsets(
        first_token=2**40 - 2**36,
        num_steps=1024,
        tokens_per_batch=2**22,
        seq_len=4096,
        rank=700,
        world_size=1024,
    )
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert offsets.shape == (1024, 1)
    assert peak_bytes < 2**20  # an int64 for each chunk of all ranks would be 8 MiB


@given(
    num_chunks=st.integers(2, 40),
    tail=st.integers(0, 7),
    chunks_per_step=st.integers(1, 5),
    seq_len=st.sampled_from([1, 2, 4, 8]),
    world_size=st.integers(1, 5),
    first_step=st.integers(0, 30),
    num_steps=st.integers(1, 6),
)
def test_ranks_share_a_step_and_every_length_has_the_same_tokens(
    num_chunks: int,
    tail: int,
    chunks_per_step: int,
    seq_len: int,
    world_size: int,
    first_step: int,
    num_steps: int,
) -> None:
    order = one_source(num_chunks * 8 + 1 + tail, chunk_len=8, seed=3)

    def targets(seq_len: int, rank: int, world_size: int) -> list[list[int]]:
        offsets = order.window_offsets(
            first_token=first_step * chunks_per_step * 8,
            num_steps=num_steps,
            tokens_per_batch=chunks_per_step * 8,
            seq_len=seq_len,
            rank=rank,
            world_size=world_size,
        )
        assert offsets.shape[0] == num_steps
        return [[int(o) + 1 + i for o in step for i in range(seq_len)] for step in offsets]

    whole = targets(8, 0, 1)
    parts = [targets(seq_len, rank, world_size) for rank in range(world_size)]
    for step in range(num_steps):
        assert list(chain.from_iterable(part[step] for part in parts)) == whole[step]


def test_an_epoch_has_every_target_once_at_every_length() -> None:
    num_tokens, chunk_len = 12 * 8 + 4, 8  # stream's first token and a tail of 3 are lost
    order = one_source(num_tokens, chunk_len)
    assert order.num_lost_targets(0) == 4
    for seq_len in (1, 2, 4, 8):
        offsets = order.window_offsets(
            first_token=0,
            num_steps=6,
            tokens_per_batch=16,
            seq_len=seq_len,
            rank=0,
            world_size=1,
        )
        targets = sorted(int(o) + 1 + i for o in offsets.ravel() for i in range(seq_len))
        assert targets == list(range(1, 97))


@given(
    sources=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=4
    ),  # chunks and weight
    cycles=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_every_cycle_keeps_the_weights_and_every_source_its_own_epochs(
    sources: list[tuple[int, int]], cycles: int, seed: int
) -> None:
    order = ChunkOrder(tuple(SourceStream(n * 8 + 1, w) for n, w in sources), 8, seed)
    cycle = sum(weight for _, weight in sources)
    chunks = order.chunks(0, cycles * cycle)
    for index, (num_chunks, weight) in enumerate(sources):
        mine = chunks.source == index
        assert (mine.reshape(cycles, cycle).sum(axis=1) == weight).all()
        # Exactly once an epoch, epoch after epoch.
        assert chunks.epoch[mine].tolist() == [i // num_chunks for i in range(cycles * weight)]
        for epoch in range(cycles * weight // num_chunks):
            of_epoch = chunks.chunk[mine & (chunks.epoch == epoch)]
            assert sorted(of_epoch.tolist()) == list(range(num_chunks))
    # Any part of the order is the same as read from the start.
    part = order.chunks(cycle, cycles * cycle)
    assert part.offset.tolist() == chunks.offset[cycle:].tolist()


def test_a_new_mix_begins_a_cycle_and_each_source_goes_on() -> None:
    sources = (SourceStream(9 * 8 + 1, weight=3), SourceStream(5 * 8 + 1))
    mixes = (Mix(6, (1, 2)), Mix(9, (0, 1)), Mix(11, (3, 1)))
    order = ChunkOrder(sources, 8, seed=0, mixes=mixes)
    chunks = order.chunks(0, 19)
    assert chunks.source.tolist() == [*(0, 0, 1, 0, 0, 0), *(1, 0, 1), *(1, 1), *(0, 0, 1, 0) * 2]
    alone = ChunkOrder(sources, 8, seed=0).chunks(0, 40)
    for source in (0, 1):  # the source's own order is what it always was
        mine = chunks.chunk[chunks.source == source].tolist()
        assert mine == alone.chunk[alone.source == source].tolist()[: len(mine)]


@st.composite
def mixed_orders(draw: st.DrawFn) -> tuple[ChunkOrder, list[int]]:
    """An order of one to three sources under up to four mixes, and where each of them ends."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    weights = st.lists(st.integers(0, 4), min_size=len(sizes), max_size=len(sizes)).filter(any)
    mixes, ends = [], [0]
    for _ in range(draw(st.integers(1, 4))):
        mixes.append(Mix(ends[-1], tuple(draw(weights))))
        ends.append(ends[-1] + draw(st.integers(0, 30)))
    sources = tuple(SourceStream(size * 8 + 1) for size in sizes)
    return ChunkOrder(sources, 8, draw(st.integers(0, 3)), tuple(mixes)), ends[1:]


@given(mixed_orders(), st.data())
def test_every_target_of_an_epoch_comes_once_under_any_mixes(
    mixed: tuple[ChunkOrder, list[int]], data: st.DataObject
) -> None:
    order, ends = mixed
    chunks = order.chunks(0, ends[-1])
    for index in range(len(order.sources)):
        mine, size = chunks.source == index, order.num_chunks(index)
        assert chunks.epoch[mine].tolist() == [i // size for i in range(mine.sum())]
        for epoch in range(mine.sum() // size):
            assert sorted(chunks.chunk[mine & (chunks.epoch == epoch)]) == list(range(size))
    for mix, end in zip(order.mixes, ends, strict=True):
        of_mix, cycle = chunks.source[mix.first_place : end], sum(mix.weights)
        for start in range(0, len(of_mix) - cycle + 1, cycle):
            dealt = np.bincount(of_mix[start : start + cycle], minlength=len(mix.weights))
            assert tuple(dealt.tolist()) == mix.weights
    # Any part of the order is the same as read from the start, and later mixes change nothing.
    start = data.draw(st.integers(0, ends[-1]))
    assert order.chunks(start, ends[-1]).offset.tolist() == chunks.offset[start:].tolist()
    earlier = replace(order, mixes=order.mixes[:-1]).chunks(0, order.mixes[-1].first_place)
    assert earlier.offset.tolist() == chunks.offset[: order.mixes[-1].first_place].tolist()


def test_sources_lie_one_after_another_in_whole_blocks() -> None:
    order = ChunkOrder((SourceStream(BLOCK_TOKENS + 9), SourceStream(17)), 8, seed=0)
    chunks = order.chunks(0, 4)
    second = chunks.source == 1
    assert order.first_offset(1) == 2 * BLOCK_TOKENS
    assert set(chunks.offset[second].tolist()) == {2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS + 8}
    assert (chunks.offset[~second] < BLOCK_TOKENS + 9).all()


@given(st.integers(0, 100), st.integers(1, 12))
def test_rows_are_dealt_out_evenly(num_rows: int, world_size: int) -> None:
    ranges = [row_range(num_rows, rank, world_size) for rank in range(world_size)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == num_rows
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    sizes = [last - first for first, last in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == -(-num_rows // world_size)


@pytest.mark.parametrize(("rows", "world_size"), [(2, 3), (1, 4)])
def test_a_rank_may_have_no_rows(rows: int, world_size: int) -> None:
    sizes = {b - a for a, b in (row_range(rows, r, world_size) for r in range(world_size))}
    assert 0 in sizes
