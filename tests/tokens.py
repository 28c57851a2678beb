"""Token blocks without a corpus: any stream, as ``prepare`` would have left it."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from glray.data.blocks.heldout import heldout_schema
from glray.data.blocks.token_blocks import TokenBlocks, write_block, write_manifest
from glray.data.blocks.tokenizer import train_bpe
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.spec.pipeline import BLOCK_TOKENS

TEXT = "def grow(seq_len):\n    return 2 * seq_len  # one stage longer\n" * 40


def write_tokens(
    directory: Path, stream: np.ndarray, heldout: list[np.ndarray], fingerprint: str = "f" * 16
) -> TokenBlocks:
    """The blocks of ``stream``, ids below 300, and held-out documents of 300 bytes each."""
    tokenizer = train_bpe([TEXT], vocab_size=300)
    stream = stream.astype("uint16")
    blocks = [
        write_block(
            directory / "blocks" / f"{start // BLOCK_TOKENS:05d}.arrow",
            stream[start : start + BLOCK_TOKENS + 1],
        )
        for start in range(0, len(stream), BLOCK_TOKENS)
    ]
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
        blocks=tuple(blocks),
    )
    return write_manifest(prepared)


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
