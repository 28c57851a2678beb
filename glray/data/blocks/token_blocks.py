"""A source's token blocks on disk: their manifest and their index.

::

    tokens/<fingerprint>/
      blocks/00000.arrow …   BLOCKS_PER_FILE blocks each, see glray.data.blocks.block_files
      blocks.arrow           the index: a row a block
      tokenizer.json
      heldout.arrow          see glray.data.blocks.heldout
      manifest.json          what these tokens are; written last, so it makes the others count

Opening costs the listing of one folder and the checksum of the index, 48 bytes a block, which is
then mapped: 10^12 tokens are 950,000 blocks in 7,500 files, with an index of 46 MB.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError
from tokenizers import Tokenizer

from glray.data.blocks.arrow_files import batches_in, committed_batches, mapped_batches
from glray.data.blocks.block_files import (
    BLOCKS_FOLDER,
    INDEX_SCHEMA,
    BlockPlace,
    blocks_file,
    file_name,
    remedy,
)
from glray.data.blocks.tokenizer import token_num_bytes
from glray.errors import UserError
from glray.files import AnyPath, StorePath, read_json, sha256_of
from glray.files.cache import node_cache
from glray.files.paths import objects_below
from glray.record import Record
from glray.spec.pipeline import BLOCK_TOKENS

BLOCKS_FORMAT = 3
"""Version of how token blocks lie on disk. Which tokens they hold, and in which order they are
read, is ``TOKENS_VERSION``: a run goes on with blocks that were made again in another format."""


class SourceStats(Record):
    """What a source's documents are. Documents are counted with their repetitions, held-out ones
    without."""

    documents: int = 0
    bytes: int = 0
    """Of text in UTF-8."""
    training_documents: int = 0
    heldout_documents: int = 0
    heldout_tokens: int = 0
    """Without EOS."""
    heldout_duplicates_dropped: int = 0
    """Held-out documents left out because an equal one is there."""
    empty_skipped: int = 0
    not_utf8_skipped: int = 0
    not_utf8_names: tuple[str, ...] = ()
    """The first of them."""
    no_column_skipped: int = 0
    """Rows of JSON Lines without the corpus's column."""
    heldout_span_tokens: int = 0
    """Length of the spans that are held out; 0: whole documents are. Then training documents are
    what is left between spans, and held-out documents are spans."""
    unknown_characters: int = 0
    """Characters that the tokenizer loses, as it has no token for them."""
    most_unknown: tuple[tuple[str, int], ...] = ()
    """The most frequent of them, and how often each is there."""
    length_documents: tuple[int, ...] = ()
    """Training documents of 2^k to 2^(k+1) - 1 tokens, EOS included, by k."""
    length_tokens: tuple[int, ...] = ()
    """Their tokens."""

    def at_least(self, num_tokens: int) -> tuple[int, int]:
        """Training documents of at least ``num_tokens``, a power of two, and their tokens."""
        power = num_tokens.bit_length() - 1
        return sum(self.length_documents[power:]), sum(self.length_tokens[power:])


class TokenBlocks(SourceStats):
    """A prepared source as its ``manifest.json`` describes it: its blocks, its tokenizer, its
    held-out documents, and what they were made from."""

    directory: AnyPath = Field(exclude=True)
    """Where they lie; they may be moved."""
    format: int = BLOCKS_FORMAT
    fingerprint: str
    identity: dict[str, Any] = Field(default_factory=dict)
    """What ``fingerprint`` is the hash of."""
    dtype: Literal["uint16", "uint32"]
    num_tokens: int
    """Tokens of the training stream."""
    vocab_size: int
    eos_id: int
    returned: tuple[str, ...]
    """SHA-256 of documents that were drawn for the held-out set, but trained as too large."""
    source: str = ""
    """Where the text came from."""
    files: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    checksums: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the index, of ``tokenizer.json`` and of ``heldout.arrow``."""
    file_bytes: tuple[int, ...]
    """Size of each file of blocks."""

    @property
    def num_blocks(self) -> int:
        """Blocks of ``BLOCK_TOKENS`` tokens; the last may be shorter."""
        return num_blocks_of(self.num_tokens)

    def file_path(self, index: int) -> AnyPath:
        """File ``index`` of the blocks."""
        return blocks_file(self.directory, index)

    def place(self, number: int) -> BlockPlace:
        """Where block ``number`` lies."""
        (place,) = self.places([number])
        return place

    def places(self, numbers: Sequence[int]) -> list[BlockPlace]:
        """Where these blocks lie. Reads their rows of the index."""
        index = _index(self.index_path, self.checksums[self.index_path.name])
        rows = [column[numbers] for column in index]
        return [
            BlockPlace(
                self.directory,
                number,
                checksums_offset,
                tokens_offset,
                min(BLOCK_TOKENS + 1, self.num_tokens - number * BLOCK_TOKENS),
                self.dtype,
                sha256.tobytes(),
            )
            for number, checksums_offset, tokens_offset, sha256 in zip(
                numbers, rows[0].tolist(), rows[1].tolist(), rows[2], strict=True
            )
        ]

    @property
    def index_path(self) -> AnyPath:
        """The blocks' index."""
        return self.directory / "blocks.arrow"

    @property
    def tokenizer_path(self) -> AnyPath:
        """The ``tokenizer.json`` that made the tokens."""
        return self.directory / "tokenizer.json"

    @property
    def heldout_path(self) -> AnyPath:
        """The held-out documents, for ``read_heldout``."""
        return self.directory / "heldout.arrow"

    def token_num_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token id stands for, int64[vocab_size]; special tokens: 0."""
        return token_num_bytes(self.tokenizer())

    def tokenizer(self) -> Tokenizer:
        """What made the tokens."""
        return Tokenizer.from_str(self.tokenizer_path.read_text(encoding="utf-8"))


def num_blocks_of(num_tokens: int) -> int:
    """Blocks that a stream of so many tokens fills."""
    return -(-num_tokens // BLOCK_TOKENS)


def write_manifest(blocks: TokenBlocks, index: pa.Table) -> TokenBlocks:
    """Commit the index (``INDEX_SCHEMA``, a row a block) and at last ``manifest.json``, which makes
    the folder count; returns what ``open_token_blocks`` reads of it."""
    with committed_batches(blocks.index_path, INDEX_SCHEMA) as writer:
        writer.write_table(index.combine_chunks())
    files = (blocks.index_path, blocks.tokenizer_path, blocks.heldout_path)
    blocks = blocks.model_copy(update={"checksums": {f.name: sha256_of(f) for f in files}})
    blocks.write(manifest_path(blocks.directory))
    return blocks


def manifest_path(directory: AnyPath) -> AnyPath:
    """The file that makes a source's folder count."""
    return directory / "manifest.json"


