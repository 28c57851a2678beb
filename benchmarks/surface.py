"""What each search method finds, and how soon, on losses that were really trained.

    python benchmarks/surface.py            # train what is missing of the surface; then replay
    python benchmarks/surface.py --replay   # on the kept surface alone

The surface is every schedule of four lengths whose boundaries lie at tenths of the budget, 84 of
them (``pipelines/study.py:small.schedules``), under seed 0, and those of the tree's design of 27
under seed 1 as well, so that the noise is known. ``glray run`` trains them, sharing prefixes, so
the same command goes on after a stop. What is finished is kept as ``surface.json``: commit it, and
another machine trains the rest.

A replay is a search whose trials are looked up. What a trial shares with those before it costs
nothing; Optuna, which asks for one trial after another, shares up to a stage's end alone, where
there is a checkpoint. Each replay sees the losses with a seed's noise added and is judged without:
its *regret* is the loss of the schedule that it would choose over the best of the surface. Kept as
``regret.json``; the last line is one JSON object. Left out: the baselines and the confirmation,
which cost every method the same.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import RESULTS, keep
from glray.files import read_json
from glray.run.run import Run, run_directory
from glray.search.space import Candidate, Space
from glray.search.suggestions import Suggestions
from glray.spec import PipelineSpec, load_pipeline

SCHEDULES = f"{Path(__file__).parents[1] / 'pipelines' / 'study.py'}:small.schedules"
DESIGN = 27
"""Schedules under the second seed."""
TRIALS = 24
"""Of a replay, at most."""
FINAL = 16
"""Trials after which the regret of random is what the others are measured by."""
REPLAYS = 100
LEVEL = 0.95

Losses = dict[str, float]
"""By schedule, nats per token at the longest length."""


# ---- the surface


def train(storage: Path) -> int:
    """Train what the kept surface lacks, and keep what is finished. Returns the exit status."""
    settings = [f"compute.storage={storage}"]
    every = [arm.name for arm in load_pipeline(SCHEDULES).arms]
    space = Space.of(load_pipeline(f"{SCHEDULES.rpartition('.')[0]}.searched"))
    design = [candidate.name for candidate in space.designed(DESIGN)]
    for seed, names in ((0, every), (1, design)):
        missing = [name for name in names if name not in kept().get(str(seed), {})]
        if not missing:
            continue
        own = [*settings, f"seeds=[{seed}]", f"only={json.dumps(missing)}"]
        options = [part for setting in own for part in ("--set", setting)]
        command = [sys.executable, "-m", "glray", "run", SCHEDULES, *options]
        status = subprocess.run(command, check=False).returncode
        keep_finished(load_pipeline(SCHEDULES, own), seed)
        if status:
            return status
    return 0


def kept() -> dict[str, Losses]:
    """Losses by seed."""
    path = RESULTS / "surface.json"
    return dict(read_json(path)["losses"]) if path.exists() else {}


def keep_finished(spec: PipelineSpec, seed: int) -> None:
    """Add the runs that have finished, and what a token costs by length."""
    losses = kept()
    seconds: dict[int, float] = {}
    tokens: dict[int, int] = {}
    for arm in spec.trained_arms:
        directory = run_directory(spec, arm.name, seed)
        if not (directory / "result.json").is_file():
            continue
        run = Run.open(directory)
        last = run.evaluations[-1].lengths[-1]
        losses.setdefault(str(seed), {})[arm.name] = round(last.loss, 5)
        for stage in run.stages:
            length = stage.seq_len
            seconds[length] = seconds.get(length, 0.0) + (stage.measured_seconds or 0.0)
            tokens[length] = tokens.get(length, 0) + stage.tokens_trained
    if not tokens:
        return
    cost = {str(length): seconds[length] / tokens[length] for length in sorted(tokens)}
    budget = spec.budget.tokens
    keep("surface", {"tokens": budget, "seconds_per_token": cost, "losses": losses})


# ---- replays


@dataclass(frozen=True)
class Surface:
    """The losses of all schedules, and what they cost."""

    losses: Losses
    noise: float
    """Standard deviation of a schedule's loss over seeds, in nats per token, without what a seed
    adds to all schedules alike."""
    seconds_per_unit: dict[int, float]
    """Of a tenth of the budget, by length."""

    @classmethod
    def kept(cls) -> "Surface":
        """What is kept."""
        found = read_json(RESULTS / "surface.json")
        first, again = found["losses"]["0"], found["losses"]["1"]
        apart = np.array([again[name] - first[name] for name in again])
        unit = found["tokens"] / 10
        cost = {int(n): seconds * unit for n, seconds in found["seconds_per_token"].items()}
        return cls(first, float(apart.std(ddof=1)) / 2**0.5, cost)

    def noisy(self, rng: np.random.Generator) -> Losses:
        """The losses under another seed."""
        added = rng.normal(0, self.noise, len(self.losses))
        return {
            name: loss + float(more)
            for (name, loss), more in zip(self.losses.items(), added, strict=True)
        }

    def seconds(self, candidate: Candidate, before: Sequence[Candidate], *, at_ends: bool) -> float:
        """What training a candidate costs after others."""
        units = path(candidate)
        shared = max((_shared(candidate, other, at_ends=at_ends) for other in before), default=0)
        return sum(self.seconds_per_unit[length] for length in units[shared:])


def path(candidate: Candidate) -> list[int]:
    """The length of each tenth of the budget."""
    shares = zip(candidate.seq_lens, candidate.units, strict=True)
    return [length for length, percent in shares for _ in range(percent // 10)]


def _shared(one: Candidate, other: Candidate, *, at_ends: bool) -> int:
    """Tenths that two candidates have in common from the start; ``at_ends``: up to a stage's end of
    the other alone."""
    pairs = zip(path(one), path(other), strict=True)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if not at_ends:
        return common
    ends = np.cumsum([percent // 10 for percent in other.units])
    return int(max((end for end in ends if end <= common), default=0))


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
    surface: Surface, tried: Sequence[Candidate], seen: Losses, *, at_ends: bool = False
) -> Replay:
    """A search that tries these in this order."""
    costs = [
        surface.seconds(candidate, tried[:n], at_ends=at_ends) for n, candidate in enumerate(tried)
    ]
    best, regrets = min(surface.losses.values()), []
    for n in range(1, len(tried) + 1):
        chosen = min(tried[:n], key=lambda candidate: seen[candidate.name])
        regrets.append(surface.losses[chosen.name] - best)
    return Replay(np.cumsum(costs), np.array(regrets))


def by_random(surface: Surface, space: Space, seed: int, seen: Losses) -> Replay:
    """Uniform over the schedules."""
    return replayed(surface, space.sample(TRIALS, random.Random(f"replay {seed}")), seen)


def by_tree(surface: Surface, space: Space, seed: int, seen: Losses) -> Replay:
    """The designs of ever more schedules, each as a search of its own."""
    searches = []
    for most in range(1, 2 * TRIALS + 1):
        found = replayed(surface, space.designed(most), seen)
        searches.append((float(found.seconds[-1]), float(found.regret[-1])))
    seconds, regret = zip(*sorted(set(searches)), strict=True)
    return Replay(np.array(seconds), np.array(regret))


def by_optuna(surface: Surface, space: Space, seed: int, seen: Losses) -> Replay:
    """Optuna's choice after each loss."""
    seeded = Space(space.search.derive(seed=1000 * seed), space.families)
    tried: list[Candidate] = []
    with tempfile.TemporaryDirectory() as folder:
        suggestions = Suggestions(seeded, Path(folder))
        while len(tried) < TRIALS:
            number, candidate = suggestions.ask()
            suggestions.tell(number, seen[candidate.name])
            tried.append(candidate)
    return replayed(surface, tried, seen, at_ends=True)


