"""The order of the tokens: each once an epoch, the same at every length and world size."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glray.data.order import ChunkOrder, _round_keys, permute, row_range


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_permute_is_a_permutation(size, seed, epoch):
    permuted = permute(np.arange(size), size, _round_keys(seed, epoch))
    assert sorted(permuted.tolist()) == list(range(size))


def test_the_order_is_pinned():
    # Changing these numbers changes the meaning of every cursor ever written.
    order = ChunkOrder(num_tokens=17 * 1024 + 5, chunk_len=1024, seed=0)
    assert order.num_chunks == 17
    assert order.num_lost_targets == 5
    assert order.chunks(0, 17).tolist() == [
        15, 3, 12, 10, 9, 5, 13, 0, 14, 7, 8, 16, 11, 2, 4, 1, 6,
    ]  # fmt: skip
    assert order.chunks(17, 20).tolist() == [11, 10, 0]


def test_epochs_and_seeds_shuffle_anew():
    order = ChunkOrder(num_tokens=100 * 8 + 1, chunk_len=8, seed=0)
    first, second = order.chunks(0, 100), order.chunks(100, 200)
    other = ChunkOrder(num_tokens=100 * 8 + 1, chunk_len=8, seed=1).chunks(0, 100)
    assert sorted(first) == sorted(second) == sorted(other) == list(range(100))
    for shuffled in (second, other, np.arange(100)):
        assert (first == shuffled).mean() < 0.1
    # Neighbours do not stay neighbours: of 99 pairs about 2 would by chance.
    assert (np.abs(np.diff(first)) == 1).sum() < 10


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
    num_chunks, tail, chunks_per_step, seq_len, world_size, first_step, num_steps
):
    order = ChunkOrder(num_chunks * 8 + 1 + tail, chunk_len=8, seed=3)

    def targets(seq_len, rank, world_size):
        offsets = order.window_offsets(
            first_step=first_step,
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


def test_an_epoch_has_every_target_once_at_every_length():
    num_tokens, chunk_len = 12 * 8 + 4, 8  # stream's first token and a tail of 3 are lost
    order = ChunkOrder(num_tokens, chunk_len, seed=0)
    assert order.num_lost_targets == 4
    for seq_len in (1, 2, 4, 8):
        offsets = order.window_offsets(
            first_step=0,
            num_steps=6,
            tokens_per_batch=16,
            seq_len=seq_len,
            rank=0,
            world_size=1,
        )
        targets = sorted(int(o) + 1 + i for o in offsets.ravel() for i in range(seq_len))
        assert targets == list(range(1, 97))


@given(st.integers(0, 100), st.integers(1, 12))
def test_rows_are_dealt_out_evenly(num_rows, world_size):
    ranges = [row_range(num_rows, rank, world_size) for rank in range(world_size)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == num_rows
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    sizes = [last - first for first, last in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == -(-num_rows // world_size)


@pytest.mark.parametrize(("rows", "world_size"), [(2, 3), (1, 4)])
def test_a_rank_may_have_no_rows(rows, world_size):
    sizes = {b - a for a, b in (row_range(rows, r, world_size) for r in range(world_size))}
    assert 0 in sizes
