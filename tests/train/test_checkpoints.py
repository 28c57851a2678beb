"""Checkpoints written beside training: what counts when, and what is left when something fails."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import sha256_of
from glray.run.checkpoint import CommittedFile, committed_checkpoints, step_of
from glray.run.run import Run
from glray.spec import PipelineSpec, fixed
from glray.train.context import WorkerContext
from glray.train.metrics import MetricsLog
from glray.train.tensor_files import HostMemory, RankFile, copy_tensors
from glray.train.worker import train_all
from tests.planned import planned

from ..disk import here
from ..tiny import tiny_spec
from ..weights import same_weights
from .test_divergence import spoil, steps_and_losses
from .test_forks import records

TRUE_WRITE = RankFile.write


def committed_steps(run: Run) -> list[int]:
    return [step_of(path) for path in committed_checkpoints(run.checkpoints)]


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is written until it is set."""
    released = threading.Event()

    def write(file: RankFile, *events: threading.Event) -> CommittedFile:
        assert released.wait(60)
        return TRUE_WRITE(file, *events)

    monkeypatch.setattr(RankFile, "write", write)
    yield released
    released.set()


def test_what_was_copied_is_written_whatever_becomes_of_it(tmp_path: Path) -> None:
    tensors = {
        "whole": torch.arange(6.0).view(2, 3),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "bytes": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(7.0),
    }
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    memory = HostMemory(torch.device("cpu"))
    for folder in (tmp_path / "first", tmp_path / "second"):  # in the same memory
        file = copy_tensors(folder, tensors, memory, no_dist=True)
        assert file is not None
        for tensor in tensors.values():
            tensor.zero_()
        written = file.write(threading.Event(), threading.Event())
        assert written == CommittedFile(bytes=file.path.stat().st_size, sha256=sha256_of(file.path))
        found = load_file(here(file.path))
        assert found.keys() == copies.keys()
        assert all(torch.equal(found[name], copies[name]) for name in copies)
        for name, tensor in tensors.items():
            tensor.copy_(copies[name])


def train_and_die(spec: PipelineSpec, corpus: PreparedCorpus) -> None:
    """Train until a checkpoint is begun and not yet committed: the third logging boundary."""
    torch.set_num_threads(1)
    asked = count(1)

    def stop() -> bool:
        if next(asked) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train_all(spec, corpus, WorkerContext(stop=stop))


def test_a_kill_between_the_copy_and_the_commit_loses_that_checkpoint_alone(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path / "killed")
    process = multiprocessing.get_context("fork").Process(target=train_and_die, args=(spec, corpus))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    runs = planned(spec, corpus)
    assert committed_steps(runs[0]) == []
    assert len(list(runs[0].checkpoints.glob(".partial-step-00000003-*"))) == 1
    train_all(spec, corpus, WorkerContext())
    for run, undisturbed in zip(runs, finished, strict=True):
        assert same_weights(run, undisturbed)
        assert list(run.checkpoints.glob(".partial-*")) == []


def test_what_was_scored_after_the_step_that_a_run_goes_on_from_is_forgotten(
    finished: list[Run], tmp_path: Path
) -> None:
    """Those weights are lost with the checkpoint that was not committed."""
    copied = shutil.copytree(here(finished[0].directory), tmp_path / "run")
    run = Run.open(copied)
    first, *later = run.plan.boundaries
    assert later
    run.forget_after(first.step)
    again = Run.open(copied)
    assert [scored.step for scored in again.evaluations][-1] == first.step
    (boundary,) = again.boundaries
    assert boundary.before
    assert not boundary.after


def test_a_run_whose_log_lost_steps_before_its_checkpoint_is_not_gone_on_with(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    """As after a failure of the machine: its records would have a gap."""
    spec = tiny_spec(tmp_path)
    for run in finished:
        shutil.copytree(here(run.directory), tmp_path / "tiny" / run.name)
    directory = tmp_path / "tiny" / finished[0].name
    (directory / "result.json").unlink()
    log = directory / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3] + lines[5:]))
    before, last = committed_checkpoints(directory / "checkpoints")
    shutil.rmtree(here(last))
    step = step_of(before)
    with pytest.raises(UserError, match=f"has {step - 2} of the {step} steps before the check"):
        train_all(spec, corpus, WorkerContext())


