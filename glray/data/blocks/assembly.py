"""From encoded shards to token blocks. No Ray here.

``scan_shards`` reads the shards once, in order, and determines the held-out split and where each
shard's training tokens lie in the stream; from then on any run of blocks can be cut by itself.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from glray.data.blocks.arrow_files import committed_batches
from glray.data.blocks.heldout import Split, heldout_schema, is_drawn, return_oversized
from glray.data.blocks.shards import read_shard
from glray.data.blocks.token_blocks import BlockFile, SourceStats, describe_block, write_block
from glray.data.read.documents import EMPTY, NOT_UTF8
from glray.spec.pipeline import BLOCK_TOKENS

SKIPPED = {EMPTY: "empty_skipped", NOT_UTF8: "not_utf8_skipped"}
"""What counts each reason."""
NAMES_SHOWN = 10
"""Skipped texts that are named."""
HELDOUT_BATCH_TOKENS = 2**20
"""A record batch of held-out documents is closed once it has this many."""


@dataclass(frozen=True)
class ShardScan:
    """What a source's shards hold."""

    shards: tuple[Path, ...]
    dtype: Literal["uint16", "uint32"]
    """Of the tokens."""
    split: Split
    shard_tokens: tuple[int, ...]
    """Training tokens of each shard."""
    documents_sha256: str
    """Of the hashes of all documents in order."""
    num_drawn: int
    """Contents drawn for the held-out set, returned ones included."""
    stats: SourceStats

    @property
    def num_tokens(self) -> int:
        """Of the training stream."""
        return sum(self.shard_tokens)

    @property
    def num_blocks(self) -> int:
        """Blocks that the training stream fills."""
        return -(-self.num_tokens // BLOCK_TOKENS)


def scan_shards(
    shards: tuple[Path, ...], dtype: Literal["uint16", "uint32"], heldout_fraction: float
) -> ShardScan:
    """Read committed shards, in order; memory grows with the held-out documents alone."""
    drawn = {
        documents.sha256[index].tobytes(): int(documents.num_bytes[index])
        for path in shards
        for documents in read_shard(path)
        for index in np.flatnonzero(is_drawn(documents.sha256, heldout_fraction)).tolist()
    }
    split = Split(heldout_fraction, return_oversized(drawn))
    digest = hashlib.sha256()
    counts: Counter[str] = Counter()
    heldout_tokens: dict[bytes, int] = {}  # of each content
    lengths = np.zeros((2, 64), dtype=np.int64)  # documents and tokens, by power of two
    shard_tokens = []
    names: list[str] = []
    for path in shards:
        before = int(lengths[1].sum())
        for documents in read_shard(path):
            digest.update(documents.sha256.tobytes())
            heldout = split.heldout(documents.sha256)
            trained = documents.num_tokens[~heldout]
            powers = np.frexp(trained)[1] - 1
            lengths[0] += np.bincount(powers, minlength=64)
            lengths[1] += np.bincount(powers, weights=trained, minlength=64).astype(np.int64)
            counts["documents"] += len(heldout)
            counts["bytes"] += int(documents.num_bytes.sum())
            for index in np.flatnonzero(heldout).tolist():
                num_tokens = int(documents.num_tokens[index]) - 1
                heldout_tokens[documents.sha256[index].tobytes()] = num_tokens
            for skipped in documents.skipped:
                counts[SKIPPED[skipped.reason]] += 1
                if skipped.reason == NOT_UTF8 and len(names) < NAMES_SHOWN:
                    names.append(skipped.name)
        shard_tokens.append(int(lengths[1].sum()) - before)
    num_heldout = counts["documents"] - int(lengths[0].sum())
    longest = int(np.max(np.flatnonzero(lengths[0]), initial=-1)) + 1
    stats = SourceStats(
        **counts,
        training_documents=int(lengths[0].sum()),
        heldout_documents=len(heldout_tokens),
        heldout_tokens=sum(heldout_tokens.values()),
        heldout_duplicates_dropped=num_heldout - len(heldout_tokens),
        not_utf8_names=tuple(names),
        length_documents=tuple(lengths[0, :longest].tolist()),
        length_tokens=tuple(lengths[1, :longest].tolist()),
    )
    return ShardScan(
        shards, dtype, split, tuple(shard_tokens), digest.hexdigest(), len(drawn), stats
    )


def cut_blocks(numbers: range, scan: ShardScan, directory: Path) -> list[BlockFile]:
    """Commit the stream's blocks of these consecutive numbers in ``directory``, unless all are
    there. Holds their tokens in memory; reads only the shards that have them."""
    paths = [directory / f"{number:05d}.arrow" for number in numbers]
    if all(path.exists() for path in paths):
        return [describe_block(path) for path in paths]
    stop = numbers.stop * BLOCK_TOKENS + 1  # with the token that is borrowed
    tokens = np.concatenate(list(_stream(scan, numbers.start * BLOCK_TOKENS, stop)))
    return [
        write_block(path, tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS + 1])
        for index, path in enumerate(paths)
    ]


def write_heldout(scan: ShardScan, path: Path) -> None:
    """Commit the held-out documents in the source's order, equal ones once, without EOS."""
    schema = heldout_schema(scan.dtype)
    rows: list[tuple[str, bytes, int, np.ndarray]] = []
    waiting = 0

    def write_rows() -> None:
        columns = map(list, zip(*rows, strict=True))
        writer.write_batch(pa.record_batch(list(columns), schema=schema))
        rows.clear()

    with committed_batches(path, schema) as writer:
        for row in _heldout_rows(scan):
            rows.append(row)
            waiting += len(row[-1])
            if waiting >= HELDOUT_BATCH_TOKENS:  # the bytes depend on the documents alone
                write_rows()
                waiting = 0
        if rows:
            write_rows()


def _heldout_rows(scan: ShardScan) -> Iterator[tuple[str, bytes, int, np.ndarray]]:
    """Name, hash, bytes and tokens of each document of the held-out set."""
    seen: set[bytes] = set()
    for path in scan.shards:
        for documents in read_shard(path):
            ends = np.cumsum(documents.num_tokens)
            for index in np.flatnonzero(scan.split.heldout(documents.sha256)).tolist():
                sha256 = documents.sha256[index].tobytes()
                if sha256 not in seen:
                    seen.add(sha256)
                    start = ends[index] - documents.num_tokens[index]
                    yield (
                        documents.names[index].as_py(),
                        sha256,
                        int(documents.num_bytes[index]),
                        documents.tokens[start : ends[index] - 1],
                    )


def _stream(scan: ShardScan, start: int, stop: int) -> Iterator[np.ndarray]:
    """The training stream's tokens ``start`` to ``stop``, a batch of documents at a time."""
    position = 0
    for path, num_tokens in zip(scan.shards, scan.shard_tokens, strict=True):
        if position + num_tokens <= start or position >= stop:
            position += num_tokens
            continue
        for documents in read_shard(path):
            trained = ~scan.split.heldout(documents.sha256)
            tokens = documents.tokens[np.repeat(trained, documents.num_tokens)]
            inside = tokens[max(start - position, 0) : max(stop - position, 0)]
            position += len(tokens)
            if len(inside):
                yield inside
            if position >= stop:
                return
