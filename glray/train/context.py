"""What the loop knows of where it runs: a small context with a Ray and a local implementation."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from glray.data.corpus import PreparedCorpus
from glray.data.windows import Batch, StageReads, local_batches
from glray.train.groups import ALONE, WorkerGroup


class WorkerContext(Protocol):
    """One worker of a group. With several, ``torch.distributed`` is initialised."""

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""

    @property
    def world_size(self) -> int:
        """Number of workers."""

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""

    @property
    def group(self) -> WorkerGroup:
        """Its group among those that train side by side."""

    def batches(self, corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Iterator[Batch]:
        """The batches of ``segments``, in order."""

    def stop_requested(self) -> bool:
        """Whether to write a checkpoint and return at the next step."""

    def preempted(self) -> bool:
        """Whether a node of the group is about to be taken away; every rank calls it at the same
        step and is told the same."""

    def report(self, metrics: dict[str, float]) -> None:
        """Tell the controller how the run stands; every rank calls it at the same step."""


@dataclass
class LocalContext:
    """One worker without Ray: reads token blocks itself. The loop's tests run on it."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stop: Callable[[], bool] = lambda: False
    group: WorkerGroup = ALONE

    def batches(self, corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Iterator[Batch]:
        """See WorkerContext."""
        return local_batches(corpus, segments)

    def stop_requested(self) -> bool:
        """See WorkerContext."""
        return self.stop()

    def preempted(self) -> bool:
        """See WorkerContext; no node is taken away."""
        return False

    def report(self, metrics: dict[str, float]) -> None:
        """See WorkerContext; nobody listens."""


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
