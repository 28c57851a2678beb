"""What is written while a run trains: one JSON line a step.

Values stay on the device until the logging interval, when all ranks sum them in one collective.
``docs/metrics.md`` defines every name.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from glray.data.checksum import as_hex
from glray.errors import UserError
from glray.files import naming, write_text
from glray.run.records import Step
from glray.run.run import Run
from glray.train.context import WorkerContext, sum_over_ranks
from glray.train.trackers import Tracker
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
class Interval:
    """The steps between two flushes, over all ranks; the same on every rank but for the seconds."""

    checksum: int
    """Sum of the steps' checksums."""
    loss: float
    """Of the last step."""
    tokens_per_second: float
    mfu: float


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
    """``metrics.jsonl`` of a run and its trackers, written by rank 0 at every flush.

    ``peak`` is what all workers together can do, in FLOP/s: the denominator of MFU.
    """

    def __init__(
        self, run: Run, ctx: WorkerContext, trackers: Sequence[Tracker], peak: float
    ) -> None:
        self._run = run
        self._path = run.directory / "metrics.jsonl"
        self._ctx = ctx
        self._trackers = trackers
        self._peak = peak
        self._pending: list[PendingStep] = []
        self._flushed_seconds = 0.0

    def rewind(self, step: int, measured_seconds: float) -> None:
        """Drop the lines after ``step``: the run goes on from there, ``measured_seconds`` in."""
        self._flushed_seconds = measured_seconds
        _memory_bytes(self._ctx.device)  # from here on
        if self._ctx.rank == 0 and self._path.exists():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            lines = text.splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
            write_text(self._path, "".join(kept))

    def add(self, pending: PendingStep) -> None:
        """Keep one step's values until the next flush."""
        self._pending.append(pending)

    def flush(self, watch: Stopwatch) -> Interval:
        """Sum the pending steps (at least one) over ranks and write them.

        This is where the host waits for the device.
        """
        sums = [pending.sums for pending in self._pending]
        losses = sum_over_ranks(self._ctx, torch.stack([s.loss for s in sums])).tolist()
        checksums = sum_over_ranks(self._ctx, torch.stack([s.checksum for s in sums])).tolist()
        norms: list[dict[str, Any]] = [
            {name: float(norm) for name, norm in p.norms.items()} for p in self._pending
        ]

        # ---- now the device has done all of these steps
        measured_seconds = watch.seconds
        seconds = measured_seconds - self._flushed_seconds
        self._flushed_seconds = measured_seconds
        last = self._pending[-1].known["step"]
        first = last - len(self._pending)
        model_flops = self._run.model_flops(last) - self._run.model_flops(first)
        speed: dict[str, Any] = {
            "tokens_per_second": (last - first) * self._run.plan.tokens_per_batch / seconds,
            "mfu": model_flops / (seconds * self._peak),
        }
        shared = speed | {"memory_bytes": _memory_bytes(self._ctx.device)}
        if self._ctx.rank == 0:
            self._write(
                Step(**pending.known, **norm, **shared, loss=loss, checksum=as_hex(checksum))
                for pending, loss, norm, checksum in zip(
                    self._pending, losses, norms, checksums, strict=True
                )
            )
        self._pending = []
        return Interval(sum(checksums), losses[-1], **speed)

    def _write(self, steps: Iterable[Step]) -> None:
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            for step in steps:
                file.write(step.model_dump_json() + "\n")
                scalars = {
                    f"train/{name}": value
                    for name, value in step
                    if name != "step" and isinstance(value, int | float)
                }
                for tracker in self._trackers:
                    tracker.write(step.step, scalars)
        for tracker in self._trackers:
            tracker.flush()


def _step_of(line: str) -> int:
    try:
        return Step.model_validate_json(line).step
    except ValidationError:
        raise UserError(f"metrics.jsonl: {line[:40]!r} is not a step; remove the line") from None


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
