"""Through what the worker groups of one launch, a call of ``fit``, agree: one coordinator.

It knows which group has claimed which run, what a step has cost each group where a calibration is
missing (they measure at the same time: beside others a step costs more, and so it will in
training), whether they are asked to stop, and what a group met that a person can fix. It lives in
an actor, or in the driver where the one group trains there. Nothing of it outlives its launch: what
has to is a record in the storage.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MEETING_SECONDS = 120.0
"""How long a group waits for the others: one may have found no room after all, or have died."""
POLL_SECONDS = 0.1
RAY_TRAIN_STORAGE = ".ray-train"
"""What Ray Train writes in a pipeline's directory during a launch: nothing that matters."""


class Coordinator:
    """What the groups have told, by their index; each method may be called again with the same."""

    def __init__(self, count: int, stop: threading.Event | None = None) -> None:
        self._count = count
        self._stop = stop or threading.Event()
        self._changed = threading.Condition()
        self._claims: dict[str, int] = {}
        self._came: set[int] = set()
        self._costs: dict[int, dict[int, int]] = {}
        self._mean: dict[int, int] | None = None
        self._errors: dict[int, str] = {}

    def claims(self, index: int, task: str) -> bool:
        """Whether a task is the group's: the first that asks has it."""
        with self._changed:
            return self._claims.setdefault(task, index) == index

    def claimed(self, index: int) -> list[str]:
        """What the group has claimed so far."""
        with self._changed:
            return [task for task, owner in self._claims.items() if owner == index]

    def meet(self, index: int) -> dict[int, int] | None:
        """Return when all groups have come, or after ``MEETING_SECONDS``: the mean costs, if the
        others have agreed on them before."""
        with self._changed:
            self._came.add(index)
            self._wait_until(lambda: self._mean is not None or len(self._came) == self._count)
            return self._mean

    def mean_of_all(self, index: int, costs: dict[int, int]) -> dict[int, int]:
        """The mean, by length, of the costs of all groups that have come to ``meet``; the same for
        each that asks, also later."""
        with self._changed:
            self._costs[index] = costs
            self._wait_until(lambda: self._mean is not None or self._costs.keys() >= self._came)
            if self._mean is None:
                brought = self._costs.values()
                self._mean = {n: round(sum(c[n] for c in brought) / len(brought)) for n in costs}
            return self._mean

    def request_stop(self) -> None:
        """Ask all groups to stop at their next logging boundary."""
        self._stop.set()

    def stop_requested(self, index: int) -> bool:
        """Whether the groups are asked to stop."""
        return self._stop.is_set()

    def set_error(self, index: int, error: str | None) -> None:
        """Keep what ended the group for a person to fix; None as it starts (again)."""
        with self._changed:
            self._errors.pop(index, None)
            if error is not None:
                self._errors[index] = error

    def error(self, index: int) -> str | None:
        """What ended the group, if a person can fix it."""
        with self._changed:
            return self._errors.get(index)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        self._changed.notify_all()
        self._changed.wait_for(condition, MEETING_SECONDS)


@dataclass(frozen=True)
class WorkerGroup:
    """One of the groups of a launch, before its coordinator. Of its workers rank 0 alone asks."""

    index: int
    count: int
    coordinator: Any
    """A Coordinator; see there for what the methods do."""

    def claims(self, task: str) -> bool:
        """Whether a task, such as the run of a name, is this group's; still so when Ray has started
        it again."""
        return self._ask("claims", task)

    def claimed(self) -> list[str]:
        """What this group has claimed so far."""
        return self._ask("claimed")

    def meet(self) -> dict[int, int] | None:
        """Return when all groups have come here."""
        return self._ask("meet")

    def mean_of_all(self, costs: dict[int, int]) -> dict[int, int]:
        """The mean of what each group brings, by length."""
        return self._ask("mean_of_all", costs)

    def stop_requested(self) -> bool:
        """Whether to stop at the next logging boundary."""
        return self._ask("stop_requested")

    def set_error(self, error: str | None) -> None:
        """Leave for the driver what has ended this group."""
        self._ask("set_error", error)

    def error(self) -> str | None:
        """What has ended this group, if a person can fix it."""
        return self._ask("error")

    def _ask(self, name: str, *arguments: object) -> Any:
        return getattr(self.coordinator, name)(self.index, *arguments)


class RayGroup(WorkerGroup):
    """A group whose coordinator lives in an actor. One whose driver was killed is seen to train on
    for some seconds: it finds the actor gone, stops and begins nothing more."""

    def claims(self, task: str) -> bool:
        """See WorkerGroup; in a launch that is over nobody claims."""
        try:
            return super().claims(task)
        except ActorDiedError:
            return False

    def stop_requested(self) -> bool:
        """See WorkerGroup; in a launch that is over everybody stops."""
        try:
            return super().stop_requested()
        except ActorDiedError:
            return True

    def _ask(self, name: str, *arguments: object) -> Any:
        return ray.get(getattr(self.coordinator, name).remote(self.index, *arguments))


@contextmanager
def launch(
    directory: Path, count: int, *, stop: threading.Event | None = None, in_driver: bool = False
) -> Iterator[list[WorkerGroup]]:
    """The groups of a new launch in a pipeline's directory; what an earlier one left is gone.

    ``stop`` asks them to stop. ``in_driver``: they run in threads of this process, without an
    actor.
    """
    stop = stop or threading.Event()
    left = [*directory.glob(RAY_TRAIN_STORAGE), *directory.glob("progress-*.json")]
    for path in left:  # the latter of groups that this launch may not have
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if in_driver:
        coordinator = Coordinator(count, stop)
        yield [WorkerGroup(index, count, coordinator) for index in range(count)]
        return
    actor = _new_actor(f"coordinator of {directory}", count)
    over = threading.Event()

    def pass_on() -> None:
        while not over.wait(POLL_SECONDS):
            if stop.is_set():
                actor.request_stop.remote()
                return

    threading.Thread(target=pass_on, name="stop", daemon=True).start()
    try:
        yield [RayGroup(index, count, actor) for index in range(count)]
    finally:
        over.set()
        ray.kill(actor)
        shutil.rmtree(directory / RAY_TRAIN_STORAGE, ignore_errors=True)


def _new_actor(name: str, count: int) -> Any:
    """A coordinator on this node, lost only with the driver. One of the same name is of a driver
    that was killed, whose groups may not know it yet: it goes first."""
    with suppress(ValueError):  # the name is free
        while True:
            ray.kill(ray.get_actor(name, namespace="glray"))
            time.sleep(POLL_SECONDS)
    here = ray.get_runtime_context().get_node_id()
    options = ray.remote(Coordinator).options(
        name=name,
        namespace="glray",
        num_cpus=0,
        max_concurrency=2 * count + 2,  # each group may be waiting in one call, and asking another
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    )
    return options.remote(count)
