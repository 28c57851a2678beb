"""Watching a pipeline from the driver: its events as lines, its progress as one live line.

The workers write ``events.log`` and ``progress.json`` to the storage; nothing is asked of Ray.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

POLL_SECONDS = 0.5
COLUMNS = 80
QUIET_LINE_SECONDS = 15.0
"""Where there is no terminal to redraw, the progress line is printed this often."""


@contextmanager
def watching(directory: Path, console: Console) -> Iterator[None]:
    """Show what the pipeline of ``directory`` writes from now on, until the block ends."""
    watcher = _Watcher(directory, console)
    thread = threading.Thread(target=watcher.run, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watcher.done.set()
        thread.join()


class _Watcher:
    def __init__(self, directory: Path, console: Console) -> None:
        self.done = threading.Event()
        self._console = console
        self._events = directory / "events.log"
        self._progress = directory / "progress.json"
        self._position = self._events.stat().st_size if self._events.exists() else 0
        self._seen = _modified(self._progress)
        self._last_line = time.monotonic()

    def run(self) -> None:
        """Poll until done, then once more for the last events."""
        with self._console.status("starting the workers") as status:
            while not self.done.wait(POLL_SECONDS):
                self._poll(status)
            self._poll(status)

    def _poll(self, status: Status) -> None:
        if self._events.exists():
            with self._events.open(encoding="utf-8") as file:
                file.seek(self._position)
                lines = file.readlines()
                self._position = file.tell()
            for line in lines:
                # drop the date: it stays in the file
                self._console.print(line.rstrip("\n").partition(" ")[2], markup=False)
        modified = _modified(self._progress)
        if modified == self._seen:
            return
        self._seen = modified
        line = progress_line(json.loads(self._progress.read_text(encoding="utf-8")))
        status.update(line)
        if not self._console.is_terminal:
            now = time.monotonic()
            if now - self._last_line >= QUIET_LINE_SECONDS:
                self._last_line = now
                self._console.print(line, markup=False)


def progress_line(progress: dict[str, Any]) -> str:
    """One line of at most 80 columns for a ``progress.json``: arm, stage, step, loss, speed, MFU,
    time left. The arm's name is cut where it must be."""
    if progress["phase"] != "training":
        run = f"{progress['run']}: " if "run" in progress else ""
        return f"{run}{progress['phase']}"
    line = (
        f" {progress['stage']}/{progress['num_stages']} seq_len {progress['seq_len']} "
        f"step {_short(progress['step'])}/{_short(progress['num_steps'])} "
        f"loss {progress['loss']:.2f} {_short(progress['tokens_per_second'])} tok/s "
        f"{progress['mfu']:.0%} MFU {_duration(progress['seconds_left'])} left"
    )
    name = progress["run"]
    room = COLUMNS - len(line)
    return (name if len(name) <= room else f"{name[: room - 1]}…") + line


def _duration(seconds: float) -> str:
    """``1:02`` in minutes and seconds, from an hour on ``12h05``."""
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes}:{int(seconds) % 60:02d}"
    return f"{minutes // 60}h{minutes % 60:02d}"


def _short(count: float) -> str:
    """``819k``: whole up to four digits, else three of them."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10_000 and count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
