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

from glray.run.records import Progress

POLL_SECONDS = 0.5
COLUMNS = 78
"""Of a terminal's 80 the spinner takes two."""
QUIET_LINE_SECONDS = 15.0
"""Where there is no terminal to redraw, the progress lines are printed this often."""


@contextmanager
def watching(directory: Path, console: Console) -> Iterator[None]:
    """Show what the pipeline of ``directory`` writes from now on, until the block ends."""
    done = threading.Event()
    _, position = _lines_from(directory / "events.log", 0)
    seen = directory, position, _progress_files(directory)
    thread = threading.Thread(target=_watch, args=(*seen, console, done), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(
    directory: Path, position: int, before: dict[Path, int], console: Console, done: threading.Event
) -> None:
    """Show events after ``position`` and progress since ``before``; once more when it is done."""
    shown, last_lines, is_last = before, time.monotonic(), False
    with console.status("starting the workers") as status:
        while not is_last:
            is_last = done.wait(POLL_SECONDS)
            events, position = _lines_from(directory / "events.log", position)
            for line in events:
                # drop the date: it stays in the file
                console.print(line.rstrip("\n").partition(" ")[2], markup=False)
            files = _progress_files(directory)
            if files == shown:
                continue
            shown = files
            lines = [
                progress_line(Progress.model_validate_json(path.read_bytes()))
                for path, modified in files.items()
                if modified != before.get(path)  # else of an earlier launch
            ]
            if lines:
                status.update("\n  ".join(lines))  # below the first, which follows the spinner
            now = time.monotonic()
            if not console.is_terminal and now - last_lines >= QUIET_LINE_SECONDS:
                last_lines = now
                for line in lines:
                    console.print(line, markup=False)


def _lines_from(path: Path, position: int) -> tuple[list[str], int]:
    """The lines of a file, if it is there, from ``position`` on, and where they end."""
    if not path.exists():
        return [], position
    with path.open(encoding="utf-8") as file:
        file.seek(position)
        return file.readlines(), file.tell()


def _progress_files(directory: Path) -> dict[Path, int]:
    """When each group's progress file was last written, in the order of the groups."""
    found = {}
    for path in directory.glob("progress*.json"):
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
