"""What this thread is busy with, how far it is, and about how long it still takes.

Whatever can last more than some seconds is done in a ``working`` block. Who shows it listens: a
command has a live line, a worker its ``progress.json``. Where nobody listens nothing happens.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Work:
    """Something that takes a while."""

    what: str
    """Such as ``evaluating after seq_len 128``."""
    run: str | None = None
    """Name of the run that it is done for."""
    total: float = 0.0
    """How much there is to do, in whatever ``done`` counts; 0 if nobody knows."""
    done: float = 0.0
    note: str = ""
    """What else there is to say, such as a rate."""
    detail: Any = None
    """What the listener knows to show besides."""
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float | None:
        """What of it is done, from 0 to 1; None if nobody knows."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def seconds_left(self) -> float | None:
        """About how long it still takes; None if nobody knows."""
        return seconds_left(self.done, self.total, self.seconds)


def seconds_left(done: float, total: float, seconds: float) -> float | None:
    """How long what is left of ``total`` takes at the pace of what was ``done`` in ``seconds``;
    None as long as nothing is."""
    return seconds * max(0.0, total - done) / done if done > 0 and total > 0 else None


Listener = Callable[[Work | None], None]
"""Told of the innermost work whenever it changes; None where all is done."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_work: ContextVar[Work | None] = ContextVar("work", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within the block ``listener`` is told what this thread works on."""
    listening, outer = _listener.set(listener), _work.set(None)
    try:
        yield
    finally:
        _work.reset(outer)
        _listener.reset(listening)


@contextmanager
def working(what: str, total: float = 0.0, *, run: str | None = None) -> Iterator[None]:
    """Within the block this thread works on ``what``, for ``run`` or the run of the work around."""
    outer = _work.get()
    work = Work(what, run or (outer.run if outer else None), total)
    _work.set(work)
    _tell()
    try:
        yield
    finally:
        _work.set(outer)
        _tell()


def advance(done: float = 0.0, *, note: str | None = None, detail: Any = None) -> None:
    """So much more of the innermost work is done; ``note`` and ``detail`` replace what it has."""
    work = _work.get()
    if work is None:
        return
    work.done += done
    work.note = work.note if note is None else note
    work.detail = work.detail if detail is None else detail
    _tell()


def _tell() -> None:
    listener = _listener.get()
    if listener is not None:
        listener(_work.get())
