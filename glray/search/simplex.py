"""A whole shared out in units, within bounds: counted, drawn and spread exactly. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import accumulate
from math import floor

Point = tuple[int, ...]
"""Units of each part; their sum is the whole."""


@dataclass(frozen=True)
class Simplex:
    """All ways to share ``total`` units out among parts with bounds."""

    total: int
    bounds: tuple[tuple[int, int], ...]
    """Least and most units of each part, both included."""

    @property
    def num_points(self) -> int:
        """How many ways there are."""
        return _num_points(self.total, self.bounds)

    def __getitem__(self, index: int) -> Point:
        """The point of that index, of all in ascending order. Raises IndexError."""
        if not 0 <= index < self.num_points:
            raise IndexError(f"point {index} of {self.num_points:,}")
        point: Point = ()
        for _ in self.bounds:
            for part in self.allowed(point):
                beyond = self._num_points_after((*point, part))
                if index < beyond:
                    point = (*point, part)
                    break
                index -= beyond
        return point

    def allowed(self, before: Sequence[int]) -> range:
        """What the part after those of ``before`` may have for the others to fit in as well."""
        (low, high), *rest = self.bounds[len(before) :]
        left = self.total - sum(before)
        least, most = (sum(part[end] for part in rest) for end in (0, 1))
        return range(max(low, left - most), min(high, left - least) + 1)

    def at(self, quantiles: Sequence[float]) -> Point:
        """The point at a quantile, from 0 to 1, of each part but the last, given those before it.

        Every list of quantiles gives a point, and uniform quantiles give uniform points
        (Rosenblatt 1952, https://doi.org/10.1214/aoms/1177729394). So a sampler that knows only
        independent ranges can search a simplex.
        """
        point: Point = ()
        for quantile in quantiles:
            allowed = self.allowed(point)
            cumulated = list(accumulate(self._num_points_after((*point, n)) for n in allowed))
            rank = min(floor(Fraction(quantile) * cumulated[-1]), cumulated[-1] - 1)
            part = next(n for n, most in zip(allowed, cumulated, strict=True) if rank < most)
            point = (*point, part)
        return (*point, self.total - sum(point))

    def designed(self, most: int) -> list[Point]:
        """At most ``most`` points, ascending: all, or a few levels of each boundary, crossed.

        The levels of the n-th boundary are spread over the n-th of the equal parts of what the
        bounds allow it, so that a level of one boundary goes with each level of the next, and many
        points agree in their first parts. Where the bounds forbid a combination, the nearest
        allowed one takes its place. Boundaries get as many levels as fit, late ones the most.
        """
        if self.num_points <= most:
            return [self[index] for index in range(self.num_points)]
        num_levels = [1] * (len(self.bounds) - 1)
        points = self._crossed(num_levels)
        while grown := self._with_one_more_level(num_levels, len(points), most):
            num_levels, points = grown
        return points

    def _with_one_more_level(
        self, num_levels: list[int], more_than: int, most: int
    ) -> tuple[list[int], list[Point]] | None:
        """The levels with one more for the boundary that has the fewest (the last of several), and
        their points; None if no boundary can have another."""
        for index in sorted(range(len(num_levels)), key=lambda n: (num_levels[n], -n)):
            more = list(num_levels)
            more[index] += 1
            points = self._crossed(more)
            if more_than < len(points) <= most:
                return more, points
        return None

    def _crossed(self, num_levels: Sequence[int]) -> list[Point]:
        """The points of so many levels of each boundary, ascending."""
        levels = [self._levels(boundary, num) for boundary, num in enumerate(num_levels)]
        return list(self._walk(levels, ()))

    def _walk(self, levels: Sequence[Sequence[int]], before: Point) -> Iterator[Point]:
        """Depth first: every level of each boundary, moved to the nearest that is allowed."""
        start = sum(before)
        if len(before) == len(levels):
            yield (*before, self.total - start)
            return
        allowed = self.allowed(before)
        for part in sorted({_nearest(end - start, allowed) for end in levels[len(before)]}):
            yield from self._walk(levels, (*before, part))

    def _levels(self, boundary: int, num: int) -> list[int]:
        """``num`` places of a boundary (counted from 0), in units, each in the middle of one of
        ``num`` equal parts."""
        lows, highs = zip(*self.bounds, strict=True)
        inner, cut = len(self.bounds) - 1, boundary + 1
        low = max(sum(lows[:cut]), self.total - sum(highs[cut:]))
        high = min(sum(highs[:cut]), self.total - sum(lows[cut:]))
        # Its own part of the range, widened by half a unit at both ends.
        start = low + Fraction(high - low, inner) * boundary - Fraction(1, 2)
        width = Fraction(high - low, inner) + 1
        return [
            floor(start + width * Fraction(2 * n + 1, 2 * num) + Fraction(1, 2)) for n in range(num)
        ]

    def _num_points_after(self, before: Point) -> int:
        """How many points begin with ``before``."""
        return _num_points(self.total - sum(before), self.bounds[len(before) :])


@cache
def _num_points(total: int, bounds: tuple[tuple[int, int], ...]) -> int:
    """How many ways there are to share ``total`` out within ``bounds``."""
    if not bounds:
        return int(total == 0)
    (low, high), rest = bounds[0], bounds[1:]
    return sum(_num_points(total - part, rest) for part in range(low, min(high, total) + 1))


def _nearest(value: int, allowed: range) -> int:
    return min(max(value, allowed[0]), allowed[-1])
