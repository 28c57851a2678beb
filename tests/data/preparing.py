"""What the tests of ``prepare`` share: pipelines of small texts, and what is written of them."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glray.data.blocks.heldout import is_drawn
from glray.data.blocks.reading import read_block
from glray.data.blocks.snapshot import find_prepared
from glray.data.blocks.token_blocks import TokenBlocks
from glray.files import files_below
from glray.ray.prepare import prepare
from glray.spec import (
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    GPTNeoXModel,
    OptimizerSpec,
    PipelineSpec,
    TextCorpus,
)
from glray.spec.pipeline import BLOCK_TOKENS
from tests.tiny import arm

HELDOUT = 0.25


def text(number: int) -> str:
    """A text of about 300 bytes, its own for each number."""
    words = random.Random(number).choices(["grow", "length", "train", "short", "müde", "\n"], k=60)
    return f"{number} " + " ".join(words)


def pipeline(storage: Path, **fields: object) -> PipelineSpec:
    declared = {
        "name": "tiny",
        "heldout_fraction": HELDOUT,
        "tokenizer": BpeTokenizer(vocab_size=300),
        "model": GPTNeoXModel(num_layers=1, hidden_size=8, num_heads=1, intermediate_size=8),
        "arms": (arm("only", 8),),
        "budget": BudgetSpec(tokens=64),
        "tokens_per_batch": 8,
        "optimizer": OptimizerSpec(lr=1e-3),
        "evaluation": EvaluationSpec(seq_lens=(8,), num_tokens=8),
        "compute": ComputeSpec(storage=str(storage)),
    }
    return PipelineSpec.model_validate(declared | fields)


def texts_pipeline(folder: Path, **fields: object) -> PipelineSpec:
    declared = {"corpus": TextCorpus(paths=(str(folder),))}
    return pipeline(folder.parent / "runs", **(declared | fields))


def prepared(spec: PipelineSpec, say: Callable[[str], None] = lambda line: None) -> TokenBlocks:
    """The token blocks of a pipeline's only source."""
    (source,) = prepare(spec, say).sources
    return source.blocks


def found(spec: PipelineSpec) -> TokenBlocks | None:
    corpus = find_prepared(spec)
    return None if corpus is None else corpus.sources[0].blocks


def manifest(blocks: TokenBlocks) -> dict[str, object]:
    return json.loads((blocks.directory / "manifest.json").read_text())


def stream(blocks: TokenBlocks) -> list[int]:
    return [
        int(token)
        for number in range(blocks.num_blocks)
        for token in read_block(blocks.place(number))[:BLOCK_TOKENS]
    ]


def files_of(blocks: TokenBlocks) -> dict[str, bytes]:
    """Every file's content, the manifest without its versions."""
    folder = blocks.directory
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def drawn(content: str) -> bool:
    sha256 = hashlib.sha256(content.encode()).digest()
    return bool(is_drawn(np.frombuffer(sha256, dtype=np.uint8).reshape(1, 32), HELDOUT)[0])


def left_behind(storage: Path) -> list[str]:
    """What lies in the folder of token blocks, locks and records apart."""
    tokens = storage / "tokens"
    paths = [*tokens.glob("*"), *tokens.glob("work/*")] if tokens.exists() else []
    kept = ("heldout", "listings", "tokenizers", "work")
    return sorted(p.name for p in paths if p.suffix != ".lock" and p.name not in kept)


def write_texts(folder: Path) -> Path:
    """The folder, new, with 60 texts."""
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02d}.txt").write_text(text(number))
    return folder
