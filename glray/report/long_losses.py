"""Losses of compared models on long documents, in windows beyond their training.

Whole windows and sliding ones, each with positions extrapolated and interpolated.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

from glray.files import AnyPath
from glray.report.arms import Arm, by_arm
from glray.report.far_context import are_alike
from glray.report.formats import mean_text
from glray.report.sheets import Sheet
from glray.run.records import FarContext
from glray.run.run import Run

PROTOCOLS = (WHOLE, SLIDING) = ("whole", "sliding")
"""How windows go over a document."""
SCALINGS = ("extrapolation", "interpolation")
"""Of positions beyond the longest length trained; the first is the paper's."""

LongLosses = Mapping[tuple[AnyPath, str], Mapping[str, Any]]
"""By run directory and protocol (``whole``, ``sliding``): ``report.context.context_record``."""


def long_loss(
    losses: LongLosses, run: Run, seq_len: int, protocol: str = WHOLE, scaling: str = SCALINGS[0]
) -> float:
    """Nats per token in windows of ``seq_len``; NaN if they are not scored."""
    record = long_record(losses, run, seq_len, protocol, scaling)
    return math.nan if record is None else float(record["loss"])


def long_record(
    losses: LongLosses, run: Run, seq_len: int, protocol: str = WHOLE, scaling: str = SCALINGS[0]
) -> Mapping[str, Any] | None:
    """What was scored in windows of ``seq_len``; None if nothing was."""
    record = losses.get((run.directory, protocol))
    lengths = record["positions"].get(scaling, []) if record else []
    return next((length for length in lengths if length["seq_len"] == seq_len), None)


def long_far_contexts(losses: LongLosses, arm: Arm) -> list[FarContext]:
    """How each of an arm's runs scores far targets of the long documents; empty if one does not, or
    they are scored on different documents."""
    records = [losses.get((run.directory, WHOLE)) for run in arm.runs]
    found = [record["far_context"] for record in records if record and record.get("far_context")]
    contexts = [FarContext.model_validate(context) for context in found]
    is_whole = len(contexts) == len(records) and share_long_targets(arm.runs, losses)
    return contexts if is_whole and are_alike(contexts) else []


def mean_long_loss(
    losses: LongLosses, arm: Arm, seq_len: int, protocol: str, scaling: str
) -> float:
    """The same over the arm's seeds; NaN if one is not scored."""
    return fmean(long_loss(losses, run, seq_len, protocol, scaling) for run in arm.runs)


def long_seq_lens(losses: LongLosses) -> list[int]:
    """Every window length scored, ascending."""
    positions = [record["positions"].values() for record in losses.values()]
    return sorted({length["seq_len"] for one in positions for part in one for length in part})


def share_long_targets(runs: Sequence[Run], losses: LongLosses) -> bool:
    """Whether all runs are scored on the same tokens."""
    records = [losses.get((run.directory, WHOLE)) for run in runs]
    return len({record["targets_sha256"] if record else None for record in records}) == 1


def long_sheet(runs: Sequence[Run], losses: LongLosses) -> Sheet:
    """One row an arm, protocol and scaling: the mean over its seeds at each window length."""
    lengths = long_seq_lens(losses)
    rows = []
    for protocol, scaling, arm in product(PROTOCOLS, SCALINGS, by_arm(runs)):
        means = [mean_long_loss(losses, arm, n, protocol, scaling) for n in lengths]
        rows.append([arm.label, protocol, scaling, *(mean_text(mean, None) for mean in means)])
    title = "Loss on long documents (nats per token) by window length"
    return Sheet(title, ["run", "windows", "positions", *map(str, lengths)], rows, left=(0, 1, 2))
