"""One writer of a folder at a time: a lock of this machine, or a lease in a store."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from glray.errors import UserError
from glray.files import leases
from glray.files.commits import matching
from glray.files.leases import Lease, Seen
from glray.files.paths import QUICK_SECONDS, AnyPath, StorePath
from glray.progress import working

POLL_SECONDS = 0.5
"""How often who waits for a lease looks at it."""


@contextmanager
def sole_writer(
    directory: AnyPath,
    *,
    lock: str = ".lock",
    wait_seconds: float = 0.0,
    say_waiting: Callable[[], None] | None = None,
    lease_seconds: float | None = None,
    seconds_seen: Callable[[str], float] = lambda version: 0.0,
) -> Iterator[None]:
    """Hold ``directory`` for this process. On this machine the lock goes with the process, however
    it ends; in a store the lease of a process that was killed counts for ``lease_seconds`` more
    (``LEASE_SECONDS``), and that is waited for; less the ``seconds_seen`` of the version that it
    has, which are known to have gone by since somebody saw it (``versions_of_leases``).

    Raises UserError if another process still holds it after ``wait_seconds``; but with
    ``say_waiting``, which is called once if another process holds it, waits as long as it takes.
    """
    waiting = working(f"waiting for another glray process that writes to {directory}")
    refusal = UserError(
        f"{directory}: another glray process is writing there, and their records would be "
        "mixed; wait for it, stop it, or use another name (--set name=…)"
    )
    if not isinstance(directory, Path):
        lease = Lease(directory, lock, lease_seconds or leases.LEASE_SECONDS)
        if not lease.take(None):
            with waiting:
                _wait_for(lease, wait_seconds, say_waiting, refusal, seconds_seen)
        try:
            yield
        finally:
            lease.release()
        return
    directory.mkdir(parents=True, exist_ok=True)
    # Without flock it would fall back to a lock that outlives a killed process.
    file_lock = FileLock(directory / lock, poll_interval=0.1, fallback_to_soft=False)
    try:
        held = file_lock.acquire(timeout=0)
    except Timeout:
        try:
            if say_waiting is not None:
                say_waiting()
            with waiting:
                held = file_lock.acquire(timeout=wait_seconds if say_waiting is None else -1)
        except Timeout:
            raise refusal from None
    with held:
        yield


def versions_of_leases(directory: AnyPath, lock: str = ".lock") -> dict[str, str]:
    """The version of each lease on a folder directly below ``directory``, by the folder's name. As
    long as it stays, nobody has replaced the lease. On this machine there are none."""
    found = [path for path in matching(directory, f"*/{lock}") if isinstance(path, StorePath)]
    return {path.parent.name: path.stat().e_tag or "" for path in found}


def _wait_for(
    lease: Lease,
    wait_seconds: float,
    say_waiting: Callable[[], None] | None,
    refusal: UserError,
    seconds_seen: Callable[[str], float],
) -> None:
    """Take a lease that exists, when its holder releases it or no longer replaces it. Raises
    ``refusal`` if the holder lives and has not released it after ``wait_seconds``."""
    start = since = time.monotonic()
    seen: Seen | None = None
    lives = has_said = False
    while True:
        now, found = time.monotonic(), lease.look()
        if time.monotonic() - now > QUICK_SECONDS:
            since = time.monotonic()  # the store was away, also for the holder
        is_free = found is None or not found.claim.is_held
        if found is not None and (seen is None or found.e_tag != seen.e_tag):
            lives, seen, since = seen is not None, found, now - seconds_seen(found.e_tag)
        elif found is not None and now - since >= found.claim.seconds:
            is_free = True  # nobody has replaced it
        if is_free:
            if lease.take(found):
                return
            continue
        if say_waiting is None:
            if lives and now - start >= wait_seconds:
                raise refusal
        elif not has_said:
            has_said = True
            say_waiting()
        time.sleep(POLL_SECONDS)
