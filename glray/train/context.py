"""What the loop knows of where it runs: a small context, which ``glray.ray.train`` extends."""

import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from glray.data.corpus import PreparedCorpus
from glray.data.windows import Batch, StageReads, local_batches
from glray.run.run import Run
from glray.train.group import WorkerGroup


class Tracker(Protocol):
    """Where a run is watched from outside."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Show ``scalars`` at ``step``: the steps trained so far."""

    def flush(self) -> None:
        """Return once all of it is written."""

    def keep(self) -> None:
        """Return once it lies where the run's files are; what relies on it comes after."""

    def close(self) -> None:
        """Flush for the last time; the run goes no further in this process."""


@dataclass
class WorkerContext:
    """One worker of a group, here without Ray: it reads token blocks itself. With several workers
    ``torch.distributed`` is initialised."""

    rank: int = 0
    """This worker's number, from 0."""
    world_size: int = 1
    """Number of workers."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this worker computes."""
    stop: Callable[[], bool] = lambda: False
    group: WorkerGroup = field(default_factory=WorkerGroup)
    """Its group among those that train side by side."""

    def batches(self, corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Generator[Batch]:
        """The batches of ``segments``, in order; to be closed by who asks for them."""
        return local_batches(corpus, segments)

    def stop_requested(self) -> bool:
        """Whether to write a checkpoint and return; what rank 0 is told counts."""
        return self.stop()

    def preempted(self) -> bool:
        """Whether a node of the group is about to be taken away; every rank calls it at the same
        step and is told the same."""
        return False

    def trackers(self, run: Run) -> list[Tracker]:
        """What shows this rank's part of a run outside of its directory."""
        return []

    def report(self, metrics: dict[str, float]) -> None:
        """Tell the controller, if there is one, how the run stands; every rank calls it at the same
        step."""


def sum_over_ranks(ctx: WorkerContext, tensor: torch.Tensor) -> torch.Tensor:
    """The element-wise sum of every rank's tensor, in place; int64 wraps modulo 2^64."""
    if ctx.world_size > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def from_rank_zero(ctx: WorkerContext, value: int) -> int:
    """Rank 0's value, on every rank."""
    if ctx.world_size == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64, device=ctx.device)
    torch.distributed.broadcast(tensor, src=0)
    return int(tensor.item())


def as_rank_zero_sees(ctx: WorkerContext, look: Callable[[], Any]) -> Any:
    """What ``look`` returns on rank 0, a JSON value, on every rank.

    Rank 0 alone looks: over NFS a node may for a minute see an older state of the storage than
    another, and ranks that decide differently wait for each other forever.
    """
    if ctx.world_size == 1:
        return look()
    text = json.dumps(look()).encode() if ctx.rank == 0 else b""
    size = from_rank_zero(ctx, len(text))
    content = torch.frombuffer(bytearray(text or size), dtype=torch.uint8).to(ctx.device)
    torch.distributed.broadcast(content, src=0)
    return json.loads(content.cpu().numpy().tobytes())


def most_over_ranks(ctx: WorkerContext, value: int) -> int:
    """The largest of every rank's values, on every rank."""
    if ctx.world_size == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64, device=ctx.device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return int(tensor.item())


def least_over_ranks(ctx: WorkerContext, value: int) -> int:
    """The smallest of every rank's values, on every rank."""
    return -most_over_ranks(ctx, -value)


def device_clock(device: torch.device) -> float:
    """The clock in seconds, once the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
