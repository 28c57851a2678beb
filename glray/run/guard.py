"""Whether a run may go on: what its records say of the held-out loss across its stage boundaries.

Read from the records alone, by the workers as by the command that started them.
"""

from glray.run.records import BoundaryRecord
from glray.run.run import Run


def excessive_rise(run: Run) -> str | None:
    """The first rise of an unfinished run that is more than its ``evaluation.max_rise`` allows: the
    held-out loss, in nats per token, before a stage boundary and after it at the length before."""
    limit = run.spec.evaluation.max_rise
    if limit is None or run.has_ended:
        return None
    for boundary in run.plan.boundaries:
        if boundary.step < run.plan.first_step:  # its parent's
            continue
        record = BoundaryRecord.read(run.boundary_path(boundary.step))
        length = boundary.from_seq_len
        # Not scored yet, or scored when the evaluation had other lengths?
        if record is None or length not in record.before or length not in record.after:
            continue
        before, after = record.before[length].loss, record.after[length].loss
        if not after - before <= limit:  # NaN is a rise too
            return (
                f"held-out loss at {length} rose by {after - before:.3f}, {before:.3f} before the "
                f"boundary at step {boundary.step:,}, {after:.3f} at step {boundary.rescore_step:,}"
            )
    return None
