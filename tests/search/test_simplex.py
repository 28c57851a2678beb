"""Shares on a grid, within bounds: counted, drawn and spread exactly."""

import random
from collections import Counter
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from glray.search.simplex import Simplex


def test_points_by_eye() -> None:
    simplex = Simplex(5, ((1, 3), (1, 3), (1, 2)))
    points = [(1, 2, 2), (1, 3, 1), (2, 1, 2), (2, 2, 1), (3, 1, 1)]
    assert simplex.num_points == 5
    assert [simplex[index] for index in range(5)] == points
    assert list(simplex.allowed(())) == [1, 2, 3]
    assert list(simplex.allowed((1,))) == [2, 3]
    assert list(simplex.allowed((3,))) == [1]
    with pytest.raises(IndexError):
        simplex[5]


def test_counts_are_binomials() -> None:
    assert Simplex(20, ((1, 20),) * 2).num_points == 19
    assert Simplex(20, ((1, 20),) * 4).num_points == 969  # 19 choose 3
    assert Simplex(100, ((1, 100),) * 8).num_points == 14_887_031_544  # 99 choose 7


bounds_of_parts = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 6)).map(lambda two: (two[0], sum(two))),
    min_size=1,
    max_size=4,
)


@st.composite
def simplexes(draw: st.DrawFn) -> Simplex:
    """Any that have a point."""
    bounds = tuple(draw(bounds_of_parts))
    least, most = (sum(part[end] for part in bounds) for end in (0, 1))
    return Simplex(draw(st.integers(least, most)), bounds)


def by_trying(simplex: Simplex) -> list[tuple[int, ...]]:
    """All points, ascending, by trying every combination."""
    ranges = (range(low, high + 1) for low, high in simplex.bounds)
    return [point for point in product(*ranges) if sum(point) == simplex.total]


@given(simplexes())
def test_the_points_are_those_that_trying_finds(simplex: Simplex) -> None:
    assert [simplex[n] for n in range(simplex.num_points)] == by_trying(simplex)


@given(simplexes(), st.data())
def test_every_list_of_quantiles_is_a_point(simplex: Simplex, data: st.DataObject) -> None:
    num = len(simplex.bounds) - 1
    quantiles = data.draw(st.lists(st.floats(0, 1), min_size=num, max_size=num))
    assert simplex.at(quantiles) in by_trying(simplex)


@given(simplexes())
def test_every_point_has_quantiles_in_proportion(simplex: Simplex) -> None:
    """The middle of each point's own part of the first quantile's range leads to its first part."""
    points = by_trying(simplex)
    if len(simplex.bounds) == 1:
        return
    for rank, point in enumerate(points):
        others = [0.5] * (len(simplex.bounds) - 2)
        assert simplex.at([(rank + 0.5) / len(points), *others])[0] == point[0]


def test_uniform_quantiles_give_uniform_points() -> None:
    simplex = Simplex(8, ((1, 8), (1, 4), (2, 8)))
    rng = random.Random(1)
    seen = Counter(simplex.at([rng.random(), rng.random()]) for _ in range(200 * 14))
    points = by_trying(simplex)
    assert len(points) == 14
    assert chisquare([seen[point] for point in points]).pvalue > 0.01


def boundaries(points: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {tuple(sum(point[:n]) for n in range(1, len(point))) for point in points}


def test_the_design_of_27() -> None:
    """Boundaries at 15/25/35, 40/50/60 and 65/75/85%."""
    simplex = Simplex(20, ((3, 20), (1, 20), (1, 20), (3, 20)))
    points = simplex.designed(27)
    assert boundaries(points) == set(product((3, 5, 7), (8, 10, 12), (13, 15, 17)))
    assert points == sorted(points)


def test_the_design_is_spread_over_what_the_bounds_allow() -> None:
    free = Simplex(20, ((1, 20),) * 4)
    assert boundaries(free.designed(27)) == set(product((2, 4, 6), (8, 10, 12), (14, 16, 18)))
    assert boundaries(free.designed(8)) == set(product((2, 5), (8, 12), (15, 18)))
    assert boundaries(Simplex(20, ((1, 20),) * 2).designed(3)) == {(4,), (10,), (16,)}
    late = Simplex(20, ((1, 20), (1, 20), (12, 16)))
    assert boundaries(late.designed(4)) == set(product((2, 4), (6, 8)))


def test_late_boundaries_have_the_most_levels() -> None:
    free = Simplex(20, ((1, 20),) * 4)
    for most, levels in ((1, [1, 1, 1]), (2, [1, 1, 2]), (4, [1, 2, 2]), (16, [2, 2, 4])):
        of_each = zip(*boundaries(free.designed(most)), strict=True)
        assert [len(set(places)) for places in of_each] == levels


def test_a_combination_that_the_bounds_forbid_moves_to_the_nearest_allowed() -> None:
    """The second stage takes 4 or 5 units: its end follows from the first one's."""
    tied = Simplex(20, ((1, 20), (4, 5), (1, 20)))
    points = tied.designed(8)
    assert len(points) > 4
    assert set(points) <= set(by_trying(tied))


@given(simplexes(), st.integers(1, 30))
def test_a_design_has_distinct_points_and_no_more_than_asked(simplex: Simplex, most: int) -> None:
    points = simplex.designed(most)
    assert 1 <= len(points) <= most
    assert all(one < two for one, two in pairwise(points))
    assert set(points) <= set(by_trying(simplex))
    assert len(points) == simplex.num_points or simplex.num_points > most
