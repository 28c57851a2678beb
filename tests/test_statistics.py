import numpy as np
import pytest

from glray.run.statistics import mean_interval, standard_error


def test_intervals_by_hand() -> None:
    assert mean_interval([2.0]) == (2.0, None)
    # Standard deviation 1, over √3, × 4.303.
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(2.4843, abs=1e-4)
    # 99 degrees of freedom: deviation 1/√… of halves around 0.5, × 1.984.
    _, half = mean_interval([0.0, 1.0] * 50)
    assert half == pytest.approx(1.984 * (25 / 99) ** 0.5 / 10)


T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@pytest.mark.parametrize(("freedom", "t"), [*enumerate(T_975, start=1), (19, 2.093), (30, 2.042)])
def test_students_t_is_the_printed_tables(freedom: int, t: float) -> None:
    values = [0.0] * freedom + [1.0]  # deviation 1/√n, so that half is t / n
    _, half = mean_interval(values)
    assert half is not None
    assert half * len(values) == pytest.approx(t)


def test_a_value_that_is_not_finite_has_no_interval() -> None:
    mean, half = mean_interval([1.0, float("inf"), 2.0])
    assert np.isnan(mean)
    assert half is None


def test_a_standard_error_by_hand() -> None:
    # Weights 1/4 and 3/4 of losses 2 and 6: mean 5, deviations 1/4 × -3 and 3/4 × 1.
    error = standard_error(np.array([10, 30]), np.array([2.0, 6.0]))
    assert error == pytest.approx((2 * 2 * 0.75**2) ** 0.5)
    assert standard_error(np.array([10]), np.array([2.0])) is None