def open_token_blocks(directory: AnyPath) -> TokenBlocks:
    """The token blocks in ``directory``: every file of blocks is there at its full size; the index,
    the tokenizer and the held-out documents are as they were written.

    Raises UserError for another format version and for a missing, truncated or damaged file.
    """
    path = manifest_path(directory)
    manifest = read_json(path)
    if manifest is None:
        raise _unusable(directory, f"{path}: does not exist: no token blocks here")
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != BLOCKS_FORMAT:
        problem = f"format {version}, but this glray reads format {BLOCKS_FORMAT}"
        raise _unusable(directory, f"{path}: {problem}")
    try:
        blocks = TokenBlocks.model_validate(manifest | {"directory": directory})
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        problem = f"damaged, {where}: {error.errors()[0]['msg']}"
        raise _unusable(directory, f"{path}: {problem}") from None
    sizes = sizes_of_files(directory, len(blocks.file_bytes))
    for index, (size, num_bytes) in enumerate(zip(sizes, blocks.file_bytes, strict=True)):
        if size != num_bytes:
            problem = f"{size:,} bytes, the manifest says {num_bytes:,}: something is missing"
            raise _unusable(directory, f"{blocks.file_path(index)}: {problem}")
    for path in (blocks.index_path, blocks.tokenizer_path, blocks.heldout_path):
        written = blocks.checksums.get(path.name, "none")
        try:
            is_index = path == blocks.index_path
            found = _sha256_of_index(path, written) if is_index else sha256_of(path)
        except FileNotFoundError:
            raise _unusable(directory, f"{path}: does not exist") from None
        if found != written:
            problem = f"its SHA-256 is {found[:16]}…, but the manifest says {written[:16]}…"
            fate = "its tokens would not be the corpus's"
            raise _unusable(directory, f"{path}: damaged, {problem}: {fate}")
    return blocks


def sizes_of_files(directory: AnyPath, num_files: int) -> tuple[int, ...]:
    """Bytes of each file of blocks in a source's folder, found by listing it; 0 if it is absent."""
    folder = directory / BLOCKS_FOLDER
    if isinstance(folder, StorePath):
        sizes = dict(objects_below(folder))
    else:
        sizes = {path.name: path.stat().st_size for path in folder.glob("*.arrow")}
    return tuple(sizes.get(file_name(index), 0) for index in range(num_files))


@lru_cache(maxsize=64)  # sources that a process reads at once
def _index(path: AnyPath, sha256: str) -> list[np.ndarray]:
    """The columns of an index with this checksum, mapped, from a store in this node's cache:
    int64[n], and uint8[n, 32]."""
    is_stored = isinstance(path, StorePath)
    (batch,) = batches_in(_cached(path, sha256)) if is_stored else mapped_batches(path)
    *offsets, sha256s = batch.columns
    content = np.frombuffer(sha256s.buffers()[1], dtype=np.uint8)
    return [column.to_numpy() for column in offsets] + [
        content[: 32 * batch.num_rows].reshape(-1, 32)
    ]


def _sha256_of_index(path: AnyPath, sha256: str) -> str:
    """The SHA-256 that an index has, which should be this one; from a store it is read once a
    node."""
    if not isinstance(path, StorePath):
        return sha256_of(path)
    found = hashlib.sha256(_cached(path, sha256).data).hexdigest()
    if found != sha256:  # in the cache, as when the machine failed, or in the store
        node_cache().discard(_name(sha256))
        found = hashlib.sha256(_cached(path, sha256).data).hexdigest()
    return found


def _cached(path: AnyPath, sha256: str) -> np.ndarray:
    return node_cache().mapped(_name(sha256), path.read_bytes)


def _name(sha256: str) -> str:
    return f"{sha256}.index"


def _unusable(directory: AnyPath, problem: str) -> UserError:
    return UserError(f"{problem}; {remedy(directory)}")
