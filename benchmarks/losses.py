"""Runs in an object store on a cluster that loses things at random moments: is anything lost?

    python benchmarks/losses.py --losses 30 --seed 1

The cluster is a head without CPUs, which leads the run, and two nodes with a worker each, every one
of them a network namespace of this machine with an address of its own (Linux, root); the store is
an S3 server that all of them reach. Lost are, as often as each other: a worker, the command, a
node's raylet, a node at once, the head with the command, a node after a spot notice, the store for
a minute (503), and for a minute the network between two of the nodes. What has ended is replaced,
and a command that has failed is given again. A run must end bit-identical to one that nothing has
disturbed.

What was measured is kept after each run; the same call goes on after the runs that are kept. Of a
run that was killed with the benchmark nothing is kept.
"""

import argparse
import dataclasses
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import RESULTS, keep
from glray.files import read_json
from glray.run.run import Run
from tests.losing import LOSSES, Job, Loss, ended_run, is_same, losing_cluster
from tests.losing import undisturbed_run as undisturbed

NAME = "losses"


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
            losses = lose_things(job, arguments.seed, num_lost, arguments.losses)
            run = ended_run(job)
            expected = expected or undisturbed(run)
            identical = is_same(run, expected)
            runs.append({"identical": identical, "losses": list(map(as_json, losses))})
            print(f"{job.name}: {len(losses)} losses, {'' if identical else 'NOT '}bit-identical")
            keep(NAME, {"seed": arguments.seed, "kinds": by_kind(runs), "runs": runs})
    print_table(runs)


def lose_things(job: Job, seed: int, num_before: int, num_losses: int) -> list[Loss]:
    """Lose one thing after another, each some time after a checkpoint, until the run is over."""
    losses: list[Loss] = []
    while job.wait_for_checkpoint():
        index = num_before + len(losses)
        if index == num_losses:
            job.wait_until(lambda: False)
            break
        rng = random.Random(seed * 1000 + index)
        time.sleep(rng.uniform(0, 5))
        losses.append(job.lose(kind_of(index, seed), rng))
        print(losses[-1], flush=True)
    return losses


def kind_of(index: int, seed: int) -> Any:
    """What is lost: all kinds in a random order, then again in another."""
    turn, place = divmod(index, len(LOSSES))
    order = list(LOSSES)
    random.Random(seed * 1000 + turn).shuffle(order)
    return order[place]


def kept_runs(seed: int) -> list[dict[str, Any]]:
    """The runs that an earlier call with the same seed has kept."""
    kept = read_json(RESULTS / f"{NAME}.json")
    return kept["runs"] if kept is not None and kept["seed"] == seed else []


def as_json(loss: Loss) -> dict[str, Any]:
    """A loss as it is kept."""
    return dataclasses.asdict(loss) | {"repeated_steps": loss.repeated_steps}


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
    num_identical = sum(run["identical"] for run in runs)
    print(f"{num_identical} of {len(runs)} runs ended bit-identical to an undisturbed one")


if __name__ == "__main__":
    main()
