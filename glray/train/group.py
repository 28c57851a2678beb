"""What the worker groups of one launch (a call of ``fit``) agree on: a coordinator and its groups.

The coordinator knows which group has claimed which run, what a step has cost each group where a
calibration is missing (they measure at the same time: beside others a step costs more, and so it
will in training), whether they are asked to stop, and what a group met that a person can fix.
Nothing of it outlives its launch: what has to is a record in the storage. No Ray.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from glray.run.records import Repetitions, mean_costs
from glray.spec.schedule import ArmSpec

MEETING_SECONDS = 120.0
"""How long a group waits for the others: one may have found no room after all, or have died."""


class Coordinator:
    """What the groups have told, by their index; each method may be called again with the same."""

    def __init__(
        self, count: int, stop: threading.Event | None = None, *, is_open: bool = False
    ) -> None:
        self._is_open = is_open
        self._offered: list[str] = []
        self._withdrawn: set[str] = set()
        self._count = count
        self._stop = stop or threading.Event()
        self._changed = threading.Condition()
        self._claims: dict[str, int] = {}
        self._held: set[str] = set()
        self._came: set[int] = set()
        self._costs: dict[int, Repetitions] = {}
        self._mean: Repetitions | None = None
        self._errors: dict[int, str] = {}
        self._leases: dict[str, tuple[str, float]] = {}

    def claims(self, index: int, task: str) -> bool:
        """Whether a task is the group's: the first that asks has it."""
        with self._changed:
            is_its = self._claims.setdefault(task, index) == index
            if is_its:
                self._held.add(task)
            return is_its

    def claimed(self, index: int) -> list[str]:
        """What the group has claimed so far."""
        with self._changed:
            return [task for task, owner in self._claims.items() if owner == index]

    def is_held(self, index: int, task: str) -> bool:
        """Whether a group has claimed the task and has not released it."""
        with self._changed:
            return task in self._held

    def release(self, index: int, task: str | None = None) -> None:
        """The group has ended a task that it has claimed, by default all of them."""
        with self._changed:
            for name in [task] if task is not None else self.claimed(index):
                self._held.discard(name)

    def meet(self, index: int) -> Repetitions | None:
        """Return when all groups have come, or after ``MEETING_SECONDS``: the mean costs, if the
        others have agreed on them before."""
        with self._changed:
            self._came.add(index)
            self._wait_until(lambda: self._mean is not None or len(self._came) == self._count)
            return self._mean

    def mean_of_all(self, index: int, costs: Repetitions) -> Repetitions:
        """The mean, by repetition and length, of the costs of all groups that have come to
        ``meet``; the same for each that asks, also later."""
        with self._changed:
            self._costs[index] = costs
            self._wait_until(lambda: self._mean is not None or self._costs.keys() >= self._came)
            if self._mean is None:
                by_repetition = zip(*self._costs.values(), strict=True)
                self._mean = [mean_costs(of_groups) for of_groups in by_repetition]
            return self._mean

    def request_stop(self) -> None:
        """Ask all groups to stop at their next logging boundary."""
        self._stop.set()

    def stop_requested(self, index: int) -> bool:
        """Whether the groups are asked to stop, or this one to leave the run that it trains."""
        with self._changed:
            held = self._held & set(self.claimed(index))
            return self._stop.is_set() or not held.isdisjoint(self._withdrawn)

    def offer(self, index: int, arm: str) -> None:
        """Have a further arm trained, as JSON."""
        with self._changed:
            if arm not in self._offered:
                self._offered.append(arm)

    def close(self, index: int) -> None:
        """No further arm will be offered."""
        self._is_open = False

    def offered(self, index: int) -> tuple[list[str], bool]:
        """All arms that were offered, in that order, and whether there may be more."""
        with self._changed:
            return list(self._offered), self._is_open and not self._stop.is_set()

    def withdraw(self, index: int, run: str) -> None:
        """Have a run stopped, whoever trains it, while the others go on."""
        with self._changed:
            self._withdrawn.add(run)

    def is_withdrawn(self, index: int, run: str) -> bool:
        """Whether a run is not to be trained further."""
        with self._changed:
            return run in self._withdrawn

    def set_error(self, index: int, error: str) -> None:
        """Keep what ended the group for a person to fix: what one of its ranks has said first."""
        with self._changed:
            self._errors.setdefault(index, error)

    def error(self, index: int) -> str | None:
        """What ended the group, if a person can fix it."""
        with self._changed:
            return self._errors.get(index)

    def saw(self, index: int, leases: dict[str, str]) -> None:
        """The versions of leases as they are now, by the names of runs."""
        now = time.monotonic()
        with self._changed:
            for run, version in leases.items():
                if self._leases.get(run, ("", now))[0] != version:
                    self._leases[run] = (version, now)

    def seconds_seen(self, index: int, run: str, version: str) -> float:
        """Seconds since a run's lease was seen first in a version; 0 if it was not."""
        now = time.monotonic()
        with self._changed:
            seen, since = self._leases.get(run, ("", now))
            return now - since if seen == version else 0.0

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        self._changed.notify_all()
        self._changed.wait_for(condition, MEETING_SECONDS)


