"""Which held-out documents are near-copies of training text, or of one another. No Ray here.

The split keeps equal documents on one side, but a document can differ in a line from one that is
trained, and its loss then measures memorising. As for GPT-3 (Brown et al. 2020, arXiv:2005.14165,
appendix C), texts are compared by their n-grams: runs of some 13 words, here of as many tokens as
80 bytes have. N-grams are compared by a 64-bit hash, so any two different ones are taken for equal
with a probability of 2^-64.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from glray.data.blocks.block_files import BlockPlace
from glray.data.blocks.heldout import HeldoutDocument
from glray.data.blocks.reading import read_blocks
from glray.data.blocks.token_blocks import TokenBlocks
from glray.files import AnyPath, StorePath, committed
from glray.files.cache import node_cache
from glray.record import Record
from glray.spec.pipeline import BLOCK_TOKENS

NGRAM_BYTES = 80
"""Of an n-gram: 13 words of about 6 bytes."""
NEAR_COPY_SHARE = 0.2
"""A document is a near-copy if it shares this much of its n-grams."""
CHECKED_TOKENS = 2**24
"""Held-out documents beyond so many tokens are neither checked nor scored. It bounds what a check
holds in memory to some 500 MB, and is far more than an evaluation takes."""
RULE = {
    "ngram_bytes": NGRAM_BYTES,
    "near_copy_share": NEAR_COPY_SHARE,
    "checked_tokens": CHECKED_TOKENS,
}
"""What decides a corpus's near-copies, its tokens apart."""
NAMES_SHOWN = 3
"""Near-copies that are named."""

HASH_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, or the hash would forget a window's first tokens."""


class NearCopy(Record):
    """A held-out document whose loss would measure memorising."""

    name: str
    sha256: str
    num_bytes: int
    share: float = Field(ge=0, le=1)
    """Of its n-grams, those that are in ``source`` too."""
    source: Literal["training text", "held-out text"]
    """Held-out text is that of the documents before it that are no near-copies."""


class HeldoutCheck(Record):
    """What was found when a corpus's held-out documents were compared with its training text."""

    remedy: ClassVar[str] = "delete it and run `glray prepare` again to remake it"

    ngram_tokens: int
    documents: int
    """Compared."""
    num_bytes: int
    """Of their text in UTF-8."""
    near_copies: tuple[NearCopy, ...]
    """Those that share most first."""
    too_short: int = 0
    """Documents without an n-gram, which cannot be near-copies."""

    def model_post_init(self, context: Any) -> None:
        if len(self.near_copies) > self.documents or self.num_bytes < sum(
            copy.num_bytes for copy in self.near_copies
        ):
            raise ValueError("more near-copies than documents")

    @property
    def left_out(self) -> frozenset[str]:
        """SHA-256 of the documents that are not scored: the near-copies, unless all are that could
        be."""
        copies = frozenset(copy.sha256 for copy in self.near_copies)
        return copies if len(copies) < self.documents - self.too_short else frozenset()

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        copies = self.near_copies
        if not copies:
            return f"none of {self.documents:,} held-out documents is a near-copy of other text"
        share = sum(copy.num_bytes for copy in copies) / max(self.num_bytes, 1)
        found = (
            f"{len(copies):,} of {self.documents:,} held-out documents ({share:.0%} of their "
            f"bytes) are near-copies, with {NEAR_COPY_SHARE:.0%} or more of their n-grams of "
            f"{self.ngram_tokens} tokens in other text"
        )
        if not self.left_out:
            but = f" but {self.too_short:,} too short for one" if self.too_short else ""
            return f"{found}: as all are{but}, all are scored, and losses measure memorising"
        worst = [f"{copy.name} ({copy.share:.0%} in {copy.source})" for copy in copies]
        more = f" and {len(copies) - NAMES_SHOWN:,} more" if len(copies) > NAMES_SHOWN else ""
        return f"{found}, and are not scored: {', '.join(worst[:NAMES_SHOWN])}{more}"


def ngram_tokens(documents: Sequence[HeldoutDocument]) -> int:
    """Tokens of an n-gram: as many as ``NGRAM_BYTES`` have in these documents; 80 at most, whatever
    the tokenizer."""
    num_tokens = sum(len(document.tokens) for document in documents)
    num_bytes = sum(document.num_bytes for document in documents)
    return math.ceil(NGRAM_BYTES * num_tokens / max(num_bytes, num_tokens))


