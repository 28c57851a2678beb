"""Stopping well: Ctrl-C or SIGTERM asks the workers for a checkpoint instead of ending them."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


@dataclass
class StopRequest:
    """Whether a signal has asked to stop, and which."""

    signal_number: int | None = None

    @property
    def exit_status(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, as a shell counts them; 0 without a signal."""
        return 0 if self.signal_number is None else 128 + self.signal_number


@contextmanager
def stop_on_signals(stop_file: Path, say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Within the block the first SIGINT or SIGTERM leaves ``stop_file``, which the workers read at
    their next logging border; a second ends the process at once. Main thread only."""
    request = StopRequest()

    def stop(signal_number: int, _: FrameType | None) -> None:
        if request.signal_number is not None:
            os._exit(128 + signal_number)
        request.signal_number = signal_number
        stop_file.touch()
        say("stopping at the next checkpoint; again to end at once")

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in signals]
    stop_file.unlink(missing_ok=True)
    try:
        yield request
    finally:
        stop_file.unlink(missing_ok=True)
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def in_a_thread(work: Callable[[], None]) -> None:
    """Do ``work`` in a thread, so that the main thread stays free to take signals (in the main
    thread Ray Train would take Ctrl-C for itself and abort)."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fit") as pool:
        pool.submit(work).result()
