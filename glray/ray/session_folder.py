"""The folder for the sockets and logs of a cluster that is started here.

Ray takes ``$RAY_TMPDIR/ray``, ``$TMPDIR/ray`` or ``/tmp/ray``, whatever it finds there, and where
that is of no use it fails with a traceback, or later. So what it needs is looked at first.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from glray.errors import UserError

SYSTEM = Path("/tmp")
SHARED_MEMORY = Path("/dev/shm")
LOG_BYTES = 100 * 2**20
"""Room for Ray's logs."""
SOCKET = "session_2026-11-28_14-36-24_123456_4194304/sockets/plasma_store"
"""The longest name of a socket below the folder."""
MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path of a Unix socket."""
MAX_BYTES = MAX_SOCKET_BYTES - len(SOCKET) - 1
"""The longest path of the folder."""


def session_folder(store_bytes: int, say: Callable[[str], None]) -> Path:
    """Ray's own choice, or where that cannot be used and ``RAY_TMPDIR`` does not ask for it, one of
    this user in ``/tmp``, which is said. It must have room for the object store too where shared
    memory has not. Raises UserError if neither can be used."""
    asked = os.environ.get("RAY_TMPDIR")
    own = Path(os.path.abspath(asked or os.environ.get("TMPDIR") or SYSTEM)) / "ray"
    if (fault := _fault(own, store_bytes)) is None:
        return own
    most = MAX_BYTES - len("/ray")
    remedy = (
        f"set RAY_TMPDIR to a folder of yours with a path of at most {most} bytes and "
        f"{_needed_bytes(store_bytes) / 1e6:.0f} MB free"
    )
    if asked:
        raise UserError(f"RAY_TMPDIR: {own} {fault}: Ray could not start; {remedy}")
    other = SYSTEM / f"ray-{os.getuid()}"
    if (other_fault := _fault(other, store_bytes)) is not None:
        raise UserError(f"{own} {fault}, and {other} {other_fault}: Ray could not start; {remedy}")
    say(f"Ray keeps its sockets and logs in {other}: {own} {fault}")
    return other


def _fault(folder: Path, store_bytes: int) -> str | None:
    """What is wrong with the folder, to be said after its path; None if Ray can use it."""
    length = len(os.fsencode(folder))
    if length > MAX_BYTES:
        return f"is {length} bytes long, sockets below it leave room for {MAX_BYTES}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for owner in (folder.lstat().st_uid, folder.stat().st_uid):  # of a link, of the folder
            if owner != os.getuid():  # who may also have left files that Ray writes again
                return f"belongs to another user ({owner})"
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    free, needed = shutil.disk_usage(folder).free, _needed_bytes(store_bytes)
    if free < needed:
        return f"has {free / 1e6:.0f} MB free, Ray needs {needed / 1e6:.0f}"
    return None


def _needed_bytes(store_bytes: int) -> int:
    in_memory = SHARED_MEMORY.exists() and shutil.disk_usage(SHARED_MEMORY).free >= store_bytes
    return LOG_BYTES + (0 if in_memory else store_bytes)
