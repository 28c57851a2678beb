"""The part of the page that says what each boundary between stages did."""

from collections.abc import Sequence

import numpy as np

from glray.plan import RESCORE_STEPS, WATCHED_STEPS
from glray.report.comparison import difference_error
from glray.report.formats import loss_text, plus_minus
from glray.report.markup import paragraph, section, table
from glray.report.run_record import BoundaryLoss, BoundaryRecord, RunRecord
from glray.report.sections import labelled


def crossings(runs: Sequence[RunRecord]) -> str:
    """Held-out loss at both lengths before and after each boundary, and the jump between them
    split; empty without a boundary."""
    pairs = [
        (label, run, boundary) for label, _, run in labelled(runs) for boundary in run.boundaries
    ]
    if not pairs:
        return ""
    losses = []
    for label, run, boundary in pairs:
        rise = run.gradient_rise(boundary)
        losses.append(
            [
                *_name(label, boundary),
                *_change(boundary, boundary.from_seq_len),
                *_change(boundary, boundary.to_seq_len),
                "-" if rise is None else f"× {rise:.2f}",
            ]
        )
    columns = ["run", "boundary", "step"]
    for length in ("old", "new"):
        columns += [f"{length} length: before", "after", "change"]
    jumps = [
        [
            *_name(label, boundary),
            *(
                f"{part:+.3f}"
                for part in (
                    boundary.jump.jump,
                    boundary.jump.rescaled_positions,
                    boundary.jump.longer_context,
                    boundary.jump.unseen_positions,
                )
            ),
        ]
        for label, _, boundary in pairs
        if boundary.jump
    ]
    return section(
        "At the boundaries between stages",
        paragraph(
            "Held-out loss at the lengths before and after a boundary: when the stage before has "
            f"ended, and {RESCORE_STEPS} steps later (at the end of a shorter stage). ± is one "
            "standard error over documents of the change. Gradient: the largest norm of the "
            f"{RESCORE_STEPS} steps after the boundary over the median of the {WATCHED_STEPS} "
            "before."
        ),
        table([*columns, "gradient"], losses, num_text=2),
        paragraph(
            "The same weights from the old length to the new: the jump, and the parts that sum to "
            "it. Placed anew: at positions that the old window has too, where positions are "
            "scaled. Longer context: what half an old window or more before each of the other "
            "targets gives, at trained positions. Unseen positions: what the new window makes of "
            "it on top."
        ),
        table(
            [
                "run",
                "boundary",
                "step",
                "jump",
                "placed anew",
                "longer context",
                "unseen positions",
            ],
            jumps,
            num_text=2,
        ),
    )


def _name(label: str, boundary: BoundaryRecord) -> list[str]:
    return [label, f"{boundary.from_seq_len:,}→{boundary.to_seq_len:,}", f"{boundary.step:,}"]


def _change(boundary: BoundaryRecord, seq_len: int) -> list[str]:
    """Loss before, loss after, and their difference."""
    before, after = boundary.before.get(seq_len), boundary.after.get(seq_len)
    cells = ["-" if scored is None else loss_text(scored.loss) for scored in (before, after)]
    if before is None or after is None:
        return [*cells, "-"]
    error = difference_error(boundary.document_tokens, _difference(after, before))
    sign = "+" if after.loss >= before.loss else ""
    return [*cells, sign + plus_minus(after.loss - before.loss, error)]


def _difference(after: BoundaryLoss, before: BoundaryLoss) -> np.ndarray:
    return after.document_losses - before.document_losses
