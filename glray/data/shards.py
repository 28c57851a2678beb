"""Shards: runs of a source's documents, encoded independently of one another. No Ray here.

A shard is planned from the source's list of files alone, so any call cuts the same ones. Encoding
it leaves one Arrow file, which is there whole or not at all: what a killed call committed, the next
one keeps. A shard knows nothing of the held-out split, which needs all of them.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from glray.data.documents import Document, Piece, Skipped, read_piece, split_file
from glray.data.encoding import Encoding, content_sha256
from glray.data.sources import SourceFile
from glray.data.tokenizer import encode, token_num_bytes
from glray.errors import UserError
from glray.files import committed
from glray.spec.corpus import SourceCorpus

MIN_SHARD_BYTES = 4 * 2**20
MAX_SHARD_BYTES = 256 * 2**20
"""What one task reads at least and at most, of the source's bytes."""
MAX_SHARDS = 4096
"""Shards of a source that grow before there are more of them."""
BATCH_BYTES = 2**20
"""Text that is encoded at once."""


@dataclass(frozen=True)
class Shard:
    """Consecutive pieces of a source's files."""

    index: int
    pieces: tuple[Piece, ...]
    num_bytes: int
    """About, as they lie in the store."""

    def path(self, directory: Path) -> Path:
        """Its file in a folder of encoded shards, named for what it holds: had another version cut
        the source otherwise, its shards would not be taken for this one's."""
        pieces = [(piece.file.uri, piece.first, piece.last) for piece in self.pieces]
        held = hashlib.sha256(repr(pieces).encode()).hexdigest()[:8]
        return directory / f"{self.index:05d}-{held}.arrow"


@dataclass(frozen=True)
class Encoded:
    """What was encoded of a shard."""

    num_bytes: int
    """Of text, in UTF-8."""
    num_tokens: int


