"""Each stage boundary is measured: what is scored, how the jump is split, and when it stops a
run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from glray.cli.training import exit_if_guarded
from glray.data.corpus import PreparedCorpus
from glray.data.targets import HeldoutTargets
from glray.files import read_json
from glray.plan import StageBoundary
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.records import Jump
from glray.run.run import Run
from glray.spec import (
    EvaluationSpec,
    Interpolation,
    LinearSchedule,
    OptimizerSpec,
    PipelineSpec,
)
from glray.train.boundaries import split_jump
from glray.train.context import WorkerContext
from glray.train.evaluation import Scored, Windows
from glray.train.optimizer import build_optimizer, update_norm
from glray.train.worker import train_all
from tests.planned import planned
from tests.tiny import arm

from ..tiny import tiny_spec
from ..weights import same_weights

WILD = OptimizerSpec(lr=0.5, schedule=LinearSchedule(warmup=0.99))
"""The loss rises with the rate."""


def grown(storage: Path, **fields: object) -> PipelineSpec:
    """12 steps through 8, 16 and 32 tokens: boundaries at 4 and 8, scored again at 8 and 12."""
    positions = {"positions": fields.pop("positions")} if "positions" in fields else {}
    return tiny_spec(storage, arms=(arm("grow", 8, 16, 32, **positions),), **fields)


def trained(spec: PipelineSpec, corpus: PreparedCorpus) -> Run:
    train_all(spec, corpus, WorkerContext())
    return planned(spec, corpus)[0]


def losses(entries: list[dict[str, Any]]) -> dict[int, float]:
    return {entry["seq_len"]: entry["loss"] for entry in entries}


def test_the_jump_is_split_by_position() -> None:
    # One sequence of 4 targets: windows of 2 against one of 4.
    targets = HeldoutTargets(np.arange(5)[None], np.array([0]), num_bytes=4)
    boundary = StageBoundary(step=1, from_seq_len=2, to_seq_len=4, rescore_step=2)

    def scored(seq_len: int, stride: int | None, *by_place: float) -> Scored:
        windows = Windows.over(4, seq_len, stride)
        return Scored(targets, windows, np.array([sum(by_place)]), np.array(by_place))

    split = split_jump(
        boundary,
        old=scored(2, 2, 5.0, 3.0, 5.0, 3.0),
        sliding=scored(2, 1, 5.0, 3.0, 4.0, 3.0),
        new=scored(4, 4, 5.5, 3.0, 4.0, 4.0),
    )
    assert split == Jump(
        jump=0.125,  # 16.5 / 4 - 16 / 4
        rescaled_positions=0.125,  # the first two: + 0.5
        longer_context=-0.25,  # the third: 5 to 4
        unseen_positions=0.25,  # the fourth: 3 to 4
    )


@pytest.mark.parametrize("positions", [None, Interpolation()], ids=["as they are", "squeezed"])
def test_a_boundary_is_scored_before_on_and_after_it(
    tmp_path: Path, corpus: PreparedCorpus, positions: Interpolation | None
) -> None:
    run = trained(grown(tmp_path, **({"positions": positions} if positions else {})), corpus)
    boundary, stage = read_json(run.boundary_path(4)), read_json(run.evaluation_path(4))
    assert (boundary["from_seq_len"], boundary["to_seq_len"], boundary["rescore_step"]) == (
        8,
        16,
        8,
    )
    before, switched, after = (losses(boundary[when]) for when in ("before", "switched", "after"))
    assert set(before) == {8, 16}  # 16 is not one of the evaluation's lengths
    assert before[8] == losses(stage["lengths"])[8]
    jump = boundary["jump"]
    assert jump["jump"] == pytest.approx(switched[16] - before[8], abs=1e-12)
    parts = jump["rescaled_positions"] + jump["longer_context"] + jump["unseen_positions"]
    assert parts == pytest.approx(jump["jump"], abs=1e-12)
    if positions is None:
        assert switched == before
        assert jump["rescaled_positions"] == pytest.approx(0, abs=1e-6)  # kernels differ by length
    else:
        assert switched[16] != before[16]
        assert abs(jump["rescaled_positions"]) > 1e-6
    # Scored again at step 8, where the next stage's evaluation scores 8 too.
    assert after[8] == losses(read_json(run.evaluation_path(8))["lengths"])[8]


def test_update_norm_is_what_the_weights_moved_by() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    optimizer = build_optimizer(model, OptimizerSpec(lr=0.1, weight_decay=0.0))
    for _ in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]
        expected = torch.cat([m.flatten() for m in moved]).norm().item()
        assert update_norm(optimizer, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_the_rate_rises_again_after_a_boundary(tmp_path: Path, corpus: PreparedCorpus) -> None:
    optimizer = {"lr": 1e-2, "schedule": {"kind": "wsd", "warmup": 0, "decay": 0.01}}
    run = trained(grown(tmp_path, optimizer=optimizer | {"rewarm_steps": 2}), corpus)
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    shares = [json.loads(line)["lr"] / 1e-2 for line in lines]
    thirds = [1 / 3, 2 / 3, 1, 1]
    assert shares[:11] == pytest.approx([1, 1, 1, 1, *thirds, *thirds[:3]])


def test_a_rise_beyond_the_guard_stops_with_a_checkpoint(
    tmp_path: Path, corpus: PreparedCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    scored: dict[str, Any] = {"seq_lens": (8, 32, 64), "num_tokens": 128}
    guarded = grown(
        tmp_path / "guarded", optimizer=WILD, evaluation=EvaluationSpec(**scored, max_rise=0.0)
    )
    run = trained(guarded, corpus)
    boundary = read_json(run.boundary_path(4))
    assert losses(boundary["after"])[8] > losses(boundary["before"])[8]
    assert not run.is_finished
    assert step_of(committed_checkpoints(run.checkpoints)[-1]) == 8
    trained(guarded, corpus)  # the same again does not go on
    assert step_of(committed_checkpoints(run.checkpoints)[-1]) == 8

    with pytest.raises(typer.Exit) as ending:
        exit_if_guarded([run])
    assert ending.value.exit_code == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "grow-seed0: held-out loss at 8 rose by" in said
    assert "evaluation.max_rise is 0; with a higher one, or null, the same command goes on" in said

    free = guarded.derive(evaluation=EvaluationSpec(**scored))
    alone = grown(tmp_path / "alone", optimizer=WILD)
    assert same_weights(trained(free, corpus), trained(alone, corpus))


def test_other_runs_go_on_where_one_is_guarded(tmp_path: Path, corpus: PreparedCorpus) -> None:
    spec = tiny_spec(
        tmp_path,
        optimizer=WILD,
        evaluation=EvaluationSpec(seq_lens=(8, 32, 64), num_tokens=128, max_rise=0.0),
    )
    train_all(spec, corpus, WorkerContext())
    grow, fixed = planned(spec, corpus)
    assert not grow.is_finished
    assert fixed.is_finished


def test_a_guard_passes_over_boundaries_that_were_scored_at_other_lengths(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    asked = iter([False] * 5 + [True])  # at a border after the second boundary
    spec = grown(tmp_path, optimizer=WILD, evaluation={"seq_lens": (12,), "num_tokens": 96})
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))
    later = spec.derive(evaluation={"seq_lens": (8, 32, 64), "num_tokens": 128, "max_rise": 0.0})
    assert trained(later, corpus).is_finished


def test_held_out_loss_is_also_scored_between_boundaries_and_changes_nothing(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    evaluation = {"seq_lens": (8, 32, 64), "num_tokens": 128, "every_tokens": 3 * 64 + 5}
    often = grown(tmp_path / "often", evaluation=evaluation)
    asked = iter([False, False, True])
    train_all(often, corpus, WorkerContext(stop=lambda: next(asked)))
    run = trained(often, corpus)
    steps = sorted(int(path.stem[-8:]) for path in (run.directory / "evaluations").iterdir())
    ends = [stage.end_step for stage in run.plan.stages]
    assert steps == sorted({*ends, *range(3, run.plan.num_steps + 1, 3)})
    between = read_json(run.evaluation_path(3))
    assert (between["step"], between["trained_seq_len"]) == (3, 8)
    alone = trained(grown(tmp_path / "alone"), corpus)
    assert same_weights(run, alone)
    for step in ends:
        lengths = [read_json(r.evaluation_path(step))["lengths"] for r in (run, alone)]
        assert lengths[0] == lengths[1]
