"""A model that no process holds whole: built on meta, sharded over gloo ranks, trained for a step.

    python benchmarks/sharded.py [--model 1B] [--ranks 4] [--precision bfloat16]

Every rank is a process of this machine. Prints one JSON line: parameters, the loss of the step
(log of the vocabulary, as the weights are fresh), seconds of building and of the step, and each
rank's peak resident memory in GiB, with what it had before the model (code, which the ranks
share) beside it. ``--model`` is 0.12B, 0.35B, 0.5B or 1B: GPT-NeoX shapes, with a vocabulary of
50,304.
"""

import argparse
import json
import multiprocessing
import resource
import socket
import time
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch

from glray.model.config import model_config
from glray.spec import PYTHIA_1B, GPTNeoXModel, PipelineSpec
from glray.train.context import WorkerContext, most_over_ranks
from glray.train.execution import execution
from glray.train.trainee import Trainee


def shape(num_layers: int, hidden_size: int, num_heads: int) -> GPTNeoXModel:
    """Like Pythia's."""
    return GPTNeoXModel(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=4 * hidden_size,
    )


MODELS = {
    "0.12B": shape(6, 768, 12),
    "0.35B": shape(20, 1024, 16),
    "0.5B": shape(18, 1344, 12),
    "1B": PYTHIA_1B,
}
VOCAB_SIZE = 50_304
SEQ_LEN = 128


def pipeline(model: GPTNeoXModel, precision: str, num_ranks: int) -> PipelineSpec:
    """One window for each rank."""
    return PipelineSpec.model_validate(
        {
            "name": "sharded",
            "corpus": {"kind": "stdlib"},
            "tokenizer": {"kind": "bpe", "vocab_size": VOCAB_SIZE},
            "model": model.model_dump(),
            "arms": [{"name": "fixed", "stages": [SEQ_LEN]}],
            "budget": {"tokens": num_ranks * SEQ_LEN},
            "tokens_per_batch": num_ranks * SEQ_LEN,
            "optimizer": {"lr": 1e-4},
            "precision": precision,
            "evaluation": {"seq_lens": [SEQ_LEN], "num_tokens": SEQ_LEN},
            "compute": {"parallelism": "fsdp", "activation_checkpointing": True},
        }
    )


def peak_gib() -> float:
    """What of this process has been in memory at once."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def work(
    rank: int, num_ranks: int, port: int, spec: PipelineSpec, answers: SimpleQueue[Any]
) -> None:
    """Build, step, and say what that took."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_ranks
    )
    ctx, before = WorkerContext(rank, num_ranks), peak_gib()
    assert spec.model is not None
    config = model_config(spec.model, vocab_size=VOCAB_SIZE, eos_id=0, max_seq_len=SEQ_LEN)
    start = time.perf_counter()
    trainee = Trainee.scratch(config, spec, ctx, execution(spec, ctx))
    most_over_ranks(ctx, 0)  # all of them have
    built, built_gib = time.perf_counter(), peak_gib()
    loss = trainee.step(trainee.random_batch(SEQ_LEN), lr=1e-4).loss
    torch.distributed.all_reduce(loss)
    answers.put(
        {
            "rank": rank,
            "parameters": sum(p.numel() for p in trainee.model.parameters()),
            "loss": round(loss.item(), 4),
            "build_seconds": round(built - start, 1),
            "step_seconds": round(time.perf_counter() - built, 1),
            "gib": {"before": before, "built": built_gib, "peak": peak_gib()},
        }
    )
    torch.distributed.destroy_process_group()


def main() -> None:
    """Start the ranks, and print what they say as one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="1B")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    options = parser.parse_args()
    spec = pipeline(MODELS[options.model], options.precision, options.ranks)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glray.train.trainee"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = context.SimpleQueue()
    ranks = [
        context.Process(target=work, args=(rank, options.ranks, port, spec, answers))
        for rank in range(options.ranks)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit(f"ranks ended with {[process.exitcode for process in ranks]}")
    said = sorted((answers.get() for _ in ranks), key=lambda answer: answer["rank"])
    of_ranks = [answer.pop("gib") for answer in said]
    figures = {**vars(options), **said[0], "gib": of_ranks}
    del figures["rank"]
    figures["sum_of_peaks_gib"] = round(sum(each["peak"] for each in of_ranks), 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
