"""Which schedule to train, without a search: what schedules were worth in the study, at what a step
costs here."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from glray.errors import UserError
from glray.record import Record
from glray.run.profile import SettingCosts
from glray.spec.schedule import ArmSpec, StageSpec

FINDINGS = Path(__file__).with_name("study.json")
"""Of this version."""

Interval = tuple[float, float, float]
"""A mean and the ends of its 95% interval."""


class Tried(Record):
    """A schedule of the study."""

    name: str
    stages: tuple[tuple[float, float], ...]
    """Length over the full length, and share of the tokens, of each stage."""
    worth: Interval
    """How many tokens training at full length throughout needs for the schedule's loss, over the
    schedule's own; above 1 the schedule learns more from each token. Over seeds."""
    num_seeds: int
    extended: bool
    """Whether the full length was not trained on as many tokens, or as few, so that its loss was
    extended in a straight line."""


class Findings(Record):
    """What the study found (``docs/study.md``), as ``benchmarks/study.py`` writes it."""

    seq_lens: tuple[int, ...]
    """The lengths that it trained."""
    num_tokens: int
    """Of each run."""
    num_parameters: int
    schedules: tuple[Tried, ...]

    @classmethod
    def packaged(cls) -> "Findings":
        """Those of this version."""
        found = cls.read(FINDINGS)
        assert found is not None, "it is packaged"
        return found

    @property
    def shares(self) -> list[Fraction]:
        """Every length that some schedule trains, over the full length, ascending."""
        lengths = {share for tried in self.schedules for share, _ in tried.stages}
        return [Fraction(share) for share in sorted(lengths)]


@dataclass(frozen=True)
class Priced:
    """A schedule at the pipeline's full length, with what its steps cost on a machine."""

    arm: ArmSpec
    tried: Tried
    time: float
    """Over that of the full length throughout, on as many tokens."""

    @cached_property
    def time_to_loss(self) -> Interval:
        """Over what the full length throughout needs for the schedule's loss."""
        mean, low, high = self.tried.worth
        return self.time / mean, self.time / high, self.time / low

    @property
    def pays(self) -> bool:
        """Whether all of the interval is faster than the full length."""
        return self.time_to_loss[2] < 1


def lengths(findings: Findings, full: int) -> tuple[int, ...]:
    """The lengths of the study's schedules where ``full`` is the full one. Raises UserError if they
    are not whole."""
    exact = [share * full for share in findings.shares]
    if any(length.denominator != 1 for length in exact):
        multiple = max(share.denominator for share in findings.shares)
        raise UserError(
            f"the full length {full:,} is not a multiple of {multiple}, so the study's schedules "
            f"have no whole lengths there; use a multiple of {multiple}"
        )
    return tuple(map(int, exact))


def priced(findings: Findings, full: int, costs: SettingCosts) -> list[Priced]:
    """The study's schedules where ``full`` is the full length, fastest to the same loss first. The
    costs must have all ``lengths``."""
    found = [
        Priced(
            ArmSpec(
                name=tried.name,
                stages=tuple(
                    StageSpec(seq_len=int(Fraction(share) * full), ratio=tokens)
                    for share, tokens in tried.stages
                ),
            ),
            tried,
            _time(tried.stages, full, costs),
        )
        for tried in findings.schedules
    ]
    return sorted(found, key=lambda each: each.time_to_loss[0])


def best(found: Sequence[Priced]) -> Priced:
    """The one that is surely the fastest to the same loss: whose interval ends lowest, so that a
    schedule tried under few seeds has to be better by more."""
    return min(found, key=lambda each: each.time_to_loss[2])


def _time(stages: Sequence[tuple[float, float]], full: int, costs: SettingCosts) -> float:
    def seconds(seq_len: int) -> float:
        cost = costs.at(seq_len)
        assert cost is not None, "the costs have all lengths"
        return cost.seconds

    spent = sum(seconds(int(Fraction(share) * full)) * tokens for share, tokens in stages)
    return spent / seconds(full) / sum(tokens for _, tokens in stages)
