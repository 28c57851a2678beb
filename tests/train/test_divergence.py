"""A run that diverges ends there: its record, the checkpoint that is kept, and the other runs."""

import json
from pathlib import Path

import pytest
import torch
import typer

from glray.cli.training import exit_if_diverged
from glray.data.corpus import PreparedCorpus
from glray.data.windows import Batch
from glray.errors import UserError
from glray.files import read_json
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.guard import excessive_rise
from glray.run.run import Run
from glray.spec import PipelineSpec
from glray.train.context import WorkerContext
from glray.train.export import export_run, latest_model
from glray.train.trainee import StepSums, Trainee
from glray.train.worker import train_all
from tests.planned import planned
from tests.tiny import arm

from ..disk import here
from ..group import join_group, start_group
from ..tiny import tiny_spec
from ..weights import tensors_of

TRUE_STEP = Trainee.step
GROW = arm("grow", 8, 16, 32)
"""Stages that end with steps 4, 8 and 12; checkpoints also after 3, 6 and 9, flushes after 2 and
10 and whatever is even."""


def spoil(patch: pytest.MonkeyPatch, step: int, seq_len: int, what: str) -> None:
    """Spoil step ``step``, from 1, of runs whose windows are so long there: its weights before it,
    which the loss shows; its gradient; one weight after it; or all of the first weights after it,
    which are then finite but so large that nothing computed with them is."""

    def step_of_trainee(self: Trainee, batch: Batch, lr: float) -> StepSums:
        if (batch.step + 1, batch.seq_len) != (step, seq_len):
            return TRUE_STEP(self, batch, lr)
        parameter = next(self.model.parameters())
        weight = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if what == "loss":
            weight.detach().fill_(torch.nan)
        loss, checksum = self.gradients(batch)
        if what == "gradient":
            assert parameter.grad is not None
            parameter.grad.mul_(torch.inf)
        sums = StepSums(loss, checksum, self.update(lr))
        if what == "weights":
            weight.detach().view(-1)[0] = torch.inf
        elif what == "held-out loss":
            weight.detach().fill_(3e38)
        return sums

    patch.setattr(Trainee, "step", step_of_trainee)


def steps_and_losses(run: Run) -> list[tuple[int, float | None, float | None, str]]:
    """Of each line of ``metrics.jsonl``, which has no NaN."""
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    return [(step["step"], step["loss"], step["grad_norm"], step["checksum"]) for step in steps]


def kept_step(run: Run) -> int:
    return step_of(committed_checkpoints(run.checkpoints)[-1])


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("what", "step", "kept"),
    [
        ("loss", 7, 6),  # seen at step 8, where a stage ends with a checkpoint and an evaluation
        ("gradient", 7, 6),
        ("weights", 6, 4),  # seen where they would have been kept
        ("weights", 7, 6),  # seen by the loss of step 8
        ("held-out loss", 8, 8),  # finite weights
    ],
)
def test_a_run_that_diverges_ends_with_the_checkpoint_before(
    finished: list[Run],
    tmp_path: Path,
    corpus: PreparedCorpus,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    step: int,
    kept: int,
) -> None:
    spec = tiny_spec(tmp_path / "wild", only=("grow",))
    spoil(monkeypatch, step, 16, what)
    train_all(spec, corpus, WorkerContext())
    (grow,) = planned(spec, corpus)
    seen = "loss" if (what, step) == ("weights", 7) else what
    ended = 8 if seen != what else step

    assert grow.has_ended
    assert not grow.is_finished
    steps = steps_and_losses(grow)
    assert [number for number, *_ in steps] == list(range(1, ended + 1))
    assert steps[: step - 1] == steps_and_losses(finished[0])[: step - 1]
    assert read_json(grow.directory / "diverged.json") == {
        "step": ended,
        "seq_len": 16,
        "what": seen,
        "loss": steps[-1][1],
        "grad_norm": steps[-1][2],
    }
    assert (steps[-1][1] is None) is (seen == "loss")
    assert (steps[-1][2] is None) is (seen in ("loss", "gradient"))
    assert not (grow.directory / "result.json").exists()
    assert not grow.evaluation_path(8).exists()

    assert kept_step(grow) == kept
    assert all(p.isfinite().all() for p in latest_model(grow, torch.device("cpu"))[0].parameters())
    assert export_run(grow.directory, tmp_path / "model") == kept

    before = times(here(grow.directory))
    train_all(spec, corpus, WorkerContext())  # the same again trains nothing
    assert times(here(grow.directory)) == before
    events = (grow.directory.parent / "events.log").read_text()
    is_or_are = "are" if seen == "weights" else "is"
    assert (
        f"grow-seed0: diverged at step {ended} (seq_len 16): its {seen} {is_or_are} not" in events
    )


