"""Watching a pipeline from the driver: its events as lines, its progress as a live line a group.

The workers write ``events.log`` and each group's progress file to the storage; nothing is asked of
Ray.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.status import Status

from glray.run.records import Progress

POLL_SECONDS = 0.5
COLUMNS = 78
"""Of a terminal's 80 the spinner takes two."""
QUIET_LINE_SECONDS = 15.0
"""Where there is no terminal to redraw, the progress lines are printed this often."""


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
        self._directory = directory
        self._events = directory / "events.log"
        self._position = self._events.stat().st_size if self._events.exists() else 0
        self._before = self._progress_files()
        self._shown = self._before
        self._last_lines = time.monotonic()

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
        files = self._progress_files()
        if files == self._shown:
            return
        self._shown = files
        lines = [
            progress_line(Progress.model_validate_json(path.read_bytes()))
            for path, modified in files.items()
            if modified != self._before.get(path)  # else of an earlier launch
        ]
        if lines:
            status.update("\n  ".join(lines))  # below the first, which follows the spinner
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_lines >= QUIET_LINE_SECONDS:
            self._last_lines = now
            for line in lines:
                self._console.print(line, markup=False)

    def _progress_files(self) -> dict[Path, int]:
        """When each group's progress file was last written, in the order of the groups."""
        found = {}
        for path in self._directory.glob("progress*.json"):
            with suppress(FileNotFoundError):  # a launch removes those of the one before
                found[path] = path.stat().st_mtime_ns
        return {path: found[path] for path in sorted(found, key=lambda p: (len(p.name), p.name))}


def progress_line(progress: Progress) -> str:
    """One line of at most 78 columns for a ``progress.json``: arm, stage, step, loss, speed, MFU,
    time left. The arm's name is cut where it must be."""
    now, name = progress.training, progress.run or ""
    if now is None:
        return f"{name}: {progress.phase}" if name else progress.phase
    last = now.last_step
    line = (
        f" {last.stage + 1}/{now.num_stages} seq_len {last.seq_len} "
        f"step {_short(last.step)}/{_short(now.num_steps)} "
        f"loss {last.loss:.2f} {_short(last.tokens_per_second)} tok/s "
        f"{last.mfu:.0%} MFU {_duration(now.seconds_left)} left"
    )
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
