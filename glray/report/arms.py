"""Runs gathered into arms: one label, and so one colour and one row, for all seeds of an arm."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from glray.run.records import LengthLoss
from glray.run.run import Run


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, one a seed."""

    label: str
    runs: tuple[Run, ...]

    @property
    def seq_lens(self) -> tuple[int, ...]:
        """The lengths of its stages, in their order; once where stages of one length follow one
        another."""
        return tuple(seq_len for seq_len, _ in groupby(self.runs[0].seq_lens))

    @property
    def tokens(self) -> float:
        """Tokens trained, mean over seeds."""
        return fmean(run.tokens for run in self.runs)

    @property
    def measured_seconds(self) -> float:
        """Training seconds measured, mean over seeds."""
        return fmean(run.measured_seconds for run in self.runs)

    @property
    def unfinished(self) -> str:
        """Which of its runs have diverged or are unfinished; empty if all are finished."""
        diverged = [run.name for run in self.runs if run.divergence]
        unfinished = [run.name for run in self.runs if not run.has_ended]
        found = (("diverged", diverged), ("unfinished", unfinished))
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in found if names)


def by_arm(runs: Sequence[Run]) -> list[Arm]:
    """The arms in the order of their first run.

    An arm is named as a comparison labels it, else as its pipeline names it; where runs of several
    pipelines stand together, with the pipeline's name before it, or with its directory if two
    pipelines share a name.
    """
    parents = {run.directory.parent: run.manifest.pipeline for run in runs}
    names_differ = len(set(parents.values())) == len(parents)
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        if run.label is not None:
            label = run.label
        elif len(parents) == 1:
            label = run.arm
        elif names_differ:
            label = f"{run.manifest.pipeline}/{run.arm}"
        else:
            label = f"{run.directory.parent}/{run.arm}"
        grouped.setdefault(label, []).append(run)
    return [Arm(label, tuple(members)) for label, members in grouped.items()]


def labelled(runs: Sequence[Run]) -> Iterator[tuple[str, Run]]:
    """Each run with its arm's label, and with its seed if the arm has several; arm by arm."""
    for arm in by_arm(runs):
        for run in arm.runs:
            yield arm.label if len(arm.runs) == 1 else f"{arm.label} seed {run.seed}", run


def named(runs: Sequence[Run]) -> Iterator[tuple[str, Run]]:
    """Each run with its name, ``growlength-seed0``; where runs of several pipelines stand together,
    after its pipeline's or its directory, as its arm is labelled."""
    for arm in by_arm(runs):
        before = arm.label.rpartition("/")[0]
        for run in arm.runs:
            yield f"{before}/{run.name}" if before and run.label is None else run.name, run


def by_environment(runs: Sequence[Run]) -> list[tuple[dict[str, Any], list[str]]]:
    """Each machine and set of versions that runs were trained on, with the runs' labels."""
    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for label, run in labelled(runs):
        environment = {**run.manifest.environment}
        environment.pop("matmul_flops_per_second", None)  # measured, so it differs at each start
        found.setdefault(repr(environment), (environment, []))[1].append(label)
    return list(found.values())


def latest_loss(run: Run, seq_len: int) -> LengthLoss | None:
    """The run's latest held-out loss in windows of ``seq_len``; None if it is not scored there."""
    return run.latest.at(seq_len) if run.latest is not None else None


def eval_seq_lens(runs: Sequence[Run]) -> list[int]:
    """Every window length at which a run's latest evaluation scored, ascending."""
    latest = [run.latest for run in runs if run.latest is not None]
    return sorted({length.seq_len for evaluation in latest for length in evaluation.lengths})


def longest_trained(runs: Sequence[Run]) -> int:
    """The longest training length of any run."""
    return max(run.longest_seq_len for run in runs)
