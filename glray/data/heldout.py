"""Held-out documents: which they are, and their file.

A document is held out by a hash of its content alone, so equal documents lie on one side, and
adding documents moves none. In the held-out set equal documents count once. No document may be
more than a fifth of the set's bytes, or it alone would decide every held-out loss.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

MAX_SHARE = 0.2
"""The largest share of the held-out set's bytes that one document may have."""


@dataclass(frozen=True)
class HeldoutDocument:
    """A document that training never sees."""

    name: str
    num_bytes: int
    """Of its text in UTF-8."""
    tokens: np.ndarray
    """uint16 or uint32[n], without EOS; a read-only view of the file."""


def is_heldout(sha256_hex: str, fraction: float) -> bool:
    """Whether a document whose content has this SHA-256 is drawn, with probability ``fraction``."""
    return int(sha256_hex[:16], 16) < fraction * 2**64


def return_oversized(num_bytes: dict[str, int]) -> frozenset[str]:
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
    returned: frozenset[str]
    """SHA-256 of those that are drawn but too large."""

    def is_heldout(self, sha256_hex: str) -> bool:
        """Whether the document with this content is held out."""
        return is_heldout(sha256_hex, self.fraction) and sha256_hex not in self.returned


class HeldoutWriter:
    """Writes held-out documents to an Arrow file, as they come."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._schema = pa.schema(
            {
                "name": pa.string(),
                "num_bytes": pa.int64(),
                "tokens": pa.list_(pa.type_for_alias(dtype)),
            }
        )
        self._writer = pa.ipc.new_file(str(path), self._schema)

    def __enter__(self) -> "HeldoutWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    def append(self, documents: pa.Table) -> None:
        """Add rows of ``name``, ``num_bytes`` and ``tokens`` to the end of the file."""
        self._writer.write_table(documents.select(self._schema.names).cast(self._schema))


def read_heldout(path: Path) -> list[HeldoutDocument]:
    """The held-out documents in the corpus's order; their tokens stay memory-mapped."""
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        batches = [file.get_batch(index) for index in range(file.num_record_batches)]
    return [
        HeldoutDocument(name.as_py(), size.as_py(), tokens.values.to_numpy(zero_copy_only=True))
        for batch in batches
        for name, size, tokens in zip(*batch.columns, strict=True)
    ]
