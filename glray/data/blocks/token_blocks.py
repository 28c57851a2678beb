"""Token blocks: a source's token stream on disk, as Arrow IPC files that are mapped, not read.

::

    tokens/<fingerprint>/
      manifest.json     what these tokens are, and size and SHA-256 of each block
      tokenizer.json
      heldout.arrow     see glray.data.blocks.heldout
      blocks/00000.arrow …

A block is one record batch with one flat column ``tokens``. It holds ``BLOCK_TOKENS`` tokens and
borrows the first token of the next block, so that a window's last target lies in its own block;
the stream's last block is shorter and borrows none. Opening costs one ``stat`` a block; a block's
first read in a process costs its checksum, a view its pages.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError
from tokenizers import Tokenizer

from glray.data.blocks.arrow_files import committed_batches, mapped_batches
from glray.data.blocks.tokenizer import token_num_bytes
from glray.errors import UserError
from glray.files import read_json, sha256_of
from glray.record import Record
from glray.spec.identity import TOKENS_VERSION
from glray.spec.pipeline import BLOCK_TOKENS


class BlockFile(Record):
    """One block as the manifest lists it."""

    name: str
    num_tokens: int
    """Without the borrowed token."""
    num_bytes: int
    sha256: str


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

    directory: Path = Field(exclude=True)
    """Where they lie; they may be moved."""
    format: int = TOKENS_VERSION
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
    """SHA-256 of ``tokenizer.json`` and ``heldout.arrow``."""
    blocks: tuple[BlockFile, ...]

    def block_path(self, index: int) -> Path:
        """The file of block ``index``."""
        return self.directory / "blocks" / self.blocks[index].name

    @property
    def tokenizer_path(self) -> Path:
        """The ``tokenizer.json`` that made the tokens."""
        return self.directory / "tokenizer.json"

    @property
    def heldout_path(self) -> Path:
        """The held-out documents, for ``read_heldout``."""
        return self.directory / "heldout.arrow"

    def token_num_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token id stands for, int64[vocab_size]; special tokens: 0."""
        return token_num_bytes(Tokenizer.from_file(str(self.tokenizer_path)))


def write_manifest(blocks: TokenBlocks) -> TokenBlocks:
    """Write ``manifest.json``; returns what ``open_token_blocks`` reads of it."""
    files = (blocks.tokenizer_path, blocks.heldout_path)
    blocks = blocks.model_copy(update={"checksums": {f.name: sha256_of(f) for f in files}})
    blocks.write(blocks.directory / "manifest.json")
    return blocks


def open_token_blocks(directory: Path) -> TokenBlocks:
    """The token blocks in ``directory``: every block is there at its full size, the tokenizer and
    the held-out documents are as they were written.

    Raises UserError for another format version and for a missing, truncated or damaged file.
    """
    path = directory / "manifest.json"
    manifest = read_json(path)
    if manifest is None:
        raise _unusable(directory, f"{path}: does not exist: no token blocks here")
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != TOKENS_VERSION:
        problem = f"format {version}, but this glray reads format {TOKENS_VERSION}"
        raise _unusable(directory, f"{path}: {problem}")
    try:
        blocks = TokenBlocks.model_validate(manifest | {"directory": directory})
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        problem = f"damaged, {where}: {error.errors()[0]['msg']}"
        raise _unusable(directory, f"{path}: {problem}") from None
    for index, block in enumerate(blocks.blocks):
        path = blocks.block_path(index)
        size = path.stat().st_size if path.exists() else 0
        if size != block.num_bytes:
            problem = f"{size:,} bytes, the manifest says {block.num_bytes:,}: something is missing"
            raise _unusable(directory, f"{path}: {problem}")
    for path in (blocks.tokenizer_path, blocks.heldout_path):
        if not path.exists():
            raise _unusable(directory, f"{path}: does not exist")
        _check_sha256(path, blocks.checksums.get(path.name, "none"), directory)
    return blocks


def write_block(path: Path, tokens: np.ndarray) -> BlockFile:
    """Commit one block, uint[n]; beyond ``BLOCK_TOKENS`` there is one borrowed token."""
    batch = pa.record_batch({"tokens": pa.array(tokens)})
    with committed_batches(path, batch.schema) as writer:
        writer.write_batch(batch)
    return describe_block(path)


def describe_block(path: Path) -> BlockFile:
    """What the manifest says of a committed block."""
    return BlockFile(
        name=path.name,
        num_tokens=min(mapped_batches(path)[0].num_rows, BLOCK_TOKENS),
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def read_block(path: Path, sha256: str) -> np.ndarray:
    """A block's tokens and the borrowed one, as a read-only memory-mapped view.

    Raises UserError if the file's checksum is not ``sha256``.
    """
    _check_sha256(path, sha256, path.parent.parent)
    return mapped_batches(path)[0].column(0).to_numpy(zero_copy_only=True)


def _check_sha256(path: Path, sha256: str, directory: Path) -> None:
    found = sha256_of(path)
    if found != sha256:
        what = f"block {int(path.stem)} is damaged" if path.stem.isdigit() else "damaged"
        problem = f"its SHA-256 is {found[:16]}…, but the manifest says {sha256[:16]}…"
        fate = "its tokens would not be the corpus's"
        raise _unusable(directory, f"{path}: {what}, {problem}: {fate}")


def _unusable(directory: Path, problem: str) -> UserError:
    remedy = f"delete {directory} and run `glray prepare` again to remake it"
    return UserError(f"{problem}; {remedy}")
