"""The kept surface: the losses of every schedule on a grid, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS
from glray.errors import UserError
from glray.files import read_json
from glray.run.profile import LengthCost, Setting, SettingCosts
from glray.search.space import Candidate, Space
from glray.spec import load_pipeline

SCHEDULES = f"{Path(__file__).parents[1] / 'pipelines' / 'study.py'}:small.schedules"
DESIGN = 27
"""Schedules under the second seed."""
FRESH = (1, 2, 3)
"""Seeds under which the best of seed 0 is trained again."""

Losses = dict[str, Any]
"""By schedule, nats per token at the longest length; null where it diverged."""


def record() -> dict[str, Any]:
    """What is kept; empty before anything is."""
    path = RESULTS / "surface.json"
    return dict(read_json(path)) if path.exists() else {}


def kept(seed: int) -> Losses:
    """The losses under a seed."""
    return dict(record().get("losses", {}).get(str(seed), {}))


def space() -> Space:
    """All schedules."""
    return Space.of(load_pipeline(SCHEDULES.replace(".schedules", ".searched")))


def designed() -> list[str]:
    """The names of those under the second seed."""
    return [candidate.name for candidate in space().designed(DESIGN)]


@dataclass(frozen=True)
class Noise:
    """Standard deviations over seeds, in nats per token, without what a seed adds to all schedules
    alike. Schedules that have their first boundary in common share what happens up to there, and
    after it most of what it has led to."""

    between: float
    """Of what all schedules of one first boundary have in common."""
    within: float
    """Of a schedule among those."""

    @classmethod
    def of(cls, apart: dict[str, float]) -> "Noise":
        """From each schedule's loss under one seed less that under another; several of each of two
        first boundaries, or more."""
        groups = by_first_stage(apart)
        means = np.array([np.mean(each) for each in groups.values()])
        left = np.concatenate([np.array(each) - np.mean(each) for each in groups.values()])
        within = float((left**2).sum() / (len(left) - len(groups)))
        per_group = len(left) / len(groups)
        between = max(float(means.var(ddof=1)) - within / per_group, 0.0)
        return cls((between / 2) ** 0.5, (within / 2) ** 0.5)


def first_stage(name: str) -> str:
    """``32x10`` of ``32x10-64x20-…``."""
    return name.partition("-")[0]


def by_first_stage(values: dict[str, float]) -> dict[str, list[float]]:
    """The values of schedules, by their first boundary."""
    groups: dict[str, list[float]] = {}
    for name, value in values.items():
        groups.setdefault(first_stage(name), []).append(value)
    return groups


@dataclass(frozen=True)
class Surface:
    """The losses of all schedules, and what they cost."""

    losses: dict[str, float]
    """Under seed 0, by schedule."""
    apart: dict[str, float]
    """Under seed 1 less those, of the design."""
    seconds_per_unit: dict[int, float]
    """Of a tenth of the budget, by length."""
    tokens_per_unit: float
    """Of a tenth of the budget."""

    @classmethod
    def kept(cls) -> "Surface":
        """What is kept, without schedules that diverged. Raises UserError if it is not whole."""
        found, whole = record(), space().num_candidates
        if len(kept(0)) < whole or not set(designed()) <= kept(1).keys():
            raise UserError(
                f"surface.json: has {len(kept(0))} of {whole} schedules under seed 0 and "
                f"{len(kept(1))} under seed 1, so a search could meet a gap; run "
                "without --replay first"
            )
        first, again = ({n: x for n, x in kept(s).items() if x is not None} for s in (0, 1))
        apart = {n: again[n] - first[n] for n in designed() if n in first and n in again}
        unit = found["tokens"] / 10
        cost = {int(n): seconds * unit for n, seconds in found["seconds_per_token"].items()}
        return cls(first, apart, cost, unit)

    @cached_property
    def noise(self) -> Noise:
        """What a seed does, by these."""
        return Noise.of(self.apart)

    @property
    def best(self) -> str:
        """The schedule with the lowest loss."""
        return min(self.losses, key=lambda name: self.losses[name])

    @property
    def prices(self) -> SettingCosts:
        """What a step of one token costs by length."""
        lengths = (
            LengthCost(seq_len, None, None, (seconds / self.tokens_per_unit,))
            for seq_len, seconds in self.seconds_per_unit.items()
        )
        return SettingCosts(Setting("sdpa", False, "float32"), tuple(lengths))

    def noisy(self, rng: np.random.Generator) -> dict[str, float]:
        """The losses under another seed."""
        starts = dict.fromkeys(map(first_stage, self.losses))
        common = {start: rng.normal(0, self.noise.between) for start in starts}
        own = rng.normal(0, self.noise.within, len(self.losses))
        return {
            name: loss + common[first_stage(name)] + float(more)
            for (name, loss), more in zip(self.losses.items(), own, strict=True)
        }

    def seconds(
        self, candidate: Candidate, before: Sequence[Candidate] = (), *, at_ends: bool = False
    ) -> float:
        """What training a candidate costs after others."""
        units = tenths(candidate)
        shared = max((_shared(candidate, other, at_ends=at_ends) for other in before), default=0)
        return sum(self.seconds_per_unit[length] for length in units[shared:])


def tenths(candidate: Candidate) -> list[int]:
    """The length of each tenth of the budget."""
    shares = zip(candidate.seq_lens, candidate.units, strict=True)
    return [length for length, percent in shares for _ in range(percent // 10)]


def _shared(one: Candidate, other: Candidate, *, at_ends: bool) -> int:
    """Tenths that two candidates have in common from the start; ``at_ends``: up to a stage's end of
    the other alone."""
    pairs = zip(tenths(one), tenths(other), strict=True)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if not at_ends:
        return common
    ends = np.cumsum([percent // 10 for percent in other.units])
    return int(max((end for end in ends if end <= common), default=0))
