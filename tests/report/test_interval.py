import pytest

from glray.report.interval import mean_interval


def test_intervals_by_hand():
    assert mean_interval([2.0]) == (2.0, None)
    # Standard deviation 1, over √3, × 4.303.
    assert mean_interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(2.4843, abs=1e-4))
    # Ten degrees of freedom and more: deviation 1/√… of halves around 0.5, × 2.228.
    _, half = mean_interval([0.0, 1.0] * 50)
    assert half == pytest.approx(2.228 * (25 / 99) ** 0.5 / 10)
