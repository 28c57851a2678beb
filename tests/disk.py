"""Folders of this machine, and a disk that is full."""

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

from glray.files import AnyPath


@contextlib.contextmanager
def files_of_a_kilobyte() -> Iterator[None]:
    """No file can grow beyond 1,000 bytes: a real error of ``write``, as that of a full disk.

    Within the test alone: pytest's own output may well go to a file longer than that.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def here(path: AnyPath) -> Path:
    """A path of a run on this machine, as one."""
    assert isinstance(path, Path)
    return path
