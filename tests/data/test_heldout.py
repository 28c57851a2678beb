import hashlib
from pathlib import Path

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from glray.data.heldout import (
    HeldoutWriter,
    Split,
    is_heldout,
    read_heldout,
    return_oversized,
)


def test_the_fraction_is_a_threshold_on_the_hash() -> None:
    half = "8" + "0" * 63
    assert not is_heldout(half, 0.5)
    assert is_heldout("7" + "f" * 63, 0.5)
    assert is_heldout(half, 0.51)


def test_about_the_fraction_is_drawn() -> None:
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(10_000)]
    assert 400 < sum(is_heldout(sha256, 0.05) for sha256 in hashes) < 600


@given(st.binary(), st.floats(0.01, 0.5), st.floats(0, 0.49))
def test_a_larger_fraction_keeps_what_a_smaller_one_drew(
    content: bytes, fraction: float, more: float
) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    assert is_heldout(sha256, fraction + more) >= is_heldout(sha256, fraction)


def test_the_largest_goes_back_until_none_is_over_a_fifth() -> None:
    sizes = {"a": 500, "b": 100, "c": 20, "d": 20, "e": 20, "f": 20, "g": 20}
    assert return_oversized(sizes) == {"a", "b"}  # then 5 of 20 in 100: a fifth each


def test_fewer_than_five_documents_cannot_each_be_a_fifth() -> None:
    assert return_oversized({"a": 1, "b": 1, "c": 1, "d": 1}) == {"a", "b", "c", "d"}


@given(st.dictionaries(st.text("0123456789abcdef", min_size=1), st.integers(1, 1000)))
def test_what_stays_obeys_the_rule_and_does_not_depend_on_the_order(sizes: dict[str, int]) -> None:
    returned = return_oversized(sizes)
    kept = [size for sha256, size in sizes.items() if sha256 not in returned]
    assert all(5 * size <= sum(kept) for size in kept)
    assert return_oversized(dict(reversed(sizes.items()))) == returned


def test_a_returned_document_is_trained_on() -> None:
    assert Split(0.5, frozenset()).is_heldout("0" * 64)
    assert not Split(0.5, frozenset({"0" * 64})).is_heldout("0" * 64)


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "heldout.arrow"
    with HeldoutWriter(path, "uint16") as writer:
        for names, sizes, tokens in [
            (["a", "b"], [3, 5], [[1, 2], [3]]),
            ([], [], []),
            (["c"], [7], [[65535, 4, 5]]),
        ]:
            writer.append(
                pa.table(
                    {
                        "name": pa.array(names, pa.string()),
                        "num_bytes": pa.array(sizes, pa.int64()),
                        "tokens": pa.array(tokens, pa.list_(pa.uint16())),
                    }
                )
            )
    read = [(doc.name, doc.num_bytes, doc.tokens.tolist()) for doc in read_heldout(path)]
    assert read == [("a", 3, [1, 2]), ("b", 5, [3]), ("c", 7, [65535, 4, 5])]
