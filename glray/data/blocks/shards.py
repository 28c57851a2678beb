"""Shards: runs of a source's documents, encoded independently of one another. No Ray here.

A shard is planned from the source's list of files alone, so any call cuts the same ones. Encoding
it leaves one Arrow file, which is there whole or not at all: what a killed call committed, the next
one keeps. A shard knows nothing of the held-out split, which needs all of them.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from glray.data.blocks.arrow_files import committed_batches, mapped_batches
from glray.data.blocks.heldout import heldout_schema
from glray.data.blocks.tokenizer import Encoding, UnknownCharacters, encode, token_num_bytes
from glray.data.read.documents import Document, FilePart, Skipped, read_part, runs, split_file
from glray.data.read.sources import SourceFile
from glray.errors import UserError
from glray.files import AnyPath
from glray.spec.corpus import SourceCorpus

MIN_SHARD_BYTES = 4 * 2**20
MAX_SHARD_BYTES = 256 * 2**20
"""What one task reads at least and at most, of the source's bytes."""
MAX_SHARDS = 4096
"""Shards of a source that grow before there are more of them."""
BATCH_BYTES = 2**20
"""Text that is encoded at once."""
ROW_BYTES = 64
"""What a row counts for beside its text."""
SHARD_COLUMNS = {"skipped": pa.string(), "unknown": pa.map_(pa.string(), pa.int64())}
"""What a shard says of a document besides what is kept of it if it is held out."""


@dataclass(frozen=True)
class Shard:
    """Consecutive parts of a source's files."""

    index: int
    parts: tuple[FilePart, ...]
    num_bytes: int
    """About, as they lie in the store."""

    def path(self, directory: AnyPath) -> AnyPath:
        """Its file in a folder of encoded shards, named for what it holds: had another version cut
        the source otherwise, its shards would not be taken for this one's."""
        parts = [(part.file.uri, part.first, part.last) for part in self.parts]
        held = hashlib.sha256(repr([*SHARD_COLUMNS, parts]).encode()).hexdigest()[:8]
        return directory / f"{self.index:05d}-{held}.arrow"


