"""Forks on the local context: a run that begins with another's steps ends as if it had trained
them, whatever happens on the way."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glray import plan
from glray.data.corpus import PreparedCorpus
from glray.files import matching, read_json, read_log
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.run import Run, open_runs
from glray.spec import ArmSpec, Interpolation, PipelineSpec
from glray.train.context import WorkerContext
from glray.train.group import Coordinator, WorkerGroup
from glray.train.worker import train_all

from ..disk import here
from ..planned import planned
from ..tiny import arm, tiny_spec
from ..weights import same_weights

ARMS = (
    arm("fixed8", 8),
    arm("grow", 8, 16, 32),
    arm("scaled", 8, 16, 32, positions=Interpolation()),
    arm("half", 8, 32),
)
"""In the order of the tree: grow; scaled from its step 8; half as well; fixed8 from half's 12."""
CLOCKS = (
    *("measured_seconds", "wall_seconds", "eval_seconds", "checkpoint_seconds"),
    *("warm_up_seconds", "data_wait_seconds", "tokens_per_second", "mfu", "memory_bytes"),
)


@pytest.fixture(autouse=True, scope="module")
def few_are_watched() -> Iterator[None]:
    """8 steps before and after a stage boundary, which is scored again 4 steps later: a quarter of
    what a run that counts does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "WATCHED_STEPS", 8)
        patch.setattr(plan, "RESCORE_STEPS", 4)
        yield


def forking_spec(storage: Path, *arms: ArmSpec, **fields: object) -> PipelineSpec:
    """24 steps, a third of them 8: as many as are watched around a stage boundary."""
    evaluation = {"seq_lens": (8, 32, 64), "num_tokens": 64, "every_tokens": 10 * 64}
    declared = {"arms": arms or ARMS, "budget": {"tokens": 24 * 64}, "evaluation": evaluation}
    spec = tiny_spec(storage, **(declared | fields))
    return spec.derive(compute={"checkpoint_every_tokens": 5 * 64})


def trained(spec: PipelineSpec, corpus: PreparedCorpus) -> dict[str, Run]:
    train_all(spec, corpus, WorkerContext())
    return {run.arm: run for run in planned(spec, corpus)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> dict[str, Run]:
    """Each arm in a storage of its own, where there is nothing to fork from."""
    runs: dict[str, Run] = {}
    for its in ARMS:
        spec = forking_spec(tmp_path_factory.mktemp("alone"), its).derive(chunk_len=32)
        runs |= trained(spec, corpus)
    return runs


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> dict[str, Run]:
    """All arms in one pipeline."""
    return trained(forking_spec(tmp_path_factory.mktemp("forked")), corpus)


def killed_at_the_fork(train: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a run's records are copied, and its checkpoint is not."""

    def killed(source: Path, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("glray.run.forks.adopt", killed)
        with pytest.raises(KeyboardInterrupt):
            train()


def without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_clocks(v) for k, v in value.items() if k not in CLOCKS}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


def records(run: Run) -> dict[str, Any]:
    """Everything that a run has recorded of its training, but for the clocks."""
    patterns = ("result.json", "evaluations/*.json", "boundaries/*.json")
    paths = [path for pattern in patterns for path in matching(run.directory, pattern)]
    found = {str(path).removeprefix(str(run.directory)): read_json(path) for path in paths}
    lines = read_log(run.directory / "metrics.jsonl").splitlines()
    return without_clocks(found | {"metrics": [json.loads(line) for line in lines]})


def kept_steps(run: Run) -> list[int]:
    return [step_of(path) for path in committed_checkpoints(run.checkpoints)]


def fork_of(run: Run) -> tuple[str, int] | None:
    """Whom it forked from, and at which step."""
    fork = Run.open(run.directory).manifest.fork
    return (fork.run, fork.step) if fork else None


def test_forked_runs_are_bit_identical_to_unforked_ones(
    alone: dict[str, Run], forked: dict[str, Run]
) -> None:
    for name, run in forked.items():
        assert records(run) == records(alone[name]), name
        assert same_weights(run, alone[name]), name
    assert {name: fork_of(run) for name, run in forked.items()} == {
        "grow": None,
        "scaled": ("grow-seed0", 8),
        "half": ("grow-seed0", 8),
        "fixed8": ("half-seed0", 12),
    }
    (execution,) = read_json(forked["half"].directory / "run.json")["executions"]
    assert (execution["first_step"], execution["micro_batch_tokens"]) == (0, {"8": 32, "32": 32})


def test_what_was_shared_is_said(forked: dict[str, Run]) -> None:
    events = (forked["grow"].directory.parent / "events.log").read_text()
    assert "half-seed0: begins with the 8 steps that it shares with grow-seed0" in events
    assert "grow-seed0: keeps its checkpoint of step 8 (" in events
    assert "for scaled-seed0, half-seed0 to fork from" in events


