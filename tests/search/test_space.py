"""Trials are drawn from (seed, number) alone and share everything but their stages."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glray.plan import make_plan
from glray.search.space import trial_spec
from glray.spec import CalibrationSpec, PipelineSpec, SearchSpec

from ..tiny import tiny_spec


def searched(**fields: object) -> PipelineSpec:
    return tiny_spec(
        Path("unused"),
        budget={"seconds": 60},
        ratios_in="seconds",
        calibration=CalibrationSpec(step_microseconds={8: 1000, 16: 1100, 32: 1300}),
        search=SearchSpec.model_validate({"arm": "grow"} | fields),
    )


@given(st.integers(0, 10**6), st.integers(0, 50))
def test_drawn_ratios_lie_in_their_range(seed: int, number: int) -> None:
    trial = trial_spec(searched(ratio_range=(0.2, 0.5), seed=seed), number)
    (arm,) = trial.arms
    assert [stage.seq_len for stage in arm.stages] == [8, 16, 32]
    assert all(0.2 <= stage.ratio <= 0.5 for stage in arm.stages)


@given(st.integers(0, 10**6), st.integers(0, 50))
def test_drawn_boundaries_share_out_the_whole(seed: int, number: int) -> None:
    trial = trial_spec(searched(vary="boundaries", seed=seed), number)
    ratios = [stage.ratio for stage in trial.arms[0].stages]
    assert sum(ratios) == pytest.approx(1)
    assert min(ratios) >= 0.001


def test_a_trial_is_the_same_however_many_there_are() -> None:
    few, many = searched(num_trials=2), searched(num_trials=9)
    assert trial_spec(few, 1) == trial_spec(many, 1)
    assert trial_spec(few, 0).arms != trial_spec(few, 1).arms
    assert trial_spec(searched(seed=1), 0).arms != trial_spec(few, 0).arms


def test_ladders_are_chosen_from_and_keep_the_chunk() -> None:
    spec = searched(ladders=((8, 32), (32,)))
    trials = [trial_spec(spec, number) for number in range(20)]
    ladders = {tuple(stage.seq_len for stage in trial.arms[0].stages) for trial in trials}
    assert ladders == {(8, 32), (32,)}
    assert {trial.chunk_tokens for trial in trials} == {32}
    for trial in trials:
        plan = make_plan(trial, trial.arms[0])
        assert plan is not None
        used = plan.calibrated_microseconds(plan.num_steps)
        assert used is not None
        left = 60_000_000 - used
        assert 0 <= left < 1300  # equal calibrated seconds, to less than a step