def plan_shards(files: tuple[SourceFile, ...], corpus: SourceCorpus) -> list[Shard]:
    """The shards of a source, in order. Raises UserError for a damaged file."""
    total = sum(file.num_bytes for file in files)
    shard_bytes = min(max(MIN_SHARD_BYTES, total // MAX_SHARDS), MAX_SHARD_BYTES)
    sized_parts = [
        (part, file.num_bytes // len(parts))
        for file in files
        for parts in [split_file(file, corpus, shard_bytes)]
        for part in parts
    ]
    return [
        Shard(index, tuple(part for part, _ in run), sum(size for _, size in run))
        for index, run in enumerate(runs(sized_parts, lambda sized: sized[1], shard_bytes))
    ]


def encode_shard(
    shard: Shard, corpus: SourceCorpus, encoding: Encoding, directory: AnyPath
) -> tuple[int, int]:
    """Encode a shard's documents and commit its file in ``directory``; returns the bytes of text
    and the tokens.

    A row is a document: ``name``, ``sha256``, ``num_bytes`` and ``tokens``, ended by EOS; or
    says in ``skipped`` why it has no text; ``unknown`` has the characters that the tokenizer loses.
    Raises UserError and OSError.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core
    num_bytes = num_tokens = 0
    schema = heldout_schema(encoding.dtype)
    for name, kind in SHARD_COLUMNS.items():
        schema = schema.append(pa.field(name, kind))
    items = (item for part in shard.parts for item in read_part(part, corpus))
    with committed_batches(shard.path(directory), schema) as writer:
        for run in runs(items, _num_characters, BATCH_BYTES):
            batch = _encoded(run, encoding, schema)
            writer.write_batch(batch)
            num_bytes += batch.column("num_bytes").sum().as_py() or 0
            num_tokens += len(batch.column("tokens").flatten())
    return num_bytes, num_tokens


@dataclass(frozen=True)
class Documents:
    """A batch of a shard's documents."""

    names: pa.Array
    sha256: np.ndarray
    """uint8[n, 32]."""
    num_bytes: np.ndarray
    """int64[n]."""
    num_tokens: np.ndarray
    """int64[n], EOS included."""
    tokens: np.ndarray
    """All their tokens, one document after another."""
    skipped: list[Skipped]
    """What was skipped among them."""
    unknown: Counter[str]
    """Characters of all of them that the tokenizer loses, and how often each."""


def read_shard(path: AnyPath) -> Iterator[Documents]:
    """A committed shard's batches in order. Raises UserError for a damaged file."""
    try:
        batches = mapped_batches(path)
    except (pa.ArrowInvalid, OSError) as error:
        problem = " ".join(str(error).split())
        raise UserError(
            f"{path}: damaged: {problem}; delete {path.parent.parent} and run it again"
        ) from None
    for batch in batches:
        kept = batch.filter(batch.column("skipped").is_null())
        skipped = batch.filter(batch.column("skipped").is_valid()).select(["name", "skipped"])
        sha256 = b"".join(kept.column("sha256").to_pylist())
        unknown: Counter[str] = Counter()
        for row in kept.column("unknown").drop_null().to_pylist():
            unknown.update(dict(row))
        yield Documents(
            names=kept.column("name"),
            sha256=np.frombuffer(sha256, dtype=np.uint8).reshape(-1, 32),
            num_bytes=kept.column("num_bytes").to_numpy(),
            num_tokens=kept.column("tokens").value_lengths().to_numpy().astype(np.int64),
            tokens=kept.column("tokens").flatten().to_numpy(),
            skipped=[Skipped(*row.values()) for row in skipped.to_pylist()],
            unknown=unknown,
        )


def _num_characters(item: Document | Skipped) -> int:
    """What counts towards a batch: its row takes memory, too."""
    return ROW_BYTES + (len(item.content) if isinstance(item, Document) else 0)


def _encoded(
    items: list[Document | Skipped], encoding: Encoding, schema: pa.Schema
) -> pa.RecordBatch:
    """The rows of some documents, in their order. Raises UserError for a given token id that the
    tokenizer lacks."""
    documents = [item for item in items if isinstance(item, Document)]
    texts = [each.content for each in documents if isinstance(each.content, str)]
    encoded = iter(encode(_tokenizer(encoding.tokenizer_json), texts))
    characters = _unknown_characters(encoding.tokenizer_json)
    sizes: list[int | None] = []
    tokens: list[np.ndarray] = []
    unknown: list[list[tuple[str, int]] | None] = []
    for item in items:
        size, ids, lost = None, np.empty(0), None
        if isinstance(item, Document) and isinstance(item.content, str):
            text_ids = next(encoded)
            size, ids = len(item.content.encode()), np.array([*text_ids, encoding.eos_id])
            lost = sorted(characters.found(item.content, text_ids).items()) or None
        elif isinstance(item, Document):
            ids = item.given_ids(encoding.vocab_size)
            size = int(_token_num_bytes(encoding.tokenizer_json)[ids].sum())
            ids = ids if ids[-1] == encoding.eos_id else np.append(ids, encoding.eos_id)
        sizes.append(size)
        tokens.append(ids.astype(encoding.dtype))
        unknown.append(lost)
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
    columns = [
        pa.array([item.name for item in items], pa.string()),
        pa.array([getattr(item, "sha256", None) for item in items], pa.binary(32)),
        pa.array(sizes, pa.int64()),
        pa.ListArray.from_arrays(offsets, np.concatenate(tokens)),
        pa.array([getattr(item, "reason", None) for item in items], SHARD_COLUMNS["skipped"]),
        pa.array(unknown, SHARD_COLUMNS["unknown"]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@lru_cache(maxsize=1)  # once a process: tasks get their own copy of the encoding
def _tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json)


@lru_cache(maxsize=1)
def _unknown_characters(tokenizer_json: str) -> UnknownCharacters:
    return UnknownCharacters(_tokenizer(tokenizer_json))


@lru_cache(maxsize=1)
def _token_num_bytes(tokenizer_json: str) -> np.ndarray:
    return token_num_bytes(_tokenizer(tokenizer_json))
