"""Where a pipeline's files go: the storage, a folder or a bucket, and whether it is usable."""

import mmap
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore

from glray.errors import UserError
from glray.files import (
    AnyPath,
    StorePath,
    as_path,
    files_below,
    new_directory,
    read_range,
    remove,
    remove_tree,
    sole_writer,
    write_new,
    write_text,
)
from glray.files.paths import naming_store
from glray.spec.compute import ComputeSpec

# Set by Ray's job supervisor in every submitted job; the name is its own, copied from
# ray._private.runtime_env.constants so that this module needs no Ray.
_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"

NONCE = ".seen-"
"""How the names of nonces begin."""
SEEN_SECONDS = 10.0
"""How long to look for a nonce: over NFS a folder that another node has just made may come late."""


def storage_path(compute: ComputeSpec) -> AnyPath:
    """The place of ``compute.storage``: a bucket's, or an absolute path, ``~`` expanded. Touches
    nothing.

    Raises UserError for a URL that names no bucket, and for a relative path in a submitted Ray job.
    """
    try:
        path = as_path(compute.storage)
    except UserError as error:
        raise UserError(f"compute.storage: {error}") from None
    if isinstance(path, StorePath):
        return path
    if not path.is_absolute() and _SUBMITTED_JOB_VARIABLE in os.environ:
        raise UserError(
            f"compute.storage {compute.storage!r} is in the submitted job's copy, {Path.cwd()}, "
            "deleted with it: give what every node sees, --set compute.storage=/absolute/path or "
            "s3://bucket/folder"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"compute.storage {compute.storage!r} is a file; give a folder")
    return path.resolve()


Step = tuple[Callable[[AnyPath], None], str, str]
"""What is tried, what a storage lacks where it fails, and what to do about it."""


def reached(path: AnyPath) -> AnyPath:
    """The path, once its store has answered for the first time: who has mistyped its name is told
    within seconds, and later requests have patience. Raises OSError."""
    if isinstance(path, StorePath):
        with naming_store(path):
            next(iter(obstore.list(path.quick_store, path.key or None, chunk_size=1)), None)
    return path


def validate_storage(storage: AnyPath) -> None:
    """Do once with a small file what all work does with its files, and leave nothing behind.

    Raises UserError for a place that cannot be written, and for one that lacks what work needs:
    Lustre and NFS may be mounted without locks, a store may not know create-only writes. Where a
    store cannot be reached, it says so after seconds, not after the patience of later requests.
    """
    probe = storage / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        for step, lack, advice in _IN_STORE if isinstance(storage, StorePath) else _HERE:
            try:
                step(probe)
            except (OSError, NotImplementedError, ValueError) as error:
                reason = (isinstance(error, OSError) and error.strerror) or error
                raise UserError(
                    f"compute.storage {storage}: it {lack} ({reason}): checkpoints and records "
                    f"would not be safe there; {advice}, or give another place, --set "
                    "compute.storage=…"
                ) from None
    except UserError:
        if isinstance(probe, Path):
            remove_tree(probe)
        raise
    remove_tree(probe)


@contextmanager
def nonce_file(directory: AnyPath) -> Iterator[str]:
    """Within the block a file of a new name, which is returned, lies in ``directory``: who finds it
    there sees this very folder, and not another one under the same path."""
    name = f"{NONCE}{uuid.uuid4().hex[:8]}"
    write_text(directory / name, "")
    try:
        yield name
    finally:
        remove(directory / name)


def is_seen(nonce: AnyPath, wait_seconds: float = SEEN_SECONDS) -> bool:
    """Whether this process sees a nonce that another one has made."""
    end = time.monotonic() + wait_seconds
    while not (seen := nonce.exists()) and time.monotonic() < end:
        time.sleep(0.2)
    return seen


def _write(probe: AnyPath) -> None:
    write_text(probe / "file", "old")


def _replace(probe: AnyPath) -> None:
    write_text(probe / "file", "new")


def _append(probe: AnyPath) -> None:
    with (probe / "file").open("a") as file:
        file.write("er")
    if (probe / "file").read_text() != "newer":
        raise OSError("what was appended is not there")


def _map(probe: AnyPath) -> None:
    with (probe / "file").open("rb") as file:
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).close()


def _lock(probe: AnyPath) -> None:
    with sole_writer(probe):
        pass


def _rename(probe: AnyPath) -> None:
    with new_directory(probe / "folder") as folder:
        (folder / "file").touch()


def _answer(probe: AnyPath) -> None:
    assert isinstance(probe, StorePath)
    with naming_store(probe):
        obstore.put(probe.quick_store, f"{probe.key}/file", b"old")


def _read(probe: AnyPath) -> None:
    write_text(probe / "file", "what was written")
    if (probe / "file").read_text() != "what was written" or files_below(probe) != ["file"]:
        raise OSError("what was written is not there at once")


def _range(probe: AnyPath) -> None:
    if read_range(probe / "file", 5, 3) != b"was":
        raise OSError("it gives other bytes")


def _create(probe: AnyPath) -> None:
    if not write_new(probe / "new", b"first") or write_new(probe / "new", b"second"):
        raise OSError("it writes over an object that is there")


def _lease(probe: AnyPath) -> None:
    """Replacing an object only if it is unchanged is what a lease does."""
    assert isinstance(probe, StorePath)
    with naming_store(probe):
        e_tag = obstore.put(probe.store, f"{probe.key}/lease", b"first")["e_tag"]
        obstore.put(probe.store, f"{probe.key}/lease", b"second", mode={"e_tag": e_tag})
    try:
        with naming_store(probe):
            obstore.put(probe.store, f"{probe.key}/lease", b"third", mode={"e_tag": e_tag})
    except FileExistsError:
        return
    raise OSError("it writes over an object that has changed")


def _delete(probe: AnyPath) -> None:
    remove_tree(probe)
    if files_below(probe):
        raise OSError("what was deleted is still there")


_HERE: tuple[Step, ...] = (
    (_write, "cannot be written", "make room there, or get write permission"),
    (_replace, "cannot replace one file with another", "mount it so that it can"),
    (_append, "cannot append to a file", "mount it so that it can"),
    (_map, "cannot map a file into memory", "mount it so that it can"),
    (_lock, "cannot lock a file", "mount it with locks (Lustre: flock, NFS: not nolock)"),
    (_rename, "cannot rename a folder", "if it is an object store, give its URL (s3://…)"),
)
_CONDITIONAL = "use a store with conditional writes (S3, GCS, Azure, MinIO)"
_IN_STORE: tuple[Step, ...] = (
    (_answer, "cannot be written", "look at its name, AWS_ENDPOINT_URL and your credentials"),
    (_read, "does not show what was just written", "use a store that is consistent"),
    (_range, "cannot be read in ranges", "use a store that can"),
    (_create, "has no create-only writes", _CONDITIONAL),
    (_lease, "cannot replace an object only if it is unchanged", _CONDITIONAL),
    (_delete, "cannot be deleted from", "get permission to delete"),
)
