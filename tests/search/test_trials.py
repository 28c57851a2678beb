"""How a search ranks its trials once they have ended."""

import math
from pathlib import Path

from glray.data.corpus import PreparedCorpus
from glray.ray.tune import SearchResult, Trial, Trials, ranked, trial_pipeline
from glray.run.records import Divergence
from glray.search.space import candidates
from glray.spec import SearchSpec

from ..tiny import tiny_spec

WILD = Divergence(step=7, seq_len=8, what="gradient", loss=5.5, grad_norm=math.inf)


def test_trials_that_diverged_come_last_and_are_named(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    losses = {0: math.nan, 1: 4.25, 2: math.nan, 3: 4.125}
    trials = ranked(
        Trial(number, spec, loss, None, WILD if math.isnan(loss) else None)
        for number, loss in losses.items()
    )
    assert [trial.number for trial in trials] == [3, 1, 0, 2]
    sheet = SearchResult(tuple(trials), 32, tmp_path / "best.yaml").sheet()
    assert [row[2] for row in sheet.rows] == ["4.1250", "4.2500", "diverged", "diverged"]
    assert sheet.notes == [
        "Trial 0 diverged at step 7 (seq_len 8): its gradient is not finite.",
        "Trial 2 diverged at step 7 (seq_len 8): its gradient is not finite.",
    ]


def test_a_trial_that_diverged_has_no_loss_though_it_was_never_scored(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    costs = {"step_microseconds": {8: 1000, 16: 1100, 32: 1300}}
    spec = tiny_spec(
        tmp_path, budget={"seconds": 0.1}, calibration=costs, search=SearchSpec(arm="grow")
    )
    specs = [trial_pipeline(spec, candidate, n) for n, candidate in enumerate(candidates(spec))]
    trials = Trials(specs, corpus, seq_len=32)
    run = trials.run(1)
    WILD.write(run.directory / "diverged.json")
    trial = trials.scored(1)
    assert (trial.number, math.isnan(trial.loss)) == (1, True)
    assert trial.divergence is not None
    assert trial.divergence.step == 7
