"""The coordinator of a launch in an actor, or in the driver where the one group trains there."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import ActorDiedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glray.files import AnyPath, matching, remove
from glray.spec.schedule import ArmSpec
from glray.storage import NONCE
from glray.train.group import MEETING_SECONDS, Coordinator, WorkerGroup

POLL_SECONDS = 0.1
ANSWER_SECONDS = 60.0
"""How long the coordinator may take for an answer that waits for no other group. Where the driver's
node is gone without a word, Ray itself would wait for many minutes, and the group, which still
holds its run, would keep the next command from it."""


class RayGroup(WorkerGroup):
    """A group whose coordinator lives in an actor. One whose driver was killed is seen to train on
    for some seconds: it finds the actor gone, stops and begins nothing more."""

    def claims(self, task: str) -> bool:
        """See WorkerGroup; in a launch that is over nobody claims."""
        try:
            return super().claims(task)
        except ActorDiedError:
            return False

    def is_held(self, task: str) -> bool:
        """See WorkerGroup; in a launch that is over nobody works."""
        try:
            return super().is_held(task)
        except ActorDiedError:
            return False

    def offered(self) -> tuple[list[ArmSpec], bool]:
        """See WorkerGroup; in a launch that is over nothing more is offered."""
        try:
            return super().offered()
        except ActorDiedError:
            return [], False

    def is_withdrawn(self, run: str) -> bool:
        """See WorkerGroup."""
        try:
            return super().is_withdrawn(run)
        except ActorDiedError:
            return False

    def release(self, task: str | None = None) -> None:
        """See WorkerGroup."""
        with suppress(ActorDiedError):
            super().release(task)

    def stop_requested(self) -> bool:
        """See WorkerGroup; in a launch that is over everybody stops."""
        try:
            return super().stop_requested()
        except ActorDiedError:
            return True

    def _ask(self, name: str, *arguments: object) -> Any:
        """The coordinator's answer. Raises GetTimeoutError, which ends the group."""
        meets = name in ("meet", "mean_of_all")
        seconds = ANSWER_SECONDS + (MEETING_SECONDS if meets else 0.0)
        answer = getattr(self.coordinator, name).remote(self.index, *arguments)
        return ray.get(answer, timeout=seconds)


@contextmanager
def launch(
    directory: AnyPath,
    count: int,
    *,
    stop: threading.Event | None = None,
    in_driver: bool = False,
    is_open: bool = False,
) -> Iterator[list[WorkerGroup]]:
    """The groups of a new launch in a pipeline's directory; what an earlier one left is gone.

    ``stop`` asks them to stop. ``in_driver``: they run in threads of this process, without an
    actor. ``is_open``: they wait for further arms to be offered, until the launch is closed.
    """
    stop = stop or threading.Event()
    for pattern in (f"{NONCE}*", "progress-*.json"):  # also of groups not of this launch
        for path in matching(directory, pattern):
            remove(path)
    if in_driver:
        coordinator = Coordinator(count, stop, is_open=is_open)
        yield [WorkerGroup(index, count, coordinator) for index in range(count)]
        return
    actor = _new_actor(f"coordinator of {directory}", count, is_open)
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


def _new_actor(name: str, count: int, is_open: bool) -> Any:
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
    return options.remote(count, is_open=is_open)