def ngram_hashes(tokens: np.ndarray, size: int) -> np.ndarray:
    """A hash of each ``size`` consecutive tokens, a polynomial in ``HASH_BASE`` modulo 2^64:
    uint64[n - size + 1], empty if there are fewer. Ascending, as sorted values are looked up many
    times faster."""
    hashes = np.zeros(max(len(tokens) - size + 1, 0), dtype=np.uint64)
    for place in range(size):
        hashes *= HASH_BASE
        hashes += tokens[place : place + len(hashes)].astype(np.uint64)
    hashes.sort()
    return hashes


def write_ngrams(documents: Sequence[HeldoutDocument], size: int, path: AnyPath) -> None:
    """Commit the hashes of the documents' n-grams, uint64[n], each once and in ascending order."""
    hashes = np.concatenate([ngram_hashes(document.tokens, size) for document in documents])
    hashes.sort()  # in place: np.unique takes three times as much memory
    is_new = np.ones(len(hashes), dtype=bool)
    is_new[1:] = hashes[1:] != hashes[:-1]
    with committed(path) as file:
        np.save(file, hashes[is_new])


@dataclass(frozen=True)
class BlockRun:
    """Consecutive blocks of a source, the one before the first included."""

    source: TokenBlocks
    first: int
    """The first that is searched."""
    num_blocks: int

    @property
    def places(self) -> list[BlockPlace]:
        """Where they lie."""
        last = min(self.first + self.num_blocks, self.source.num_blocks)
        return self.source.places(range(max(self.first - 1, 0), last))

    def path(self, directory: AnyPath) -> AnyPath:
        """What was found in it; another cut into runs has other files."""
        return directory / f"{self.source.fingerprint}-{self.first:05d}-{self.num_blocks}.npy"


def find_ngrams(run: BlockRun, ngrams: AnyPath, size: int, directory: AnyPath) -> None:
    """Commit which of the ``ngrams`` (``write_ngrams``) are in the run's blocks or cross their
    ends, in ``directory``, as packed bits. Holds a block, or from a store those of the run. Raises
    UserError for a damaged one."""
    wanted = _read_ngrams(ngrams)
    found = np.zeros(len(wanted), dtype=bool)
    before = np.empty(0, dtype=np.uint16)
    for block in read_blocks(run.places):
        tokens = np.concatenate([before, block[:BLOCK_TOKENS]])
        before = tokens[max(len(tokens) - size + 1, 0) :]
        hashes = ngram_hashes(tokens, size)
        places = np.searchsorted(wanted, hashes)
        inside = places < len(wanted)
        places, hashes = places[inside], hashes[inside]
        found[places[wanted[places] == hashes]] = True
    with committed(run.path(directory)) as file:
        np.save(file, np.packbits(found))


def check_heldout(
    documents: Sequence[HeldoutDocument], size: int, ngrams: AnyPath, runs: Sequence[AnyPath]
) -> HeldoutCheck:
    """The near-copies among the documents, whose n-grams are those of ``ngrams``; ``runs`` are the
    files of ``find_ngrams`` for all training text. Of near-copies of each other the first stays."""
    known = _read_ngrams(ngrams)
    trained, heldout = np.zeros((2, len(known)), dtype=bool)
    for path in runs:
        with path.open("rb") as file:
            trained |= np.unpackbits(np.load(file), count=len(known)).astype(bool)
    copies, too_short = [], 0
    for document in documents:
        places = np.searchsorted(known, ngram_hashes(document.tokens, size))
        too_short += len(places) == 0
        of_training, of_heldout = _share(trained[places]), _share(heldout[places])
        if max(of_training, of_heldout) < NEAR_COPY_SHARE:
            heldout[places] = True
            continue
        copies.append(
            NearCopy(
                name=document.name,
                sha256=document.sha256,
                num_bytes=document.num_bytes,
                share=max(of_training, of_heldout),
                source="training text" if of_training >= of_heldout else "held-out text",
            )
        )
    return HeldoutCheck(
        ngram_tokens=size,
        documents=len(documents),
        num_bytes=sum(document.num_bytes for document in documents),
        near_copies=tuple(sorted(copies, key=lambda copy: copy.share, reverse=True)),
        too_short=too_short,
    )


def _read_ngrams(path: AnyPath) -> np.ndarray:
    """What ``write_ngrams`` wrote; from a store once a node, as its folder is named for all that
    decides it."""
    if isinstance(path, StorePath):
        content = node_cache().mapped(f"{path.parent.name}.npy", path.read_bytes)
        return np.load(io.BytesIO(content.tobytes()))
    return np.load(path, mmap_mode="r")


def _share(found: np.ndarray) -> float:
    return float(found.mean()) if len(found) else 0.0  # a document may be too short for an n-gram
