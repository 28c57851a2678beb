"""Held-out documents: which they are, and their file.

A document is held out by a hash of its content alone, so equal documents lie on one side, and
adding documents moves none. In the held-out set equal documents count once. No document may be
more than a fifth of the set's bytes, or it alone would decide every held-out loss.

Where that leaves none, as in a corpus of one file or a few, *spans* of documents are held out
instead: stretches of equal length in the stream of all documents' tokens. They too are drawn by a
hash of their content: those with the lowest hashes, and at least five of them.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from glray.data.blocks.arrow_files import mapped_batches
from glray.files import AnyPath

MAX_SHARE = 0.2
"""The largest share of the held-out set's bytes that one document may have."""

FEWEST_SPANS = 5
"""As many as ``MAX_SHARE`` asks for."""
WANTED_SPANS = 100
"""Where each can then be a long one: fewer documents than that let a few dominate a loss."""
LONG_SPAN, SHORT_SPAN = 2304, 1088
"""Tokens that hold a sequence of 2,048, or one of 1,024 in a small corpus, and some room."""
LONGEST_SPAN = 2**16
SHORT_SPANS_SHARE = 1 / 3
"""Of a small corpus's tokens, what short spans may take at most, whatever the fraction."""


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


def span_tokens(num_tokens: int, fraction: float) -> int:
    """The length of held-out spans in a stream of ``num_tokens``.

    ``WANTED_SPANS`` are ``fraction`` of it; or fewer, if they would be shorter than ``LONG_SPAN``;
    but ``FEWEST_SPANS`` at least, which are no shorter than ``SHORT_SPAN`` as long as that takes no
    more than ``SHORT_SPANS_SHARE`` of the stream.
    """
    heldout = fraction * num_tokens
    length = min(max(heldout / WANTED_SPANS, LONG_SPAN), heldout / FEWEST_SPANS, LONGEST_SPAN)
    shortest = min(SHORT_SPAN, num_tokens * SHORT_SPANS_SHARE / FEWEST_SPANS)
    return max(int(max(length, shortest)), 1)


@dataclass(frozen=True)
class Span:
    """A stretch of the stream of all documents' tokens."""

    name: str
    start: int
    """Its first token."""
    tokens: np.ndarray
    """uint16 or uint32[n], without an EOS that ends it."""


@dataclass(frozen=True)
class SpanSplit:
    """Which spans are held out. In the stream of training an EOS stands for each, unless what comes
    before it ends with one, so that no text goes on where another was taken out."""

    fraction: float
    returned: frozenset[bytes]
    """SHA-256 of the documents that are drawn, which are trained but for spans."""
    num_tokens: int
    """Of a span."""
    sha256: frozenset[bytes]
    """Of the spans' tokens."""
    starts: np.ndarray
    """int64[n]: where they begin in the stream, ascending. Equal ones are all held out."""
    eos_id: int

    @property
    def identity(self) -> dict[str, int]:
        """What decides the spans, besides the documents and the tokenizer."""
        return {"spans": len(self.sha256), "tokens": self.num_tokens}

    def training_tokens(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """What of whole documents' ``tokens``, from ``position`` of the stream on, is trained."""
        first = np.searchsorted(self.starts, position - self.num_tokens, side="right")
        last = np.searchsorted(self.starts, position + len(tokens))
        if first == last:
            return tokens
        tokens, kept = tokens.copy(), np.ones(len(tokens), dtype=bool)
        for start in (self.starts[first:last] - position).tolist():
            stop = start + self.num_tokens
            if stop < len(tokens) and tokens[stop] == self.eos_id:  # it ends no text any more
                stop += 1
            before = start > 0 and kept[start - 1] and tokens[start - 1] != self.eos_id
            kept[max(start, 0) : stop] = False
            if before:
                tokens[start], kept[start] = self.eos_id, True
        return tokens[kept]

    def training_lengths(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """int64[n]: the length of each text in ``training_tokens``, EOS included."""
        ends = np.flatnonzero(self.training_tokens(tokens, position) == self.eos_id)
        return np.diff(ends, prepend=-1)


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


def read_heldout(path: AnyPath) -> list[HeldoutDocument]:
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
