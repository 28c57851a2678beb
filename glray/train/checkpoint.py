"""Saving and loading the tensors of a checkpoint: any number of workers, replicated or sharded,
loads what any other number has written.

A checkpoint is saved in two acts. ``Saver.begin`` copies its tensors, for which training waits, and
a thread writes them while training goes on. ``Saver.commit`` makes what is written the latest
checkpoint, at a later step at which all ranks have written their share. In between it counts for
nothing: a run that is killed goes on from the one before.
"""

import errno
import os
import threading
import uuid
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import torch

from glray.errors import UserError
from glray.files import AnyPath, StorePath
from glray.machine import yield_to_other_threads
from glray.run.checkpoint import (
    TENSORS,
    CommittedFile,
    checkpoint_path,
    commit,
    remove_checkpoint,
    state_of,
    verify,
)
from glray.run.records import TrainState
from glray.train.context import WorkerContext, from_rank_zero, sum_over_ranks
from glray.train.tensor_files import (
    HostMemory,
    RankFile,
    copy_tensors,
    file_name,
    read_tensors,
    tensor_reader,
    written_names,
)

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW holds of each parameter beside its count of steps, which is the state's ``step``."""


@dataclass(frozen=True)
class InFlight:
    """A checkpoint that is being written."""

    state: TrainState
    partial: AnyPath
    """Its folder until it is committed; in a store also after that."""
    attempt: str
    """In a store, what its files have in their names, so that no other attempt writes the same."""
    writing: Future[CommittedFile | None]
    """This rank's file; None if the rank has none."""


