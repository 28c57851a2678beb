"""Worker groups side by side: each run is one group's, and they calibrate together."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.managers import BaseManager
from pathlib import Path

import pytest
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import sole_writer, write_text
from glray.ray import coordinator
from glray.ray import train as ray_train
from glray.ray.coordinator import launch
from glray.run.records import Calibration
from glray.run.run import Run
from glray.spec import PipelineSpec
from glray.train import agenda, worker
from glray.train import group as group_module
from glray.train.context import WorkerContext
from glray.train.group import Coordinator, WorkerGroup
from glray.train.worker import train_all
from tests.planned import planned

from ..command import fork_server
from ..group import join_group, start_group, train
from ..killing import same_run
from ..tiny import arm, tiny_spec


def test_a_run_is_the_first_groups_that_asks_and_stays_its_own(tmp_path: Path) -> None:
    with launch(tmp_path, 2, in_driver=True) as (first, second):
        assert second.claims("grow-seed0")
        assert not first.claims("grow-seed0")
        assert first.claims("grow-seed1")
        again = replace(second)  # as Ray starts it again
        assert again.claims("grow-seed0")
        assert not again.claims("grow-seed1")
        assert second.claimed() == ["grow-seed0"]


def test_no_run_is_claimed_twice_at_the_same_time(tmp_path: Path) -> None:
    names = [f"run-{number}" for number in range(200)]
    with launch(tmp_path, 4, in_driver=True) as all_groups, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda group: [group.claims(name) for name in names], all_groups))
        claimed = [name for group in all_groups for name in group.claimed()]
    assert sorted(claimed) == sorted(names)


@pytest.mark.ray
def test_a_stop_reaches_groups_in_other_processes(ray_local: None, tmp_path: Path) -> None:
    stop = threading.Event()
    with launch(tmp_path, 1, stop=stop) as (group,):
        group.set_error("the disk is full")  # the coordinator, too, is in another process
        assert group.error() == "the disk is full"
        assert not group.stop_requested()
        stop.set()
        deadline = time.monotonic() + 30
        while not group.stop_requested():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.ray
def test_a_group_whose_coordinator_does_not_answer_ends(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(coordinator, "MEETING_SECONDS", 0.0)
    with launch(tmp_path, 2) as (group, _), pytest.raises(GetTimeoutError):
        group.meet()  # the other one never comes


@pytest.mark.ray
def test_a_group_whose_driver_was_killed_claims_nothing_more(
    ray_local: None, tmp_path: Path
) -> None:
    killed = launch(tmp_path, 1)
    (orphan,) = killed.__enter__()
    assert orphan.claims("grow-seed0")
    assert not orphan.stop_requested()
    write_text(tmp_path / "progress-1.json", "{}")
    with launch(tmp_path, 1) as (new,):
        assert not orphan.claims("grow-seed1")
        assert not orphan.claims("grow-seed0")
        assert orphan.stop_requested()
        assert new.claims("grow-seed0")
        assert not (tmp_path / "progress-1.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == []


def train_as(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, group: WorkerGroup
) -> None:
    train_all(spec, corpus, replace(ctx, group=group))


def test_groups_side_by_side_train_each_run_once_to_the_same_bits(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    alone = tiny_spec(tmp_path / "alone", seeds=(0, 1))
    assert join_group(start_group(train, 2, alone, corpus))
    spec = tiny_spec(tmp_path / "beside", seeds=(0, 1))
    directory = tmp_path / "beside" / "tiny"
    BaseManager.register("Coordinator", Coordinator)
    # The coordinator in a process of its own, not forked from this one, which is connected to Ray.
    with BaseManager(ctx=fork_server()) as manager:
        shared = manager.Coordinator(2)  # type: ignore[attr-defined]
        both = [WorkerGroup(index, 2, shared) for index in range(2)]
        started = [start_group(train_as, 2, spec, corpus, group) for group in both]
        assert all(join_group(processes) for processes in started)
        claimed = [[name for name in group.claimed() if "seed" in name] for group in both]
    runs = planned(spec, corpus)
    assert sorted(claimed[0] + claimed[1]) == sorted(run.name for run in runs)
    events = (directory / "events.log").read_text()
    for run, expected in zip(runs, planned(alone, corpus), strict=True):
        assert events.count(f"{run.name}: starts") == 1
        assert run.is_finished
        assert same_run(run, expected)


def test_a_run_that_another_process_trains_is_waited_for(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(tmp_path)
    run = planned(spec, corpus)[0]
    monkeypatch.setattr(agenda, "ORPHAN_SECONDS", 0.2)
    with sole_writer(run.directory), pytest.raises(UserError, match="another glray process"):
        train_all(spec, corpus, WorkerContext())
    assert not (run.directory / "metrics.jsonl").exists()

    monkeypatch.setattr(agenda, "ORPHAN_SECONDS", 60.0)
    held, release = threading.Event(), threading.Event()

    def orphan() -> None:
        with sole_writer(run.directory):
            held.set()
            release.wait()

    thread = threading.Thread(target=orphan)
    thread.start()
    held.wait()
    threading.Timer(0.5, release.set).start()
    train_all(spec, corpus, WorkerContext())
    assert release.is_set()
    assert all(run.is_finished for run in planned(spec, corpus))
    thread.join()


def calibrated_costs(
    spec: PipelineSpec, corpus: PreparedCorpus, group: WorkerGroup
) -> dict[int, int]:
    calibrated = worker._calibrated(spec, corpus, WorkerContext(group=group), None)  # type: ignore[arg-type]
    assert calibrated.calibration is not None
    return calibrated.calibration.step_microseconds


def test_groups_train_with_the_mean_of_what_they_measured_at_once(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(tmp_path, budget={"seconds": 1.0})
    measured = {
        0: [{8: 1000, 16: 1100, 32: 1201}, {8: 1300, 16: 1100, 32: 1201}],
        1: [{8: 3000, 16: 1300, 32: 1202}, {8: 3000, 16: 1300, 32: 1202}],
    }
    together = threading.Barrier(2, timeout=30)

    def calibrate(
        spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, executed: object
    ) -> list[dict[int, int]]:
        together.wait()  # breaks if one measures while the other does not
        return measured[ctx.group.index]

    monkeypatch.setattr(worker, "calibrate", calibrate)

    def costs_of(group: WorkerGroup) -> dict[int, int]:
        return calibrated_costs(spec, corpus, group)

    mean = {8: 2075, 16: 1200, 32: 1202}  # of both repetitions, 2,000 and 2,150
    with launch(tmp_path / "tiny", 2, in_driver=True) as both:
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(costs_of, both)) == [mean, mean]
        assert costs_of(both[1]) == mean  # started again it does not measure
    recorded = Calibration.read(tmp_path / "tiny" / "calibration.json")
    assert recorded is not None
    assert recorded.step_microseconds == mean
    assert [costs[8] for costs in recorded.repetitions] == [2000, 2150]


def test_a_calibration_on_request_decides_nothing(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(tmp_path, budget={"tokens": 256}, arms=(arm("fixed8", 8),))
    train_all(spec, corpus, WorkerContext())
    recorded = tmp_path / "tiny" / "calibration.json"
    assert not recorded.exists()
    timed = spec.derive(compute={"calibrate": True})
    monkeypatch.setattr(worker, "calibrate", lambda *_: [{8: 1000}, {8: 1200}])
    train_all(timed, corpus, WorkerContext())  # also of runs that have ended
    assert json.loads(recorded.read_text())["step_microseconds"] == {"8": 1100}
    monkeypatch.setattr(worker, "calibrate", lambda *_: pytest.fail("measured again"))
    train_all(timed, corpus, WorkerContext())
    (run,) = planned(timed, corpus)
    assert Run.open(run.directory).calibrated_seconds is None


def test_a_group_that_does_not_come_is_not_waited_for_for_ever(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "MEETING_SECONDS", 0.2)
    monkeypatch.setattr(worker, "calibrate", lambda *_: [{8: 1000, 16: 1100, 32: 1201}])
    spec = tiny_spec(tmp_path, budget={"seconds": 1.0})
    with launch(tmp_path / "tiny", 2, in_driver=True) as (first, second):
        costs = calibrated_costs(spec, corpus, first)
        assert costs == {8: 1000, 16: 1100, 32: 1201}
        monkeypatch.setattr(worker, "calibrate", lambda *_: pytest.fail("measured again"))
        assert calibrated_costs(spec, corpus, second) == costs


def test_as_many_groups_as_have_room_and_a_run_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(tmp_path)
    room = 5
    monkeypatch.setattr(ray_train, "groups_with_room", lambda compute: room)
    assert ray_train.groups_at_once(spec, 3) == 3
    assert ray_train.groups_at_once(spec, 9) == 5
    elastic = spec.derive(compute={"num_workers": (1, 2)})
    assert ray_train.groups_at_once(elastic, 9) == 1
    room = 0  # a joined cluster that is busy: the group is waited for
    assert ray_train.groups_at_once(spec, 9) == 1


DEATH = {0: RuntimeError("the other rank is gone"), 1: RayActorError()}
TAKEN = WorkerHealthCheckFailedError("no answer", RayActorError(preempted=True))  # as Train has it
PREEMPTED = {0: RuntimeError("the other rank is gone"), 1: TAKEN}


def fits_until_it_ends(
    tmp_path: Path,
    corpus: PreparedCorpus,
    monkeypatch: pytest.MonkeyPatch,
    died: dict[int, Exception],
    commits: tuple[int, ...] = (),
) -> tuple[int, str]:
    """How often a group is started whose workers die each time, in those of its lives that
    ``commits`` numbers after they have committed a checkpoint; and what is raised at last."""
    directory, fits = tmp_path / "tiny", 0

    class Trainer:
        def fit(self) -> None:
            nonlocal fits
            fits += 1
            if fits in commits:
                write_text(directory / f"grow-seed0/checkpoints/step-{fits:08d}/COMMITTED", "")
            raise ray.train.WorkerGroupError("died", died)

    monkeypatch.setattr(ray_train, "has_free_workers", lambda *_: True)
    monkeypatch.setattr(ray_train.WorkerGroups, "_trainer", lambda *_: Trainer())
    with launch(directory, 1, in_driver=True) as (group,):
        group.claims("grow-seed0")
        groups = ray_train.WorkerGroups(ray_train.train_runs, tiny_spec(tmp_path), corpus)
        with pytest.raises((ray.train.WorkerGroupError, UserError)) as raised:
            groups._run_group(group, threading.Event())
    return fits, f"{raised.type.__name__}: {raised.value}"


def test_a_group_that_dies_is_started_again_three_times_without_a_checkpoint(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, raised = fits_until_it_ends(tmp_path, corpus, monkeypatch, DEATH)
    assert (fits, raised.partition(":")[0]) == (1 + 3, "WorkerGroupError")
    events = (tmp_path / "tiny" / "events.log").read_text().splitlines()
    died = "worker group 0 has died (RuntimeError on rank 0, RayActorError on rank 1)"
    assert [line.split(" ", 2)[2] for line in events] == [
        *[died] * 3,
        f"{died}; it was started again 3 times since its last checkpoint: it ends",
    ]
    fits, _ = fits_until_it_ends(tmp_path, corpus, monkeypatch, DEATH, commits=(3, 5))
    assert fits == 5 + 4


def test_a_group_whose_node_is_taken_away_is_started_again_a_hundred_times(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, raised = fits_until_it_ends(tmp_path, corpus, monkeypatch, PREEMPTED, commits=(2,))
    assert fits == 2 + 101
    assert raised.startswith(f"UserError: {tmp_path / 'tiny'}: worker group 0 has lost a node")
    assert "started again 100 times" in raised


@pytest.mark.ray
def test_what_a_group_raised_first_is_raised_when_all_have_ended(
    ray_local: None, tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, ended = threading.Event(), []

    def run_group(groups: object, group: WorkerGroup, stop: object) -> None:
        if group.index == 2:
            failed.set()
            raise UserError("the disk is full")
        failed.wait()
        time.sleep(0.2)
        ended.append(group.index)
        if group.index == 1:
            raise RuntimeError("later")

    monkeypatch.setattr(ray_train, "groups_with_room", lambda compute: 3)
    monkeypatch.setattr(ray_train.WorkerGroups, "_run_group", run_group)
    with pytest.raises(UserError, match="the disk is full"):
        ray_train.fit(tiny_spec(tmp_path, seeds=(0, 1)), corpus)
    assert sorted(ended) == [0, 1]
    events = (tmp_path / "tiny" / "events.log").read_text()
    assert "3 worker groups side by side, 4 runs to train" in events
