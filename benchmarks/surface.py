"""What each search method finds, and how soon, on losses that were really trained.

    python benchmarks/surface.py            # train what is missing of the surface; then replay
    python benchmarks/surface.py --replay   # on the kept surface alone

The surface is every schedule of four lengths whose boundaries lie at tenths of the budget, 84 of
them (``pipelines/study.py:small.schedules``), under seed 0, and those of the tree's design of 27
under seed 1 as well, so that the noise is known. The best under seed 0 is trained again under three
fresh seeds, as ``glray tune`` confirms its best. ``glray run`` trains them, sharing prefixes, so
the same command goes on after a stop. What is finished is kept as ``surface.json``: commit it, and
another machine trains the rest.

A replay is a search whose trials are looked up. What a trial shares with those before it costs
nothing; Optuna, which asks for one trial after another, shares up to a stage's end alone, where
there is a checkpoint. Each replay sees the losses with a seed's noise added, most of it in common
to the schedules of one first boundary, as the second seed shows. It is judged by the losses of seed
0 as they are, which stand for the truth: its *regret* is the loss of the schedule that it would
choose less the best of the surface. Kept as ``regret.json``; the last line is one JSON object. Left
out: the baselines and the confirmation, which cost every method the same. ``docs/results.md`` has
the result.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.processes import trained
from benchmarks.record import keep
from benchmarks.results import PLOTS, render
from benchmarks.surface_page import kept_answers, picture
from benchmarks.surface_records import FRESH, SCHEDULES, Surface, designed, kept, record, space
from benchmarks.surface_replay import REPLAYS, replay
from glray.errors import UserError
from glray.report.look import save
from glray.run.profile import Profile, SettingCosts, prices_of, profile_path
from glray.run.run import Run, run_directory
from glray.spec import PipelineSpec, load_pipeline


def train(storage: Path) -> int:
    """Train what the kept surface lacks, and keep what has ended. Returns the exit status."""
    settings = [f"compute.storage={storage}"]
    spec = load_pipeline(SCHEDULES, settings)
    if _prices(spec) is None:
        raise UserError(
            f"{profile_path(spec)}: has no prices of {SCHEDULES}, so trials would have no cost; "
            f"run glray profile {SCHEDULES} --set compute.storage={storage}"
        )
    for asked, names in asked_for([arm.name for arm in spec.arms]):
        seeds = [seed for seed in asked if not kept(seed).keys() >= {*names}]
        missing = [name for name in names if any(name not in kept(seed) for seed in seeds)]
        if not missing:
            continue
        own = [*settings, f"seeds={seeds}", f"only={json.dumps(missing)}"]
        status = trained("run", SCHEDULES, own)
        for seed in seeds:
            keep_ended(load_pipeline(SCHEDULES, own), seed)
        if status:
            return status
    return 0


def asked_for(all_names: list[str]) -> Iterator[tuple[Sequence[int], list[str]]]:
    """Seeds and the schedules to train under them; the best, once the surface is whole."""
    yield (0,), all_names
    yield (1,), designed()
    yield FRESH, [Surface.kept().best]


def keep_ended(spec: PipelineSpec, seed: int) -> None:
    """Add the runs that have ended; the loss of one that has diverged is null."""
    before, losses = record(), kept(seed)
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


def _prices(spec: PipelineSpec) -> SettingCosts | None:
    return prices_of(Profile.read(profile_path(spec)), spec, spec.all_seq_lens)


def main() -> None:
    """Train what is missing, unless it is to be replayed alone; replay; render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    options = parser.parse_args()
    try:
        if not options.replay and (status := train(options.storage.absolute())):
            sys.exit(status)
        answers = kept_answers()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    found = replay(answers.surface, space(), REPLAYS)
    keep("regret", found)
    save(picture(answers, found), PLOTS / "surface.png")
    render()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
