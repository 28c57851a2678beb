"""What every benchmark leaves: one JSON object in ``benchmarks/results``."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glray.files import write_json
from glray.train.context import WorkerContext
from glray.train.execution import environment

RESULTS = Path(__file__).parent / "results"


def keep(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write ``results/NAME.json`` with command, commit, hardware and versions."""
    machine = environment(WorkerContext())
    for of_a_run in ("num_workers", "threads_per_worker"):
        del machine[of_a_run]
    result = {
        "benchmark": name,
        "command": " ".join(["python", *map(_without_folder, sys.argv)]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "environment": machine,
        **figures,
    }
    write_json(folder / f"{name}.json", result)
    print(f"kept: {folder.name}/{name}.json")


def _without_folder(argument: str) -> str:
    """A path as its name: where it lay says something of the machine alone."""
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    return f"{option}{equals}{path.name}" if path.is_absolute() else argument
