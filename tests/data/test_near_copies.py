"""Shares of n-grams are those that a set of tuples gives."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glray.data.blocks import block_files, near_copies, token_blocks
from glray.data.blocks.block_files import blocks_file, cut, write_blocks
from glray.data.blocks.heldout import HeldoutDocument
from glray.data.blocks.near_copies import (
    BlockRun,
    HeldoutCheck,
    check_heldout,
    find_ngrams,
    ngram_hashes,
    ngram_tokens,
    write_ngrams,
)
from glray.data.blocks.token_blocks import TokenBlocks, write_manifest


def document(name: str, tokens: list[int], num_bytes: int = 100) -> HeldoutDocument:
    return HeldoutDocument(name, name * 64, num_bytes, np.array(tokens, dtype=np.uint16))


def ngrams(tokens: list[int], size: int) -> set[tuple[int, ...]]:
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}


def checked(
    folder: Path,
    stream: list[int],
    documents: list[HeldoutDocument],
    size: int,
    block_tokens: int = 100,
) -> HeldoutCheck:
    """The check against a training stream in blocks of so many tokens, two of them a run."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (block_files, token_blocks, near_copies):
            patch.setattr(module, "BLOCK_TOKENS", block_tokens)
        blocks = written(folder, np.array(stream, dtype=np.uint16))
        write_ngrams(documents, size, folder / "ngrams.npy")
        runs = [BlockRun(blocks, first, 2) for first in range(0, blocks.num_blocks, 2)]
        for run in runs:
            find_ngrams(run, folder / "ngrams.npy", size, folder)
    paths = [run.path(folder) for run in runs]
    return check_heldout(documents, size, folder / "ngrams.npy", paths)


def written(folder: Path, stream: np.ndarray) -> TokenBlocks:
    (folder / "tokenizer.json").touch()
    (folder / "heldout.arrow").touch()
    blocks = TokenBlocks(
        directory=folder,
        fingerprint="f" * 16,
        dtype="uint16",
        num_tokens=len(stream),
        vocab_size=100,
        eos_id=0,
        returned=(),
        file_bytes=(),
    )
    index = write_blocks(blocks_file(folder, 0), cut([stream], blocks.num_blocks), "uint16")
    return write_manifest(blocks, index)


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 5))
def test_as_many_hashes_differ_as_ngrams(tokens: list[int], size: int) -> None:
    hashes = ngram_hashes(np.array(tokens, dtype=np.uint16), size)
    assert len(hashes) == max(len(tokens) - size + 1, 0)
    assert len(set(hashes.tolist())) == len(ngrams(tokens, size))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_hash_is_the_polynomial_of_its_tokens(dtype: str) -> None:
    base = 0x9E3779B97F4A7C15
    hashes = ngram_hashes(np.array([5, 65535, 7], dtype=dtype), 2)
    assert set(hashes.tolist()) == {(5 * base + 65535) % 2**64, (65535 * base + 7) % 2**64}


@given(
    stream=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    heldout=st.lists(st.integers(0, 2), max_size=30),
    size=st.integers(1, 5),
    block_tokens=st.integers(5, 20),
)
def test_shares_are_those_of_the_tuples(
    tmp_path_factory: pytest.TempPathFactory,
    stream: list[int],
    heldout: list[int],
    size: int,
    block_tokens: int,
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    trained = ngrams(stream, size)
    windows = [tuple(heldout[i : i + size]) for i in range(len(heldout) - size + 1)]
    share = sum(window in trained for window in windows) / max(len(windows), 1)
    check = checked(folder, stream, [document("a", heldout)], size, block_tokens)
    assert [copy.share for copy in check.near_copies] == [share] * (share >= 0.2)


def test_an_ngram_across_the_end_of_a_block_is_found(tmp_path: Path) -> None:
    documents = [document("a", [3, 4]), document("b", [6, 7]), document("c", [9, 10])]
    documents.append(document("d", [1, 3]))
    check = checked(tmp_path, list(range(1, 11)), documents, size=2, block_tokens=3)
    assert [copy.name for copy in check.near_copies] == ["a", "b", "c"]


def test_the_first_of_near_copies_of_each_other_stays(tmp_path: Path) -> None:
    one, other = list(range(50, 61)), list(range(70, 81))  # ten n-grams of two tokens each
    documents = [
        document("a", one),
        document("b", one[:3] + other),  # two of a's n-grams in 13: no near-copy
        document("c", [*one[:9], 99]),
        document("d", [*other, 98]),
    ]
    check = checked(tmp_path, [1, 2, 3], documents, size=2)
    found = [(copy.name, copy.share, copy.source) for copy in check.near_copies]
    assert found == [("d", 10 / 11, "held-out text"), ("c", 8 / 9, "held-out text")]
    assert check.left_out == {"c" * 64, "d" * 64}


def test_a_near_copy_of_training_text_stands_for_no_other(tmp_path: Path) -> None:
    documents = [document("a", [1, 2, 3, 50, 51]), document("b", [50, 51, 52])]
    check = checked(tmp_path, [1, 2, 3], documents, size=2)
    assert [copy.name for copy in check.near_copies] == ["a"]


def test_where_all_are_near_copies_all_are_scored(tmp_path: Path) -> None:
    documents = [document("a", [1, 2, 3]), document("b", [2, 3, 1])]
    check = checked(tmp_path, [1, 2, 3] * 9, documents, size=2)
    assert len(check.near_copies) == 2
    assert check.left_out == frozenset()
    assert "2 of 2 held-out documents (100% of their bytes)" in check.sentence
    assert "losses measure memorising" in check.sentence
    short = checked(tmp_path, [1, 2, 3] * 9, [*documents, document("c", [9])], size=2)
    assert short.left_out == frozenset()  # or the one that is too short to tell would be all
    assert "as all are but 1 too short for one" in short.sentence


def test_what_was_found_is_one_sentence_with_the_worst(tmp_path: Path) -> None:
    documents = [document(name, [1, 2, 3, *range(60, 60 + i)]) for i, name in enumerate("abcd")]
    check = checked(tmp_path, [1, 2, 3], [*documents, document("e", [90, 91], 600)], size=2)
    assert check.sentence == (
        "4 of 5 held-out documents (40% of their bytes) are near-copies, with 20% or more of their "
        "n-grams of 2 tokens in other text, and are not scored: a (100% in training text), "
        "b (67% in training text), c (50% in training text) and 1 more"
    )
    none = checked(tmp_path, [1, 2, 3], [document("e", [90, 91])], size=2)
    assert none.sentence == "none of 1 held-out documents is a near-copy of other text"


def test_a_document_too_short_for_an_ngram_is_no_copy(tmp_path: Path) -> None:
    assert checked(tmp_path, [1, 2, 3], [document("a", [1])], size=2).near_copies == ()


@pytest.mark.parametrize(
    ("num_tokens", "num_bytes", "size"),
    [(10, 30, 27), (10, 80, 10), (10, 10, 80), (10, 5, 80), (1, 4, 20)],
)
def test_an_ngram_has_about_eighty_bytes(num_tokens: int, num_bytes: int, size: int) -> None:
    documents = [document("a", [1] * num_tokens, num_bytes)]
    assert near_copies.NGRAM_BYTES == 80
    assert ngram_tokens(documents) == size
