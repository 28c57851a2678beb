"""Logs of lines. Here they are files that are appended to. Stores have no appending: there a log is
a folder of parts, of which the last is written again and again, beside who appends.

A log may be copied from one to the other: both kinds of place are read both ways, and go on in
their own.
"""

import os
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from glray.files.commits import files_below, naming, remove, remove_tree, write_bytes
from glray.files.paths import AnyPath, StorePath, objects_below

PACE_SECONDS = 10.0
"""How often the same object is written at most."""
PART_BYTES = 2**20
"""A part ends with the line that makes it this long."""


class Outbox:
    """Writes objects of a store in a thread of its own: of what is put under the same name in
    ``pace_seconds`` the last counts. Errors come with the next call."""

    def __init__(self, pace_seconds: float = PACE_SECONDS) -> None:
        self._pace_seconds = pace_seconds
        self._waiting: dict[StorePath, bytes] = {}
        self._written_at: dict[StorePath, float] = {}
        self._changed = threading.Condition()
        self._is_urgent = self._is_busy = self._is_closed = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def put(self, path: StorePath, content: bytes) -> None:
        """Have an object written; returns at once. Raises what has gone wrong before."""
        with self._changed:
            self._raise()
            self._waiting.pop(path, None)  # it goes to the end: objects are written in order
            self._waiting[path] = content
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, most_seconds: float | None = None) -> None:
        """Return when all of it is in the store, or after ``most_seconds``. Raises what has gone
        wrong."""
        with self._changed:
            self._is_urgent = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._error or not (self._waiting or self._is_busy), most_seconds
            )
            self._is_urgent = False
            self._raise()

    def close(self) -> None:
        """End the thread; what was not flushed may be lost."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _raise(self) -> None:
        if (error := self._error) is not None:
            self._error = None
            raise error

    def _work(self) -> None:
        while (due := self._due()) is not None:
            error: BaseException | None = None
            try:
                write_bytes(*due)
            except BaseException as raised:  # it belongs to who puts, and this thread goes on
                error = raised
            with self._changed:
                self._is_busy, self._error = False, error or self._error
                self._written_at[due[0]] = time.monotonic()
                self._changed.notify_all()

    def _due(self) -> tuple[StorePath, bytes] | None:
        """Waits for the next object to write; None at the end."""
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                recent = now - self._pace_seconds
                self._written_at = {p: at for p, at in self._written_at.items() if at > recent}
                ready = (p for p in self._waiting if self._is_urgent or p not in self._written_at)
                if (path := next(ready, None)) is not None:
                    self._is_busy = True
                    return path, self._waiting.pop(path)
                first = min((self._written_at[p] for p in self._waiting), default=None)
                self._changed.wait(None if first is None else first - recent)
            return None


class LineLog:
    """A log with one writer, which says which of its lines stay before it appends."""

    def __init__(self, path: AnyPath) -> None:
        self._path = path
        self._outbox = Outbox() if isinstance(path, StorePath) else None
        self._number, self._tail = 0, b""
        """Of a store: the number of the last part, and what is in it."""

    def keep(self, lines: list[bytes]) -> None:
        """Let only these, each with its end, stay: the first of the lines that it has."""
        if isinstance(self._path, Path):
            write_bytes(as_file(self._path), b"".join(lines))
            return
        self._tail, self._number = _write_parts(self._path, lines)

    def append(self, lines: list[bytes]) -> None:
        """Append lines, each with its end. To a store they go beside the caller."""
        if isinstance(self._path, Path):
            with naming(self._path), self._path.open("ab") as file:
                file.writelines(lines)
            return
        assert self._outbox is not None
        for line in lines:
            if len(self._tail) >= PART_BYTES:
                self._put_tail()
                self._number, self._tail = self._number + 1, b""
            self._tail += line
        self._put_tail()

    def flush(self) -> None:
        """Return when what was appended would outlast a failure of the machine. Raises what has
        gone wrong meanwhile."""
        if self._outbox is not None:
            self._outbox.flush()
        elif isinstance(self._path, Path) and self._path.exists():
            with naming(self._path), self._path.open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """Nothing more is appended; what was not flushed may be lost."""
        if self._outbox is not None:
            self._outbox.close()

    def _put_tail(self) -> None:
        assert self._outbox is not None
        assert isinstance(self._path, StorePath)
        self._outbox.put(_part(self._path, self._number), self._tail)


def write_log(path: AnyPath, lines: list[bytes]) -> None:
    """Write a new log over what is there."""
    if isinstance(path, StorePath):
        remove_tree(path)
    LineLog(path).keep(lines)


def read_log(path: AnyPath) -> bytes:
    """All lines of a log; nothing if it is not there."""
    if isinstance(path, Path) and path.is_file():
        return path.read_bytes()
    if parts := files_below(path):
        return b"".join((path / name).read_bytes() for name in parts)
    return path.read_bytes() if path.is_file() else b""  # of a store, copied from elsewhere


def as_file(path: Path) -> Path:
    """The log, one file from now on if it was copied here from a store, in parts."""
    parts = path.with_name(f".{path.name}.parts")
    with suppress(FileNotFoundError):  # another process does it
        if path.is_dir():
            os.rename(path, parts)
    if parts.is_dir():
        if not path.exists():
            write_bytes(path, read_log(parts))
        remove_tree(parts)
    return path


def add_line(path: AnyPath, line: str) -> None:
    """Append one line, in one piece, to a log that other processes append to as well."""
    content = f"{line}\n".encode()
    if isinstance(path, StorePath):
        write_bytes(line_path(path), content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), as_file(path).open("ab") as file:
        file.write(content)


class NewLines:
    """The lines that come to a log, whoever appends them, from when this is made."""

    def __init__(self, path: AnyPath) -> None:
        self._path = path if isinstance(path, StorePath) else as_file(path)
        self._position = 0
        self._seen: set[str] = set()
        self.read()

    def read(self) -> list[str]:
        """Those since the last call."""
        path = self._path
        if isinstance(path, StorePath):
            names = [name for name in files_below(path) if name not in self._seen]
            texts = [(path / name).read_text() for name in names]
            self._seen.update(names)
            return [line for text in texts for line in text.splitlines()]
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._position)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole.decode("utf-8", "replace").splitlines()


def _write_parts(path: StorePath, lines: list[bytes]) -> tuple[bytes, int]:
    """Leave a log with these lines, which it begins with already; the last part and its number."""
    parts = [b""]
    for line in lines:
        if len(parts[-1]) >= PART_BYTES:
            parts.append(b"")
        parts[-1] += line
    sizes = dict(objects_below(path))
    wanted = {_part(path, number).name: part for number, part in enumerate(parts) if part}
    for name, part in wanted.items():
        if sizes.get(name) != len(part):
            write_bytes(path / name, part)
    for name in sizes.keys() - wanted.keys():
        remove(path / name)
    if not sizes:
        remove(path)  # a file that was copied here
    return parts[-1], len(parts) - 1


def _part(path: StorePath, number: int) -> StorePath:
    """A part of a log with one writer."""
    return path / f"{number:06d}{path.suffix}"


def line_path(path: StorePath) -> StorePath:
    """Where in a store a line of a log with several writers goes: after those that are there."""
    return path / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:8]}{path.suffix}"
