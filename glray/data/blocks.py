"""Token blocks: a source's token stream on disk, as Arrow IPC files that are mapped, not read.

::

    tokens/<fingerprint>/
      manifest.json     what these tokens are, and size and SHA-256 of each block
      tokenizer.json
      heldout.arrow     see glray.data.heldout
      blocks/00000.arrow …

A block is one record batch with one flat column ``tokens``. It holds ``BLOCK_TOKENS`` tokens and
borrows the first token of the next block, so that a window's last target lies in its own block;
the stream's last block is shorter and borrows none. Opening costs one ``stat`` a block; a block's
first read in a process costs its checksum, a view its pages.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from glray.data.tokenizer import token_num_bytes
from glray.errors import UserError
from glray.files import committed, read_record, write_json
from glray.spec.identity import FORMAT_VERSION
from glray.spec.pipeline import BLOCK_TOKENS


@dataclass(frozen=True)
class BlockFile:
    """One block as the manifest lists it."""

    name: str
    num_tokens: int
    """Without the borrowed token."""
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenBlocks:
    """A prepared source: its blocks, its tokenizer and its held-out documents."""

    directory: Path
    fingerprint: str
    dtype: str
    """``uint16`` or ``uint32``."""
    num_tokens: int
    """Tokens of the training stream."""
    vocab_size: int
    eos_id: int
    returned: tuple[str, ...]
    """SHA-256 of documents that were drawn for the held-out set, but trained as too large."""
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


def token_dtype(vocab_size: int) -> str:
    """The smallest of ``uint16`` and ``uint32`` that holds every id below ``vocab_size``."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def write_manifest(blocks: TokenBlocks, provenance: dict[str, object]) -> None:
    """Write ``manifest.json``: what ``open_token_blocks`` reads, and where the tokens come from."""
    fields = asdict(blocks)
    del fields["directory"]  # it may be moved
    files = fields.pop("blocks")  # the longest part comes last
    sizes = {
        path.name: path.stat().st_size for path in (blocks.tokenizer_path, blocks.heldout_path)
    }
    manifest = {"format": FORMAT_VERSION, **fields, **provenance, "sizes": sizes, "blocks": files}
    write_json(blocks.directory / "manifest.json", manifest)


def read_manifest(directory: Path) -> dict[str, Any]:
    """What ``write_manifest`` wrote. Raises UserError for none and for another format version."""
    manifest: dict[str, Any] | None = read_record(directory / "manifest.json", "format")
    again = _again(directory)
    if manifest is None:
        raise UserError(f"{directory}: no manifest.json, these are no token blocks; {again}")
    if manifest["format"] != FORMAT_VERSION:
        raise UserError(
            f"{directory}: token blocks of format {manifest['format']}, this glray reads format "
            f"{FORMAT_VERSION}; {again}"
        )
    return manifest


def open_token_blocks(directory: Path) -> TokenBlocks:
    """The token blocks in ``directory``, every file checked to be there at its full size.

    Raises UserError for another format version and for a missing or truncated file.
    """
    manifest = read_manifest(directory)
    blocks = TokenBlocks(
        directory=directory,
        fingerprint=manifest["fingerprint"],
        dtype=manifest["dtype"],
        num_tokens=manifest["num_tokens"],
        vocab_size=manifest["vocab_size"],
        eos_id=manifest["eos_id"],
        returned=tuple(manifest["returned"]),
        blocks=tuple(BlockFile(**block) for block in manifest["blocks"]),
    )
    expected = {directory / name: size for name, size in manifest["sizes"].items()}
    for index, block in enumerate(blocks.blocks):
        expected[blocks.block_path(index)] = block.num_bytes
    for path, num_bytes in expected.items():
        size = path.stat().st_size if path.exists() else 0
        if size != num_bytes:
            raise UserError(
                f"{path}: {size:,} bytes, the manifest says {num_bytes:,}: something is missing; "
                f"{_again(directory)}"
            )
    return blocks


def write_block(path: Path, tokens: np.ndarray) -> BlockFile:
    """Commit one block, uint[n]; beyond ``BLOCK_TOKENS`` there is one borrowed token."""
    batch = pa.record_batch({"tokens": pa.array(tokens)})
    with committed(path) as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return describe_block(path)


def describe_block(path: Path) -> BlockFile:
    """What the manifest says of a committed block."""
    with pa.memory_map(str(path)) as source:
        sha256 = hashlib.sha256(source.read_buffer()).hexdigest()
        source.seek(0)
        num_tokens = pa.ipc.open_file(source).get_batch(0).num_rows
    return BlockFile(path.name, min(num_tokens, BLOCK_TOKENS), path.stat().st_size, sha256)


def read_block(path: Path, sha256: str) -> np.ndarray:
    """A block's tokens and the borrowed one, as a read-only memory-mapped view.

    Raises UserError if the file's checksum is not ``sha256``.
    """
    with pa.memory_map(str(path)) as source:
        found = hashlib.sha256(source.read_buffer()).hexdigest()
        if found != sha256:
            raise UserError(
                f"{path}: block {int(path.stem)} is damaged, its SHA-256 is {found[:16]}…, the "
                f"manifest says {sha256[:16]}…: its tokens would not be the corpus's; "
                f"{_again(path.parent.parent)}"
            )
        source.seek(0)
        return pa.ipc.open_file(source).get_batch(0).column(0).to_numpy(zero_copy_only=True)


def _again(directory: Path) -> str:
    return f"delete {directory} and run `glray prepare` again, which makes the same"
