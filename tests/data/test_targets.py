"""Where the sequences of a held-out set lie in its documents."""

import hashlib
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.targets import HELDOUT_SEQUENCES, heldout_targets, sequence_starts
from glray.spec import EvaluationSpec
from tests.tokens import write_tokens


def hashed(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def corpus_of(directory: Path, *heldout: np.ndarray) -> PreparedCorpus:
    blocks = write_tokens(directory, np.arange(99), list(heldout))
    return PreparedCorpus((PreparedSource("numbers", 1, blocks),))


@given(
    number=st.integers(0, 10**6),
    num_tokens=st.integers(0, 400),
    longest=st.integers(1, 60),
    most=st.integers(1, 5),
)
def test_sequences_lie_in_equal_parts_of_the_document(
    number: int, num_tokens: int, longest: int, most: int
) -> None:
    starts = sequence_starts(hashed(number), num_tokens, longest, most)
    num_parts = len(starts)
    assert num_parts == min(most, num_tokens // (longest + 1))
    for part, start in enumerate(sorted(starts)):
        assert num_tokens * part // num_parts <= start
        assert start + longest + 1 <= num_tokens * (part + 1) // num_parts


def test_a_document_of_a_sequence_and_one_token_more_starts_at_either() -> None:
    starts = [sequence_starts(hashed(number), 10, 8, most=2) for number in range(100)]
    assert set(map(tuple, starts)) == {(0,), (1,)}


def test_every_place_is_drawn_about_as_often() -> None:
    # Two sequences of 9 tokens in 28: the first begins at 0 to 5, the second at 14 to 19.
    starts = [sequence_starts(hashed(number), 28, 8, most=2) for number in range(6000)]
    drawn, counts = np.unique(starts, return_counts=True)
    assert drawn.tolist() == [*range(6), *range(14, 20)]
    assert 800 < counts.min() <= counts.max() < 1200
    assert 2700 < sum(first < second for first, second in starts) < 3300  # either half comes first


def test_a_document_gives_the_same_sequences_under_every_version() -> None:
    assert sequence_starts(hashed(7), 1000, 8, most=2) == [942, 6]


def test_a_long_document_gives_no_more_than_the_others(tmp_path: Path) -> None:
    long, short = np.arange(300), np.arange(5, 25)
    targets = heldout_targets(
        corpus_of(tmp_path, long, short), EvaluationSpec(seq_lens=(8,), num_tokens=800)
    )
    assert HELDOUT_SEQUENCES == 2
    assert np.bincount(targets.documents).tolist() == [2, 2]
    assert targets.num_targets == 4 * 8
    assert (np.diff(targets.tokens) == 1).all()  # each is a stretch of its document


def test_documents_come_in_the_order_of_their_hash(tmp_path: Path) -> None:
    documents = [np.arange(first, first + 9) for first in range(20)]
    targets = heldout_targets(
        corpus_of(tmp_path, *documents), EvaluationSpec(seq_lens=(8,), num_tokens=5 * 8)
    )
    by_hash = sorted(documents, key=lambda d: hashlib.sha256(d.tobytes()).digest())
    assert targets.tokens.tolist() == [document.tolist() for document in by_hash[:5]]
