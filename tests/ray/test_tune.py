"""What Tune's interfaces do in a search: what is tried, stopped and followed. The whole command is
in ``tests/integration``."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from glray.data.corpus import PreparedCorpus
from glray.files import AnyPath
from glray.progress import Work, heard_by, working
from glray.ray.follower import follow
from glray.ray.tune import _Chooser, _Following, _Scheduler, _Trials
from glray.run.run import DIVERGED, STOPPED
from glray.search.space import Candidate, Space, candidates, search_pipeline
from glray.search.suggestions import Suggestions
from glray.spec import BudgetSpec, PipelineSpec, SearchSpec
from glray.train.context import WorkerContext
from glray.train.group import WorkerGroup
from glray.train.worker import train_all

from ..disk import here
from ..tiny import tiny_spec


def searched_spec(storage: Path, **search: Any) -> PipelineSpec:
    """Two lengths; the design has three schedules beside the two baselines."""
    declared = {"arm": "grow", "lengths": ((8, 32),), "num_trials": 3} | search
    evaluation = {"seq_lens": (8, 32, 64), "num_tokens": 256, "every_tokens": 8 * 64}
    return tiny_spec(
        storage,
        budget=BudgetSpec(tokens=40 * 64),
        search=SearchSpec.model_validate(declared),
        evaluation=evaluation,
    )


def trained(spec: PipelineSpec, corpus: PreparedCorpus, say: list[str]) -> _Trials:
    tried = candidates(spec)
    pipeline = search_pipeline(spec, tried)
    train_all(pipeline, corpus, WorkerContext())
    return _Trials(pipeline, corpus, tried, say.append)


def in_tune(name: str, **last: object) -> Any:
    """What Ray Tune shows of a trial."""
    return SimpleNamespace(config={"candidate": name}, last_result=last)


@pytest.mark.parametrize("is_stored", [False, True])
def test_known_candidates_come_first_and_then_what_optuna_suggests(
    tmp_path: Path, request: pytest.FixtureRequest, is_stored: bool
) -> None:
    folder: AnyPath = request.getfixturevalue("bucket") if is_stored else tmp_path
    spec = searched_spec(tmp_path, method="optuna", num_trials=2)
    space, training = Space.of(spec), Future[None]()
    offered: list[Candidate] = []
    chooser = _Chooser(["a", "b"], Suggestions(space, folder), 2, offered.append, training)
    assert [chooser.suggest(trial) for trial in "12"] == [{"candidate": "a"}, {"candidate": "b"}]
    chooser.on_trial_complete("1", {"loss": 3.0})
    suggested = [chooser.suggest(trial) for trial in "34"]
    assert suggested == [{"candidate": candidate.name} for candidate in offered]
    assert chooser.suggest("5") == Searcher.FINISHED
    chooser.on_trial_complete("3", {"loss": 2.5})

    again: list[Candidate] = []  # after a kill: the one that was not told comes again
    suggestions = Suggestions(space, folder)
    assert suggestions.ended == offered[:1]
    chooser = _Chooser([], suggestions, 1, again.append, training)
    assert chooser.suggest("6") == suggested[1]
    assert again == offered[1:]
    assert chooser.suggest("7") == Searcher.FINISHED


def test_nothing_is_suggested_or_told_once_the_workers_have_ended(tmp_path: Path) -> None:
    space, training = Space.of(searched_spec(tmp_path, method="optuna")), Future[None]()
    offered: list[Candidate] = []
    chooser = _Chooser([], Suggestions(space, tmp_path), 2, offered.append, training)
    chooser.suggest("1")
    training.set_result(None)
    assert chooser.suggest("2") == Searcher.FINISHED
    chooser.on_trial_complete("1", {"loss": None})
    assert Suggestions(space, tmp_path).ended == []


def test_a_candidate_whose_trial_of_tune_failed_is_not_told_as_bad(tmp_path: Path) -> None:
    """Its run trains on, and the next call is told its loss."""
    space, training = Space.of(searched_spec(tmp_path, method="optuna")), Future[None]()
    offered: list[Candidate] = []
    chooser = _Chooser([], Suggestions(space, tmp_path), 1, offered.append, training)
    chooser.suggest("1")
    chooser.on_trial_complete("1", error=True)
    assert Suggestions(space, tmp_path).ended == []


def results(scheduler: _Scheduler, trials: _Trials, order: list[str]) -> dict[str, list[str]]:
    """What the scheduler says of each trial at each evaluation before its last."""
    runs = {name: trials.run(name) for name in order}
    said: dict[str, list[str]] = {name: [] for name in order}
    for step in (8, 16, 20, 24, 32):
        for name in order:
            stopped = TrialScheduler.STOP in said[name]
            if not stopped and any(e.step == step for e in runs[name].evaluations):
                result = {"step": step, "loss": None}
                said[name].append(scheduler.on_trial_result(None, in_tune(name), result))
    return said


def test_a_trial_that_is_far_behind_is_stopped(tmp_path: Path, corpus: PreparedCorpus) -> None:
    """A rate of 1e-6 teaches nothing."""
    said: list[str] = []
    spec = searched_spec(tmp_path, lengths=((32,),), lrs=(1e-6, 1e-2), num_trials=2)
    trials, group = trained(spec, corpus, said), WorkerGroup()
    names = ["32x100-lr1e-2", "32x100-lr1e-6"]
    slow = trials.run("32x100-lr1e-6")
    finished = results(_Scheduler(trials, group, 0.01), trials, names)  # of an earlier call
    assert {answer for its in finished.values() for answer in its} == {TrialScheduler.CONTINUE}
    assert slow.stopped is None

    (here(slow.directory) / "result.json").unlink()  # now it still trains
    stopped = results(_Scheduler(trials, group, 0.01), trials, names)
    assert set(stopped["32x100-lr1e-2"]) == {TrialScheduler.CONTINUE}
    assert TrialScheduler.STOP in stopped["32x100-lr1e-6"]
    assert group.is_withdrawn(slow.name)
    record = slow.stopped
    assert record is not None
    assert said[0].startswith("32x100-lr1e-6 is stopped: it is ")
    assert "behind 32x100-lr1e-2 at 32 tokens after 8 steps" in record.reason

    (slow.directory / STOPPED).unlink()
    by_default = results(_Scheduler(trials, WorkerGroup(), None), trials, names)
    assert {answer for its in by_default.values() for answer in its} == {TrialScheduler.CONTINUE}


def test_a_stopped_run_is_not_trained_again(tmp_path: Path, corpus: PreparedCorpus) -> None:
    spec = search_pipeline(searched_spec(tmp_path), candidates(searched_spec(tmp_path))[:1])
    run = _Trials(spec, corpus, [], print).run(spec.arms[0].name)
    run.directory.mkdir(parents=True)
    (run.directory / STOPPED).write_text('{"step": 8, "reason": "is behind"}')
    train_all(spec, corpus, WorkerContext())
    assert not (run.directory / "metrics.jsonl").exists()


def test_a_follower_reports_what_its_run_records(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.tune, "report", reported.append)
    trials = trained(searched_spec(tmp_path, num_trials=1), corpus, [])
    run = trials.runs()[0]
    config, over = {"candidate": run.arm}, tmp_path / "over"
    follow(config, run.directory.parent, 0, 32, over)
    last = run.evaluations[-1].at(32)
    assert last is not None
    assert [result["step"] for result in reported[:-1]] == [e.step for e in run.evaluations]
    assert reported[-1]["loss"] == last.loss

    (here(run.directory) / "result.json").rename(here(run.directory) / DIVERGED)
    follow(config, run.directory.parent, 0, 32, over)
    assert reported[-1]["loss"] is None

    (run.directory / DIVERGED).unlink()
    over.touch()  # the workers have ended: nothing more comes
    follow(config, run.directory.parent, 0, 32, over)
    assert reported[-1]["loss"] is None


def test_each_trial_that_ends_is_said_and_the_best_so_far(tmp_path: Path) -> None:
    spec = searched_spec(tmp_path)
    said: list[str] = []
    following = _Following(_Trials(spec, None, [], said.append), 3, 32)  # type: ignore[arg-type]
    heard: list[Work] = []
    with heard_by(lambda work: heard.extend([work] if work else [])), working("tune", 3):
        for name, loss in (("a", 3.25), ("b", None), ("c", 3.125)):
            following.on_trial_complete(1, [], in_tune(name, loss=loss))
            following.on_step_end(1, [])
    assert said == [
        "1 of 3 trials: a: loss 3.2500 at 32",
        "2 of 3 trials: b: has no loss",
        "3 of 3 trials: c: loss 3.1250 at 32",
    ]
    assert [(work.done, work.note) for work in heard[-3:]][-1] == (3.0, "best 3.1250")
