"""What matters in a schedule: a response surface for each list of lengths that was searched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from glray.report.formats import plus_minus
from glray.report.surface import Effect, Surface
from glray.report.trials import Trial, far_limit
from glray.spec.positions import PositionsSpec
from glray.spec.search import lengths_text
from glray.spec.training import rate_text

LEAST_TRIALS = 8
"""Trials that a list of lengths needs for a fit."""


@dataclass(frozen=True, eq=False)
class Factor:
    """What varies between the trials of a list of lengths."""

    name: str
    kind: str
    """``boundary``, ``rate`` or ``re-warming``."""
    values: np.ndarray
    """float64[trials]: a boundary's place in the budget, 0 to 1, a rate's logarithm, or steps of
    re-warming."""

    def text(self, value: float) -> str:
        """``45%``, ``3e-3``, ``16``."""
        if self.kind == "boundary":
            return f"{value:.0%}"
        return rate_text(float(f"{math.exp(value):.6g}")) if self.kind == "rate" else f"{value:g}"

    @property
    def tried(self) -> np.ndarray:
        """The different values, ascending."""
        return np.unique(self.values)

    def end(self, value: float) -> str | None:
        """``the highest peak rate`` if no value beyond was tried."""
        lowest, highest = (
            ("earliest", "latest") if self.kind == "boundary" else ("lowest", "highest")
        )
        ends = {self.tried[0]: lowest, self.tried[-1]: highest}
        boundary = " boundary" if self.kind == "boundary" else ""
        return f"the {ends[value]} {self.name}{boundary}" if value in ends else None


@dataclass(frozen=True)
class Optimum:
    """Where a surface is lowest, every factor at a value that was tried."""

    values: tuple[float, ...]
    loss: float
    half: float
    """Half of its 95% interval, which does not know that the lowest point was chosen."""


@dataclass(frozen=True, eq=False)
class Effects:
    """The surface of the trials of one list of lengths under one RoPE scaling."""

    trials: tuple[Trial, ...]
    """Best first, without those that have no loss or one that is far off."""
    label: str
    """``128-256-512-1024``."""
    num_far: int = 0
    """How many are far off."""

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """Those that vary."""
        seq_lens = self.trials[0].seq_lens
        places = np.array([trial.boundaries for trial in self.trials]).T
        named = [
            (name, "boundary", column)
            for name, column in zip(_boundary_names(seq_lens), places, strict=True)
        ]
        rates = np.log([trial.lr for trial in self.trials])
        rewarm = np.array([trial.run.optimizer.rewarm_steps for trial in self.trials], float)
        named += [("peak rate", "rate", rates), ("re-warm steps", "re-warming", rewarm)]
        return tuple(Factor(*each) for each in named if len(np.unique(each[2])) > 1)

    @property
    def is_fitted(self) -> bool:
        """Whether there are enough trials."""
        return len(self.factors) > 0 and len(self.trials) >= LEAST_TRIALS

    @cached_property
    def surface(self) -> Surface:
        """Fitted to all of the trials."""
        points = np.stack([factor.values for factor in self.factors], axis=1)
        return Surface(points, np.array([trial.loss for trial in self.trials]))

    def effects(self, index: int) -> tuple[Effect, Effect]:
        """A factor's effects: from its lowest to its highest value, and its ends over its
        middle."""
        return self.surface.slope(index), self.surface.bend(index)

    @cached_property
    def optimum(self) -> Optimum:
        """The lowest point of the surface that can be reached from a trial by changing one factor
        after another, every stage's share within those that were tried."""
        reached = [self._descended(point) for point in self.surface.points]
        losses, halves = self.surface.at(np.array(reached))
        lowest = int(losses.argmin())
        return Optimum(tuple(reached[lowest]), float(losses[lowest]), float(halves[lowest]))

    def _descended(self, point: np.ndarray) -> np.ndarray:
        """Where changing one factor at a time lowers the loss no further."""
        while True:
            moves = np.repeat(point[None], sum(len(f.tried) for f in self.factors), axis=0)
            row = 0
            for index, factor in enumerate(self.factors):
                moves[row : row + len(factor.tried), index] = factor.tried
                row += len(factor.tried)
            moves = np.array([move for move in moves if self._is_possible(move)])
            losses, _ = self.surface.at(np.vstack([point, moves]))
            if losses[1:].min() >= losses[0] - 1e-12:
                return point
            point = moves[losses[1:].argmin()]

    def _is_possible(self, point: np.ndarray) -> bool:
        """Whether every stage's share is within those of the trials."""
        shares = self.shares_at(point)
        return bool(((shares >= self._bounds[0]) & (shares <= self._bounds[1])).all())

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        shares = np.array([trial.shares for trial in self.trials])
        return shares.min(axis=0) - 1e-6, shares.max(axis=0) + 1e-6

    def shares_at(self, point: Sequence[float] | np.ndarray) -> np.ndarray:
        """Share of each stage at a point of the surface; a boundary that does not vary stays where
        the trials have it."""
        places = dict(zip((factor.name for factor in self.factors), point, strict=True))
        seq_lens, own = self.trials[0].seq_lens, self.trials[0].boundaries
        names = _boundary_names(seq_lens)
        ends = [places.get(name, end) for name, end in zip(names, own, strict=True)]
        return np.diff([0.0, *ends, 1.0])

    @property
    def schedule_at_optimum(self) -> str:
        """``128x15-256x25-1024x60, peak rate 3e-3``."""
        stages = zip(self.trials[0].seq_lens, self.shares_at(self.optimum.values), strict=True)
        parts = ["-".join(f"{seq_len}x{100 * share:.3g}" for seq_len, share in stages)]
        for factor, value in zip(self.factors, self.optimum.values, strict=True):
            if factor.kind != "boundary":
                parts.append(f"{factor.name} {factor.text(value)}")
        return ", ".join(parts)

    @property
    def sentence(self) -> str:
        """What the surface explains, and where it is lowest, or that it says nothing."""
        surface, num = self.surface, len(self.trials)
        found = f"R² {surface.explained:.2f} in trials left out, p = {surface.p_value:.3f}"
        far = f", {self.num_far} far above them left out," if self.num_far else ""
        fitted = f"{self.label}: a quadratic surface fitted to {num} trials{far}"
        if not surface.explains:
            has_boundary = any(factor.kind == "boundary" for factor in self.factors)
            what = "where the boundaries should lie" if has_boundary else "which value is best"
            return f"{fitted} explains nothing ({found}), so these trials do not say {what}."
        lowest = plus_minus(self.optimum.loss, self.optimum.half)
        beyond = [
            end
            for factor, value in zip(self.factors, self.optimum.values, strict=True)
            if (end := factor.end(value))
        ]
        at_end = (
            f"; that is {' and '.join(beyond)} tried, so a better value may lie beyond"
            if beyond
            else ""
        )
        return (
            f"{fitted} explains {surface.explained:.0%} of their losses' variance ({found}). It is "
            f"lowest at {self.schedule_at_optimum}: {lowest} (95%){at_end}."
        )