@pytest.mark.parametrize(
    # Boundaries are at every even step and at each checkpoint.
    ("every_steps", "ends_at", "kept"),
    [(3, 4, [3, 4]), (10, 12, [10, 12])],
    ids=["stopped", "finished"],
)
def test_what_is_in_flight_when_a_run_ends_is_committed_first(
    finished: list[Run],
    tmp_path: Path,
    corpus: PreparedCorpus,
    released: threading.Event,
    every_steps: int,
    ends_at: int,
    kept: list[int],
) -> None:
    """The checkpoint of step ``every_steps`` takes until the boundary at step ``ends_at``."""
    spec = tiny_spec(tmp_path / "flying", arms=(fixed(32, name="fixed32"),))
    spec = spec.derive(compute={"checkpoint_every_tokens": every_steps * 64})
    (run,) = planned(spec, corpus)
    boundaries = iter(sorted({*range(2, ends_at + 1, 2), every_steps}))

    def stop() -> bool:
        assert committed_steps(run) == []
        if next(boundaries) < ends_at:
            return False
        released.set()
        return ends_at < 12

    train_all(spec, corpus, WorkerContext(stop=stop))
    assert run.is_finished == (ends_at == 12)
    assert committed_steps(run) == kept
    train_all(spec, corpus, WorkerContext())
    assert same_weights(run, finished[1])


def test_an_error_drops_what_is_in_flight(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(
        file: RankFile, is_dropped: threading.Event, is_awaited: threading.Event
    ) -> CommittedFile:
        assert is_dropped.wait(60)
        return TRUE_WRITE(file, is_dropped, is_awaited)

    monkeypatch.setattr(RankFile, "write", write)
    spec, asked = tiny_spec(tmp_path), count(1)

    def stop() -> bool:
        if next(asked) == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train_all(spec, corpus, WorkerContext(stop=stop))
    assert list(planned(spec, corpus)[0].checkpoints.iterdir()) == []


def test_checkpoints_by_time_change_no_bit(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path / "timed")
    always = {"checkpoint_every_seconds": 1e-6, "checkpoint_every_tokens": None}
    spec = spec.derive(compute={**always, "keep_checkpoints": "all"})
    asked = count(1)

    def die() -> bool:
        if next(asked) == 2:  # that of step 2 is begun by then, perhaps written, not committed
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train_all(spec, corpus, WorkerContext(stop=die))
    assert committed_steps(planned(spec, corpus)[0]) == []
    stops = iter([False] * 2 + [True])
    train_all(spec, corpus, WorkerContext(stop=lambda: next(stops)))
    grow = planned(spec, corpus)[0]
    assert {2, 4, 6} <= {*committed_steps(grow)}
    train_all(spec, corpus, WorkerContext())
    assert {2, 4, 6, 8, 12} <= {*committed_steps(grow)}
    for run, undisturbed in zip(planned(spec, corpus), finished, strict=True):
        assert same_weights(run, undisturbed)
        assert records(run) == records(undisturbed)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are received at the next boundary, as on a GPU."""
    monkeypatch.setattr(MetricsLog, "is_late", True)


@pytest.mark.usefixtures("late")
def test_metrics_that_are_read_late_are_the_same(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path / "late")
    spec = spec.derive(compute={"log_every_steps": 1})
    asked = iter([True] + [False] * 100)
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))
    grow = planned(spec, corpus)[0]
    assert committed_steps(grow) == [2]  # asked at step 1, heard at step 2
    assert len(steps_and_losses(grow)) == 2
    train_all(spec, corpus, WorkerContext())
    for run, undisturbed in zip(planned(spec, corpus), finished, strict=True):
        assert same_weights(run, undisturbed)
        assert records(run) == records(undisturbed)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize(
    # In a stage of 12 steps; checkpoints at 3, 6 and 9.
    ("step", "kept"),
    [(7, 6), (9, 6)],
)
def test_a_divergence_is_seen_before_a_checkpoint_of_it(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch, step: int, kept: int
) -> None:
    spoil(monkeypatch, step, 32, "gradient")
    spec = tiny_spec(tmp_path, arms=(fixed(32),))
    train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    assert run.divergence is not None
    assert (run.divergence.step, run.divergence.what) == (step, "gradient")
    assert len(steps_and_losses(run)) == step
    assert committed_steps(run)[-1] == kept
