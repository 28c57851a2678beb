"""Seconds from `glray run` of a prepared pipeline to its first optimizer step.

    python benchmarks/startup.py [--starts 5] [--workers 1]

A small pipeline whose token blocks are there already trains on a cluster that glray starts on this
machine. The clock starts with the command's process and stops when the first step stands in
``metrics.jsonl`` (one line a step). Each start is a new run, killed when it has come so far. With
one worker it trains in the command's own process; with two in processes of Ray Train. It is nearly
all imports, so whatever else runs on the machine shows: the load of the minute before is kept.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.processes import kill_processes_of, start_glray_run
from benchmarks.record import keep
from glray.spec import PipelineSpec, to_yaml
from tests.tiny import tiny_spec


def pipeline(work: Path, name: str, num_workers: int) -> PipelineSpec:
    """One arm of more steps than a start leaves time for, under a token budget."""
    return tiny_spec(
        work / "runs",
        name=name,
        corpus={"kind": "text", "paths": [str(work / "text")]},
        heldout_fraction=0.2,
        arms=[{"name": "fixed", "stages": [{"seq_len": 32}]}],
        budget={"tokens": 100_000 * 64},
        compute={
            "storage": str(work / "runs"),
            "num_workers": num_workers,
            "log_every_steps": 1,
        },
    )


def seconds_to_first_step(work: Path, spec: PipelineSpec) -> float:
    """Of a run that is new, in a process of its own; all that it starts is gone afterwards."""
    path = work / f"{spec.name}.yaml"
    path.write_text(to_yaml(spec))
    metrics = work / "runs" / spec.name / "fixed-seed0" / "metrics.jsonl"
    start = time.perf_counter()
    process = start_glray_run(path, work)
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    if process.poll() is not None:
        sys.exit(f"{spec.name}: ended with {process.returncode} before its first step")
    kill_processes_of(work, process)
    return seconds


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=5, help="that count, after one that does not")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "text").mkdir()
        for document in range(60):
            words = " ".join(f"word{(document * 7919 + place) % 1013}" for place in range(150))
            (work / "text" / f"{document:02d}.txt").write_text(words)
        # It prepares, and brings what is imported into the page cache.
        seconds_to_first_step(work, pipeline(work, "prepared", arguments.workers))
        starts = []
        for index in range(arguments.starts):
            load = os.getloadavg()[0]
            seconds = seconds_to_first_step(
                work, pipeline(work, f"start-{index}", arguments.workers)
            )
            starts.append({"seconds": round(seconds, 1), "load_before": round(load, 2)})
            print(starts[-1], flush=True)
            time.sleep(10)  # what was killed is not to be measured
    middle = round(median(start["seconds"] for start in starts), 1)
    print(f"median {middle} s")
    keep(
        "startup",
        {"num_workers": arguments.workers, "median_seconds": middle, "starts": starts},
    )


if __name__ == "__main__":
    main()
