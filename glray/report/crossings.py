"""The part of the page that says what each edge between stages did."""

from collections.abc import Sequence

import numpy as np

from glray.plan import SETTLE_STEPS, WATCHED_STEPS
from glray.report.comparison import difference_error
from glray.report.formats import loss_text, plus_minus
from glray.report.markup import paragraph, section, table
from glray.report.run_record import EdgeLoss, EdgeRecord, RunRecord
from glray.report.sections import labelled


def crossings(runs: Sequence[RunRecord]) -> str:
    """Held-out loss at both lengths before and after each edge, and the jump between them split;
    empty without an edge."""
    pairs = [(label, run, edge) for label, _, run in labelled(runs) for edge in run.edges]
    if not pairs:
        return ""
    losses = []
    for label, run, edge in pairs:
        rise = run.gradient_rise(edge)
        losses.append(
            [
                *_name(label, edge),
                *_change(edge, edge.from_seq_len),
                *_change(edge, edge.to_seq_len),
                "-" if rise is None else f"× {rise:.2f}",
            ]
        )
    columns = ["run", "edge", "step"]
    for length in ("old", "new"):
        columns += [f"{length} length: before", "after", "change"]
    jumps = [
        [
            *_name(label, edge),
            *(
                f"{part:+.3f}"
                for part in (
                    edge.jump.jump,
                    edge.jump.placed_anew,
                    edge.jump.longer_context,
                    edge.jump.unseen_positions,
                )
            ),
        ]
        for label, _, edge in pairs
        if edge.jump
    ]
    return section(
        "At the edges between stages",
        paragraph(
            "Held-out loss at the lengths before and after an edge: when the stage before has "
            f"ended, and {SETTLE_STEPS} steps later (at the end of a shorter stage). ± is one "
            "standard error over documents of the change. Gradient: the largest norm of the "
            f"{SETTLE_STEPS} steps after the edge over the median of the {WATCHED_STEPS} before."
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
            ["run", "edge", "step", "jump", "placed anew", "longer context", "unseen positions"],
            jumps,
            num_text=2,
        ),
    )


def _name(label: str, edge: EdgeRecord) -> list[str]:
    return [label, f"{edge.from_seq_len:,}→{edge.to_seq_len:,}", f"{edge.step:,}"]


def _change(edge: EdgeRecord, seq_len: int) -> list[str]:
    """Loss before, loss after, and their difference."""
    before, after = edge.before.get(seq_len), edge.after.get(seq_len)
    cells = ["-" if scored is None else loss_text(scored.loss) for scored in (before, after)]
    if before is None or after is None:
        return [*cells, "-"]
    error = difference_error(edge.document_tokens, _difference(after, before))
    sign = "+" if after.loss >= before.loss else ""
    return [*cells, sign + plus_minus(after.loss - before.loss, error)]


def _difference(after: EdgeLoss, before: EdgeLoss) -> np.ndarray:
    return after.document_losses - before.document_losses