def plan_shards(files: tuple[SourceFile, ...], corpus: SourceCorpus) -> list[Shard]:
    """The shards of a source, in order. Raises UserError for a damaged file."""
    total = sum(file.num_bytes for file in files)
    shard_bytes = min(max(MIN_SHARD_BYTES, total // MAX_SHARDS), MAX_SHARD_BYTES)
    shards: list[Shard] = []
    pieces: list[Piece] = []
    num_bytes = 0

    def close() -> None:
        nonlocal num_bytes
        if pieces:
            shards.append(Shard(len(shards), tuple(pieces), num_bytes))
        pieces.clear()
        num_bytes = 0

    for file in files:
        split = list(split_file(file, corpus, shard_bytes))
        for piece in split:
            size = file.num_bytes // len(split)
            if num_bytes + size > shard_bytes:
                close()
            pieces.append(piece)
            num_bytes += size
    close()
    return shards


def encode_shard(
    shard: Shard, corpus: SourceCorpus, encoding: Encoding, directory: Path
) -> Encoded:
    """Encode a shard's documents and commit its file in ``directory``.

    A row is a document: ``name``, ``sha256``, ``num_bytes`` and ``tokens``, ended by EOS; or
    says in ``skipped`` why there is none. Raises UserError and OSError.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core
    num_bytes = num_tokens = 0
    schema = _schema(encoding.dtype)
    with committed(shard.path(directory)) as file, pa.ipc.new_file(file, schema) as writer:
        for items in _batches(shard, corpus):
            batch = _encoded(items, encoding, schema)
            writer.write_batch(batch)
            num_bytes += batch.column("num_bytes").sum().as_py() or 0
            num_tokens += len(batch.column("tokens").flatten())
    return Encoded(num_bytes, num_tokens)


@dataclass(frozen=True)
class Documents:
    """A batch of a shard's documents, skipped ones left out."""

    names: pa.Array
    sha256: np.ndarray
    """uint8[n, 32]."""
    num_bytes: np.ndarray
    """int64[n]."""
    num_tokens: np.ndarray
    """int64[n], EOS included."""
    tokens: np.ndarray
    """All their tokens, one document after another."""


def read_documents(path: Path) -> Iterator[tuple[Documents, list[Skipped]]]:
    """A committed shard's batches in order: its documents, and what was skipped among them.

    Raises UserError for a damaged file.
    """
    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
            batches = [file.get_batch(index) for index in range(file.num_record_batches)]
        except (pa.ArrowInvalid, OSError) as error:
            problem = " ".join(str(error).split())
            raise UserError(
                f"{path}: damaged: {problem}; delete {path.parent.parent} and run the same again"
            ) from None
        for batch in batches:
            kept = batch.filter(batch.column("skipped").is_null())
            others = batch.filter(batch.column("skipped").is_valid())
            yield (
                Documents(
                    names=kept.column("name"),
                    sha256=np.frombuffer(
                        b"".join(kept.column("sha256").to_pylist()), dtype=np.uint8
                    ).reshape(-1, 32),
                    num_bytes=kept.column("num_bytes").to_numpy(),
                    num_tokens=kept.column("tokens").value_lengths().to_numpy().astype(np.int64),
                    tokens=kept.column("tokens").flatten().to_numpy(),
                ),
                [
                    Skipped(name, reason)
                    for name, reason in zip(
                        others.column("name").to_pylist(),
                        others.column("skipped").to_pylist(),
                        strict=True,
                    )
                ],
            )


def _schema(dtype: str) -> pa.Schema:
    return pa.schema(
        {
            "name": pa.string(),
            "skipped": pa.string(),
            "sha256": pa.binary(32),
            "num_bytes": pa.int64(),
            "tokens": pa.list_(pa.type_for_alias(dtype)),
        }
    )


def _batches(shard: Shard, corpus: SourceCorpus) -> Iterator[list[Document | Skipped]]:
    items: list[Document | Skipped] = []
    size = 0
    for piece in shard.pieces:
        for item in read_piece(piece, corpus):
            items.append(item)
            size += len(item.content) if isinstance(item, Document) else 0
            if size >= BATCH_BYTES:
                yield items
                items, size = [], 0
    yield items


def _encoded(
    items: list[Document | Skipped], encoding: Encoding, schema: pa.Schema
) -> pa.RecordBatch:
    """The rows of some documents, in their order."""
    texts = [
        item.content
        for item in items
        if isinstance(item, Document) and isinstance(item.content, str)
    ]
    encoded = iter(encode(_tokenizer(encoding.tokenizer_json), texts))
    hashes: list[bytes | None] = []
    sizes: list[int | None] = []
    tokens: list[np.ndarray] = []
    for item in items:
        if isinstance(item, Skipped):
            ids = np.empty(0, dtype=np.int64)
            hashes.append(None)
            sizes.append(None)
        elif isinstance(item.content, str):
            ids = np.array([*next(encoded), encoding.eos_id])
            hashes.append(content_sha256(item.content))
            sizes.append(len(item.content.encode()))
        else:
            ids = _given_ids(item.name, item.content, encoding)
            hashes.append(content_sha256(item.content))
            sizes.append(int(_token_num_bytes(encoding.tokenizer_json)[item.content].sum()))
        tokens.append(ids.astype(encoding.dtype))
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
    values = np.concatenate([*tokens, np.empty(0, dtype=encoding.dtype)])
    columns = [
        pa.array([item.name for item in items], pa.string()),
        pa.array([getattr(item, "reason", None) for item in items], pa.string()),
        pa.array(hashes, pa.binary(32)),
        pa.array(sizes, pa.int64()),
        pa.ListArray.from_arrays(offsets, values),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _given_ids(name: str, ids: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The ids of a tokenized document, ended by EOS. Raises UserError for one that is none."""
    highest = int(ids.max())
    if highest >= encoding.vocab_size:
        raise UserError(
            f"{name}: token id {highest:,}, but the tokenizer has {encoding.vocab_size:,} ids: "
            "another one made these tokens; give its tokenizer.json"
        )
    return ids if ids[-1] == encoding.eos_id else np.append(ids, encoding.eos_id)


@lru_cache(maxsize=1)  # once a process: tasks get their own copy of the encoding
def _tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json)


@lru_cache(maxsize=1)
def _token_num_bytes(tokenizer_json: str) -> np.ndarray:
    return token_num_bytes(_tokenizer(tokenizer_json))
