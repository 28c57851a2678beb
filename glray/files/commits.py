"""Writing and reading whole files: one is there whole or not at all, here and in a store.

Here it is written under a temporary name and then renamed; to a store it goes from memory, or from
a temporary file of this machine, in one request or in parts that only then appear.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import obstore
from obstore.store import ObjectStore
from safetensors import SafetensorError

from glray.errors import UserError
from glray.files.leases import ensure_held
from glray.files.paths import (
    PATIENCE_SECONDS,
    REQUEST_BYTES,
    AnyPath,
    StorePath,
    asked_again,
    naming_store,
    objects_below,
)

REMEDY = "restore it, or delete it if it is an evaluation, else the folder that it describes"
"""For a damaged record."""
SMALL_BYTES = 2**20
"""Written in one request that comes soon or not at all."""
AT_ONCE = 8
"""Requests of a large file at once."""
DELETED_AT_ONCE = 1_000
"""Names that S3 takes in one request."""
MOST_PARTS = 9_000
"""Of an upload in parts; stores take 10,000."""
MOST_COPIED_BYTES = 5 * 2**30
"""S3 itself copies no larger object in one request."""


@contextmanager
def committed(path: AnyPath, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write that replaces ``path`` at once when the block ends without an error; without
    ``sync``, after a failure of the machine it may be empty.

    An OSError that names no file, as on a full disk, gets this one's name.
    """
    if isinstance(path, StorePath):
        with tempfile.SpooledTemporaryFile(AT_ONCE * REQUEST_BYTES) as content:
            with naming(path):
                yield cast(BinaryIO, content)
            size = content.tell()
            content.seek(0)
            _put(path, cast(BinaryIO, content), size)
        return
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


def write_text(path: AnyPath, text: str, *, sync: bool = True) -> None:
    """Replace a file's text at once; readers see the old or the new, never a part. See
    ``committed`` for ``sync``."""
    write_bytes(path, text.encode(), sync=sync)


def write_bytes(path: AnyPath, content: bytes, *, sync: bool = True) -> None:
    """The same with any content."""
    with committed(path, sync=sync) as file:
        file.write(content)


def write_json(path: AnyPath, value: Any) -> None:
    """Replace a file by ``value`` as JSON, which has no NaN and no infinity: both become null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    write_text(path, json.dumps(finite, indent=1, ensure_ascii=False) + "\n")


def write_new(path: AnyPath, content: bytes) -> bool:
    """Make a file that is not there yet; False if it is. Of several processes that try at once, one
    has made it; their contents must differ."""
    if isinstance(path, StorePath):
        try:
            _while_held(
                path,
                lambda store: obstore.put(store, path.key, content, mode="create"),
                len(content),
            )
        except FileExistsError:  # perhaps by this very request, whose answer was lost
            return path.read_bytes() == content
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with naming(path):
            partial.write_bytes(content)
            os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _while_held(path: StorePath, ask: Callable[[ObjectStore], object], num_bytes: int = 0) -> None:
    """Change a store. ``ask``, which may be called several times, makes one request that moves
    ``num_bytes``: what is small comes while this process surely holds the folder's lease, however
    often the store must be asked; what is large has a name of its own, and something small makes it
    count. Raises UserError if the lease was taken over, else as ``naming_store``."""

    def change() -> None:
        ensure_held(path)
        ask(path.quick_store if num_bytes <= SMALL_BYTES else path.store)

    asked_again(path, change, PATIENCE_SECONDS)


def _put(path: StorePath, content: BinaryIO | bytes, size: int) -> None:
    """Replace an object; ``content`` is as long as ``size``."""

    def put(store: ObjectStore) -> None:
        if not isinstance(content, bytes):
            content.seek(0)
        obstore.put(store, path.key, content, chunk_size=_part_bytes(size), max_concurrency=AT_ONCE)

    _while_held(path, put, size)


def _part_bytes(size: int) -> int:
    """Bytes of each part of an upload, so that there are not too many."""
    return max(REQUEST_BYTES, -(-size // MOST_PARTS))


def write_chunks(path: AnyPath, pieces: Iterator[memoryview], size: int) -> None:
    """Replace a file by what comes, piece by piece, and is nowhere whole: ``size`` bytes in all. An
    error of ``pieces`` leaves nothing."""
    if isinstance(path, StorePath):
        ensure_held(path)
        with naming_store(path):
            obstore.put(
                path.store, path.key, pieces, chunk_size=_part_bytes(size), max_concurrency=AT_ONCE
            )
        return
    with committed(path) as file:
        file.writelines(pieces)


def chunks(path: AnyPath, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
    """A file's content from ``begin`` to before ``end``, by default all of it, piece by piece."""
    end = path.stat().st_size if end is None else end
    if isinstance(path, Path):
        with path.open("rb") as file:
            file.seek(begin)
            while begin < end and (data := file.read(min(REQUEST_BYTES, end - begin))):
                begin += len(data)
                yield data
        return
    for start in range(begin, end, AT_ONCE * REQUEST_BYTES):
        starts = range(start, min(start + AT_ONCE * REQUEST_BYTES, end), REQUEST_BYTES)
        ends = [min(at + REQUEST_BYTES, end) for at in starts]
        with naming_store(path):
            pieces = obstore.get_ranges(
                path.store, path.key, starts=list(starts), ends=ends, coalesce=0
            )
        yield from (piece.to_bytes() for piece in pieces)


