"""What the tree and the search save, and whether any bit changes.

    python benchmarks/search.py [--part tree|kills|figures|overhead] [--steps N] [--kills N]

``tree``: 27 schedules of four lengths, whose boundaries lie at 15, 25 or 35%, at 40, 50 or 60% and
at 65, 75 or 85% of the tokens: measured training seconds of the 27 runs' whole paths
over the seconds that were spent; and three of the runs compared with training them alone, bit for
bit.
``kills``: the same runs, trained by a process that is killed by SIGKILL at random moments and
started again, compared with the undisturbed ones. ``figures``: the five arms of the paper's Figures
1 and 5, which share the steps of 128 tokens, at the tiny scale's model and a few seconds each: what
sharing saves, and all five compared with training them alone, bit for bit. ``overhead``: ``glray
tune`` of 16 trials of 60 s on two cores without confirmation, from the command to the answer: the
share that is not training. The first two are kept as ``search.json``, the others as
``search-figures.json`` and ``search-overhead.json``; the last line is one JSON object.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.processes import trained
from benchmarks.record import keep
from glray.data.blocks.snapshot import find_prepared
from glray.data.corpus import PreparedCorpus
from glray.run.run import Run
from glray.search.space import Candidate, search_pipeline
from glray.spec import GPTNeoXModel, PipelineSpec, SearchSpec, load_pipeline
from glray.train.context import WorkerContext
from glray.train.worker import train_all
from tests.group import kill_group, start_group
from tests.planned import planned
from tests.tiny import arm, tiny_spec
from tests.tokens import periodic_corpus
from tests.weights import same_weights

PIPELINES = Path(__file__).parents[1] / "pipelines"
LENGTHS = (8, 16, 32, 64)
BOUNDARIES = ((15, 25, 35), (40, 50, 60), (65, 75, 85))
PARTS = ("tree", "kills", "figures", "overhead")
ALONE = 3
"""Runs of the tree that are trained again alone."""


def schedules() -> list[Candidate]:
    """The 27, depth first."""
    first, second, third = BOUNDARIES
    return [
        Candidate(LENGTHS, (a, b - a, c - b, 100 - c)) for a in first for b in second for c in third
    ]


def searched(storage: Path, steps: int, tried: list[Candidate]) -> PipelineSpec:
    """The pipeline of these schedules."""
    spec = tiny_spec(
        storage,
        arms=(arm("grow", *LENGTHS),),
        model=GPTNeoXModel(num_layers=2, hidden_size=64, num_heads=2, intermediate_size=256),
        tokens_per_batch=512,
        budget={"tokens": steps * 512},
        search=SearchSpec(arm="grow"),
    )
    wider = spec.derive(
        compute={"checkpoint_every_tokens": 100 * 512, "micro_batch_tokens": 512},
        evaluation={"seq_lens": LENGTHS, "num_tokens": 256},
    )
    return search_pipeline(wider, tried)


def tree(folder: Path, corpus: PreparedCorpus, steps: int, rng: random.Random) -> dict[str, Any]:
    """Seconds of whole runs over those of the tree, and a sample of the runs alone."""
    spec = searched(folder / "tree", steps, schedules())
    start = time.monotonic()
    train_all(spec, corpus, WorkerContext())
    wall = time.monotonic() - start
    runs = [Run.open(run.directory) for run in planned(spec, corpus)]
    whole = sum(run.measured_seconds for run in runs)
    shared = sum(run.manifest.fork.measured_seconds for run in runs if run.manifest.fork)
    identical = {}
    for run in rng.sample(runs, ALONE):
        tried = next(its for its in schedules() if its.name == run.arm)
        alone = searched(folder / "alone" / run.arm, steps, [tried]).derive(chunk_len=64)
        train_all(alone, corpus, WorkerContext())
        (undisturbed,) = planned(alone, corpus)
        identical[run.arm] = same(Run.open(run.directory), Run.open(undisturbed.directory))
    return {
        "steps": steps,
        "whole_seconds": whole,
        "spent_seconds": whole - shared,
        "wall_seconds": wall,
        "ratio": whole / (whole - shared),
        "identical_to_training_alone": identical,
    }


def same(run: Run, other: Run) -> bool:
    """Whether two runs have the same losses at every step, held-out losses and final weights."""
    held_out, its = ([[n.loss for n in e.lengths] for e in r.evaluations] for r in (run, other))
    losses = list(run.log.loss) == list(other.log.loss)
    return losses and held_out == its and same_weights(run, other)


def kills(
    folder: Path,
    corpus: PreparedCorpus,
    steps: int,
    num_kills: int,
    seconds: float,
    rng: random.Random,
) -> dict[str, Any]:
    """Train the tree, which takes ``seconds`` undisturbed, under SIGKILLs until there were
    ``num_kills``, then to its end."""
    undisturbed = {
        run.name: run for run in planned(searched(folder / "tree", steps, schedules()), corpus)
    }
    spec = searched(folder / "killed", steps, schedules())
    killed = 0
    while killed < num_kills:
        processes = start_group(_train_quietly, 1, spec, corpus)
        time.sleep(rng.uniform(0, 1.5 * seconds / num_kills))
        if not any(process.is_alive() for process in processes):
            break
        kill_group(processes)
        killed += 1
    train_all(spec, corpus, WorkerContext())
    runs = [Run.open(run.directory) for run in planned(spec, corpus)]
    table = {run.arm: same(run, Run.open(undisturbed[run.name].directory)) for run in runs}
    return {"kills": killed, "runs": len(table), "identical": sum(table.values())}


def figures(folder: Path, seconds: float) -> dict[str, Any]:
    """The arms of Figures 1 and 5 on ``seconds`` each, by a declared calibration."""
    pipeline = f"{PIPELINES / 'paper_tiny.py'}:tiny.equal_time"
    costs = "{step_microseconds: {128: 155000, 256: 165000, 512: 198000, 1024: 225000}}"
    settings = {
        "budget.seconds": seconds,
        "calibration": costs,
        "compute.storage": folder / "figures",
    }
    overrides = [f"{name}={value}" for name, value in settings.items()]
    trained("prepare", pipeline, overrides)
    spec = load_pipeline(pipeline, overrides)
    corpus = find_prepared(spec)
    assert corpus is not None, "it was prepared"
    together, *alone = (
        spec.derive(name=f"{spec.name}-{len(only)}-{only[0]}", only=only)
        for only in ([arm.name for arm in spec.arms], *([arm.name] for arm in spec.arms))
    )
    for each in (together, *alone):
        train_all(each, corpus, WorkerContext())
    runs = {run.arm: Run.open(run.directory) for run in planned(together, corpus)}
    others = [Run.open(planned(each, corpus)[0].directory) for each in alone]
    whole = sum(run.calibrated_seconds or 0.0 for run in runs.values())
    forks = [run.manifest.fork for run in runs.values()]
    shared = sum(fork.calibrated_seconds or 0.0 for fork in forks if fork is not None)
    return {
        "seconds": seconds,
        "calibrated_seconds": whole,
        "shared_seconds": shared,
        "saved": shared / whole,
        "identical_to_training_alone": {its.arm: same(runs[its.arm], its) for its in others},
    }


def _train_quietly(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train_all(spec, corpus, ctx)


def overhead(folder: Path) -> dict[str, Any]:
    """``glray tune`` of 16 trials of 60 s, the baselines among them, without confirmation."""
    pipeline = PIPELINES / "search.py"
    settings = {
        "budget.seconds": 60,
        "search.num_trials": 16,
        "search.confirm": 0,
        "compute.storage": folder / "overhead",
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "glray", "tune", str(pipeline), *options]
    subprocess.run([*command[:3], "prepare", *command[4:]], check=True)
    start = time.monotonic()
    subprocess.run(command, check=True)
    wall = time.monotonic() - start
    runs = [Run.open(path.parent) for path in folder.glob("overhead/*-search/*/result.json")]
    own = sum(
        run.measured_seconds - (run.manifest.fork.measured_seconds if run.manifest.fork else 0.0)
        for run in runs
    )
    log = (runs[0].directory.parent / "events.log").read_text()
    groups = 2 if "2 worker groups" in log else 1
    return {
        "trials": len(runs),
        "groups": groups,
        "wall_seconds": wall,
        "trained_seconds": own,
        "other_share": 1 - own / groups / wall,
    }


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--steps", type=int, default=400, help="of each run of the tree")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20, help="of each arm of the figures")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of the kills")
    options = parser.parse_args()
    parts = options.part or PARTS
    torch.set_num_threads(1)  # as a killed process has: sums in another order are other bits
    rng, found = random.Random(options.seed), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = periodic_corpus(folder)
        if "tree" in parts or "kills" in parts:
            found["tree"] = tree(folder, corpus, options.steps, rng)
            print(found["tree"], flush=True)
        if "kills" in parts:
            found["kills"] = kills(
                folder,
                corpus,
                options.steps,
                options.kills,
                found["tree"]["wall_seconds"],
                rng,
            )
            print(found["kills"], flush=True)
        if found:
            keep("search", {"seed": options.seed, **found})
        if "figures" in parts:
            found["figures"] = figures(folder, options.seconds)
            keep("search-figures", found["figures"])
        if "overhead" in parts:
            found["overhead"] = overhead(folder)
            keep("search-overhead", found["overhead"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