METHODS: dict[str, Callable[[Surface, Space, int, Losses], Replay]] = {
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
    at = [share * final for share in (0.25, 0.5, 0.75, 1.0)]
    regrets = {
        method: np.array([[found.at(seconds) for seconds in at] for found in its])
        for method, its in searches.items()
    }
    target = regrets["random"][:, -1].mean()
    rng = np.random.default_rng(0)
    return {
        "replays": num,
        "noise": surface.noise,
        "random_seconds": final,
        "at_shares_of_random_seconds": [0.25, 0.5, 0.75, 1.0],
        "methods": {
            method: {
                "regret": found.mean(axis=0).tolist(),
                "less_random": [
                    interval(found[:, n] - regrets["random"][:, n], rng) for n in range(len(at))
                ],
                "share_of_seconds_to_random_regret": reached(searches[method], target, final),
            }
            for method, found in regrets.items()
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
    """The mean, and the ends of its interval over replays by the bootstrap."""
    drawn = rng.choice(differences, (2000, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(differences.mean()), float(low), float(high)]


def main() -> None:
    """Train what is missing, unless it is to be replayed alone; replay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    options = parser.parse_args()
    if not options.replay and (status := train(options.storage.absolute())):
        sys.exit(status)
    space = Space.of(load_pipeline(f"{SCHEDULES.rpartition('.')[0]}.searched"))
    found = replay(Surface.kept(), space, REPLAYS)
    keep("regret", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
