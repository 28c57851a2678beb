"""Runs in an object store on a cluster that loses things at random moments: is anything lost?

    python benchmarks/losses.py --losses 30 --seed 1

The cluster is a head without CPUs, which leads the run, and two nodes with a worker each, every one
of them a network namespace of this machine with an address of its own (Linux, root); the store is
an S3 server that all of them reach. Lost are, as often as each other: a worker, the command, a
node's raylet, a node at once, the head with the command, a node after a spot notice, the store for
a minute (503), and for a minute the network between two of the nodes. What has ended is replaced,
and a command that has failed is given again. A run must end bit-identical to one that nothing has
disturbed.

What was measured is kept after each loss. The same call goes on after the last run that has ended;
what was lost of a run that was killed with the benchmark is lost again.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import RESULTS, keep
from glray.files import read_json
from glray.run.run import Run
from tests.losing import (
    LOSSES,
    Job,
    Lose,
    Loss,
    ended_run,
    is_same,
    losing_cluster,
    undisturbed_run,
)

NAME = "losses"
MOST_SECONDS = 4.0
"""From a checkpoint to the loss after it."""


def main() -> None:
    """Lose, compare, print the table and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--losses", type=int, default=30, help="over all kinds")
    parser.add_argument("--seed", type=int, default=1, help="of what is lost when")
    arguments = parser.parse_args()
    runs = kept_runs(arguments.seed)
    expected: Run | None = None
    with losing_cluster() as cluster:
        while (num_lost := sum(len(run["losses"]) for run in runs)) < arguments.losses:
            job = Job(cluster, f"losses-{len(runs)}")
            losses: list[Loss] = []
            for loss in lose_things(job, arguments.seed, num_lost, arguments.losses):
                losses.append(loss)
                keep_runs([*runs, as_json(losses)], arguments.seed)
            run = ended_run(job)
            expected = expected or undisturbed_run(run)
            runs.append(as_json(losses, is_same(run, expected)))
            keep_runs(runs, arguments.seed)
    print_table(runs)


def lose_things(job: Job, seed: int, num_before: int, num_losses: int) -> Iterator[Loss]:
    """Lose one thing after another, each some time after a checkpoint, until the run is over."""
    for index in range(num_before, num_losses):
        if not job.wait_for_checkpoint():
            return
        rng = random.Random(seed * 1000 + index)
        time.sleep(rng.uniform(0, MOST_SECONDS))
        loss = job.lose(kind_of(index, seed), rng)
        print(loss, flush=True)
        yield loss
    job.wait_until(lambda: False)  # it is over


def kind_of(index: int, seed: int) -> Lose:
    """What is lost: all kinds in a random order, then again in another."""
    turn, place = divmod(index, len(LOSSES))
    order = list(LOSSES)
    random.Random(seed * 1000 + turn).shuffle(order)
    return order[place]


def kept_runs(seed: int) -> list[dict[str, Any]]:
    """The runs that an earlier call with the same seed has ended."""
    kept = read_json(RESULTS / f"{NAME}.json")
    runs = kept["runs"] if kept is not None and kept["seed"] == seed else []
    return [run for run in runs if run["identical"] is not None]


def keep_runs(runs: list[dict[str, Any]], seed: int) -> None:
    """Write the result so far."""
    keep(NAME, {"seed": seed, "kinds": by_kind(runs), "runs": runs})


def as_json(losses: list[Loss], identical: bool | None = None) -> dict[str, Any]:
    """A run as it is kept; ``identical`` is None until it has ended."""
    fields = [asdict(loss) | {"repeated_steps": loss.repeated_steps} for loss in losses]
    return {"identical": identical, "losses": fields}


def by_kind(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each kind: how often, seconds until the next step, steps trained twice, resubmissions."""
    losses = [loss for run in runs for loss in run["losses"]]
    table = {}
    for kind in (lose.__name__ for lose in LOSSES):
        own = [loss for loss in losses if loss["kind"] == kind]
        if own:
            seconds = [loss["seconds"] for loss in own]
            table[kind] = {
                "losses": len(own),
                "seconds_median": statistics.median(seconds),
                "seconds_max": max(seconds),
                "repeated_steps_max": max(loss["repeated_steps"] for loss in own),
                "submissions": sum(loss["submissions"] for loss in own),
            }
    return table


def print_table(runs: list[dict[str, Any]]) -> None:
    """By kind, in a terminal."""
    print(f"{'lost':<16} times  s to next step: median, max  steps repeated: max  submitted again")
    for kind, row in by_kind(runs).items():
        print(
            f"{kind:<16} {row['losses']:>5}  {row['seconds_median']:>22.0f} "
            f"{row['seconds_max']:>5.0f} {row['repeated_steps_max']:>20} {row['submissions']:>16}"
        )
    num_identical = sum(run["identical"] is True for run in runs)
    print(f"{num_identical} of {len(runs)} runs ended bit-identical to an undisturbed one")


if __name__ == "__main__":
    main()
