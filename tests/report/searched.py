"""Trials of a search on disk without training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.report.written import STEP_MICROSECONDS, write_run


def write_trial(directory: Path, name: str, losses: dict[int, float], **how: Any) -> Path:
    """A run of the schedule that ``name`` says, ``4x50-8x50``, of 20 calibrated seconds."""
    stages, ratios = schedule(name)
    return write_run(directory, name, stages, losses, ratios=ratios, **how)


def schedule(name: str) -> tuple[list[tuple[int, int]], Sequence[float]]:
    """Stages in steps, and their ratios."""
    parts = [part.split("x") for part in name.split("-") if "x" in part]
    shares = [(int(seq_len), float(ratio)) for seq_len, ratio in parts]
    whole = sum(ratio for _, ratio in shares)
    stages = [
        (seq_len, max(1, round(20e6 * ratio / whole / STEP_MICROSECONDS[seq_len])))
        for seq_len, ratio in shares
    ]
    return stages, [ratio for _, ratio in shares]
