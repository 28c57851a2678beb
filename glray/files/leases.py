"""A lease: who alone writes below a folder of a store.

It is an object that its holder replaces every few seconds. Whoever finds it looks on: if it stays
as it is for its whole time, its holder is gone, and it is taken over. No clocks are compared, and
replacing it succeeds only if nobody else has. A holder writes only if it has replaced the lease a
moment ago, so that what it writes has ended before anybody can take over; one that was taken over
writes nothing more.
"""

import errno
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from typing import Any

import obstore

from glray.errors import UserError
from glray.files.paths import (
    PATIENCE_SECONDS,
    AnyPath,
    StorePath,
    asked_again,
    naming_store,
)

LEASE_SECONDS = 30.0
"""How long a lease that nobody replaces still counts. It is replaced every sixth of it; a write may
begin within the third after that, and ends, well or not, within the next: ``2 * QUICK_SECONDS``."""


@dataclass(frozen=True)
class Claim:
    """What a lease says: who holds it, and how many times it has been replaced, so that no two of
    its versions are alike."""

    holder: str
    number: int
    seconds: float
    """How long it counts after it was replaced."""
    is_held: bool = True

    def encoded(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True)
class Seen:
    """A lease as it was found."""

    claim: Claim
    e_tag: str


class Lease:
    """A lease of this process on the ``directory`` of a store."""

    def __init__(self, directory: StorePath, lock: str, seconds: float = LEASE_SECONDS) -> None:
        self._path, self._below = directory / lock, f"{directory}/"
        host = f"process {os.getpid()} on {socket.gethostname()}"
        self._claim = Claim(f"{host} ({uuid.uuid4().hex[:8]})", 0, seconds)
        self._e_tag = ""
        self._renewed_at = 0.0
        self._taken_by: str | None = None
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {lock}", daemon=True)

    def take(self, seen: Seen | None) -> bool:
        """Make the lease, or replace the one that was seen; False if another process has meanwhile.
        From then on it is kept until it is released."""
        if not self._put(replace(self._claim, number=1), None if seen is None else seen.e_tag):
            return False
        _held.append(self)
        self._thread.start()
        return True

    def look(self) -> Seen | None:
        """The lease as it is now; None if there is none."""
        try:
            with naming_store(self._path):
                found = obstore.get(self._path.store, self._path.key)
                e_tag, content = found.meta["e_tag"], found.bytes().to_bytes()
        except FileNotFoundError:
            return None
        try:
            claim = Claim(**json.loads(content))
        except (ValueError, TypeError):  # the lock of a folder that was copied here
            claim = Claim("nobody", 0, 0, is_held=False)
        return Seen(claim, e_tag or "")

    def release(self) -> None:
        """Let others have it at once; a store that is away need not know."""
        self._over.set()
        self._thread.join()
        _held.remove(self)
        if self._taken_by is None:
            try:
                self._put(replace(self._next(), is_held=False), self._e_tag)
            except OSError:
                return

    def covers(self, path: AnyPath) -> bool:
        """Whether a path is the folder, or below it."""
        return f"{path}/".startswith(self._below)

    def ensure(self) -> None:
        """Return once it is sure that nobody else writes for a while. Raises UserError if another
        process has taken the lease over, OSError if the store is away for long."""
        end = time.monotonic() + PATIENCE_SECONDS
        fresh_seconds = self._claim.seconds / 3
        with self._changed:
            while self._taken_by is None and time.monotonic() - self._renewed_at > fresh_seconds:
                if not self._changed.wait(max(0.0, end - time.monotonic())):
                    reason = "the store does not answer, so another process may write here by now"
                    raise OSError(errno.ETIMEDOUT, reason, str(self._path))
        if self._taken_by is not None:
            raise UserError(
                f"{self._path}: {self._taken_by} has taken over, as this process had not said for "
                f"{self._claim.seconds:.0f} s that it lives: it stops and writes nothing more; "
                "follow the other one, or stop it and run the same command again"
            )

    def _keep(self) -> None:
        """Replace the lease again and again."""
        pause = self._claim.seconds / 6
        while not self._over.wait(pause) and self._taken_by is None:
            try:
                is_ours = self._put(self._next(), self._e_tag)
                seen = None if is_ours else self.look()
            except OSError:  # the store is away; it may still be ours
                continue
            if not is_ours:
                with self._changed:
                    self._taken_by = seen.claim.holder if seen else "somebody who has deleted it"
                    self._changed.notify_all()

    def _next(self) -> Claim:
        return replace(self._claim, number=self._claim.number + 1)

    def _put(self, claim: Claim, e_tag: str | None) -> bool:
        """Write a claim over the version ``e_tag``, by default none; False if that is not it."""
        mode: Any = "create" if e_tag is None else {"e_tag": e_tag}
        start = time.monotonic()
        try:
            store, key = self._path.quick_store, self._path.key
            put = asked_again(
                self._path,
                lambda: obstore.put(store, key, claim.encoded(), mode=mode),
            )
            written = put["e_tag"]
        except FileExistsError:
            # Perhaps by this very request, whose answer was lost.
            seen = self.look()
            if seen is None or seen.claim != claim:
                return False
            written = seen.e_tag
        with self._changed:
            self._claim, self._e_tag, self._renewed_at = claim, written or "", start
            self._changed.notify_all()
        return True


_held: list[Lease] = []
"""Those of this process."""


def ensure_held(path: AnyPath) -> None:
    """Called before every write to a store: see ``Lease.ensure`` for each lease of this process
    that covers the path."""
    for lease in tuple(_held):
        if lease.covers(path):
            lease.ensure()
