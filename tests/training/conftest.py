"""A tiny prepared corpus and pipeline for the loop's tests, without Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from glray.data.blocks import BlockWriter, TokenBlocks, open_token_blocks, write_manifest
from glray.data.heldout import HeldoutWriter
from glray.data.tokenizer import train_bpe
from glray.spec import (
    ArmSpec,
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    ModelSpec,
    OptimizerSpec,
    PipelineSpec,
    StageSpec,
    StdlibCorpus,
)

TEXT = "def grow(seq_len):\n    return 2 * seq_len  # one stage longer\n" * 40


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
    write_manifest(
        directory,
        fingerprint="f" * 16,
        dtype="uint16",
        vocab_size=vocab_size,
        eos_id=0,
        blocks=files,
        provenance={},
    )
    return open_token_blocks(directory)


def tiny_spec(storage: Path, **fields) -> PipelineSpec:
    """12 steps of 64 tokens through 8, 16 and 32, against a fixed 32; 1 layer of width 16."""
    declared = {
        "name": "tiny",
        "corpus": StdlibCorpus(),
        "tokenizer": BpeTokenizer(vocab_size=300),
        "model": ModelSpec(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32),
        "arms": (
            ArmSpec(name="grow", stages=tuple(StageSpec(seq_len=n) for n in (8, 16, 32))),
            ArmSpec(name="fixed32", stages=(StageSpec(seq_len=32),)),
        ),
        "budget": BudgetSpec(tokens=12 * 64),
        "tokens_per_batch": 64,
        "optimizer": OptimizerSpec(lr=1e-2),
        "evaluation": EvaluationSpec(seq_lens=(8, 32, 64), num_tokens=128),
        "compute": ComputeSpec(
            storage=str(storage),
            micro_batch_tokens=32,
            checkpoint_every_tokens=192,
            log_every_steps=2,
        ),
    }
    return PipelineSpec(**(declared | fields))


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads would only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
