"""What the loop knows of where it runs: a small context with a Ray and a local implementation."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from glray.data.corpus import PreparedCorpus
from glray.data.windows import Batch, StageReads, local_batches


class Group(Protocol):
    """A worker group among those that train side by side; what they agree on. Rank 0 alone asks."""

    @property
    def index(self) -> int:
        """Its number, from 0."""

    @property
    def count(self) -> int:
        """Number of groups."""

    def claims(self, task: str) -> bool:
        """Whether a task, such as a run's name, is this group's: the first that asks has it."""

    def meet(self) -> dict[int, int] | None:
        """Return when all groups have come here, or after a while: the costs that the others have
        agreed on before, if they have."""

    def mean_of_all(self, costs: dict[int, int]) -> dict[int, int]:
        """The mean, by length, of what each group that has come to ``meet`` brings: microseconds of
        a step. The same for all."""


class Alone:
    """A group on its own, which has everything to do."""

    index = 0
    count = 1

    def claims(self, task: str) -> bool:
        """See Group."""
        return True

    def meet(self) -> dict[int, int] | None:
        """See Group; nobody else comes."""
        return None

    def mean_of_all(self, costs: dict[int, int]) -> dict[int, int]:
        """See Group."""
        return costs


ALONE = Alone()


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
    def group(self) -> Group:
        """Its group among those that train side by side."""

    def batches(self, corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Iterator[Batch]:
        """The batches of ``segments``, in order."""

    def stop_requested(self) -> bool:
        """Whether to write a checkpoint and return; what rank 0 is told counts."""

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
    group: Group = ALONE

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
