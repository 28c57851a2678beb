"""What keeping documents apart costs: a training step with and without ``attention="document"``.

    python benchmarks/documents.py [--rounds 12]

Whole optimizer steps of 16,384 tokens at each length; the two take turns in alternating order on
the same windows, whose documents have 512 tokens on average. On a CPU the model is like the
quickstart's in float32 (``attention="document"`` is a mask for SDPA), on a GPU it is Pythia-160M in
bfloat16, compiled (flex attention). The ratio is that of the medians, with the quartiles of single
rounds.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import keep
from glray.data.windows import Batch
from glray.model.config import longest_config
from glray.spec import PYTHIA_160M, GPTNeoXModel, PipelineSpec
from glray.spec.model import Attention
from glray.train.context import WorkerContext
from glray.train.execution import execution
from glray.train.trainee import Trainee

BATCH_TOKENS = 16_384
MEAN_DOCUMENT = 512
SEPARATOR = 0
SMALL = GPTNeoXModel(num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512)


def spec_of(seq_len: int, attention: Attention, *, gpu: bool) -> PipelineSpec:
    """One arm at one length."""
    return PipelineSpec.model_validate(
        {
            "name": "documents",
            "corpus": {"kind": "stdlib"},
            "tokenizer": {"kind": "bpe", "vocab_size": 4096},
            "model": (PYTHIA_160M if gpu else SMALL).model_dump(),
            "arms": [{"name": "fixed", "stages": [{"seq_len": seq_len}]}],
            "budget": {"tokens": BATCH_TOKENS},
            "tokens_per_batch": BATCH_TOKENS,
            "optimizer": {"lr": 1e-3},
            "precision": "bfloat16" if gpu else "float32",
            "attention": attention,
            "evaluation": {"seq_lens": (128,), "num_tokens": 128},
            "compute": {"compile": gpu, "micro_batch_tokens": 16_384 if gpu else 2048},
        }
    )


def trainee_of(spec: PipelineSpec, vocab_size: int) -> Trainee:
    """The spec's model, as it trains."""
    config = longest_config(spec, vocab_size=vocab_size, eos_id=SEPARATOR)
    ctx = WorkerContext(device=torch.device("cuda" if spec.compute.compile else "cpu"))
    return Trainee.scratch(config, spec, ctx, execution(spec, ctx))


def windows(seq_len: int, vocab_size: int) -> Batch:
    """Random tokens, each a separator with a probability of one in ``MEAN_DOCUMENT``."""
    rng = np.random.default_rng(0)
    shape = (BATCH_TOKENS // seq_len, seq_len + 1)
    tokens = rng.integers(1, vocab_size, size=shape, dtype=np.int64)
    tokens[rng.random(shape) < 1 / MEAN_DOCUMENT] = SEPARATOR
    return Batch(0, seq_len, BATCH_TOKENS, offsets=np.arange(shape[0]), tokens=tokens)


def compared(seq_len: int, rounds: int, *, gpu: bool) -> dict[str, Any]:
    """Tokens per second of both, and apart over across: median, first and third quartile."""
    vocab_size = 50_304 if gpu else 4096
    batch = windows(seq_len, vocab_size)
    choices: tuple[Attention, ...] = ("window", "document")
    specs = {name: spec_of(seq_len, name, gpu=gpu) for name in choices}
    trainees = {name: trainee_of(spec, vocab_size) for name, spec in specs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in choices}
    for number in range(-2, rounds):  # two that do not count: compilation, memory
        for name in choices if number % 2 else reversed(choices):
            taken = trainees[name].step_seconds(batch)
            if number >= 0:
                seconds[name].append(taken)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [w / d for w, d in zip(seconds["window"], seconds["document"], strict=True)]
    first, _, third = statistics.quantiles(ratios, n=4)
    speeds = {name: BATCH_TOKENS / median[name] for name in choices}
    ratio = median["window"] / median["document"]
    return {"tokens_per_second": speeds, "document_over_window": [ratio, first, third]}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    figures = {}
    for seq_len in (128, 512, 1024, 2048, 4096):
        figures[str(seq_len)] = found = compared(seq_len, arguments.rounds, gpu=gpu)
        speeds, (ratio, first, third) = found["tokens_per_second"], found["document_over_window"]
        print(
            f"{seq_len:>5}: {speeds['window']:>9,.0f} tokens/s across documents, "
            f"{speeds['document']:>9,.0f} apart: {ratio:.3f} ({first:.3f} to {third:.3f})",
            flush=True,
        )
    keep("documents-gpu" if gpu else "documents", {"lengths": figures})


if __name__ == "__main__":
    main()
