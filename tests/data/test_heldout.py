import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from glray.data.blocks.heldout import (
    Split,
    heldout_schema,
    is_drawn,
    read_heldout,
    return_oversized,
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
