"""Whether a run may go on: what its records say of the held-out loss across its stage boundaries.

Read from the records alone, by the workers as by the command that started them.
"""

from dataclasses import dataclass

from glray.plan import StageBoundary
from glray.run.records import BoundaryRecord
from glray.run.run import Run


@dataclass(frozen=True)
class Rise:
    """The held-out loss at the length before a stage boundary, before the boundary and after it."""

    boundary: StageBoundary
    before: float
    after: float
    """At ``boundary.rescore_step``. Both in nats per token."""

    def __str__(self) -> str:
        return (
            f"held-out loss at {self.boundary.from_seq_len} rose by "
            f"{self.after - self.before:.3f}, {self.before:.3f} before the boundary at step "
            f"{self.boundary.step:,}, {self.after:.3f} at step {self.boundary.rescore_step:,}"
        )


def excessive_rise(run: Run) -> Rise | None:
    """The first rise of an unfinished run that is more than its ``evaluation.max_rise`` allows."""
    limit = run.spec.evaluation.max_rise
    if limit is None or run.is_finished:
        return None
    for boundary in run.plan.boundaries:
        record = BoundaryRecord.read(run.boundary_path(boundary.step))
        if record is None:
            continue
        before, after = (
            losses.get(boundary.from_seq_len) for losses in (record.before, record.after)
        )
        if before is None or after is None:
            continue  # not scored yet, or scored when the evaluation had other lengths
        if not after.loss - before.loss <= limit:  # NaN is a rise too
            return Rise(boundary, before.loss, after.loss)
    return None
