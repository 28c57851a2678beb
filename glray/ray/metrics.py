"""What Prometheus sees of a pipeline, through the endpoint that Ray has on every node.

Ray's agent forwards a value for two of its report intervals (20 s) and then drops it, unless it is
set again. So a thread repeats the last values of a run while it trains, whatever the loop is busy
with, and the loop only leaves them in a dictionary. When the run ends, its series end too.
``docs/metrics.md`` defines every name.
"""

import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ray.util.metrics import Gauge

from glray.run.run import Run
from glray.spec.pipeline import PipelineSpec
from glray.train.group import WorkerGroup

REPEAT_SECONDS = 5.0


@dataclass(frozen=True)
class Metric:
    """A gauge; Ray puts ``ray_`` before its name, and takes only ASCII for its definition."""

    definition: str
    tags: tuple[str, ...] = ("pipeline", "run")


def _of_step(field: str) -> Metric:
    return Metric(f"`{field}` of the latest line of `metrics.jsonl`.")


METRICS = {
    "glray_step": _of_step("step"),
    "glray_num_steps": Metric("Steps of the whole run."),
    "glray_stage": _of_step("stage"),
    "glray_seq_len": _of_step("seq_len"),
    "glray_tokens": _of_step("tokens"),
    "glray_loss": _of_step("loss"),
    "glray_grad_norm": _of_step("grad_norm"),
    "glray_lr": _of_step("lr"),
    "glray_tokens_per_second": _of_step("tokens_per_second"),
    "glray_mfu": _of_step("mfu"),
    "glray_heldout_loss": Metric(
        "Held-out loss in windows of `seq_len`, in nats per token, at the latest evaluation.",
        ("pipeline", "run", "seq_len"),
    ),
    "glray_saved_timestamp_seconds": Metric(
        "Unix time of the latest committed checkpoint, or of the start if there is none since: "
        "what has been trained after it is lost with the worker group."
    ),
    "glray_data_wait_share": Metric(
        "Share of its measured seconds that a rank has waited for batches, between the two latest "
        "flushes.",
        ("pipeline", "run", "rank"),
    ),
    "glray_memory_bytes": Metric(
        "A rank's memory, as `memory_bytes` of `metrics.jsonl`.", ("pipeline", "run", "rank")
    ),
    "glray_restarts": Metric(
        "How many times the command has started a worker group again, by `reason`: `failure` or "
        "`preemption`.",
        ("pipeline", "group", "reason"),
    ),
}
"""Every metric by its name, with its definition and its tags. Those of a ``rank`` come from every
worker, the others from rank 0, and ``glray_restarts`` from the command."""


class Gauges:
    """The last values of some metrics, repeated until closed. ``tags`` apply to all of them."""

    def __init__(self, **tags: str) -> None:
        self._tags = tags
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._repeat, name="metrics", daemon=True).start()

    def set(self, name: str, value: float, **tags: str) -> None:
        """From now on the metric has this value under these tags."""
        self._values[name, tuple(tags.items())] = value

    def close(self) -> None:
        """Give Ray all values for the last time."""
        if not self._closed.is_set():
            self._closed.set()
            self._give()

    def _repeat(self) -> None:
        while not self._closed.wait(REPEAT_SECONDS):
            self._give()

    def _give(self) -> None:
        for (name, tags), value in list(self._values.items()):
            known = self._tags | dict(tags)
            _gauge(name).set(value, {tag: known[tag] for tag in METRICS[name].tags})


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(name, METRICS[name].definition, tag_keys=METRICS[name].tags)


class Prometheus:
    """A tracker of one rank's part of a run."""

    def __init__(self, run: Run, rank: int) -> None:
        self._is_first = rank == 0
        self._gauges = Gauges(pipeline=run.spec.name, run=run.name, rank=str(rank))
        self._waited_seconds = self._seconds = 0.0
        self._flushed_seconds: float | None = None
        if self._is_first:
            self._gauges.set("glray_num_steps", run.plan.num_steps)
        self.saved()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """See Tracker."""
        for tag, value in {**scalars, "train/step": step}.items():
            kind, _, name = tag.partition("/")
            if tag == "train/memory_bytes":
                self._gauges.set("glray_memory_bytes", value)
            elif tag == "train/measured_seconds":
                self._seconds = value
            elif tag == "train/data_wait_seconds":
                self._waited_seconds += value
            elif kind == "heldout" and self._is_first:
                seq_len = name.removeprefix("loss/")
                self._gauges.set("glray_heldout_loss", value, seq_len=seq_len)
            elif f"glray_{name}" in METRICS and self._is_first:
                self._gauges.set(f"glray_{name}", value)

    def flush(self) -> None:
        """See Tracker: what has been waited since the last flush of steps is seen from now on.
        The steps before the first one have no beginning."""
        before, self._flushed_seconds = self._flushed_seconds, self._seconds
        if before is not None and self._seconds > before:
            share = self._waited_seconds / (self._seconds - before)
            self._gauges.set("glray_data_wait_share", share)
        self._waited_seconds = 0.0

    def keep(self) -> None:
        """See Tracker: nothing of it is a file."""

    def saved(self) -> None:
        """A checkpoint has been committed."""
        if self._is_first:
            self._gauges.set("glray_saved_timestamp_seconds", time.time())

    def close(self) -> None:
        """See Tracker."""
        self._gauges.close()


class RestartGauges:
    """How often a worker group was started again since the command has begun."""

    def __init__(self, spec: PipelineSpec, group: WorkerGroup) -> None:
        self._gauges = Gauges(pipeline=spec.name, group=str(group.index))
        self._counts = {"failure": 0, "preemption": 0}
        for reason in self._counts:
            self._gauges.set("glray_restarts", 0, reason=reason)

    def add(self, reason: Literal["failure", "preemption"]) -> None:
        """The group is started once more."""
        self._counts[reason] += 1
        self._gauges.set("glray_restarts", self._counts[reason], reason=reason)

    def close(self) -> None:
        """The group has ended."""
        self._gauges.close()