def test_checkpoints_live_as_long_as_a_child_needs_them(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    """Without the arms that fork from it, grow keeps what they need; once they have begun, not."""
    spec = forking_spec(tmp_path)
    grow = trained(spec.derive(only=["grow"]), corpus)["grow"]
    assert kept_steps(grow) == [8, 20, 24]
    trained(spec, corpus)
    assert kept_steps(grow) == [20, 24]


def test_a_run_that_has_ended_keeps_what_it_was_trained_to_keep(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    """Also when another forks from it in a call that would keep less."""
    spec = forking_spec(tmp_path)
    keeping = spec.derive(only=["grow"], compute={"keep_checkpoints": "stages"})
    grow = trained(keeping, corpus)["grow"]
    half = trained(spec.derive(only=["grow", "half"]), corpus)["half"]
    assert fork_of(half) == ("grow-seed0", 8)
    assert kept_steps(grow) == [8, 16, 20, 24]


def test_a_run_forks_where_other_intervals_leave_it_the_same_records(
    tmp_path: Path, corpus: PreparedCorpus, alone: dict[str, Run]
) -> None:
    """Scored every 5 steps, the trunk has what a run that is scored every 10 plans; not the other
    way round."""
    spec = forking_spec(tmp_path / "often")
    often = spec.derive(evaluation={"every_tokens": 5 * 64}, compute={"log_every_steps": 1})
    trained(often.derive(only=["grow"]), corpus)
    half = trained(spec.derive(only=["half"]), corpus)["half"]
    assert fork_of(half) == ("grow-seed0", 8)
    assert records(half) == records(alone["half"])
    spec = forking_spec(tmp_path / "seldom")
    trained(spec.derive(only=["grow"]), corpus)
    often = spec.derive(only=["half"], evaluation={"every_tokens": 5 * 64})
    assert fork_of(trained(often, corpus)["half"]) is None


def test_what_was_scored_at_fewer_lengths_is_left_out(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = forking_spec(tmp_path, evaluation={"seq_lens": (8, 64), "num_tokens": 64})
    spec = spec.derive(evaluation={"every_tokens": 5 * 64})
    trained(spec.derive(only=["grow"]), corpus)
    more = spec.derive(only=["half"], evaluation={"seq_lens": (8, 32, 64)})
    half = trained(more, corpus)["half"]
    assert fork_of(half) == ("grow-seed0", 8)
    assert [e.step for e in half.evaluations] == [10, 12, 15, 20, 24]
    assert all(len(evaluation.lengths) == 3 for evaluation in half.evaluations)


def test_a_run_whose_fork_was_killed_forks_again(
    tmp_path: Path, corpus: PreparedCorpus, alone: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = forking_spec(tmp_path)
    killed_at_the_fork(lambda: trained(spec, corpus), monkeypatch)
    for name, run in trained(spec, corpus).items():
        assert records(run) == records(alone[name]), name


def test_a_run_that_has_begun_does_not_fork(
    tmp_path: Path, corpus: PreparedCorpus, alone: dict[str, Run]
) -> None:
    spec = forking_spec(tmp_path)
    stops = iter([False] * 2 + [True] * 100)
    train_all(spec.derive(only=["half"]), corpus, WorkerContext(stop=lambda: next(stops)))
    half = next(run for run in planned(spec, corpus) if run.arm == "half")
    assert 0 < step_of(committed_checkpoints(half.checkpoints)[-1]) < 8
    runs = trained(spec, corpus)
    assert fork_of(runs["half"]) is None
    for name, run in runs.items():
        assert records(run) == records(alone[name]), name


def test_without_the_trunks_checkpoint_all_is_trained(
    tmp_path: Path, corpus: PreparedCorpus, alone: dict[str, Run]
) -> None:
    spec = forking_spec(tmp_path)
    grow = trained(spec.derive(only=["grow"]), corpus)["grow"]
    shutil.rmtree(here(grow.checkpoints) / "step-00000008")
    half = trained(spec.derive(only=["half"]), corpus)["half"]
    assert fork_of(half) is None
    assert records(half) == records(alone["half"])


def test_groups_wait_for_what_they_fork_from(
    tmp_path: Path, corpus: PreparedCorpus, alone: dict[str, Run]
) -> None:
    """Two groups, three runs in one tree: nothing is trained twice."""
    spec = forking_spec(tmp_path)
    coordinator = Coordinator(2)
    groups = [WorkerContext(group=WorkerGroup(n, 2, coordinator)) for n in range(2)]
    threads = [threading.Thread(target=train_all, args=(spec, corpus, ctx)) for ctx in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = open_runs([tmp_path / "tiny"])
    forks_of = {run.arm: run.manifest.fork and run.manifest.fork.step for run in runs}
    assert forks_of == {"grow": None, "scaled": 8, "half": 8, "fixed8": 12}
    for run in runs:
        assert records(run) == records(alone[run.arm]), run.name
