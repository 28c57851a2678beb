"""A response surface: a quadratic of a few factors, fitted to losses. Pure.

The quadratic's coefficients have a normal prior around 0, whose width is the one under which the
losses are most probable (ridge regression with evidence maximization, MacKay 1992,
https://doi.org/10.1162/neco.1992.4.3.415). So few points with many coefficients hardly overfit, and
losses that depend on no factor give a nearly flat surface.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from glray.run.statistics import student_t

PENALTIES = np.logspace(-4, 1, 21)
"""Ridge penalties to choose from: variance of the noise over that of the prior. They range
from least squares to a prior a third as wide as the noise: a narrower one would rule out effects
that too few points cannot show."""
NUM_PERMUTATIONS = 499
MAX_P = 0.05
"""Largest p value at which a surface counts as explaining something."""


@dataclass(frozen=True)
class Effect:
    """A difference of losses on the surface, in nats per token."""

    mean: float
    half: float
    """Half of its 95% interval."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval is clear of 0."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:+z.3f} ± {self.half:.3f}"


@dataclass(frozen=True, eq=False)
class Surface:
    """A quadratic fitted to the losses of at least 3 points, in factors that all vary."""

    points: np.ndarray
    """float64[points, factors]."""
    losses: np.ndarray
    """float64[points], nats per token."""

    @cached_property
    def explained(self) -> float:
        """Share of the losses' variance that it explains in points that it was not fitted to (R²,
        leaving out one at a time): 0 or less if it predicts no better than the mean."""
        return self._tested[0]

    @cached_property
    def p_value(self) -> float:
        """How often it explains as much when the losses are dealt out to the points at random."""
        return self._tested[1]

    @property
    def explains(self) -> bool:
        """Whether it explains more than chance would."""
        return self.explained > 0 and self.p_value <= MAX_P

    def at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The surface, float64[points], at float64[points, factors], and half of its 95%
        intervals: of the mean, not of a single trial."""
        return self._predicted(_features(self._coded(points)))

    def curve(self, factor: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As ``at``, along one factor, on average over the points' values of the others."""
        return self._predicted(self._along(factor, self._scaled(factor, values)))

    def slope(self, factor: int) -> Effect:
        """From the factor's lowest value to its highest, on that curve."""
        return self._contrast(factor, (-1.0, 1.0), (-1.0, 1.0))

    def bend(self, factor: int) -> Effect:
        """How far the middle of the factor's range lies below the mean of both ends, on that
        curve: above 0 if a value between is best."""
        return self._contrast(factor, (-1.0, 0.0, 1.0), (0.5, -1.0, 0.5))

    def _predicted(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        away = features - self._features.mean(axis=0)
        variance = np.einsum("nf,fg,ng->n", away, self._covariance, away)
        variance += self._noise / len(self.losses)
        return self.losses.mean() + away @ self._coefficients, self._t * np.sqrt(variance)

    def _contrast(self, factor: int, at: tuple[float, ...], weights: tuple[float, ...]) -> Effect:
        contrast = np.array(weights) @ self._along(factor, np.array(at))
        half = self._t * float(np.sqrt(contrast @ self._covariance @ contrast))
        return Effect(float(contrast @ self._coefficients), half)

    def _along(self, factor: int, coded: np.ndarray) -> np.ndarray:
        """Features at these coded values of a factor, on average over the points' values of the
        others."""
        points = np.repeat(self._coded(self.points)[None], len(coded), axis=0)
        points[:, :, factor] = coded[:, None]
        flat = _features(points.reshape(-1, points.shape[-1]))
        return flat.reshape(*points.shape[:2], -1).mean(axis=1)

    @cached_property
    def _features(self) -> np.ndarray:
        return _features(self._coded(self.points))

    def _coded(self, points: np.ndarray) -> np.ndarray:
        """Factors from −1 to 1 over the range of the fitted points."""
        columns = [self._scaled(factor, column) for factor, column in enumerate(points.T)]
        return np.stack(columns, axis=1)

    def _scaled(self, factor: int, values: np.ndarray) -> np.ndarray:
        low, high = self.points[:, factor].min(), self.points[:, factor].max()
        assert low < high, "a factor that does not vary has no effect"
        return 2 * (values - low) / (high - low) - 1

    @cached_property
    def _fitted(self) -> tuple[np.ndarray, float, float]:
        coefficients, penalties, noises = _ridge(self._features, self.losses[:, None])
        return coefficients[:, 0], float(penalties[0]), float(noises[0])

    @property
    def _coefficients(self) -> np.ndarray:
        return self._fitted[0]

    @property
    def _penalty(self) -> float:
        return self._fitted[1]

    @property
    def _noise(self) -> float:
        """Variance of the losses around the surface."""
        return self._fitted[2]

    @cached_property
    def _covariance(self) -> np.ndarray:
        """Of the coefficients."""
        centred = self._features - self._features.mean(axis=0)
        precision = centred.T @ centred + self._penalty * np.eye(centred.shape[1])
        return self._noise * np.linalg.inv(precision)

    @cached_property
    def _t(self) -> float:
        """Student's t for the degrees of freedom that the coefficients leave."""
        singular = np.linalg.svd(self._features - self._features.mean(axis=0), compute_uv=False)
        used = float((singular**2 / (singular**2 + self._penalty)).sum())
        return student_t(max(1, int(len(self.losses) - 1 - used)))

    @cached_property
    def _tested(self) -> tuple[float, float]:
        """R² of points left out, and its p value by permutation."""
        rng = np.random.default_rng(0)
        dealt = [rng.permutation(self.losses) for _ in range(NUM_PERMUTATIONS)]
        found = _left_out(self._features, np.stack([self.losses, *dealt], axis=1))
        as_much = int((found[1:] >= found[0]).sum())
        return float(found[0]), (1 + as_much) / (1 + NUM_PERMUTATIONS)


def _features(coded: np.ndarray) -> np.ndarray:
    """Float64[points, features]: each factor, its square, and the products of two."""
    products = [coded[:, a] * coded[:, b] for a, b in combinations(range(coded.shape[1]), 2)]
    return np.column_stack([coded, coded**2, *products])


def _ridge(features: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each column of ``losses``, float64[points, columns]: the coefficients, float64[features,
    columns], the penalty and the variance of the noise, float64[columns]."""
    u, s, vt = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    centred = losses - losses.mean(axis=0)
    along = u.T @ centred
    beside = np.maximum((centred**2).sum(axis=0) - (along**2).sum(axis=0), 0)
    left = PENALTIES[:, None] / (s**2 + PENALTIES[:, None])
    noise = np.maximum(left @ along**2 + beside, 1e-30) / (len(losses) - 1)
    evidence = np.log(left).sum(axis=1)[:, None] - (len(losses) - 1) * np.log(noise)
    best = evidence.argmax(axis=0)
    shrunk = (s / (s**2 + PENALTIES[best][:, None])).T * along
    return vt.T @ shrunk, PENALTIES[best], noise[best, np.arange(len(best))]


def _left_out(features: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """R² of each column of ``losses`` in points left out of the fit, one at a time, relative to the
    variance around the mean of the points that are kept."""
    errors, deviations = np.zeros((2, losses.shape[1]))
    for index in range(len(losses)):
        kept = np.arange(len(losses)) != index
        coefficients, _, _ = _ridge(features[kept], losses[kept])
        away = features[index] - features[kept].mean(axis=0)
        off = losses[index] - losses[kept].mean(axis=0)
        errors += (off - away @ coefficients) ** 2
        deviations += off**2
    return 1 - errors / np.maximum(deviations, 1e-30)