def effects_of(trials: Sequence[Trial]) -> list[Effects]:
    """One for each list of lengths and RoPE scaling, in the order of the best."""
    grouped: dict[tuple[tuple[int, ...], PositionsSpec], list[Trial]] = {}
    for trial in trials:
        if trial.scored:
            grouped.setdefault((trial.seq_lens, trial.run.positions), []).append(trial)
    lists = [seq_lens for seq_lens, _ in grouped]
    effects = []
    for (seq_lens, positions), its in grouped.items():
        scaling = f" ({_positions_text(positions)})" if lists.count(seq_lens) > 1 else ""
        limit = far_limit([trial.loss for trial in its])
        near = tuple(trial for trial in its if trial.loss <= limit)
        label = f"{lengths_text(seq_lens)}{scaling}"
        effects.append(Effects(near, label, len(its) - len(near)))
    return effects


def _boundary_names(seq_lens: Sequence[int]) -> list[str]:
    """``128→256``; the second of two that are the same says which it is."""
    names = [f"{before:,}→{after:,}" for before, after in pairwise(seq_lens)]
    return [
        name if names.index(name) == index else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


def _positions_text(positions: PositionsSpec) -> str:
    """``yarn, relative_to previous``."""
    fields = positions.model_dump(mode="json")
    kind = fields.pop("kind")
    return ", ".join([kind, *(f"{name} {value}" for name, value in fields.items())])
