"""What a stage boundary does to the held-out loss, under each RoPE scaling.

    python benchmarks/boundaries.py [--seeds 3]

Runs ``pipelines/boundaries.py`` (five RoPE scalings, 128→256→512→1024 and 128→1024, every arm with
each seed; finished runs are not trained again) and puts 95% intervals over the seeds around what
``boundaries/step-*.json`` records, in nats per token:

- ``jump``: from the old length to the new one with the same weights, and its three parts (see
  ``docs/metrics.md``).
- ``switch_at_old``: what the new RoPE scaling does to the loss at the old length.
- ``old_after`` and ``new_after``: change of the loss at the old and at the new length from before
  the boundary to 16 steps after it.
- ``gradient``: largest gradient norm of those 16 steps over the median of the 32 before.
- ``final``: the loss at 1,024 tokens at the end of the run.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import keep
from glray.run.records import BoundaryRecord
from glray.run.run import Run, open_runs
from glray.run.statistics import mean_interval

PIPELINE = Path(__file__).parents[1] / "pipelines" / "boundaries.py"


def figures_of(run: Run, boundary: BoundaryRecord) -> dict[str, float]:
    """The numbers of one boundary of one run."""
    old, new, rise = boundary.from_seq_len, boundary.to_seq_len, run.gradient_rise(boundary)
    assert boundary.jump is not None, "the pipeline's lengths grow and are all evaluated"
    assert rise is not None, "the run is finished"
    return dict(boundary.jump) | {
        "switch_at_old": boundary.switched[old].loss - boundary.before[old].loss,
        "old_after": boundary.after[old].loss - boundary.before[old].loss,
        "new_after": boundary.after[new].loss - boundary.before[new].loss,
        "gradient": rise,
    }


def of_arm(runs: list[Run]) -> dict[str, Any]:
    """The numbers of one arm's runs, each as mean and half of its 95% interval."""
    boundaries = []
    for index, boundary in enumerate(runs[0].boundaries):
        by_seed = [figures_of(run, run.boundaries[index]) for run in runs]
        means = {name: mean_interval([seed[name] for seed in by_seed]) for name in by_seed[0]}
        boundaries.append({"from": boundary.from_seq_len, "to": boundary.to_seq_len, **means})
    longest = runs[0].longest_seq_len
    finals = [score.loss for run in runs if run.latest and (score := run.latest.at(longest))]
    return {"boundaries": boundaries, "final": mean_interval(finals)}


def shown(value: tuple[float, float | None]) -> str:
    """``+0.123 ± 0.045``."""
    mean, half = value
    return f"{mean:+z.3f}" if half is None else f"{mean:+z.3f} ± {half:.3f}"


def main() -> None:
    """Run the pipeline, print a table and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    seeds = list(range(options.seeds))
    command = [sys.executable, "-m", "glray", "run", str(PIPELINE), "--set", f"seeds={seeds}"]
    subprocess.run(command, check=True)
    arms: dict[str, list[Run]] = {}
    for run in open_runs([Path("runs") / PIPELINE.stem]):
        if run.seed in seeds:
            arms.setdefault(run.arm, []).append(run)
    figures = {name: of_arm(runs) for name, runs in arms.items()}
    columns = ("jump", "rescaled_positions", "longer_context", "unseen_positions", "old_after")
    print(f"{'arm':25} {'boundary':9} " + " ".join(f"{name:>16}" for name in columns))
    for name, arm in figures.items():
        for boundary in arm["boundaries"]:
            cells = " ".join(f"{shown(boundary[column]):>16}" for column in columns)
            print(f"{name:25} {boundary['from']:>4}→{boundary['to']:<4} {cells}")
        print(f"{name:25} loss at the end: {shown(arm['final']).removeprefix('+')}")
    keep("boundaries", {"seeds": seeds, "arms": figures})


if __name__ == "__main__":
    main()
