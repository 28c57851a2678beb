"""Searches whose trials are looked up on the kept surface, method by method."""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.surface_records import Surface
from glray.search.space import Candidate, Space
from glray.search.suggestions import Suggestions

TRIALS = 24
"""Of a replay, at most."""
FINAL = 16
"""Trials after which the regret of random is what the others are measured by."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of random's seconds, at which the regrets are compared."""
CURVE = tuple(round(0.05 * n, 2) for n in range(1, 21))
"""The same, for a plot."""
REPLAYS = 100


@dataclass(frozen=True)
class Replay:
    """One search: after each trial, the seconds spent and the regret of its choice."""

    seconds: np.ndarray
    regret: np.ndarray

    def at(self, seconds: float) -> float:
        """The regret after so many seconds; before the first trial, that of the first."""
        after = int(np.searchsorted(self.seconds, seconds, "right"))
        return float(self.regret[max(0, after - 1)])


def replayed(
    surface: Surface,
    tried: Sequence[Candidate],
    seen: dict[str, float],
    *,
    at_ends: bool = False,
) -> Replay:
    """A search that tries these in this order."""
    costs = [
        surface.seconds(candidate, tried[:n], at_ends=at_ends) for n, candidate in enumerate(tried)
    ]
    best, regrets = surface.losses[surface.best], []
    for n in range(1, len(tried) + 1):
        chosen = min(tried[:n], key=lambda candidate: seen[candidate.name])
        regrets.append(surface.losses[chosen.name] - best)
    return Replay(np.cumsum(costs), np.array(regrets))


def by_random(surface: Surface, space: Space, seed: int, seen: dict[str, float]) -> Replay:
    """Uniform over the schedules."""
    return replayed(surface, space.sample(TRIALS, random.Random(f"replay {seed}")), seen)


def by_tree(surface: Surface, space: Space, seed: int, seen: dict[str, float]) -> Replay:
    """The designs of ever more schedules, each as a search of its own."""
    searches = []
    for most in range(1, 2 * TRIALS + 1):
        found = replayed(surface, space.designed(most), seen)
        searches.append((float(found.seconds[-1]), float(found.regret[-1])))
    seconds, regret = zip(*sorted(set(searches)), strict=True)
    return Replay(np.array(seconds), np.array(regret))


def by_optuna(surface: Surface, space: Space, seed: int, seen: dict[str, float]) -> Replay:
    """Optuna's choice after each loss."""
    seeded = replace(space, search=space.search.derive(seed=1000 * seed))
    tried: list[Candidate] = []
    with tempfile.TemporaryDirectory() as folder:
        suggestions = Suggestions(seeded, Path(folder))
        while len(tried) < TRIALS:
            number, candidate = suggestions.ask()
            suggestions.tell(number, seen[candidate.name])
            tried.append(candidate)
    return replayed(surface, tried, seen, at_ends=True)


METHODS: dict[str, Callable[[Surface, Space, int, dict[str, float]], Replay]] = {
    "random": by_random,
    "tree": by_tree,
    "optuna": by_optuna,
}


def replay(surface: Surface, space: Space, num: int) -> dict[str, Any]:
    """The regret of each method against random's at the same trained seconds."""
    searches: dict[str, list[Replay]] = {method: [] for method in METHODS}
    for seed in range(num):
        seen = surface.noisy(np.random.default_rng(seed))
        for method, search in METHODS.items():
            searches[method].append(search(surface, space, seed, seen))
    final = float(np.mean([found.seconds[FINAL - 1] for found in searches["random"]]))

    def regrets(method: str, shares: Sequence[float]) -> np.ndarray:
        """float64[replays, shares]."""
        its = searches[method]
        return np.array([[found.at(share * final) for share in shares] for found in its])

    by_chance = regrets("random", SHARES)
    rng = np.random.default_rng(0)
    return {
        "replays": num,
        "noise": vars(surface.noise),
        "random_seconds": final,
        "at_shares_of_random_seconds": SHARES,
        "curve_at_shares": CURVE,
        "methods": {
            method: {
                "regret": regrets(method, SHARES).mean(axis=0).tolist(),
                "curve": regrets(method, CURVE).mean(axis=0).tolist(),
                "less_random": [
                    interval(differences, rng)
                    for differences in (regrets(method, SHARES) - by_chance).T
                ],
                "share_of_seconds_to_random_regret": reached(
                    searches[method], by_chance[:, -1].mean(), final
                ),
            }
            for method in METHODS
        },
    }


def reached(searches: Sequence[Replay], target: float, final: float) -> float | None:
    """After which share of random's seconds the mean regret is at most random's final one; None if
    it never is."""
    moments = np.unique(np.concatenate([found.seconds for found in searches]))
    for seconds in moments:
        if np.mean([found.at(float(seconds)) for found in searches]) <= target + 1e-12:
            return float(seconds / final)
    return None


def interval(differences: np.ndarray, rng: np.random.Generator) -> list[float]:
    """The mean, and the ends of its 95% interval over replays by the bootstrap: of one surface, so
    it says nothing of others."""
    drawn = rng.choice(differences, (2000, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(differences.mean()), float(low), float(high)]
