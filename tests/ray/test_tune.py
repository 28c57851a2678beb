"""What is said while the trials of a search train."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from glray.data.corpus import PreparedCorpus
from glray.progress import Work, heard_by, working
from glray.ray.tune import Trials, _Following, _space, trial_pipeline
from glray.run.records import Progress, Step, TrainingProgress
from glray.run.run import pipeline_directory
from glray.search.space import candidates
from glray.spec import BudgetSpec, SearchSpec
from glray.train.context import WorkerContext
from glray.train.worker import train_all

from ..tiny import tiny_spec


def test_what_is_searched_is_said() -> None:
    own = SearchSpec(arm="grow")
    assert _space(tiny_spec(Path("runs"), search=own)) == (
        "by tree out of 171 schedules over 8-16-32 (arm grow, seed 0)"
    )
    lists = ((8, 32), (8, 16, 32))
    search = SearchSpec(arm="grow", method="random", lengths=lists, lrs=(1e-3, 2e-3), seed=3)
    assert _space(tiny_spec(Path("runs"), search=search)) == (
        "by random out of 380 schedules over 8-32 or 8-16-32 (arm grow, seed 3)"
    )


@pytest.fixture
def trials(tmp_path: Path, corpus: PreparedCorpus) -> Trials:
    """Three trials, the first of them trained."""
    spec = tiny_spec(
        tmp_path,
        budget=BudgetSpec(seconds=0.01),
        calibration={"step_microseconds": {8: 900, 16: 1000, 32: 1100}},
        search=SearchSpec(arm="grow", num_trials=1, last=(0.5, 1)),
    )
    specs = [trial_pipeline(spec, candidate, n) for n, candidate in enumerate(candidates(spec))]
    train_all(specs[0], corpus, WorkerContext())
    return Trials(specs, corpus, seq_len=32)


def in_tune(number: int, status: str) -> SimpleNamespace:
    """What Ray Tune shows of a trial."""
    took = {"time_total_s": 61.6}
    return SimpleNamespace(config={"trial": number}, status=status, last_result=took)


def half_trained(trials: Trials, number: int) -> None:
    """The trial's worker has written that as much is left as is done."""
    log = trials.run(0).directory / "metrics.jsonl"
    last = Step.of_line(log.read_text().splitlines()[0], "metrics")
    now = TrainingProgress(
        last_step=last, num_stages=3, num_steps=10, seconds_left=last.measured_seconds
    )
    path = pipeline_directory(trials.specs[number]) / "progress.json"
    Progress(phase="training", training=now).write(path)


def test_each_trial_that_ends_is_said_and_how_far_all_are(
    trials: Trials, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said: list[str] = []
    following = _Following(trials, said.append)
    assert following.num_missing == 2
    heard: list[Work] = []
    with heard_by(lambda work: heard.extend([work] if work else [])), working("tune", 2):
        following.on_trial_complete(1, [], in_tune(0, "TERMINATED"))
        following.on_step_end(1, [in_tune(1, "PENDING"), in_tune(2, "PENDING")])
        assert (heard[-1].done, heard[-1].note) == (0, "starting one")
        half_trained(trials, 2)  # beside trial 1, of which nothing is known yet
        for step in (2, 3):
            following.on_step_end(step, [in_tune(2, "RUNNING"), in_tune(1, "RUNNING")])
            assert (heard[-1].done, heard[-1].note) == (0.5, "now 1, 2")
        train_all(trials.specs[1], corpus, WorkerContext())
        following.on_trial_complete(4, [], in_tune(1, "TERMINATED"))
        assert heard[-1].done == 1.5
    first, second = (trials.scored(number) for number in (0, 1))
    assert said == [
        f"trial 0: {first.schedule}: loss {first.loss:.4f}, trained before (1 of 3 trials done)",
        f"trial 1: {second.schedule}: loss {second.loss:.4f} after 62 s (2 of 3 trials done)",
    ]
    assert first.schedule == "32x100"
