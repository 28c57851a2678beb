"""Runs the paper's tables and figures at one scale, keeps the results and renders their page.

    python benchmarks/paper.py [--scale mini|tiny|full] [--seeds N] [--only figure1] [--set …]

``glray profile`` and ``glray compare`` do the work (``pipelines/paper.py``, ``paper_tiny.py``).
``mini`` reads ``docs.parquet``, which ``benchmarks/docs_corpus.py`` builds. What is finished is not
run again, so the same command continues after a stop, and a larger N adds seeds. Each
comparison is kept as ``results/paper-SCALE-FIGURE.json``, its plot in ``docs/results/``. If nothing
had been run before, ``results/paper-SCALE-cost.json`` has the time and memory of the whole.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import keep
from benchmarks.results import PARTS, PLOTS, render
from glray.cli.app import load_spec
from glray.files import read_json
from glray.run.profile import profile_path

PIPELINES = Path(__file__).parents[1] / "pipelines"
FILES = {"mini": "paper.py", "tiny": "paper_tiny.py", "full": "paper.py"}
TABLES_UNDER = {
    "mini": [
        *("--seq-lens", "128,256,512,1024,2048,4096,8192"),
        *("--attention", "sdpa,eager", "--memory-gib", "4"),
    ],
    "full": [
        *("--seq-lens", "128,256,512,1024,2048,4096,8192,16384"),
        *("--attention", "sdpa,eager", "--compile", "off,on", "--precision", "bfloat16"),
    ],
}
TABLES_UNDER["tiny"] = TABLES_UNDER["mini"]
PLOTS_OF_A_FIGURE = ("long_documents", "heldout_over_time", "loss_over_time")
"""The first that there is: without a fixed length there is no held-out loss to compare with it."""
WATCH_SECONDS = 2.0


def run(scale: str, names: list[str], options: list[str], overrides: list[str]) -> int:
    """Profile and compare. Returns the exit status."""
    glray = [sys.executable, "-m", "glray"]
    if "tables" in names:
        pipeline, plot = _reference(scale, "tables"), str(PLOTS / f"paper-{scale}-tables.png")
        settings = [*TABLES_UNDER[scale], "--out", plot, *overrides]
        done = subprocess.run([*glray, "profile", pipeline, *settings], check=False)
        if done.returncode:
            return done.returncode
    figures = [_reference(scale, name) for name in names if name != "tables"]
    if not figures:
        return 0
    command = [*glray, "compare", *figures, *options, *overrides]
    return subprocess.run(command, check=False).returncode


def _reference(scale: str, name: str) -> str:
    return f"{PIPELINES / FILES[scale]}:{scale}.{name}"


def keep_results(scale: str, names: list[str], storage: Path, since: float, tables: Path) -> None:
    """Keep what the commands have left after ``since``, without this machine's folders."""
    if "tables" in names and _written(tables, since):
        keep(f"paper-{scale}-tables", read_json(tables))
    for name in names:
        left = storage / "comparisons" / f"{scale}-{name}"
        if not _written(left / "comparison.json", since):
            continue
        record = read_json(left / "comparison.json")
        keep(f"paper-{scale}-{name}", _without_folders(record, storage))
        plots = [left / f"{plot}.png" for plot in PLOTS_OF_A_FIGURE]
        shutil.copy(next(filter(Path.exists, plots)), PLOTS / f"paper-{scale}-{name}.png")


def _written(path: Path, since: float) -> bool:
    return path.exists() and path.stat().st_mtime >= since


def _without_folders(record: dict[str, Any], storage: Path) -> dict[str, Any]:
    text = json.dumps(record, ensure_ascii=False)
    for folder in (storage.parent.resolve(), Path.cwd(), Path(sys.prefix)):
        text = text.replace(f"{folder}/", "")
    return dict(json.loads(text))


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Within the block a list grows by the bytes that this process's descendants hold."""
    samples: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_SECONDS):
            samples.append(sum(map(_proportional_bytes, _descendants())))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def _descendants() -> list[Path]:
    """Every process below this one."""
    parents: dict[str, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[stat.parent.name] = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
    own, found = str(Path("/proc/self").resolve().name), []
    for process in parents:
        ancestor: str | None = process
        while ancestor is not None and ancestor != own:
            ancestor = parents.get(ancestor)
        if ancestor == own:
            found.append(Path("/proc") / process)
    return found


def _proportional_bytes(process: Path) -> int:
    """What a process holds, pages that it shares counted by their share."""
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def main() -> None:
    """Run, keep, render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", choices=tuple(FILES), default="mini")
    parser.add_argument("--seeds", type=int, help="default: 3 of figure 1, 1 of the others")
    parser.add_argument("--only", help="default: what the results page has of the scale")
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    scale, storage = options.scale, options.storage.absolute()
    names = options.only.split(",") if options.only else list(PARTS[scale])
    PLOTS.mkdir(exist_ok=True)
    fresh = not any(storage.glob(f"{scale}-*/*/run.json")) and options.only is None
    settings = [f"compute.storage={storage}", *options.overrides]
    tables = profile_path(load_spec(_reference(scale, "tables"), settings))
    start, since = time.monotonic(), time.time()
    with watched_memory() as memory:
        status = run(
            scale,
            names,
            [] if options.seeds is None else ["--seeds", str(options.seeds)],
            [argument for setting in settings for argument in ("--set", setting)],
        )
    keep_results(scale, names, storage, since, Path(str(tables)))
    if fresh and status == 0:
        cost = {"wall_seconds": time.monotonic() - start, "peak_gib": max(memory) / 2**30}
        keep(f"paper-{scale}-cost", {"seeds": options.seeds, **cost})
    render()
    sys.exit(status)


if __name__ == "__main__":
    main()
