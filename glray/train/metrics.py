"""What is written while a run trains: one JSON line a step.

Values stay on the device until the logging interval, when all ranks sum them in one collective; on
a GPU they are read an interval later, so that the device never waits for the host. What ranks must
agree on, such as whether to stop, travels with them. ``docs/metrics.md`` defines every name.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glray.data.checksum import as_hex
from glray.errors import UserError
from glray.files import LineLog, read_log
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.records import Step
from glray.run.run import METRICS, Run
from glray.train.context import Tracker, WorkerContext, sum_over_ranks
from glray.train.trainee import StepSums


@dataclass(frozen=True)
class PendingStep:
    """One step's values that still lie on the device, and those that do not."""

    sums: StepSums
    norms: dict[str, torch.Tensor]
    """``grad_norm`` and, near a stage boundary, ``update_norm``: scalars on the device."""
    known: dict[str, Any]
    """The fields of ``Step`` that do not wait for the device."""


@dataclass(frozen=True)
class Signals:
    """What ranks tell each other at a logging boundary."""

    stop: bool = False
    """Rank 0 is asked to stop."""
    is_due: bool = False
    """By rank 0's clock it is time for a checkpoint."""
    num_written: int = 0
    """Ranks that have written their share of the checkpoint in flight; from one rank, 0 or 1."""


@dataclass(frozen=True)
class Arrival:
    """What has come from one logging boundary, the same on every rank but for seconds, rates and
    bytes."""

    steps: list[Step]
    """At least one. One whose loss or gradient is not finite is the last: what was trained after it
    is dropped, whenever its boundary came."""
    signals: Signals


class Stopwatch:
    """Measured training seconds: they count steps and the waits for their batches."""

    def __init__(self, seconds: float) -> None:
        self._zero = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Measured so far."""
        return time.perf_counter() - self._zero

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The block does not count."""
        start = time.perf_counter()
        yield
        self._zero += time.perf_counter() - start


