"""Fixtures that every folder of tests shares."""

import os
import secrets
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from glray.data.blocks import BlockWriter, TokenBlocks, open_token_blocks, write_manifest
from glray.data.heldout import HeldoutWriter
from glray.data.tokenizer import train_bpe

TEXT = "def grow(seq_len):\n    return 2 * seq_len  # one stage longer\n" * 40


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One small local Ray for the whole run of tests."""
    import ray

    from glray.cluster import on_loopback

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    with on_loopback():
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=500 * 2**20,
            log_to_driver=False,
            logging_level="warning",
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def blocks(tmp_path_factory) -> TokenBlocks:
    """A stream of 5,003 tokens of a 300-entry vocabulary and three held-out documents."""
    directory = tmp_path_factory.mktemp("tokens")
    tokenizer = train_bpe([TEXT], vocab_size=300)
    vocab_size = tokenizer.get_vocab_size()
    rng = np.random.default_rng(0)
    # Runs of a few patterns: something that a small model learns within a few steps.
    patterns = rng.integers(1, vocab_size, size=(4, 10))
    stream = np.concatenate([patterns[i] for i in rng.integers(0, 4, size=501)])[:5003]
    writer = BlockWriter(directory / "blocks", "uint16")
    writer.append(stream.astype("uint16"))
    files = writer.finish()
    tokenizer.save(str(directory / "tokenizer.json"))
    with HeldoutWriter(directory / "heldout.arrow", "uint16") as heldout:
        heldout.append(
            pa.table(
                {
                    "name": [f"document {i}" for i in range(3)],
                    "num_bytes": [300] * 3,
                    "tokens": [patterns[i : i + 2].ravel().repeat(4) for i in range(3)],
                }
            )
        )
    prepared = TokenBlocks(
        directory=directory,
        fingerprint="f" * 16,
        dtype="uint16",
        num_tokens=sum(file.num_tokens for file in files),
        vocab_size=vocab_size,
        eos_id=0,
        blocks=files,
    )
    write_manifest(prepared, provenance={})
    return open_token_blocks(directory)
