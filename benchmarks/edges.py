"""What a stage edge does to the held-out loss, under each choice of positions.

    python benchmarks/edges.py [--seeds 3]

Runs ``pipelines/edges.py`` (five choices of positions, 128→256→512→1024 and 128→1024, every arm
under each seed; runs that are finished are not trained again) and puts 95% intervals over the seeds
around what ``edges/step-*.json`` records. Figures are in nats per token:

- ``jump``: from the old length to the new with the same weights, and its three parts (see
  ``docs/metrics.md``).
- ``switch_at_old``: what placing positions anew does to the loss at the old length.
- ``old_after`` and ``new_after``: change of the loss at the old and at the new length from before
  the edge to 16 steps after it.
- ``gradient``: largest gradient norm of those 16 steps over the median of the 32 before.
- ``final``: the loss at 1,024 tokens at the end of the run.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import keep
from glray.plan import WATCHED_STEPS
from glray.report.interval import mean_interval
from glray.report.records import load_runs
from glray.report.run_record import EdgeRecord, Jump, RunRecord

PIPELINE = Path(__file__).parents[1] / "pipelines" / "edges.py"


def part_of_jump(name: str) -> Callable[[RunRecord, EdgeRecord], float]:
    """One of the parts that the jump is split into."""

    def figure(_: RunRecord, edge: EdgeRecord) -> float:
        assert isinstance(edge.jump, Jump)
        return getattr(edge.jump, name)

    return figure


def gradient(run: RunRecord, edge: EdgeRecord) -> float:
    """Largest norm after the edge over the median before."""
    before = run.log.grad_norm[edge.step - WATCHED_STEPS : edge.step]
    return float(run.log.grad_norm[edge.step : edge.settled_step].max() / np.median(before))


FIGURES: dict[str, Callable[[RunRecord, EdgeRecord], float]] = {
    **{
        name: part_of_jump(name)
        for name in ("jump", "placed_anew", "longer_context", "unseen_positions")
    },
    "switch_at_old": lambda _, e: e.switched[e.from_seq_len].loss - e.before[e.from_seq_len].loss,
    "old_after": lambda _, e: e.after[e.from_seq_len].loss - e.before[e.from_seq_len].loss,
    "new_after": lambda _, e: e.after[e.to_seq_len].loss - e.before[e.to_seq_len].loss,
    "gradient": gradient,
}


def of_arm(runs: list[RunRecord]) -> dict[str, Any]:
    """The figures of one arm's runs, each as mean and half of its 95% interval."""
    edges = []
    for index, edge in enumerate(runs[0].edges):
        values = {
            name: mean_interval([figure(run, run.edges[index]) for run in runs])
            for name, figure in FIGURES.items()
        }
        edges.append({"from": edge.from_seq_len, "to": edge.to_seq_len, **values})
    longest = runs[0].longest_seq_len
    finals = [score.loss for run in runs if run.latest and (score := run.latest.at(longest))]
    return {"edges": edges, "final": mean_interval(finals)}


def shown(value: tuple[float, float | None]) -> str:
    """``+0.123 ± 0.045``."""
    mean, half = value
    return f"{mean:+.3f}" if half is None else f"{mean:+.3f} ± {half:.3f}"


def main() -> None:
    """Run the pipeline, print a table and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    seeds = list(range(options.seeds))
    command = [sys.executable, "-m", "glray", "run", str(PIPELINE), "--set", f"seeds={seeds}"]
    subprocess.run(command, check=True)
    arms: dict[str, list[RunRecord]] = {}
    for run in load_runs([Path("runs") / PIPELINE.stem]):
        if run.seed in seeds:
            arms.setdefault(run.arm, []).append(run)
    figures = {name: of_arm(runs) for name, runs in arms.items()}
    columns = ("jump", "placed_anew", "longer_context", "unseen_positions", "old_after")
    print(f"{'arm':25} {'edge':9} " + " ".join(f"{name:>16}" for name in columns))
    for name, arm in figures.items():
        for edge in arm["edges"]:
            cells = " ".join(f"{shown(edge[column]):>16}" for column in columns)
            print(f"{name:25} {edge['from']:>4}→{edge['to']:<4} {cells}")
        print(f"{name:25} loss at the end: {shown(arm['final']).removeprefix('+')}")
    keep("edges", {"seeds": seeds, "arms": figures})


if __name__ == "__main__":
    main()
