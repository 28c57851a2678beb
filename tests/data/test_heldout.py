import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glray.data.blocks.heldout import (
    FEWEST_SPANS,
    MAX_SHARE,
    SpanSplit,
    Split,
    heldout_schema,
    is_drawn,
    read_heldout,
    return_oversized,
    span_tokens,
)


def rows(*sha256: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(sha256), dtype=np.uint8).reshape(-1, 32)


def hashed(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def test_the_fraction_is_a_threshold_on_the_hash() -> None:
    half, below = b"\x80" + bytes(31), b"\x7f" + b"\xff" * 31
    assert is_drawn(rows(half, below), 0.5).tolist() == [False, True]
    assert is_drawn(rows(half, below), 0.51).tolist() == [True, True]
    assert is_drawn(rows(), 0.5).tolist() == []


def test_about_the_fraction_is_drawn() -> None:
    hashes = rows(*(hashed(str(number).encode()) for number in range(10_000)))
    assert 400 < is_drawn(hashes, 0.05).sum() < 600


@given(st.binary(), st.floats(0.01, 0.5), st.floats(0, 0.49))
def test_a_larger_fraction_keeps_what_a_smaller_one_drew(
    content: bytes, fraction: float, more: float
) -> None:
    sha256 = rows(hashed(content))
    assert is_drawn(sha256, fraction + more)[0] >= is_drawn(sha256, fraction)[0]


def test_the_largest_goes_back_until_none_is_over_a_fifth() -> None:
    sizes = {b"a": 500, b"b": 100, b"c": 20, b"d": 20, b"e": 20, b"f": 20, b"g": 20}
    assert return_oversized(sizes) == {b"a", b"b"}  # then 5 of 20 in 100: a fifth each


def test_fewer_than_five_documents_cannot_each_be_a_fifth() -> None:
    assert return_oversized({b"a": 1, b"b": 1, b"c": 1, b"d": 1}) == {b"a", b"b", b"c", b"d"}


@given(st.dictionaries(st.binary(min_size=1), st.integers(1, 1000)))
def test_what_stays_obeys_the_rule_and_does_not_depend_on_the_order(
    sizes: dict[bytes, int],
) -> None:
    returned = return_oversized(sizes)
    kept = [size for sha256, size in sizes.items() if sha256 not in returned]
    assert all(5 * size <= sum(kept) for size in kept)
    assert return_oversized(dict(reversed(sizes.items()))) == returned


def test_a_returned_document_is_trained_on() -> None:
    low, other = bytes(32), b"\x01" + bytes(31)
    assert Split(0.5, frozenset()).heldout(rows(low, other)).tolist() == [True, True]
    assert Split(0.5, frozenset({low})).heldout(rows(low, other)).tolist() == [False, True]


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "heldout.arrow"
    schema = heldout_schema("uint16")
    with pa.ipc.new_file(str(path), schema) as writer:
        for names, sizes, tokens in [
            (["a", "b"], [3, 5], [[1, 2], [3]]),
            ([], [], []),
            (["c"], [7], [[65535, 4, 5]]),
        ]:
            hashes = [hashed(name.encode()) for name in names]
            batch = {"name": names, "sha256": hashes, "num_bytes": sizes, "tokens": tokens}
            writer.write_table(pa.table(batch).cast(schema))
    read = [(doc.name, doc.num_bytes, doc.tokens.tolist()) for doc in read_heldout(path)]
    assert read == [("a", 3, [1, 2]), ("b", 5, [3]), ("c", 7, [65535, 4, 5])]
    assert read_heldout(path)[2].sha256 == hashlib.sha256(b"c").hexdigest()


# ---- spans


@pytest.mark.parametrize(
    ("num_tokens", "length"),
    [
        (3_000, 200),  # a third in five
        (18_000, 1088),  # a third would be more
        (109_000, 1090),  # 5% in five
        (200_000, 2000),
        (250_000, 2304),  # 5% in five or more of that length
        (4_608_000, 2304),
        (15_000_000, 7500),  # 5% in a hundred
        (10**9, 65_536),
        (0, 1),
    ],
)
def test_the_length_of_spans_follows_from_the_size(num_tokens: int, length: int) -> None:
    assert span_tokens(num_tokens, 0.05) == length


def test_as_few_spans_as_there_may_be_are_a_fifth_each() -> None:
    assert FEWEST_SPANS * MAX_SHARE == 1


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    span=st.integers(1, 6),
    data=st.data(),
)
def test_what_is_trained_is_what_is_beside_the_spans(
    lengths: list[int], span: int, data: st.DataObject
) -> None:
    # Each token is its own number; 0 is EOS.
    documents: list[list[int]] = []
    for length in lengths:
        first = sum(map(len, documents)) + 1
        documents.append([*range(first, first + length), 0])
    tokens = np.array([token for document in documents for token in document])
    places = st.lists(st.integers(0, len(tokens) - 1), max_size=4)
    starts: list[int] = []
    for start in sorted(data.draw(places)):
        if start + span <= len(tokens) and (not starts or start >= starts[-1] + span):
            starts.append(start)
    split = SpanSplit(0.1, frozenset(), span, frozenset(), np.array(starts, dtype=np.int64), 0)
    inside = {place for start in starts for place in range(start, start + span)}
    texts: list[list[int]] = [[]]
    for place, token in enumerate(tokens.tolist()):
        if place in inside or token == 0:
            texts.append([])
        else:
            texts[-1].append(token)
    texts = [text for text in texts if text]
    expected = [token for text in texts for token in [*text, 0]]
    cut = data.draw(st.integers(0, len(documents)))  # documents come in batches
    middle = sum(map(len, documents[:cut]))
    batches = [(tokens[:middle], 0), (tokens[middle:], middle)]
    assert [t for batch in batches for t in split.training_tokens(*batch).tolist()] == expected
    trained = [n for batch in batches for n in split.training_lengths(*batch).tolist()]
    assert trained == [len(text) + 1 for text in texts]