def sha256_of(path: AnyPath) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    for data in chunks(path):
        digest.update(data)
    return digest.hexdigest()


def read_json(path: AnyPath, remedy: str = REMEDY) -> Any:
    """The value of a JSON file, None if it does not exist. Raises UserError for other content,
    which says the remedy."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or too deep
        raise UserError(f"{path}: damaged, it is not JSON ({error}); {remedy}") from None


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copy a file; within a bucket the store does it itself."""
    if isinstance(source, StorePath) and isinstance(target, StorePath):
        is_one = (source.protocol, source.drive) == (target.protocol, target.drive)
        if is_one and (size := source.stat().st_size) <= MOST_COPIED_BYTES:
            _while_held(target, lambda store: obstore.copy(store, source.key, target.key), size)
            return
    elif isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    if isinstance(source, Path) and isinstance(target, StorePath):
        with source.open("rb") as content:
            _put(target, content, source.stat().st_size)
        return
    with committed(target) as file:
        for data in chunks(source):
            file.write(data)


def copy_tree(source: AnyPath, target: AnyPath) -> None:
    """Copy every file below ``source`` to the same place below ``target``; see ``copy_file``."""
    for name in files_below(source):
        copy_file(source / name, target / name)


def files_below(folder: AnyPath) -> list[str]:
    """The files below a folder, as seen from it, in the order of their names; none if it is not
    there."""
    if isinstance(folder, StorePath):
        return [name for name, _size in objects_below(folder)]
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """A file, or a folder, as one of this machine that can be read within the block."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="glray-") as name:
        copy = Path(name) / path.name
        if path.is_file():
            copy_file(path, copy)
        else:
            copy.mkdir()
            copy_tree(path, copy)
        yield copy


def matching(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """What below a folder matches a pattern such as ``*/run.json``, in the order of names."""
    return sorted(folder.glob(pattern), key=str)


def remove_tree(path: AnyPath) -> None:
    """Delete a folder with all that is in it, or what of it can be deleted."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    names = [f"{path.key}/{name}" for name in files_below(path)]
    for start in range(0, len(names), DELETED_AT_ONCE):
        _delete(path, names[start : start + DELETED_AT_ONCE])


def remove(path: AnyPath) -> None:
    """Delete a file, if it is there."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    else:
        _delete(path, [path.key])


def _delete(path: StorePath, names: list[str]) -> None:
    _while_held(path, lambda store: obstore.delete(store, names))


@contextmanager
def naming(path: AnyPath) -> Iterator[None]:
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
def new_directory(path: AnyPath) -> Iterator[Path]:
    """A folder of this machine to fill, which becomes ``path`` when the block ends without an
    error: here at once, in a store file by file."""
    if isinstance(path, StorePath):
        with tempfile.TemporaryDirectory(prefix="glray-") as name:
            partial = Path(name)
            with naming(path):
                yield partial
            remove_tree(path)
            copy_tree(partial, path)
        return
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
