"""Writing files whole or not at all: a temporary name, then a rename."""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from glray.errors import UserError
from glray.progress import working

REMEDY = "restore it, or delete it if it is an evaluation, else the folder that it describes"
"""For a damaged record."""


@contextmanager
def committed(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write that replaces ``path`` at once when the block ends without an error; without
    ``sync``, after a failure of the machine it may be empty.

    An OSError that names no file, as on a full disk, gets this one's name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with naming(path):
            with partial.open("wb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace a file's text at once; readers see the old or the new, never a part. See
    ``committed`` for ``sync``."""
    with committed(path, sync=sync) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace a file by ``value`` as JSON, which has no NaN and no infinity: both become null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    write_text(path, json.dumps(finite, indent=1, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, remedy: str = REMEDY) -> Any:
    """The value of a JSON file, None if it does not exist. Raises UserError for other content,
    which says the remedy."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or too deep
        raise UserError(f"{path}: damaged, it is not JSON ({error}); {remedy}") from None


@contextmanager
def sole_writer(
    directory: Path,
    *,
    lock: str = ".lock",
    wait_seconds: float = 0.0,
    say_waiting: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold ``directory`` for this process; the lock goes with the process, however it ends.

    Raises UserError if another process still holds it after ``wait_seconds``; but with
    ``say_waiting``, which is called once if another process holds it, waits as long as it takes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Without flock it would fall back to a lock that outlives a killed process.
    file_lock = FileLock(directory / lock, poll_interval=0.1, fallback_to_soft=False)
    waiting = working(f"waiting for another glray process that writes to {directory}")
    try:
        held = file_lock.acquire(timeout=0)
    except Timeout:
        try:
            if say_waiting is not None:
                say_waiting()
            with waiting:
                held = file_lock.acquire(timeout=wait_seconds if say_waiting is None else -1)
        except Timeout:
            raise UserError(
                f"{directory}: another glray process is writing there, and their records would be "
                "mixed; wait for it, stop it, or use another name (--set name=…)"
            ) from None
    with held:
        yield


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the operating system that names no file, as of a full disk, this one's name;
    safetensors' too, which has its number in words alone."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that appears under ``path`` only when the block ends without an error."""
    partial = path.with_name(f".partial-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with naming(path):
            partial.mkdir(parents=True)
            yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
