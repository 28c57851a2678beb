"""Where a pipeline's files go: the storage folder as an absolute path, and whether it is usable."""

import mmap
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from glray.errors import UserError
from glray.files import new_directory, sole_writer, write_text
from glray.spec.compute import ComputeSpec

# Set by Ray's job supervisor in every submitted job; the name is its own, copied from
# ray._private.runtime_env.constants so that this module needs no Ray.
_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"

NONCE = ".seen-"
"""How the names of nonces begin."""
SEEN_SECONDS = 10.0
"""How long to look for a nonce: over NFS a folder that another node has just made may come late."""


def storage_path(compute: ComputeSpec) -> Path:
    """The absolute path of ``compute.storage``, ``~`` expanded. Touches nothing.

    Raises UserError for a URL, and for a relative path in a submitted Ray job.
    """
    if "://" in compute.storage:
        raise UserError(
            f"compute.storage {compute.storage!r} is a URL, but glray locks, renames and appends, "
            "which buckets cannot, mounted or not: give a folder that every node sees (NFS 4, EFS, "
            "Lustre), --set compute.storage=/mnt/shared"
        )
    path = Path(os.path.expanduser(compute.storage))
    if not path.is_absolute() and _SUBMITTED_JOB_VARIABLE in os.environ:
        raise UserError(
            f"compute.storage {compute.storage!r} is in the submitted job's copy, {Path.cwd()}, "
            "deleted with it: give what every node sees, --set compute.storage=/absolute/path"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"compute.storage {compute.storage!r} is a file; give a folder")
    return path.resolve()


def validate_storage(storage: Path) -> None:
    """Do once with a small file what all work does with its files, and leave nothing behind.

    Raises UserError for a folder that cannot be written, and for a file system that lacks one of
    these: Lustre and NFS may be mounted without locks, object stores have no renaming of folders.
    """
    probe = storage / f".probe-{uuid.uuid4().hex[:8]}"
    steps: tuple[tuple[Callable[[Path], None], str, str], ...] = (
        (_write, "cannot be written", "make room there, or get write permission"),
        (_replace, "cannot replace one file with another", "mount it so that it can"),
        (_append, "cannot append to a file", "mount it so that it can"),
        (_map, "cannot map a file into memory", "mount it so that it can"),
        (_lock, "cannot lock a file", "mount it with locks (Lustre: flock, NFS: not nolock)"),
        (_rename, "cannot rename a folder", "keep only sources in an object store"),
    )
    try:
        for step, lack, advice in steps:
            try:
                step(probe)
            except (OSError, NotImplementedError, ValueError) as error:
                reason = (isinstance(error, OSError) and error.strerror) or error
                raise UserError(
                    f"compute.storage {storage}: it {lack} ({reason}): checkpoints and records "
                    f"would not be safe there; {advice}, or give another folder, --set "
                    "compute.storage=FOLDER"
                ) from None
    finally:
        shutil.rmtree(probe, ignore_errors=True)


@contextmanager
def nonce_file(directory: Path) -> Iterator[str]:
    """Within the block a file of a new name, which is returned, lies in ``directory``: who finds it
    there sees this very folder, and not another one under the same path."""
    name = f"{NONCE}{uuid.uuid4().hex[:8]}"
    write_text(directory / name, "")
    try:
        yield name
    finally:
        (directory / name).unlink(missing_ok=True)


def is_seen(nonce: Path, wait_seconds: float = SEEN_SECONDS) -> bool:
    """Whether this process sees a nonce that another one has made."""
    end = time.monotonic() + wait_seconds
    while not (seen := nonce.exists()) and time.monotonic() < end:
        time.sleep(0.2)
    return seen


def _write(probe: Path) -> None:
    write_text(probe / "file", "old")


def _replace(probe: Path) -> None:
    write_text(probe / "file", "new")


def _append(probe: Path) -> None:
    with (probe / "file").open("a") as file:
        file.write("er")
    if (probe / "file").read_text() != "newer":
        raise OSError("what was appended is not there")


def _map(probe: Path) -> None:
    with (probe / "file").open("rb") as file:
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).close()


def _lock(probe: Path) -> None:
    with sole_writer(probe):
        pass


def _rename(probe: Path) -> None:
    with new_directory(probe / "folder") as folder:
        (folder / "file").touch()
