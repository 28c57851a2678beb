"""What is written while a run trains: one JSON line a step.

Values stay on the device until the logging interval, when all ranks sum them in one collective.
``docs/metrics.md`` defines every name.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glray.data.checksum import as_hex
from glray.files import naming, write_text
from glray.run.records import Step
from glray.run.run import METRICS, Run
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
        self,
        run: Run,
        ctx: WorkerContext,
        trackers: Sequence[Tracker],
        peak: float,
    ) -> None:
        self._run = run
        self._path = run.directory / METRICS
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
            kept = [
                line
                for number, line in enumerate(lines, 1)
                if line.endswith("\n")
                and Step.of_line(line, f"{self._path}: line {number}").step <= step
            ]
            write_text(self._path, "".join(kept))

    def add(self, pending: PendingStep) -> None:
        """Keep one step's values until the next flush."""
        self._pending.append(pending)

    def flush(self, watch: Stopwatch) -> list[Step]:
        """Sum the pending steps (at least one) over ranks and write them. They are returned, the
        same on every rank but for seconds, rates and bytes.

        This is where the host waits for the device. A step whose loss or gradient is not finite is
        the last: what was trained after it is dropped, whenever the flush came.
        """
        pending, self._pending = self._pending, []
        losses = self._summed([step.sums.loss for step in pending])
        checksums = self._summed([step.sums.checksum for step in pending])
        norms: list[dict[str, Any]] = [
            {name: float(norm) for name, norm in step.norms.items()} for step in pending
        ]

        # ---- now the device has done all of these steps
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
        return steps

    def _summed(self, scalars: list[torch.Tensor]) -> list[Any]:
        return sum_over_ranks(self._ctx, torch.stack(scalars)).tolist()

    def _write(self, steps: list[Step]) -> None:
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.writelines(step.model_dump_json() + "\n" for step in steps)
        for tracker in self._trackers:
            for step in steps:
                numbers = {n: v for n, v in step if n != "step" and isinstance(v, int | float)}
                tracker.write(step.step, {f"train/{name}": v for name, v in numbers.items()})
            tracker.flush()


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
