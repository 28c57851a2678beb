"""Measures that are kept one by one: whatever ends a benchmark early, what it measured stays."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import keep, machine
from glray.files import read_json
from glray.train.context import WorkerContext


class Measures:
    """The measures of one benchmark, in ``FOLDER/NAME.json`` after each.

    A second call goes on: what the same commit has measured on the same machine is not measured
    again. What failed is.
    """

    def __init__(self, name: str, folder: Path, ctx: WorkerContext, seconds: float) -> None:
        self.name, self.folder, self.ctx = name, folder, ctx
        self._deadline = time.monotonic() + seconds
        before = read_json(folder / f"{name}.json", "delete it") or {}
        on_this_machine = before.get("environment") == machine(ctx)
        self.taken: dict[str, Any] = before["measures"] if on_this_machine else {}

    @property
    def seconds_left(self) -> float:
        """Until no measure is begun any more."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def is_complete(self) -> bool:
        """Whether nothing failed and nothing was left out."""
        return not any("error" in taken for taken in self.taken.values())

    def take(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``measure`` returns, or has returned in an earlier call; ``{"error": …}`` in one
        line if it raises or there is no time left for it. So one that fails, as for lack of
        memory, costs no other."""
        found = self.taken.get(name, {"error": "not measured"})
        if "error" in found:
            found = self._measured(measure)
            self.taken[name] = found
            keep(self.name, {"measures": self.taken}, self.ctx, self.folder)
        print(f"{self.name}: {name}: {found}", flush=True)
        return found

    def _measured(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if not self.seconds_left:
            return {"error": "no time left"}
        try:
            return measure()
        except Exception as error:
            traceback.print_exc()
            first, *_ = str(error).splitlines() or [""]
            return {"error": f"{type(error).__name__}: {first}"}
