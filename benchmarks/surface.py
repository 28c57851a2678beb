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
there is a checkpoint. Each replay sees the losses with a seed's noise added, independently for each
schedule, though those that share steps share some of theirs. It is judged by the losses of seed 0
as they are, which stand for the truth: its *regret* is the loss of the schedule that it would
choose less the best of the surface. Kept as ``regret.json``; the last line is one JSON object. Left
out: the baselines and the confirmation, which cost every method the same.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.processes import trained
from benchmarks.record import RESULTS, keep
from glray.errors import UserError
from glray.files import read_json
from glray.run.profile import Profile, SettingCosts, prices_of, profile_path
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
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of random's seconds, at which the regrets are compared."""
REPLAYS = 100

Losses = dict[str, Any]
"""By schedule, nats per token at the longest length; null where it diverged."""


# ---- the surface


def train(storage: Path) -> int:
    """Train what the kept surface lacks, and keep what has ended. Returns the exit status."""
    settings = [f"compute.storage={storage}"]
    spec = load_pipeline(SCHEDULES, settings)
    if _prices(spec) is None:
        raise UserError(
            f"{profile_path(spec)}: has no prices of {SCHEDULES}, so trials would have no cost; "
            f"run glray profile {SCHEDULES} --set compute.storage={storage}"
        )
    design = [candidate.name for candidate in _space().designed(DESIGN)]
    for seed, names in ((0, [arm.name for arm in spec.arms]), (1, design)):
        missing = [name for name in names if name not in kept(seed)]
        if not missing:
            continue
        own = [*settings, f"seeds=[{seed}]", f"only={json.dumps(missing)}"]
        status = trained("run", SCHEDULES, own)
        keep_ended(load_pipeline(SCHEDULES, own), seed)
        if status:
            return status
    return 0


def kept(seed: int) -> Losses:
    """The losses under a seed."""
    return dict(_kept().get("losses", {}).get(str(seed), {}))


def keep_ended(spec: PipelineSpec, seed: int) -> None:
    """Add the runs that have ended; the loss of one that has diverged is null."""
    before, losses = _kept(), kept(seed)
    for arm in spec.trained_arms:
        directory = run_directory(spec, arm.name, seed)
        run = Run.open(directory) if (directory / "run.json").is_file() else None
        if run is not None and run.divergence is not None:
            losses[arm.name] = None
        elif run is not None and run.is_finished:
            losses[arm.name] = round(run.evaluations[-1].lengths[-1].loss, 5)
    costs = _prices(spec)
    assert costs is not None, "training came after it"
    seconds = {str(each.seq_len): each.seconds / spec.tokens_per_batch for each in costs.fitting}
    all_losses = before.get("losses", {}) | {str(seed): losses}
    figures = {"tokens": spec.budget.tokens, "seconds_per_token": seconds, "losses": all_losses}
    keep("surface", figures)


def _kept() -> dict[str, Any]:
    path = RESULTS / "surface.json"
    return dict(read_json(path)) if path.exists() else {}


def _prices(spec: PipelineSpec) -> SettingCosts | None:
    return prices_of(Profile.read(profile_path(spec)), spec, spec.all_seq_lens)


def _space() -> Space:
    return Space.of(load_pipeline(SCHEDULES.replace(".schedules", ".searched")))


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
        """What is kept, without schedules that diverged. Raises UserError if it is not whole."""
        found, by_seed, whole = _kept(), (kept(0), kept(1)), _space().num_candidates
        first, again = ({n: x for n, x in its.items() if x is not None} for its in by_seed)
        both = [name for name in again if name in first]
        if len(by_seed[0]) < whole or not both:
            raise UserError(
                f"surface.json: has {len(by_seed[0])} of {whole} schedules under seed 0 and "
                f"{len(by_seed[1])} under seed 1, so a search could meet a gap; run "
                "without --replay first"
            )
        apart = np.array([again[name] - first[name] for name in both])
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
        units = tenths(candidate)
        shared = max((_shared(candidate, other, at_ends=at_ends) for other in before), default=0)
        return sum(self.seconds_per_unit[length] for length in units[shared:])


def tenths(candidate: Candidate) -> list[int]:
    """The length of each tenth of the budget."""
    shares = zip(candidate.seq_lens, candidate.units, strict=True)
    return [length for length, percent in shares for _ in range(percent // 10)]


def _shared(one: Candidate, other: Candidate, *, at_ends: bool) -> int:
    """Tenths that two candidates have in common from the start; ``at_ends``: up to a stage's end of
    the other alone."""
    pairs = zip(tenths(one), tenths(other), strict=True)
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
    seeded = replace(space, search=space.search.derive(seed=1000 * seed))
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
    at = [share * final for share in SHARES]
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
        "at_shares_of_random_seconds": SHARES,
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
    """The mean, and the ends of its 95% interval over replays by the bootstrap: of one surface, so
    it says nothing of others."""
    drawn = rng.choice(differences, (2000, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(differences.mean()), float(low), float(high)]


def main() -> None:
    """Train what is missing, unless it is to be replayed alone; replay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    options = parser.parse_args()
    try:
        if not options.replay and (status := train(options.storage.absolute())):
            sys.exit(status)
        surface = Surface.kept()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    found = replay(surface, _space(), REPLAYS)
    keep("regret", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
