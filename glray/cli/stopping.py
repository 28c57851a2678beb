"""Stopping well: Ctrl-C or SIGTERM asks the workers for a checkpoint instead of ending them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


@dataclass
class StopRequest:
    """Whether a signal has asked to stop, and which."""

    event: threading.Event = field(default_factory=threading.Event)
    """Set by the signal."""
    exit_status: int = 0
    """130 for Ctrl-C, 143 for SIGTERM, as a shell counts them; 0 without a signal."""


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Within the block the first SIGINT or SIGTERM sets the request's event, which the workers
    learn of at their next logging boundary; a second ends the process at once. Main thread only."""
    request = StopRequest()

    def stop(signal_number: int, _: FrameType | None) -> None:
        if request.exit_status:
            os._exit(128 + signal_number)
        request.exit_status = 128 + signal_number
        request.event.set()
        say("stopping at the next checkpoint; again to end at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_a_thread(work: Callable[[], T]) -> T:
    """Do ``work`` in a thread, so that the main thread stays free to take signals (in the main
    thread Ray Train would take Ctrl-C for itself and abort)."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fit") as pool:
        return pool.submit(work).result()
