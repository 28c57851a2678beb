"""A cache on this node for what comes from a store: shared by its processes, in bounded space.

A file is there whole or not at all, and whoever has mapped one keeps it, whoever deletes it: so no
reader is in the way of eviction, nor the other way round. What a killed process leaves half-written
ages like all else. Of processes that want the same, one fetches it.
"""

import os
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock

from glray.errors import UserError

CACHE_BYTES = 16 * 2**30
"""Of a node's cache, and no more than a quarter of what its disk has free."""
NUM_LOCKS = 256
"""A fetch holds one; two different fetches rarely wait for each other."""


class NodeCache:
    """Files in ``folder``, the least recently used of which go when all are over ``max_bytes``."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._bytes_since_look = max_bytes  # others may have filled it
        try:
            (folder / "locks").mkdir(mode=0o700, parents=True, exist_ok=True)
            is_own = folder.stat().st_uid == os.getuid()
        except OSError as error:
            raise UserError(f"{folder}: no place for a cache ({error}); set TMPDIR") from None
        if not is_own:
            raise UserError(f"{folder}: belongs to another user, who could change it; set TMPDIR")

    def mapped(self, name: str, fetch: Callable[[], bytes]) -> np.ndarray:
        """The file of this name, as ``fetch`` returns it if it is not there: uint8[n], mapped."""
        path = self.folder / name
        while True:
            with suppress(FileNotFoundError):
                os.utime(path)
                return np.memmap(path, np.uint8, "r").view(np.ndarray)
            self._add(path, fetch)

    def discard(self, name: str) -> None:
        """Delete a file that is not what it should be."""
        (self.folder / name).unlink(missing_ok=True)

    def _add(self, path: Path, fetch: Callable[[], bytes]) -> None:
        number = zlib.crc32(path.name.encode()) % NUM_LOCKS
        lock = FileLock(
            self.folder / "locks" / f"{number:03d}", poll_interval=0.01, fallback_to_soft=False
        )
        with lock:
            if path.exists():
                return
            content = fetch()
            partial = path.with_name(f".{uuid.uuid4().hex}")
            try:
                partial.write_bytes(content)
                with suppress(FileNotFoundError):  # evicted
                    partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        self._bytes_since_look += len(content)
        if self._bytes_since_look > self.max_bytes // 64:
            self._bytes_since_look = 0
            self._evict(path)

    def _evict(self, newest: Path) -> None:
        found = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                if entry.is_file():
                    stat = entry.stat()
                    found.append((stat.st_mtime_ns, stat.st_size, Path(entry)))
        total = sum(size for _, size, _ in found)
        most = min(self.max_bytes, (total + shutil.disk_usage(self.folder).free) // 4)
        if total <= most:
            return
        for _, size, path in sorted(found):
            if total <= most * 7 // 8:  # not again for the next file
                return
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


@lru_cache(maxsize=1)
def node_cache() -> NodeCache:
    """The cache of this user on this node, in the folder of temporary files (``TMPDIR``)."""
    return NodeCache(Path(tempfile.gettempdir()) / f"glray-cache-{os.getuid()}", CACHE_BYTES)
