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

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from glray.data.tokenizer import token_num_bytes
from glray.errors import UserError
from glray.files import committed, read_record, sha256_of, write_json
from glray.spec.identity import FORMAT_VERSION
from glray.spec.pipeline import BLOCK_TOKENS

MANIFEST_FIELDS = (
    "fingerprint", "dtype", "num_tokens", "vocab_size", "eos_id", "returned", "checksums", "blocks",
)  # fmt: skip
"""What token blocks cannot do without."""


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
    checksums = {
        path.name: sha256_of(path) for path in (blocks.tokenizer_path, blocks.heldout_path)
    }
    manifest = {
        "format": FORMAT_VERSION,
        **fields,
        **provenance,
        "checksums": checksums,
        "blocks": files,
    }
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
    missing = [field for field in MANIFEST_FIELDS if field not in manifest]
    if missing:
        raise UserError(f"{directory}/manifest.json: damaged, it has no {missing[0]!r}; {again}")
    return manifest


def open_token_blocks(directory: Path) -> TokenBlocks:
    """The token blocks in ``directory``: every block is there at its full size, the tokenizer and
    the held-out documents are as they were written.

    Raises UserError for another format version and for a missing, truncated or damaged file.
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
    for index, block in enumerate(blocks.blocks):
        path = blocks.block_path(index)
        size = path.stat().st_size if path.exists() else 0
        if size != block.num_bytes:
            raise UserError(
                f"{path}: {size:,} bytes, the manifest says {block.num_bytes:,}: something is "
                f"missing; {_again(directory)}"
            )
    for name, sha256 in manifest["checksums"].items():
        path = directory / name
        if not path.exists():
            raise UserError(f"{path}: it is not there; {_again(directory)}")
        _check_sha256(path, sha256, directory)
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
        num_tokens = pa.ipc.open_file(source).get_batch(0).num_rows
    num_bytes = path.stat().st_size
    return BlockFile(path.name, min(num_tokens, BLOCK_TOKENS), num_bytes, sha256_of(path))


def read_block(path: Path, sha256: str) -> np.ndarray:
    """A block's tokens and the borrowed one, as a read-only memory-mapped view.

    Raises UserError if the file's checksum is not ``sha256``.
    """
    _check_sha256(path, sha256, path.parent.parent)
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0).column(0).to_numpy(zero_copy_only=True)


def _check_sha256(path: Path, sha256: str, directory: Path) -> None:
    found = sha256_of(path)
    if found != sha256:
        what = f"block {int(path.stem)} is damaged" if path.stem.isdigit() else "damaged"
        raise UserError(
            f"{path}: {what}, its SHA-256 is {found[:16]}…, the manifest says {sha256[:16]}…: it "
            f"would not be the corpus's; {_again(directory)}"
        )


def _again(directory: Path) -> str:
    return f"delete {directory} and run `glray prepare` again, which makes the same"
