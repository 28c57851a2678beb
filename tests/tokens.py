"""Token blocks without a corpus: any stream, as ``prepare`` would have left it."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from glray.data.blocks.block_files import blocks_file, cut, write_blocks
from glray.data.blocks.heldout import heldout_schema
from glray.data.blocks.token_blocks import (
    TokenBlocks,
    num_blocks_of,
    write_manifest,
)
from glray.data.blocks.tokenizer import train_bpe
from glray.data.corpus import PreparedCorpus, PreparedSource

TEXT = "def grow(seq_len):\n    return 2 * seq_len  # one stage longer\n" * 40


def write_tokens(
    directory: Path, stream: np.ndarray, heldout: list[np.ndarray], fingerprint: str = "f" * 16
) -> TokenBlocks:
    """The blocks of ``stream``, ids below 300, in one file, and held-out documents of 300 bytes
    each."""
    tokenizer = train_bpe([TEXT], vocab_size=300)
    path = blocks_file(directory, 0)
    index = write_blocks(path, cut([stream], num_blocks_of(len(stream))), "uint16")
    tokenizer.save(str(directory / "tokenizer.json"))
    schema = heldout_schema("uint16")
    documents = pa.table(
        {
            "name": [f"document {index}" for index in range(len(heldout))],
            "sha256": [hashlib.sha256(tokens.tobytes()).digest() for tokens in heldout],
            "num_bytes": [300] * len(heldout),
            "tokens": heldout,
        }
    ).cast(schema)
    with pa.ipc.new_file(str(directory / "heldout.arrow"), schema) as writer:
        writer.write_table(documents)
    prepared = TokenBlocks(
        directory=directory,
        fingerprint=fingerprint,
        dtype="uint16",
        num_tokens=len(stream),
        vocab_size=tokenizer.get_vocab_size(),
        eos_id=0,
        returned=(),
        file_bytes=(path.stat().st_size,),
    )
    return write_manifest(prepared, index)


def damage(blocks: TokenBlocks) -> Path:
    """Flip a bit of every token of the first block; returns its file."""
    place = blocks.place(0)
    assert isinstance(place.path, Path)
    with place.path.open("r+b") as file:
        file.seek(place.tokens_offset)
        flipped = np.fromfile(file, place.dtype, place.num_tokens) ^ 1
        file.seek(place.tokens_offset)
        file.write(flipped.tobytes())
    return place.path


def periodic_corpus(directory: Path) -> PreparedCorpus:
    """One source: 5,003 tokens of a 300-entry vocabulary and three held-out documents.

    Runs of a few patterns: something that a small model learns within a few steps.
    """
    rng = np.random.default_rng(0)
    patterns = rng.integers(1, 300, size=(4, 10))
    stream = np.concatenate([patterns[i] for i in rng.integers(0, 4, size=501)])[:5003]
    stream[36::37] = 0  # a document ends
    heldout = [patterns[i : i + 2].ravel().repeat(4) for i in range(3)]
    return PreparedCorpus((PreparedSource("stdlib", 1, write_tokens(directory, stream, heldout)),))
