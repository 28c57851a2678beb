"""What every benchmark leaves: one JSON object in ``benchmarks/results``."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glray.files import write_json
from glray.train.context import WorkerContext
from glray.train.execution import environment

RESULTS = Path(__file__).parent / "results"


def keep(
    name: str,
    figures: dict[str, Any],
    ctx: WorkerContext | None = None,
    folder: Path = RESULTS,
) -> None:
    """Write ``NAME.json`` at once, with command, commit, versions and the hardware of ``ctx``, by
    default this machine's CPU."""
    result = {
        "benchmark": name,
        "command": " ".join(["python", *map(_without_folder, sys.argv)]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "environment": machine(ctx or WorkerContext()),
        **figures,
    }
    write_json(folder / f"{name}.json", result)
    print(f"kept: {folder.name}/{name}.json", flush=True)


def machine(ctx: WorkerContext) -> dict[str, Any]:
    """Commit, versions and hardware: what a run's environment has that is not of the run."""
    found = environment(ctx)
    for of_a_run in ("num_workers", "threads_per_worker"):
        del found[of_a_run]
    return found


def _without_folder(argument: str) -> str:
    """A path as its name: where it lay says something of the machine alone."""
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    return f"{option}{equals}{path.name}" if path.is_absolute() else argument
