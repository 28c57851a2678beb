"""What ``glray tune`` searches: schedules on a grid, within bounds that leave at least one."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from glray.spec.base import Count, Integer, Name, Spec
from glray.spec.positions import BaseFrequencies, PositionsSpec
from glray.spec.schedule import ArmSpec, StageSpec
from glray.spec.training import PeakRate, RewarmSteps

Bounds = tuple[float, float]
"""The least and the most share of the budget, 0 to 1."""


class SearchSpec(Spec):
    """A search for an arm's best schedule, every trial at the pipeline's budget.

    A schedule is a list of sequence lengths with a share of the budget for each. Shares divide the
    budget in its own unit, seconds or tokens, whatever ``ratios_in`` says, and are multiples of
    1/``grid``, so that many trials share their first steps. All bounds hold at once; bounds that
    leave a list without a schedule are an error. A list of one length has the whole budget,
    whatever the bounds.
    """

    arm: Name
    """The arm that is searched: trials have its positions, rate and lengths unless others are
    listed here."""
    lengths: tuple[Annotated[tuple[Count, ...], Field(min_length=1)], ...] = ()
    """Lists of sequence lengths to choose from, ``((1024,), (128, 1024), (128, 256, 512, 1024))``.
    Empty: the arm's own."""
    grid: Annotated[Integer, Field(ge=2, le=1000)] = 20
    """Stage boundaries lie at multiples of 1/``grid`` of the budget."""
    least: float | None = Field(default=None, gt=0, le=1)
    """Least share of any stage. None: 1/``grid``."""
    shares: dict[Count, Bounds] = Field(default_factory=dict)
    """Least and most share of a stage, by its length: ``{128: (0.2, 0.5)}``."""
    last: Bounds | None = None
    """Least and most share of the last stage. None: no further bounds."""
    lrs: tuple[PeakRate, ...] = ()
    """Peak learning rates to choose from, ascending, such as ``log_rates(1e-3, 1e-2, num=3)``; the
    baselines are tried at each as well. Empty: the arm's own."""
    rewarm_steps: tuple[RewarmSteps, ...] = ()
    """Steps of re-warming to choose from, ascending. Empty: the arm's own."""
    positions: tuple[PositionsSpec, ...] = ()
    """RoPE scalings to choose from. Empty: the arm's own."""
    method: Literal["tree", "random", "optuna"] = "tree"
    """``tree``: a few levels of each boundary, crossed, so that most of the training is shared.
    ``random``: uniform over the schedules of a list, and over the lists. ``optuna``: Optuna chooses
    from the losses so far."""
    num_trials: Count = 8
    """Number of schedules to try, beside the baselines; with ``tree``, whose levels are
    crossed, at most this many."""
    seed: Integer = 0
    """Seed of the sampling."""
    max_behind: float | None = Field(default=None, ge=0)
    """Nats per token by which a trial may be behind another one in the same stage at the same step,
    beyond the noise of the held-out documents. A trial that is further behind is stopped. None:
    no trial is stopped."""
    confirm: Annotated[Integer, Field(ge=0)] = 2
    """How many of the best schedules train again on fresh seeds, beside the baselines."""
    confirm_seeds: Count = 3
    """How many fresh seeds."""

    def lists(self, arm: ArmSpec) -> tuple[tuple[int, ...], ...]:
        """The lists of lengths, where ``arm`` is the searched one."""
        return self.lengths or (arm.seq_lens,)

    def bounds(self, seq_lens: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Least and most share of each stage of a list of lengths, in units of 1/``grid``."""
        if len(seq_lens) == 1:
            return ((self.grid, self.grid),)
        least = max(1, self._units(self.least or 0))
        bounds = []
        for stage, seq_len in enumerate(seq_lens):
            declared = [self.shares.get(seq_len)]
            if stage == len(seq_lens) - 1:
                declared.append(self.last)
            lows, highs = [least], [self.grid]
            for low, high in filter(None, declared):
                lows.append(self._units(low))
                highs.append(self._units(high))
            bounds.append((max(lows), min(highs)))
        return tuple(bounds)

    def model_post_init(self, context: Any) -> None:
        declared = [(f"shares[{length}]", bounds) for length, bounds in self.shares.items()]
        for field, bounds in [*declared, *([("last", self.last)] if self.last else [])]:
            low, high = bounds
            if not 0 <= low <= high <= 1:
                raise ValueError(
                    f"search.{field} {low:g} to {high:g} is not a range of shares, so it would "
                    "bound nothing; give the least and then the most, each from 0 to 1 (the whole "
                    "budget)"
                )
            for share in bounds:
                self._check_on_grid(field, share)
        if self.least is not None:
            self._check_on_grid("least", self.least)
        for field, choices in (("lrs", self.lrs), ("rewarm_steps", self.rewarm_steps)):
            for lower, higher in pairwise(choices):
                if lower >= higher:
                    raise ValueError(
                        f"search.{field} lists {higher:g} after {lower:g}, but they must ascend, "
                        "as a sampler learns from their order; list each once, lowest first"
                    )
        for field, listed in (("lengths", self.lengths), ("positions", self.positions)):
            for index, item in enumerate(listed):
                if item in listed[:index]:
                    raise ValueError(
                        f"search.{field} lists {item} twice, so it would be tried twice as often; "
                        "remove one"
                    )

    def check_lists(self, arm: ArmSpec) -> None:
        """Raises ValueError if a list of lengths has no schedule, where ``arm`` is searched."""
        if any(
            stage != StageSpec(seq_len=stage.seq_len, ratio=stage.ratio) for stage in arm.stages
        ):
            raise ValueError(
                f"search.arm {arm.name!r} has stages with their own tokens_per_batch, lr_factor, "
                "weights or mark_end, which the stages of a trial would not have; search an "
                "arm without them"
            )
        lists = self.lists(arm)
        known = {seq_len for seq_lens in lists for seq_len in seq_lens}
        for seq_len in self.shares.keys() - known:
            raise ValueError(
                f"search.shares has {seq_len}, which is in none of the lists of lengths, "
                f"{', '.join(map(lengths_text, lists))}: it would bound nothing; remove it"
            )
        for seq_lens in lists:
            self._check_list(seq_lens)
            for positions in self.positions or (arm.positions,):
                if isinstance(positions, BaseFrequencies):
                    _check_thetas(positions, seq_lens)

    def _units(self, share: float) -> int:
        """A share on the grid, in units of it."""
        return int(_exact(share) * self.grid)

    def _check_on_grid(self, field: str, share: float) -> None:
        units = _exact(share) * self.grid
        if units.denominator != 1:
            below, above = (n / self.grid for n in (math.floor(units), math.ceil(units)))
            raise ValueError(
                f"search.{field} {share:g} is not a multiple of 1/{self.grid}, the grid: no "
                f"schedule could have that share; use {below:g} or {above:g}, or another "
                "search.grid"
            )

    def _check_list(self, seq_lens: tuple[int, ...]) -> None:
        where = f"search: lengths {lengths_text(seq_lens)}"
        for before, after in pairwise(seq_lens):
            if before == after:
                raise ValueError(
                    f"{where} have {before} twice in a row, which is one stage, so one schedule "
                    "would be tried as several; remove one"
                )
        bounds = self.bounds(seq_lens)
        for seq_len, (low, high) in zip(seq_lens, bounds, strict=True):
            if low > high:
                raise ValueError(
                    f"{where}: the stage of {seq_len} has a least share of {low / self.grid:g} and "
                    f"a greatest of {high / self.grid:g}, so no schedule is possible; change "
                    "search.least, search.shares or search.last"
                )
        least, most = (sum(units) / self.grid for units in zip(*bounds, strict=True))
        if least > 1:
            raise ValueError(
                f"{where}: the least shares of its stages sum to {least:g}, more than 1, the "
                "whole budget, so no schedule is possible; lower search.least, search.shares or "
                "search.last"
            )
        if most < 1:
            raise ValueError(
                f"{where}: the greatest shares of its stages sum to {most:g}, less than 1, the "
                "whole budget, so no schedule is possible; raise search.shares or search.last"
            )


def lengths_text(seq_lens: Sequence[int]) -> str:
    """``128-256-1024``."""
    return "-".join(map(str, seq_lens))


def _exact(share: float) -> Fraction:
    """The share as it is written: 0.15 is 3/20."""
    return Fraction(str(share))


def _check_thetas(positions: BaseFrequencies, seq_lens: Sequence[int]) -> None:
    given, num_stages = len(positions.thetas), len(seq_lens)
    if given != num_stages:
        raise ValueError(
            f"search: lengths {lengths_text(seq_lens)}: positions.thetas needs a value for each, "
            f"{num_stages}, but has {given}, so they could not be trained; use another kind of "
            "positions"
        )
