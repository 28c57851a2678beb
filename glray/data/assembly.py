"""From encoded shards to token blocks. No Ray here.

``survey`` reads the shards once in order and settles the split and where each shard's training
tokens lie in the stream; from then on any run of blocks can be cut by itself.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from glray.data.blocks import BlockFile, describe_block, write_block
from glray.data.documents import EMPTY
from glray.data.heldout import Split, heldout_schema, is_drawn, return_oversized
from glray.data.shards import read_documents
from glray.files import committed
from glray.spec.pipeline import BLOCK_TOKENS

NAMES_SHOWN = 10
"""Skipped texts that are named."""
HELDOUT_BATCH_TOKENS = 2**20
"""A record batch of held-out documents is closed once it has this many."""


@dataclass(frozen=True)
class Survey:
    """What a source's shards hold."""

    shards: tuple[Path, ...]
    dtype: str
    """Of the tokens."""
    split: Split
    shard_tokens: tuple[int, ...]
    """Training tokens of each shard."""
    documents_sha256: str
    """Of the hashes of all documents in order."""
    num_documents: int
    num_bytes: int
    num_drawn: int
    """Contents drawn for the held-out set, returned ones included."""
    num_training: int
    """Training documents."""
    length_documents: tuple[int, ...]
    """Training documents of 2^k to 2^(k+1) - 1 tokens, by k."""
    length_tokens: tuple[int, ...]
    """Their tokens."""
    skipped: dict[str, int]
    """How many for each reason."""
    skipped_names: tuple[str, ...]
    """The first of those that are not just empty."""

    @property
    def num_tokens(self) -> int:
        """Of the training stream."""
        return sum(self.shard_tokens)

    @property
    def num_blocks(self) -> int:
        """Blocks that the training stream fills."""
        return -(-self.num_tokens // BLOCK_TOKENS)


def survey(shards: tuple[Path, ...], dtype: str, heldout_fraction: float) -> Survey:
    """Read committed shards, in order; memory grows with the held-out documents alone."""
    drawn = _drawn(shards, heldout_fraction)
    split = Split(heldout_fraction, return_oversized(drawn))
    digest = hashlib.sha256()
    num_documents = num_bytes = num_training = 0
    lengths = np.zeros((2, 64), dtype=np.int64)
    shard_tokens = []
    skipped: dict[str, int] = {}
    names: list[str] = []
    for path in shards:
        before = int(lengths[1].sum())
        for documents, others in read_documents(path):
            digest.update(documents.sha256.tobytes())
            num_documents += len(documents.num_bytes)
            num_bytes += int(documents.num_bytes.sum())
            trained = documents.num_tokens[~split.heldout(documents.sha256)]
            num_training += len(trained)
            powers = np.frexp(trained)[1] - 1
            lengths[0] += np.bincount(powers, minlength=64)
            lengths[1] += np.bincount(powers, weights=trained, minlength=64).astype(np.int64)
            for other in others:
                skipped[other.reason] = skipped.get(other.reason, 0) + 1
                if other.reason != EMPTY and len(names) < NAMES_SHOWN:
                    names.append(other.name)
        shard_tokens.append(int(lengths[1].sum()) - before)
    longest = int(np.flatnonzero(lengths[0])[-1]) + 1 if num_training else 0
    return Survey(
        shards=shards,
        dtype=dtype,
        split=split,
        shard_tokens=tuple(shard_tokens),
        documents_sha256=digest.hexdigest(),
        num_documents=num_documents,
        num_bytes=num_bytes,
        num_drawn=len(drawn),
        num_training=num_training,
        length_documents=tuple(lengths[0, :longest].tolist()),
        length_tokens=tuple(lengths[1, :longest].tolist()),
        skipped=skipped,
        skipped_names=tuple(names),
    )


def cut_blocks(survey: Survey, first: int, last: int, directory: Path) -> list[BlockFile]:
    """Commit the stream's blocks ``first`` to ``last`` (exclusive) in ``directory``, unless all are
    there. Reads the shards that hold their tokens, one at a time."""
    paths = [directory / f"{index:05d}.arrow" for index in range(first, last)]
    if all(path.exists() for path in paths):
        return [describe_block(path) for path in paths]
    start = first * BLOCK_TOKENS
    stop = min(last * BLOCK_TOKENS + 1, survey.num_tokens)  # with the token that is borrowed
    blocks: list[BlockFile] = []
    pending = [np.empty(0, dtype=survey.dtype)]
    for tokens in _stream(survey, start, stop):
        pending.append(tokens)
        if sum(map(len, pending)) <= BLOCK_TOKENS:
            continue
        joined = np.concatenate(pending)
        while len(joined) > BLOCK_TOKENS:
            blocks.append(write_block(paths[len(blocks)], joined[: BLOCK_TOKENS + 1]))
            joined = joined[BLOCK_TOKENS:]
        pending = [joined]
    if len(blocks) < len(paths):  # the stream's last block borrows none
        blocks.append(write_block(paths[-1], np.concatenate(pending)))
    return blocks


@dataclass(frozen=True)
class HeldoutCounts:
    """What ``write_heldout`` wrote."""

    num_documents: int
    num_tokens: int
    num_duplicates: int
    """Left out because an equal one is there."""


def write_heldout(survey: Survey, path: Path) -> HeldoutCounts:
    """Commit the held-out documents in the source's order, equal ones once, without EOS."""
    schema = heldout_schema(survey.dtype)
    seen: set[bytes] = set()
    num_tokens = num_duplicates = 0
    with committed(path) as file, pa.ipc.new_file(file, schema) as writer:
        rows: list[HeldoutRow] = []
        waiting = 0
        for row in _heldout_rows(survey):
            num_duplicates += row.sha256 in seen
            if row.sha256 in seen:
                continue
            seen.add(row.sha256)
            rows.append(row)
            num_tokens += len(row.tokens)
            waiting += len(row.tokens)
            if waiting >= HELDOUT_BATCH_TOKENS:  # so that the bytes hang on the documents alone
                writer.write_batch(_heldout_batch(rows, schema))
                rows, waiting = [], 0
        if rows:
            writer.write_batch(_heldout_batch(rows, schema))
    return HeldoutCounts(len(seen), num_tokens, num_duplicates)


@dataclass(frozen=True)
class HeldoutRow:
    """A held-out document on its way to its file."""

    name: str
    sha256: bytes
    num_bytes: int
    tokens: np.ndarray
    """Without EOS."""


def _heldout_rows(survey: Survey) -> Iterator[HeldoutRow]:
    for shard in survey.shards:
        for documents, _ in read_documents(shard):
            ends = np.cumsum(documents.num_tokens)
            for index in np.flatnonzero(survey.split.heldout(documents.sha256)).tolist():
                start = ends[index] - documents.num_tokens[index]
                yield HeldoutRow(
                    name=documents.names[index].as_py(),
                    sha256=documents.sha256[index].tobytes(),
                    num_bytes=int(documents.num_bytes[index]),
                    tokens=documents.tokens[start : ends[index] - 1],
                )


def _heldout_batch(rows: list[HeldoutRow], schema: pa.Schema) -> pa.RecordBatch:
    offsets = np.cumsum([0] + [len(row.tokens) for row in rows], dtype=np.int32)
    columns = [
        pa.array([row.name for row in rows], pa.string()),
        pa.array([row.sha256 for row in rows], pa.binary(32)),
        pa.array([row.num_bytes for row in rows], pa.int64()),
        pa.ListArray.from_arrays(offsets, np.concatenate([row.tokens for row in rows])),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _drawn(shards: tuple[Path, ...], fraction: float) -> dict[bytes, int]:
    """Bytes of each content that is drawn for the held-out set."""
    return {
        documents.sha256[index].tobytes(): int(documents.num_bytes[index])
        for path in shards
        for documents, _ in read_documents(path)
        for index in np.flatnonzero(is_drawn(documents.sha256, fraction)).tolist()
    }


def _stream(survey: Survey, start: int, stop: int) -> Iterator[np.ndarray]:
    """The training stream's tokens ``start`` to ``stop``, a batch of documents at a time."""
    ends = np.cumsum(survey.shard_tokens)
    for path, end, num_tokens in zip(survey.shards, ends, survey.shard_tokens, strict=True):
        position = int(end) - num_tokens
        if end <= start or position >= stop:
            continue
        for documents, _ in read_documents(path):
            trained = ~survey.split.heldout(documents.sha256)
            tokens = documents.tokens[np.repeat(trained, documents.num_tokens)]
            inside = tokens[max(start - position, 0) : max(stop - position, 0)]
            position += len(tokens)
            if len(inside):
                yield inside
            if position >= stop:
                return