class MetricsLog:
    """``metrics.jsonl`` of a run, written by rank 0 after every logging boundary, and the trackers
    of this rank.

    ``peak`` is what all workers together can do, in FLOP/s: the denominator of MFU.
    """

    def __init__(
        self,
        run: Run,
        ctx: WorkerContext,
        trackers: Sequence[Tracker],
        peak: float,
    ) -> None:
        self._run = run
        self._path = run.directory / METRICS
        self._file = LineLog(self._path)
        self._ctx = ctx
        self._trackers = trackers
        self._peak = peak
        self._pending: list[PendingStep] = []
        self._sent: deque[_Sent] = deque()
        self._flushed_seconds = 0.0

    @property
    def is_late(self) -> bool:
        """Whether a boundary is received at the next one: where the device computes while the host
        goes on."""
        return self._ctx.device.type == "cuda"

    def rewind(self, step: int, measured_seconds: float) -> None:
        """Drop the lines after ``step``: the run goes on from there, ``measured_seconds`` in.
        Raises UserError if a step before it is missing."""
        self._flushed_seconds = measured_seconds
        _memory_bytes(self._ctx.device)  # from here on
        if self._ctx.rank == 0:
            lines = read_log(self._path).splitlines(keepends=True)
            steps = [
                (Step.of_line(line, f"{self._path}: line {number}").step, line)
                for number, line in enumerate(lines, 1)
                if line.endswith(b"\n")
            ]
            kept = [(number, line) for number, line in steps if number <= step]
            if missing := {*range(1, step + 1)} - {number for number, _ in kept}:
                raise UserError(
                    f"{self._path}: has {step - len(missing):,} of the {step:,} steps before the "
                    f"checkpoint that the run goes on from, so its records would have a gap; "
                    f"{self._remedy(min(missing))}"
                )
            if lines:
                self._file.keep([line for _, line in kept])

    def _remedy(self, first_missing: int) -> str:
        """What to do about a log that lacks a step."""
        steps = [step_of(path) for path in committed_checkpoints(self._run.checkpoints)]
        whole = [step for step in steps if step < first_missing]
        if whole:
            return f"delete the checkpoints after step {whole[-1]:,}: the run goes on from there"
        return f"restore the file, or delete {self._run.directory} to train the run again"

    def add(self, pending: PendingStep) -> None:
        """Keep one step's values until the next logging boundary."""
        self._pending.append(pending)

    @property
    def has_sent(self) -> bool:
        """Whether values of a boundary are still to be received."""
        return bool(self._sent)

    def send(self, signals: Signals) -> None:
        """Sum the pending steps (at least one) and the signals over ranks, and have them brought
        to the host, which does not wait for the device."""
        pending, self._pending = self._pending, []
        ctx, is_first = self._ctx, self._ctx.rank == 0
        norms = [norm.double() for step in pending for norm in step.norms.values()]
        if not is_first:  # they are the same on every rank
            norms = [torch.zeros_like(norm) for norm in norms]
        losses = [step.sums.loss for step in pending]
        told = (is_first and signals.stop, is_first and signals.is_due, signals.num_written)
        flags = torch.tensor(told, dtype=torch.int64).to(ctx.device, non_blocking=True)
        checksums = torch.stack([step.sums.checksum for step in pending])
        numbers = (torch.stack(losses + norms), torch.cat([checksums, flags]))
        self._sent.append(_Sent(pending, *(sum_over_ranks(ctx, each) for each in numbers)))

    def receive(self, watch: Stopwatch) -> Arrival:
        """Write the steps of the earliest boundary that was sent. This is where the host waits for
        the device."""
        sent = self._sent.popleft()
        losses, norms, checksums, signals = sent.received()

        # ---- now the device has done all of these steps
        pending = sent.pending
        seconds = watch.seconds - self._flushed_seconds
        self._flushed_seconds += seconds
        last = pending[-1].known["step"]
        first = last - len(pending)
        model_flops = self._run.model_flops(last) - self._run.model_flops(first)
        tokens = self._run.plan.tokens_after(last) - self._run.plan.tokens_after(first)
        shared: dict[str, Any] = {
            "tokens_per_second": tokens / seconds,
            "mfu": model_flops / (seconds * self._peak),
            "memory_bytes": _memory_bytes(self._ctx.device),
        }
        steps = [
            Step(**step.known, **norm, **shared, loss=loss, checksum=as_hex(checksum))
            for step, loss, norm, checksum in zip(pending, losses, norms, checksums, strict=True)
        ]
        bad = [n for n, step in enumerate(steps) if not step.is_finite]
        steps = steps[: bad[0] + 1] if bad else steps
        if self._ctx.rank == 0:
            self._write(steps)
        self._track(steps)
        return Arrival(steps, signals)

    def keep(self) -> None:
        """Return when all that was written lies where the run's files are: before anything that
        counts on it."""
        if self._ctx.rank == 0:
            self._file.flush()
            for tracker in self._trackers:
                tracker.keep()

    def close(self) -> None:
        """The run goes no further in this process. What was not kept is trained again."""
        if self._ctx.rank == 0:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def _write(self, steps: list[Step]) -> None:
        self._file.append([f"{step.model_dump_json()}\n".encode() for step in steps])

    def _track(self, steps: list[Step]) -> None:
        for tracker in self._trackers:
            for step in steps:
                numbers = {n: v for n, v in step if n != "step" and isinstance(v, int | float)}
                tracker.write(step.step, {f"train/{name}": v for name, v in numbers.items()})
            tracker.flush()


class _Sent:
    """The numbers of one logging boundary on their way to the host."""

    def __init__(
        self, pending: list[PendingStep], floats: torch.Tensor, integers: torch.Tensor
    ) -> None:
        """``floats`` has the losses and then all norms, ``integers`` the checksums and then the
        signals."""
        self.pending = pending
        self._event: torch.cuda.Event | None = None
        self._numbers = [floats, integers]
        if floats.device.type == "cuda":
            self._numbers = [
                torch.empty_like(number, device="cpu", pin_memory=True).copy_(
                    number, non_blocking=True
                )
                for number in self._numbers
            ]
            self._event = torch.cuda.Event()
            self._event.record()

    def received(self) -> tuple[list[float], list[dict[str, Any]], list[int], Signals]:
        """Loss, norms and checksum of each step, and the signals; waits for the device."""
        if self._event is not None:
            self._event.synchronize()
        floats, integers = (number.tolist() for number in self._numbers)
        num_steps = len(self.pending)
        values = iter(floats[num_steps:])
        norms: list[dict[str, Any]] = [
            {name: next(values) for name in step.norms} for step in self.pending
        ]
        stop, is_due, num_written = integers[num_steps:]
        signals = Signals(bool(stop), bool(is_due), num_written)
        return floats[:num_steps], norms, integers[:num_steps], signals


def _memory_bytes(device: torch.device) -> int | None:
    """Most bytes of CUDA tensors since the last call; without CUDA the process's resident bytes
    now, None where there is no ``/proc``. Does not wait for the device."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
