"""From encoded shards to token blocks. No Ray here.

``scan_shards`` reads the shards once, in order, and determines the held-out split and where each
shard's training tokens lie in the stream; from then on any file of blocks can be cut by itself.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from glray.data.blocks.arrow_files import committed_batches, mapped_batches
from glray.data.blocks.block_files import (
    BLOCKS_PER_FILE,
    INDEX_SCHEMA,
    blocks_file,
    cut,
    write_blocks,
)
from glray.data.blocks.heldout import (
    FEWEST_SPANS,
    Span,
    SpanSplit,
    Split,
    heldout_schema,
    is_drawn,
    return_oversized,
    span_tokens,
)
from glray.data.blocks.shards import Documents, read_shard
from glray.data.blocks.token_blocks import SourceStats, num_blocks_of
from glray.data.blocks.tokenizer import Encoding, token_num_bytes
from glray.data.read.documents import EMPTY, NO_COLUMN, NOT_UTF8
from glray.files import AnyPath
from glray.spec.pipeline import BLOCK_TOKENS

SKIPPED = {
    EMPTY: "empty_skipped",
    NOT_UTF8: "not_utf8_skipped",
    NO_COLUMN: "no_column_skipped",
}
"""What counts each reason."""
NAMES_SHOWN = 10
"""Skipped texts, and unknown characters, that are named."""
HELDOUT_BATCH_TOKENS = 2**20
"""A record batch of held-out documents is closed once it has this many."""


@dataclass(frozen=True)
class ShardScan:
    """What a source's shards hold."""

    shards: tuple[AnyPath, ...]
    split: Split | SpanSplit
    whole_tokens: tuple[int, ...]
    """Tokens of each shard."""
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
        return num_blocks_of(self.num_tokens)

    @property
    def num_files(self) -> int:
        """Files that the blocks fill."""
        return -(-self.num_blocks // BLOCKS_PER_FILE)


def scan_shards(
    shards: tuple[AnyPath, ...], encoding: Encoding, heldout_fraction: float
) -> ShardScan:
    """Read committed shards, in order; memory grows with the held-out documents alone, or with the
    number of spans of which some are held out."""
    drawn: dict[bytes, int] = {}
    whole_tokens = []
    for path in shards:
        whole_tokens.append(0)
        for documents in read_shard(path):
            whole_tokens[-1] += int(documents.num_tokens.sum())
            for index in np.flatnonzero(is_drawn(documents.sha256, heldout_fraction)).tolist():
                drawn[documents.sha256[index].tobytes()] = int(documents.num_bytes[index])
    by_document = Split(heldout_fraction, return_oversized(drawn))
    split: Split | SpanSplit = by_document
    if len(by_document.returned) == len(drawn):
        spans = _span_split(shards, encoding.eos_id, sum(whole_tokens), by_document)
        split = spans or by_document
    digest = hashlib.sha256()
    counts: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    heldout_tokens: dict[bytes, int] = {}  # of each content
    lengths = np.zeros((2, 64), dtype=np.int64)  # documents and tokens, by power of two
    shard_tokens = []
    names: list[str] = []
    position = num_heldout = 0
    for path in shards:
        before = int(lengths[1].sum())
        for documents in read_shard(path):
            digest.update(documents.sha256.tobytes())
            if isinstance(split, SpanSplit):
                trained = split.training_lengths(documents.tokens, position)
            else:
                heldout = split.heldout(documents.sha256)
                trained = documents.num_tokens[~heldout]
                for index in np.flatnonzero(heldout).tolist():
                    num_tokens = int(documents.num_tokens[index]) - 1
                    heldout_tokens[documents.sha256[index].tobytes()] = num_tokens
                num_heldout += int(heldout.sum())
            position += len(documents.tokens)
            powers = np.frexp(trained)[1] - 1
            lengths[0] += np.bincount(powers, minlength=64)
            lengths[1] += np.bincount(powers, weights=trained, minlength=64).astype(np.int64)
            counts["documents"] += len(documents.num_tokens)
            counts["bytes"] += int(documents.num_bytes.sum())
            unknown.update(documents.unknown)
            for skipped in documents.skipped:
                counts[SKIPPED[skipped.reason]] += 1
                if skipped.reason == NOT_UTF8 and len(names) < NAMES_SHOWN:
                    names.append(skipped.name)
        shard_tokens.append(int(lengths[1].sum()) - before)
    if isinstance(split, SpanSplit):
        heldout_tokens = {sha256: len(span.tokens) for sha256, span in _held_spans(shards, split)}
        num_heldout = len(split.starts)
    longest = int(np.max(np.flatnonzero(lengths[0]), initial=-1)) + 1
    stats = SourceStats(
        **counts,
        training_documents=int(lengths[0].sum()),
        heldout_documents=len(heldout_tokens),
        heldout_tokens=sum(heldout_tokens.values()),
        heldout_duplicates_dropped=num_heldout - len(heldout_tokens),
        heldout_span_tokens=split.num_tokens if isinstance(split, SpanSplit) else 0,
        not_utf8_names=tuple(names),
        unknown_characters=unknown.total(),
        most_unknown=tuple(unknown.most_common(NAMES_SHOWN)),
        length_documents=tuple(lengths[0, :longest].tolist()),
        length_tokens=tuple(lengths[1, :longest].tolist()),
    )
    return ShardScan(
        shards,
        split,
        tuple(whole_tokens),
        tuple(shard_tokens),
        digest.hexdigest(),
        len(drawn),
        stats,
    )


def _span_split(
    shards: tuple[AnyPath, ...], eos_id: int, num_tokens: int, drawn: Split
) -> SpanSplit | None:
    """The spans to hold out of a stream of ``num_tokens``; None if too few of them differ."""
    length = span_tokens(num_tokens, drawn.fraction)
    starts: defaultdict[bytes, list[int]] = defaultdict(list)
    for span in _spans(shards, length, eos_id):
        starts[_sha256(span)].append(span.start)
    if len(starts) <= FEWEST_SPANS:
        return None
    lowest: list[bytes] = []
    held = 0
    for sha256 in sorted(starts):
        if len(lowest) >= FEWEST_SPANS and held + length > drawn.fraction * num_tokens:
            break
        lowest.append(sha256)
        held += length * len(starts[sha256])
    return SpanSplit(
        drawn.fraction,
        drawn.returned,
        length,
        frozenset(lowest),
        np.sort(np.concatenate([starts[sha256] for sha256 in lowest]).astype(np.int64)),
        eos_id,
    )


def _spans(shards: tuple[AnyPath, ...], length: int, eos_id: int) -> Iterator[Span]:
    """All spans of ``length`` tokens: each document that has as many is cut into equal parts, which
    begin with one; shorter documents that follow each other are joined until they have one."""
    position = num_waiting = 0
    waiting: list[tuple[str, np.ndarray]] = []
    for path in shards:
        for documents in read_shard(path):
            ends = np.cumsum(documents.num_tokens).tolist()
            for name, stop, size in zip(
                documents.names.to_pylist(), ends, documents.num_tokens.tolist(), strict=True
            ):
                tokens = documents.tokens[stop - size : stop]
                position += size
                if size >= length:
                    waiting, num_waiting = [], 0
                    for part in range(size // length):
                        first = size * part // (size // length)
                        place = f"{name}, tokens {first:,} to {first + length:,}"
                        inside = tokens[first : first + length]
                        yield _span(place, position - size + first, inside, eos_id)
                    continue
                waiting.append((name, tokens))
                num_waiting += size
                if num_waiting >= length:
                    place = f"{waiting[0][0]} to {name}"
                    joined = np.concatenate([tokens for _, tokens in waiting])[:length]
                    yield _span(place, position - num_waiting, joined, eos_id)
                    waiting, num_waiting = [], 0


def _span(name: str, start: int, tokens: np.ndarray, eos_id: int) -> Span:
    return Span(name, start, tokens[:-1] if tokens[-1] == eos_id else tokens)


def _sha256(span: Span) -> bytes:
    """As ``Document.sha256`` of token ids."""
    return hashlib.sha256(span.tokens.astype("<u4").tobytes()).digest()


def _held_spans(shards: tuple[AnyPath, ...], split: SpanSplit) -> Iterator[tuple[bytes, Span]]:
    """The spans that are held out, equal ones once, after their SHA-256."""
    starts, seen = frozenset(split.starts.tolist()), set()
    for span in _spans(shards, split.num_tokens, split.eos_id):
        if span.start in starts and (sha256 := _sha256(span)) not in seen:
            seen.add(sha256)
            yield sha256, span


def cut_file(
    index: int, scan: ShardScan, directory: AnyPath, rows: AnyPath, dtype: str
) -> pa.Table:
    """Commit file ``index`` of the stream's blocks in a source's folder, and then its rows of the
    index in ``rows``, which make it count; returns these. What counts already stays.

    Holds a block; reads only the shards that have its tokens.
    """
    path, committed_rows = blocks_file(directory, index), rows / f"{index:05d}.arrow"
    if not (path.exists() and committed_rows.exists()):
        first, last = index * BLOCKS_PER_FILE, min((index + 1) * BLOCKS_PER_FILE, scan.num_blocks)
        stop = last * BLOCK_TOKENS + 1  # with the token that is borrowed
        stream = _stream(scan, first * BLOCK_TOKENS, stop)
        table = write_blocks(path, cut(stream, last - first), dtype)
        with committed_batches(committed_rows, INDEX_SCHEMA) as writer:
            writer.write_table(table)
    return pa.Table.from_batches(mapped_batches(committed_rows), INDEX_SCHEMA)


def write_heldout(scan: ShardScan, encoding: Encoding, path: AnyPath) -> None:
    """Commit the held-out documents or spans in the source's order, equal ones once, no EOS."""
    schema = heldout_schema(encoding.dtype)
    rows: list[tuple[str, bytes, int, np.ndarray]] = []
    waiting = 0

    def write_rows() -> None:
        columns = map(list, zip(*rows, strict=True))
        writer.write_batch(pa.record_batch(list(columns), schema=schema))
        rows.clear()

    with committed_batches(path, schema) as writer:
        for row in _heldout_rows(scan, encoding):
            rows.append(row)
            waiting += len(row[-1])
            if waiting >= HELDOUT_BATCH_TOKENS:  # the bytes depend on the documents alone
                write_rows()
                waiting = 0
        if rows:
            write_rows()


def _heldout_rows(
    scan: ShardScan, encoding: Encoding
) -> Iterator[tuple[str, bytes, int, np.ndarray]]:
    """Name, hash, bytes and tokens of each document of the held-out set."""
    if isinstance(scan.split, SpanSplit):
        num_bytes = token_num_bytes(Tokenizer.from_str(encoding.tokenizer_json))
        for sha256, span in _held_spans(scan.shards, scan.split):
            yield span.name, sha256, int(num_bytes[span.tokens].sum()), span.tokens
        return
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
    position = whole_position = 0
    for path, num_tokens, whole_tokens in zip(
        scan.shards, scan.shard_tokens, scan.whole_tokens, strict=True
    ):
        if position + num_tokens <= start or position >= stop:
            position += num_tokens
            whole_position += whole_tokens
            continue
        for documents in read_shard(path):
            tokens = _training_tokens(scan.split, documents, whole_position)
            whole_position += len(documents.tokens)
            inside = tokens[max(start - position, 0) : max(stop - position, 0)]
            position += len(tokens)
            if len(inside):
                yield inside
            if position >= stop:
                return


def _training_tokens(split: Split | SpanSplit, documents: Documents, position: int) -> np.ndarray:
    """What of some documents, from ``position`` of the stream of all documents on, is trained."""
    if isinstance(split, SpanSplit):
        return split.training_tokens(documents.tokens, position)
    trained = ~split.heldout(documents.sha256)
    return documents.tokens[np.repeat(trained, documents.num_tokens)]