class Killed(Exception):
    """Stands for a death between two steps: nothing of the worker runs after it."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> Run:
    """Diverged at step 7, neither killed nor stopped before."""
    spec = tiny_spec(tmp_path_factory.mktemp("alone"), arms=(GROW,))
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, 7, 16, "loss")
        train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    return run


@pytest.mark.parametrize(
    ("stopped", "asked"),  # the first at step 2, the fifth at step 8, where it is seen
    [(False, 1), (False, 5), (True, 4), (True, 5)],
)
def test_killed_or_stopped_on_the_way_it_ends_with_the_same_record(
    alone: Run,
    tmp_path: Path,
    corpus: PreparedCorpus,
    monkeypatch: pytest.MonkeyPatch,
    stopped: bool,
    asked: int,
) -> None:
    spoil(monkeypatch, 7, 16, "loss")
    spec = tiny_spec(tmp_path, arms=(GROW,))
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        if calls == asked and not stopped:
            raise Killed
        return calls == asked

    try:
        train_all(spec, corpus, WorkerContext(stop=stop))
    except Killed:
        assert not stopped
    # Where it is seen depends on when the metrics are flushed, where it ends does not.
    often = spec.derive(compute={"log_every_steps": 1})
    train_all(often, corpus, WorkerContext())
    (run,) = planned(often, corpus)
    records = [(r.directory / "diverged.json").read_bytes() for r in (run, alone)]
    assert records[0] == records[1]
    assert steps_and_losses(run) == steps_and_losses(alone)
    kept = [tensors_of(committed_checkpoints(r.checkpoints)[-1]) for r in (run, alone)]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_a_stop_keeps_no_weights_that_are_not_finite(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(tmp_path, arms=(GROW,))
    spoil(monkeypatch, 10, 32, "weights")
    asked = iter([False] * 5 + [True])  # at step 10, where there is no checkpoint in the plan
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))
    (run,) = planned(spec, corpus)
    assert not run.has_ended
    assert kept_step(run) == 9
    train_all(spec, corpus, WorkerContext())
    assert run.divergence is not None
    assert (run.divergence.step, run.divergence.what, kept_step(run)) == (11, "loss", 9)


def train_spoilt(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> None:
    """Train with weights of the last rank that are NaN from step 7 on."""
    if ctx.rank == ctx.world_size - 1:
        spoil(pytest.MonkeyPatch(), 7, 16, "loss")
    train_all(spec, corpus, ctx)


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_what_one_rank_sees_ends_the_run_on_all(
    tmp_path: Path, corpus: PreparedCorpus, parallelism: str
) -> None:
    spec = tiny_spec(tmp_path, arms=(GROW, arm("fixed32", 32)))
    spec = spec.derive(compute={"parallelism": parallelism})
    assert join_group(start_group(train_spoilt, 2, spec, corpus))
    grow, fixed = planned(spec, corpus)
    assert grow.divergence is not None
    assert (grow.divergence.step, grow.divergence.what, kept_step(grow)) == (7, "loss", 6)
    assert all(t.isfinite().all() for t in tensors_of(grow.checkpoints / "step-00000006").values())
    assert fixed.is_finished


def test_a_divergence_is_one_line_with_a_remedy_and_status_3(
    tmp_path: Path,
    corpus: PreparedCorpus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = tiny_spec(tmp_path, evaluation={"seq_lens": (8, 32), "num_tokens": 64})
    spec = spec.derive(arms=(GROW,), evaluation={"max_rise": 0.0})
    spoil(monkeypatch, 2, 8, "loss")  # before the first checkpoint
    train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    assert excessive_rise(run) is None
    with pytest.raises(typer.Exit) as ending:
        exit_if_diverged([run, run])
    assert ending.value.exit_code == 3
    assert capsys.readouterr().out == (
        "grow-seed0: diverged at step 2 (seq_len 8): its loss is not finite; no checkpoint came "
        "before, and the run is not trained again: set an optimizer.lr below 1e-2 under another "
        "name (--set name=…; for a comparison in another folder, --set compute.storage=…), or "
        f"delete {run.directory} to train it again\n"
    )
    with pytest.raises(UserError, match=r"no checkpoint, .*: the run diverged at step 2 .*lower"):
        export_run(run.directory, tmp_path / "model")
