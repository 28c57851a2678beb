"""Whether a run may go on: what its records say of the held-out loss across its stage edges.

Read from the records alone, by the workers as by the command that started them.
"""

from dataclasses import dataclass

from glray.files import read_record
from glray.plan import StageEdge
from glray.training.run_directory import Run


@dataclass(frozen=True)
class Rise:
    """The held-out loss at the length before a stage edge, before the edge and after it."""

    edge: StageEdge
    before: float
    after: float
    """At ``edge.settled_step``. Both in nats per token."""

    def __str__(self) -> str:
        return (
            f"held-out loss at {self.edge.from_seq_len} rose by {self.after - self.before:.3f}, "
            f"{self.before:.3f} before the edge at step {self.edge.step:,}, {self.after:.3f} at "
            f"step {self.edge.settled_step:,}"
        )


def excessive_rise(run: Run) -> Rise | None:
    """The first rise of an unfinished run that is more than its ``evaluation.max_rise`` allows."""
    limit = run.spec.evaluation.max_rise
    if limit is None or run.is_finished:
        return None
    for edge in run.plan.inner_edges:
        record = read_record(run.edge_path(edge.step), "before", "after")
        if record is None or record["after"] is None:
            continue
        before, after = (
            next(
                (entry["loss"] for entry in entries if entry["seq_len"] == edge.from_seq_len), None
            )
            for entries in (record["before"], record["after"])
        )
        if before is None or after is None:
            continue  # scored when the evaluation had other lengths
        if not after - before <= limit:  # a loss that is no number neither
            return Rise(edge, before, after)
    return None
