"""What is written while a run trains: one JSON line a step, and a progress file to look at.

Values stay on the device until the logging interval, when all ranks sum them in one collective.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glray.data.proof import as_hex
from glray.errors import UserError
from glray.files import write_json, write_text
from glray.training.context import WorkerContext, sum_over_ranks
from glray.training.step import StepSums


@dataclass(frozen=True)
class PendingStep:
    """One step's values that still lie on the device, and those that do not."""

    sums: StepSums
    grad_norm: torch.Tensor
    record: dict[str, Any]
    """What is known without the device: step, stage, seq_len, tokens, lr, seconds."""


class MetricsLog:
    """``metrics.jsonl`` of a run, written by rank 0 at every flush."""

    def __init__(self, path: Path, ctx: WorkerContext) -> None:
        self._path = path
        self._ctx = ctx
        self._pending: list[PendingStep] = []

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``: the run goes on from there."""
        if self._ctx.rank == 0 and self._path.exists():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            lines = text.splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
            write_text(self._path, "".join(kept))

    def add(self, pending: PendingStep) -> None:
        """Keep one step's values until the next flush."""
        self._pending.append(pending)

    def flush(self) -> tuple[int, float]:
        """Sum the pending steps over ranks and write them.

        Returns the sum of their proofs and the last step's loss, the same on every rank. This is
        where the host waits for the device.
        """
        if not self._pending:
            return 0, float("nan")
        losses = sum_over_ranks(self._ctx, torch.stack([p.sums.loss for p in self._pending]))
        proofs = sum_over_ranks(self._ctx, torch.stack([p.sums.proof for p in self._pending]))
        loss_values, proof_values = losses.tolist(), proofs.tolist()
        norms = torch.stack([p.grad_norm for p in self._pending]).tolist()
        if self._ctx.rank == 0:
            with self._path.open("a", encoding="utf-8") as file:
                for pending, loss, proof, norm in zip(
                    self._pending, loss_values, proof_values, norms, strict=True
                ):
                    values = {"loss": loss, "grad_norm": norm, "proof": as_hex(proof)}
                    file.write(json.dumps(pending.record | values) + "\n")
        self._pending = []
        return sum(proof_values), loss_values[-1]


class Announcer:
    """Rank 0's words to whoever watches: lines of ``events.log``, and ``progress.json``."""

    def __init__(self, directory: Path, ctx: WorkerContext) -> None:
        self._directory = directory
        self._silent = ctx.rank != 0
        self._last_progress = 0.0

    def event(self, text: str) -> None:
        """Append one line to ``events.log``."""
        if self._silent:
            return
        with (self._directory / "events.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def progress(self, **values: Any) -> None:
        """Replace ``progress.json``, at most once a second."""
        now = time.monotonic()
        if self._silent or now - self._last_progress < 1.0:
            return
        self._last_progress = now
        write_json(self._directory / "progress.json", values)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"metrics.jsonl: no step in the line {line[:40]!r}; remove it") from None
