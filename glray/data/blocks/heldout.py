"""Held-out documents: which they are, and their file.

A document is held out by a hash of its content alone, so equal documents lie on one side, and
adding documents moves none. In the held-out set equal documents count once. No document may be
more than a fifth of the set's bytes, or it alone would decide every held-out loss.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from glray.data.blocks.arrow_files import mapped_batches

MAX_SHARE = 0.2
"""The largest share of the held-out set's bytes that one document may have."""


@dataclass(frozen=True)
class HeldoutDocument:
    """A document that training never sees."""

    name: str
    sha256: str
    """Of its content."""
    num_bytes: int
    """Of its text in UTF-8."""
    tokens: np.ndarray
    """uint16 or uint32[n], without EOS; a read-only view of the file."""


def is_drawn(sha256: np.ndarray, fraction: float) -> np.ndarray:
    """Which of the contents with these SHA-256, uint8[n, 32], are drawn: each with probability
    ``fraction``; bool[n]."""
    heads = np.ascontiguousarray(sha256[:, :8]).view(">u8")[:, 0]
    return heads < np.uint64(math.ceil(fraction * 2**64))


def return_oversized(num_bytes: dict[bytes, int]) -> frozenset[bytes]:
    """The drawn documents that go back to training.

    ``num_bytes`` maps each drawn content (its SHA-256) to its size. The largest goes back while
    it is more than ``MAX_SHARE`` of those that remain; of equal sizes the higher hash goes first.
    """
    returned = set()
    total = sum(num_bytes.values())
    for sha256, size in sorted(
        num_bytes.items(), key=lambda item: (item[1], item[0]), reverse=True
    ):
        if size <= MAX_SHARE * total:
            break
        returned.add(sha256)
        total -= size
    return frozenset(returned)


@dataclass(frozen=True)
class Split:
    """Which documents are held out."""

    fraction: float
    returned: frozenset[bytes]
    """SHA-256 of those that are drawn but too large."""

    def heldout(self, sha256: np.ndarray) -> np.ndarray:
        """Which of the documents with these contents, uint8[n, 32], are held out; bool[n]."""
        heldout = is_drawn(sha256, self.fraction)
        if self.returned:
            for index in np.flatnonzero(heldout):
                heldout[index] = sha256[index].tobytes() not in self.returned
        return heldout


def heldout_schema(dtype: str) -> pa.Schema:
    """Columns of ``heldout.arrow``; ``tokens`` are without EOS."""
    return pa.schema(
        {
            "name": pa.string(),
            "sha256": pa.binary(32),
            "num_bytes": pa.int64(),
            "tokens": pa.list_(pa.type_for_alias(dtype)),
        }
    )


def read_heldout(path: Path) -> list[HeldoutDocument]:
    """The held-out documents in the corpus's order; their tokens stay memory-mapped."""
    return [
        HeldoutDocument(
            name.as_py(),
            sha256.as_py().hex(),
            size.as_py(),
            tokens.values.to_numpy(zero_copy_only=True),
        )
        for batch in mapped_batches(path)
        for name, sha256, size, tokens in zip(*batch.columns, strict=True)
    ]