@dataclass(frozen=True)
class WorkerGroup:
    """One of the groups of a launch, the only one unless told otherwise. Rank 0 alone asks, and
    tells the others what it was told."""

    index: int = 0
    count: int = 1
    coordinator: Any = field(default_factory=lambda: Coordinator(1))
    """A Coordinator, or a handle of one; see there for what the methods do."""

    def claims(self, task: str) -> bool:
        """Whether a task, such as the run of a name, is this group's; still so when Ray has started
        it again."""
        return self._ask("claims", task)

    def claimed(self) -> list[str]:
        """What this group has claimed so far."""
        return self._ask("claimed")

    def is_held(self, task: str) -> bool:
        """Whether a group, perhaps another, works on a task."""
        return self._ask("is_held", task)

    def release(self, task: str | None = None) -> None:
        """Say that this group has ended a task, by default all that it has claimed."""
        self._ask("release", task)

    def meet(self) -> Repetitions | None:
        """Return when all groups have come here."""
        return self._ask("meet")

    def mean_of_all(self, costs: Repetitions) -> Repetitions:
        """The mean of what each group brings, by repetition and length."""
        return self._ask("mean_of_all", costs)

    def stop_requested(self) -> bool:
        """Whether to stop at the next logging boundary."""
        return self._ask("stop_requested")

    def offer(self, arm: ArmSpec) -> None:
        """Have a further arm trained by whichever group is free."""
        self._ask("offer", arm.model_dump_json())

    def close(self) -> None:
        """Say that no further arm will be offered."""
        self._ask("close")

    def offered(self) -> tuple[list[ArmSpec], bool]:
        """All arms that were offered, in that order, and whether there may be more."""
        arms, is_open = self._ask("offered")
        return [ArmSpec.model_validate_json(arm) for arm in arms], is_open

    def withdraw(self, run: str) -> None:
        """Have a run stopped, whoever trains it."""
        self._ask("withdraw", run)

    def is_withdrawn(self, run: str) -> bool:
        """Whether a run is not to be trained further."""
        return self._ask("is_withdrawn", run)

    def set_error(self, error: str) -> None:
        """Leave for the driver what ends this group; any rank may."""
        self._ask("set_error", error)

    def error(self) -> str | None:
        """What has ended this group, if a person can fix it."""
        return self._ask("error")

    def saw(self, leases: dict[str, str]) -> None:
        """Say which versions the leases of runs have, before this group starts: see
        ``glray.files.versions_of_leases``."""
        self._ask("saw", leases)

    def seconds_seen(self, run: str, version: str) -> float:
        """For how many seconds a run's lease is known to have stayed as it is."""
        return self._ask("seconds_seen", run, version)

    def _ask(self, name: str, *arguments: object) -> Any:
        return getattr(self.coordinator, name)(self.index, *arguments)
