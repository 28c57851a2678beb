"""A search's candidates, trained as one pipeline: what the report says of real runs."""

import random
from pathlib import Path

import pytest

from glray.data.corpus import PreparedCorpus
from glray.report.search_page import search_report
from glray.run.run import open_runs
from glray.search.space import baselines, candidates, ranking_seq_len, search_pipeline
from glray.spec import Extrapolation, Interpolation, SearchSpec
from glray.train.context import WorkerContext
from glray.train.worker import train_all

from ..tiny import tiny_spec


@pytest.mark.usefixtures("undrawn")
def test_trials_are_the_candidates(tmp_path: Path, corpus: PreparedCorpus) -> None:
    search = SearchSpec(
        arm="grow",
        lengths=((8, 32), (8, 16, 32)),
        grid=4,
        lrs=(3e-3, 1e-2),
        positions=(Extrapolation(), Interpolation()),
        num_trials=6,
    )
    spec = tiny_spec(tmp_path, search=search)
    tried = candidates(spec)
    pipeline = search_pipeline(spec, tried)
    train_all(pipeline, corpus, WorkerContext())
    runs = open_runs([tmp_path / pipeline.name])
    random.Random(0).shuffle(runs)
    report = search_report(
        runs,
        ranking_seq_len(spec),
        title="tiny",
        baselines=[candidate.name for candidate in baselines(spec)],
        wall_seconds=1e6,
    )

    trials = {trial.name: trial for trial in report.trials.ranked}
    assert trials.keys() == {candidate.name for candidate in tried}
    for candidate in tried:
        trial = trials[candidate.name]
        assert trial.shares == pytest.approx(candidate.shares)
        assert (trial.seq_lens, trial.lr) == (candidate.seq_lens, candidate.lr)
    assert report.trials.fixed is not None
    assert report.trials.fixed.seq_lens == (32,)
    assert report.trials.equal is not None
    assert report.trials.equal.seq_lens == (8, 16, 32)
    losses = [trial.loss for trial in report.trials.ranked]
    assert losses == sorted(losses)
    # Ranking needs the end alone.
    assert all([e.step for e in run.evaluations] == [run.plan.num_steps] for run in runs)
    assert not any(run.boundaries for run in runs)
    assert 0 < report.cost.shared_seconds < report.cost.path_seconds
    # One list of lengths under two scalings is fitted apart.
    labels = [its.label for its in report.effects]
    assert {"8-16-32 (extrapolation)", "8-16-32 (interpolation, relative_to first)"} <= {*labels}
    assert report.write(tmp_path / "out").exists()
