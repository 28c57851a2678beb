"""Compares loops step by step on a machine that is never quiet."""

import random
import threading
import time


class Turns:
    """One step at a time, of each loop in turn, in an order that changes every round: what slows
    the machine for a while slows all of them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._order = list(names)
        self._rng = random.Random(0)
        self._queue: list[str] = []
        self._holder: str | None = None
        self._start = 0.0
        self._changed = threading.Condition()

    def next(self, name: str) -> None:
        """A loop calls this before each step, from a thread of its own: its last step has ended,
        and it waits for the turn of the next."""
        with self._changed:
            if self._holder == name:
                self.seconds[name].append(time.perf_counter() - self._start)
                self._holder = None
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._holder is None and self._is_next(name))
            self._queue.pop(0)
            self._holder = name
        self._start = time.perf_counter()

    def leave(self, name: str) -> None:
        """The loop has ended."""
        with self._changed:
            self._order.remove(name)
            self._queue = [other for other in self._queue if other != name]
            self._holder = None
            self._changed.notify_all()

    def _is_next(self, name: str) -> bool:
        if not self._queue:
            self._queue = self._rng.sample(self._order, len(self._order))
        return self._queue[0] == name