class Saver:
    """Writes the checkpoints of a run's directory beside its training, one at a time. Every rank
    has one, and all call the same methods at the same step unless told otherwise."""

    def __init__(self, directory: AnyPath, ctx: WorkerContext) -> None:
        self._directory, self._ctx = directory, ctx
        self._memory = HostMemory(ctx.device)
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=yield_to_other_threads)
        self._is_dropped, self._is_awaited = threading.Event(), threading.Event()
        self._in_flight: InFlight | None = None

    @property
    def in_flight(self) -> int | None:
        """The step of the checkpoint that is being written."""
        return self._in_flight.state.step if self._in_flight else None

    @property
    def is_written(self) -> bool:
        """Whether this rank has ended writing its share of the checkpoint in flight, perhaps with
        an error; any rank may ask by itself."""
        return self._in_flight is not None and self._in_flight.writing.done()

    def begin(
        self, state: TrainState, network: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Copy the tensors of ``state.step`` and begin to write them; none may be in flight.

        Raises OSError where the storage is full, and leaves nothing.
        """
        assert self._in_flight is None, "one checkpoint at a time"
        ctx, path = self._ctx, checkpoint_path(self._directory, state.step)
        unique = from_rank_zero(ctx, uuid.uuid4().int % 2**32)
        is_remote = isinstance(path, StorePath)
        partial = path if is_remote else self._directory / f".partial-{path.name}-{unique:x}"
        attempt = f"-{unique:08x}" if is_remote else ""
        try:
            file = copy_tensors(
                partial / TENSORS,
                _tensors(network, optimizer),
                self._memory,
                attempt=attempt,
                no_dist=ctx.world_size == 1,
            )
        except BaseException:
            self._remove(partial)
            raise
        writing = self._thread.submit(self._write, file)
        self._in_flight = InFlight(state.model_copy(deep=True), partial, attempt, writing)

    def commit(self, needed: Collection[int] = ()) -> int:
        """Wait until the checkpoint in flight is written, and commit it: older ones go, but for the
        latest and those at the ``needed`` steps. Returns its step, on every rank, once it counts.

        Raises the same OSError on every rank if one of them could not write its share, and leaves
        nothing.
        """
        assert self._in_flight is not None
        ctx, (saved, self._in_flight) = self._ctx, (self._in_flight, None)
        is_committed = False
        try:
            files = self._gathered(saved)
            number = 0
            if ctx.rank == 0:
                try:
                    path = checkpoint_path(self._directory, saved.state.step)
                    commit(saved.partial, path, saved.state, files, needed)
                    is_committed = True
                except OSError as error:
                    number = error.errno or errno.EIO
            _raise_if(from_rank_zero(ctx, number), self._directory)
        except BaseException:
            if not is_committed:
                self._remove(saved.partial)
            raise
        return saved.state.step

    def close(self) -> None:
        """Drop what is in flight, which does not count: each rank by itself, whatever has
        happened."""
        self._is_dropped.set()
        self._thread.shutdown()
        if self._in_flight is not None:
            self._remove(self._in_flight.partial)
            self._in_flight = None

    def _write(self, file: RankFile | None) -> CommittedFile | None:
        return None if file is None else file.write(self._is_dropped, self._is_awaited)

    def _remove(self, partial: AnyPath) -> None:
        if self._ctx.rank == 0:
            with suppress(OSError, UserError):  # the next one does
                remove_checkpoint(partial)

    def _gathered(self, saved: InFlight) -> dict[str, CommittedFile]:
        """What each rank has written, by file. Raises the OSError of a rank on all of them."""
        ctx = self._ctx
        number, own = 0, None
        self._is_awaited.set()
        try:
            own = saved.writing.result()
        except OSError as error:
            number = error.errno or errno.EIO
        finally:
            self._is_awaited.clear()
        row = [number, *([own.bytes, *_as_int64(own.sha256)] if own else [0] * 5)]
        table = torch.zeros((ctx.world_size, len(row)), dtype=torch.int64, device=ctx.device)
        table[ctx.rank] = torch.tensor(row, dtype=torch.int64)
        rows = sum_over_ranks(ctx, table).tolist()
        _raise_if(max(number for number, *_ in rows), self._directory)
        return {
            file_name(rank, saved.attempt): CommittedFile(bytes=size, sha256=_as_sha256(words))
            for rank, (_, size, *words) in enumerate(rows)
            if size
        }


def load_checkpoint(
    path: AnyPath, network: torch.nn.Module, optimizer: torch.optim.Optimizer, ctx: WorkerContext
) -> TrainState:
    """Load a checkpoint into ``network``, ``optimizer`` and the random state; returns the state.

    Every rank calls it; rank 0 compares the files with their manifest. Raises UserError if one is
    not what was committed.
    """
    if ctx.rank == 0:
        verify(path)
    state = state_of(path)
    for values in optimizer.state.values():
        values["step"].fill_(state.step)
    tensors = _tensors(network, optimizer)
    with tensor_reader(path) as reader:
        if "random.cuda" not in written_names(reader):  # it was written on a CPU
            tensors.pop("random.cuda", None)
        read_tensors(reader, tensors, no_dist=ctx.world_size == 1)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], ctx.device)
    return state


def load_weights(path: AnyPath, network: torch.nn.Module) -> None:
    """Load a checkpoint's weights alone, in one process. Raises UserError if a file is damaged."""
    verify(path)
    with tensor_reader(path) as reader:
        read_tensors(reader, _weights(network), no_dist=True)


def _tensors(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """``{"model.<name>": …, "exp_avg.<name>": …, "exp_avg_sq.<name>": …, "random.cpu": …}``.

    The very tensors of the network and optimizer, so that loading fills them; the random state is
    some rank's: nothing that training draws differs between ranks.
    """
    tensors = _weights(network)
    for name, parameter in network.named_parameters():
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"model.{name}": p.detach() for name, p in network.named_parameters()}


def _raise_if(number: int, directory: AnyPath) -> None:
    """Raise the operating system's error of that number, unless it is 0."""
    if number:
        raise OSError(number, os.strerror(number), str(directory))


def _as_int64(sha256: str) -> list[int]:
    """64 hexadecimal digits as four whole numbers, which a tensor can carry."""
    digest = bytes.fromhex(sha256)
    return [int.from_bytes(digest[n : n + 8], signed=True) for n in range(0, 32, 8)]


def _as_sha256(words: list[int]) -> str:
    return b"".join(word.to_bytes(8, signed=True) for word in words).hex()
