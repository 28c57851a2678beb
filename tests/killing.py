"""Runs that are killed at random moments by SIGKILLs from outside, and what became of them.

``benchmarks/kill.py`` and the soak test count; see there for what is asked.
"""

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from glray.data.corpus import PreparedCorpus
from glray.files import read_json
from glray.run.run import Run
from glray.spec import PipelineSpec
from glray.train.context import WorkerContext
from glray.train.worker import train_all
from tests.planned import planned

from .group import join_group, kill_group, start_group
from .tiny import tiny_spec
from .weights import same_weights


def killed_spec(storage: Path, parallelism: str) -> PipelineSpec:
    """120 steps of each arm through 8, 16 and 32 tokens, a checkpoint every 6."""
    spec = tiny_spec(storage, budget={"tokens": 120 * 64})
    compute = {"parallelism": parallelism, "checkpoint_every_tokens": 6 * 64}
    return spec.derive(compute=compute)


def train_quietly(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> None:
    """Train all runs; what a worker says when another of its group dies is expected."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train_all(spec, corpus, ctx)


@dataclass
class Outcome:
    """What became of the killed runs of one kind of group."""

    kills: int = 0
    runs: int = 0
    identical: int = 0
    moments: Counter[str] = field(default_factory=Counter)


def kill_runs(
    spec: PipelineSpec, corpus: PreparedCorpus, world_size: int, num_kills: int, rng: random.Random
) -> Outcome:
    """Train ``spec`` undisturbed, then again and again under kills until ``num_kills`` are done."""
    undisturbed = _stored(spec, "undisturbed")
    start = time.monotonic()
    assert join_group(start_group(train_quietly, world_size, undisturbed, corpus)), (
        "an undisturbed run"
    )
    seconds = time.monotonic() - start
    expected = planned(undisturbed, corpus)
    outcome = Outcome()
    while outcome.kills < num_kills:
        killed = _stored(spec, f"killed-{outcome.runs}")
        kills_of_this_run = rng.randint(1, 8)
        while True:
            group = start_group(train_quietly, world_size, killed, corpus)
            most = min(kills_of_this_run, num_kills - outcome.kills)
            if most and _killed(group, rng.uniform(0, seconds), rng, killed, outcome):
                kills_of_this_run -= 1
            elif join_group(group):
                break
        runs = planned(killed, corpus)
        outcome.runs += 1
        outcome.identical += all(map(same_run, runs, expected))
    return outcome


def _killed(
    group: list[BaseProcess],
    seconds: float,
    rng: random.Random,
    spec: PipelineSpec,
    outcome: Outcome,
) -> bool:
    """Kill after ``seconds``; False if the group had ended by then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(process.is_alive() for process in group):
            return False
        time.sleep(0.001)
    victim = rng.choice(group)
    if not victim.is_alive():
        return False
    if outcome.kills % 3 == 2:
        kill_group(group)
    else:
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        join_group(group)
    outcome.kills += 1
    outcome.moments[_moment(spec)] += 1
    return True


def _moment(spec: PipelineSpec) -> str:
    """What the storage says that the group was at when it died."""
    directory = Path(spec.compute.storage) / spec.name
    if any(directory.glob("*/checkpoints/.partial-*")):
        return "a checkpoint half written"
    if not any(directory.glob("*/checkpoints/*/COMMITTED")):
        return "before the first checkpoint"
    return "between checkpoints"


def same_run(run: Run, expected: Run) -> bool:
    """Whether two runs end with the same weights, moments, token checksum and tokens by length."""
    result, wanted = (read_json(r.directory / "result.json") for r in (run, expected))
    keys = ("checksum", "steps", "tokens_by_seq_len")
    return all(result[key] == wanted[key] for key in keys) and same_weights(run, expected)


def _stored(spec: PipelineSpec, folder: str) -> PipelineSpec:
    storage = str(Path(spec.compute.storage) / folder)
    return spec.derive(compute={"storage": storage})
