"""Runs gathered into arms: one label, and so one colour and one row, for all seeds of an arm."""

from collections.abc import Sequence
from dataclasses import dataclass

from glray.report.run_record import RunRecord


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, one a seed."""

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def stages(self) -> str:
        """``128-256-512-1024``; the ends and the count of a long list."""
        lengths = [str(stage.seq_len) for stage in self.runs[0].stages]
        if len(lengths) > 4:
            return f"{lengths[0]}-...-{lengths[-1]} ({len(lengths)})"
        return "-".join(lengths)

    @property
    def seq_lens(self) -> tuple[int, ...]:
        """Training lengths in order."""
        return tuple(stage.seq_len for stage in self.runs[0].stages)

    def run_label(self, run: RunRecord) -> str:
        """The arm's label, with the seed if there are several."""
        return self.label if len(self.runs) == 1 else f"{self.label} seed {run.seed}"


def by_arm(runs: Sequence[RunRecord]) -> list[Arm]:
    """The arms in the order of their first run.

    An arm is named as a comparison labels it, else as its pipeline names it; where runs of several
    pipelines stand together, with the pipeline's name before it, or with its directory if two
    pipelines share a name.
    """
    parents = {run.directory.parent for run in runs}
    pipelines = {(run.directory.parent, run.pipeline) for run in runs}
    names_differ = len({name for _, name in pipelines}) == len(parents)
    grouped: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.label is not None:
            label = run.label
        elif len(parents) == 1:
            label = run.arm
        elif names_differ:
            label = f"{run.pipeline}/{run.arm}"
        else:
            label = f"{run.directory.parent}/{run.arm}"
        grouped.setdefault(label, []).append(run)
    return [Arm(label, tuple(members)) for label, members in grouped.items()]


def eval_seq_lens(runs: Sequence[RunRecord]) -> list[int]:
    """Every window length at which a run's latest evaluation scored, ascending."""
    latest = [run.latest for run in runs if run.latest is not None]
    return sorted({length.seq_len for evaluation in latest for length in evaluation.lengths})


def longest_trained(runs: Sequence[RunRecord]) -> int:
    """The longest training length of any run."""
    return max(run.longest_seq_len for run in runs)
