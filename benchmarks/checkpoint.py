"""What a checkpoint of Pythia-70M with its moments costs training, in seconds and in slower steps.

    python benchmarks/checkpoint.py [--rounds 5]

In each round, in one process and on all cores: steps with nothing else to do; then a checkpoint is
begun, for which training waits while its tensors are copied; then steps while a thread writes it;
then its commit, for which training waits again. At last one is begun and committed without a step
in between, as when a run is asked to stop.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import keep
from glray.model.config import model_config
from glray.run.checkpoint import checkpoint_path, size_of
from glray.run.records import TrainState
from glray.spec import PYTHIA_70M
from glray.train.checkpoint import Saver
from glray.train.context import WorkerContext
from glray.train.execution import execution
from glray.train.trainee import Trainee
from tests.tiny import tiny_spec

SEQ_LEN, TOKENS_PER_BATCH = 128, 512
QUIET_STEPS = 5
"""Of each round; while a checkpoint is written there are as many as it takes."""


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measured(work: Path, num_rounds: int) -> dict[str, Any]:
    """Seconds that training waits, and of steps with and without a checkpoint beside them."""
    compute = {"storage": str(work), "micro_batch_tokens": TOKENS_PER_BATCH}
    spec = tiny_spec(work, tokens_per_batch=TOKENS_PER_BATCH, compute=compute)
    config = model_config(PYTHIA_70M, vocab_size=50_304, eos_id=0, max_seq_len=SEQ_LEN)
    ctx = WorkerContext()
    trainee = Trainee.scratch(config, spec, ctx, execution(spec, ctx))
    batch, saver = trainee.random_batch(SEQ_LEN), Saver(work, ctx)
    network, optimizer = trainee.model.network, trainee.optimizer

    def begin(number: int) -> None:
        saver.begin(TrainState(step=number), network, optimizer)

    def save_at_once(number: int) -> None:
        begin(number)
        saver.commit()

    for _ in range(QUIET_STEPS):
        trainee.step_seconds(batch)
    copies, writings, commits, slowdowns, num_beside = [], [], [], [], 0
    for number in range(1, num_rounds + 1):
        quiet = [trainee.step_seconds(batch) for _ in range(QUIET_STEPS)]
        copies.append(seconds_of(partial(begin, number)))
        start = time.perf_counter()
        beside: list[float] = []
        while not beside or not saver.is_written:
            beside.append(trainee.step_seconds(batch))
        writings.append(time.perf_counter() - start)
        commits.append(seconds_of(saver.commit))
        slowdowns.append(median(beside) / median(quiet))
        num_beside += len(beside)
        print(
            f"copied in {copies[-1]:.2f} s, written beside {len(beside)} steps in "
            f"{writings[-1]:.1f} s, committed in {commits[-1]:.3f} s; a step {median(quiet):.3f} s "
            f"alone, {slowdowns[-1]:.3f} times as long beside it",
            flush=True,
        )
    at_once = [
        seconds_of(partial(save_at_once, number))
        for number in range(num_rounds + 1, num_rounds + 4)
    ]
    saver.close()
    size = size_of(checkpoint_path(work, num_rounds + 3))
    first, middle, third = quantiles(slowdowns, n=4)
    blocked = [copy + commit for copy, commit in zip(copies, commits, strict=True)]
    return {
        "threads": torch.get_num_threads(),
        "gigabytes": round(size / 1e9, 2),
        "blocked_seconds": {
            "first": round(blocked[0], 3),
            "median_of_the_others": round(median(blocked[1:]), 3),
        },
        "written_beside_steps_seconds": round(median(writings), 1),
        "steps_beside": num_beside,
        "step_beside_over_alone": {
            "median": round(middle, 3),
            "quartiles": [round(first, 3), round(third, 3)],
        },
        "at_once_seconds": round(median(at_once), 2),
    }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(Path(folder), arguments.rounds)
    print(figures)
    keep("checkpoint", figures)


if __name__ == "__main__":
    main()
