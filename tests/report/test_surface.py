"""A planted surface is found again, and a flat one is said to explain nothing."""

import math

import numpy as np
import pytest

from glray.report.surface import Surface

GRID = np.array(
    [(a, b, c) for a in (0.15, 0.25, 0.35) for b in (0.4, 0.5, 0.6) for c in (0.65, 0.75, 0.85)]
)
"""The designed grid of 27 schedules."""


def planted(points: np.ndarray) -> np.ndarray:
    """Lowest, 3.4, where the first boundary is at 20% and the last at 75%; the second is idle."""
    return 3.4 + 2.0 * (points[:, 0] - 0.2) ** 2 + 3.0 * (points[:, 2] - 0.75) ** 2


def noisy(losses: np.ndarray, spread: float, seed: int) -> np.ndarray:
    return losses + np.random.default_rng(seed).normal(0, spread, len(losses))


def test_a_planted_surface_without_noise_is_found_exactly() -> None:
    surface = Surface(GRID, planted(GRID))
    assert surface.explained == pytest.approx(1, abs=1e-6)
    assert surface.explains
    # From 15% to 35%: 2 (0.15² − 0.05²); its ends over its middle, and the last boundary's.
    assert surface.slope(0).mean == pytest.approx(0.04, abs=1e-5)
    assert surface.bend(0).mean == pytest.approx(0.02, abs=1e-5)
    assert surface.slope(2).mean == pytest.approx(0, abs=1e-5)
    assert surface.bend(2).mean == pytest.approx(0.03, abs=1e-5)
    means, _ = surface.at(np.array([[0.2, 0.5, 0.75]]))
    assert means[0] == pytest.approx(3.4, abs=1e-5)


def test_a_planted_surface_with_noise_is_recovered() -> None:
    surface = Surface(GRID, noisy(planted(GRID), 0.005, seed=0))
    assert surface.explains
    assert surface.explained > 0.7
    assert surface.p_value == 0.002
    for found, true in ((surface.slope(0), 0.04), (surface.bend(2), 0.03)):
        assert found.is_clear
        assert abs(found.mean - true) <= found.half
    assert not surface.slope(1).is_clear
    at = np.array([0.65, 0.75, 0.85])
    means, halves = surface.curve(2, at)
    assert means.argmin() == 1
    true_curve = 3.4 + 2 * ((GRID[:, 0] - 0.2) ** 2).mean() + 3 * (at - 0.75) ** 2
    assert (abs(means - true_curve) <= 2 * halves).all()


def test_flat_losses_are_said_to_explain_nothing() -> None:
    flat = [Surface(GRID, noisy(np.full(27, 3.4), 0.01, seed)) for seed in range(20)]
    assert sum(surface.explains for surface in flat) <= 2
    halves = [surface.slope(0).half for surface in flat]
    assert min(halves) > 0.004  # and not that there is no effect


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """With 16 points of 4 factors there are as many coefficients as points but two."""
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(40):
        points = np.column_stack([rng.dirichlet((1, 1, 1, 1), 16).cumsum(1)[:, :3], rng.random(16)])
        true = planted(points)
        means, halves = Surface(points, noisy(true, 0.01, seed)).at(points)
        covered += list(abs(means - true) <= halves)
    assert np.mean(covered) > 0.88


def test_equal_losses_have_no_effect() -> None:
    surface = Surface(GRID, np.full(27, 3.4))
    assert surface.explained == 0
    assert not surface.explains
    assert surface.slope(0).mean == pytest.approx(0)


def test_the_p_value_is_that_of_a_permutation() -> None:
    """The least is 1 of 500."""
    exact = Surface(GRID, planted(GRID))
    assert exact.p_value == 1 / 500
    assert math.isclose(Surface(GRID, np.full(27, 3.4)).p_value, 1.0)
