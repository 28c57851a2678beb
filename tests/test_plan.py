"""The plan's arithmetic: literal cases to check by eye, and properties."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glray.errors import UserError
from glray.plan import Plan, learning_rate, make_plan, scheduled_rate, split
from glray.spec import (
    ArmSpec,
    BpeTokenizer,
    BudgetSpec,
    CalibrationSpec,
    CosineSchedule,
    EvaluationSpec,
    GPTNeoXModel,
    LinearSchedule,
    OptimizerSpec,
    PipelineSpec,
    StableDecaySchedule,
    StageSpec,
    StdlibCorpus,
)
from glray.spec.schedule import Unit
from glray.spec.training import ScheduleSpec

LENGTHS = (128, 256, 512, 1024)


def spec(
    ratios: Sequence[float] = (1, 1, 1, 1),
    *,
    tokens: int | None = None,
    seconds: float | None = None,
    ratios_in: Unit = "tokens",
    costs: dict[int, int] | None = None,
    tokens_per_batch: int = 4096,
) -> PipelineSpec:
    return PipelineSpec(
        name="plan",
        corpus=StdlibCorpus(),
        tokenizer=BpeTokenizer(vocab_size=512),
        model=GPTNeoXModel(num_layers=1, hidden_size=32, num_heads=2, intermediate_size=64),
        arms=(
            ArmSpec(
                name="growlength",
                stages=tuple(
                    StageSpec(seq_len=length, ratio=ratio)
                    for length, ratio in zip(LENGTHS, ratios, strict=False)
                ),
            ),
        ),
        budget=BudgetSpec(tokens=tokens, seconds=seconds),
        ratios_in=ratios_in,
        tokens_per_batch=tokens_per_batch,
        optimizer=OptimizerSpec(lr=1e-3),
        evaluation=EvaluationSpec(seq_lens=(128,), num_tokens=128),
        calibration=None if costs is None else CalibrationSpec(step_microseconds=costs),
        chunk_len=1024,
    )


def plan_if_known(pipeline: PipelineSpec) -> Plan | None:
    return make_plan(pipeline, pipeline.arms[0])


def plan_of(pipeline: PipelineSpec) -> Plan:
    plan = plan_if_known(pipeline)
    assert plan is not None
    return plan


COSTS = {128: 1_000_000, 256: 2_000_000, 512: 4_000_000, 1024: 8_000_000}


def test_tokens_shared_by_tokens() -> None:
    plan = plan_of(spec((1, 1, 2, 4), tokens=80 * 4096 + 5))
    assert [(s.seq_len, s.windows_per_batch, s.first_step, s.num_steps) for s in plan.stages] == [
        (128, 32, 0, 10),
        (256, 16, 10, 10),
        (512, 8, 20, 20),
        (1024, 4, 40, 40),
    ]
    assert plan.num_tokens == 80 * 4096
    assert plan.stage_ends == (10, 20, 40, 80)
    assert [plan.stage_index(step) for step in (0, 9, 10, 39, 40, 79)] == [0, 0, 1, 2, 3, 3]


def test_tokens_shared_by_seconds() -> None:
    # Equal seconds at costs 1, 2, 4, 8 are steps in proportion 8 : 4 : 2 : 1.
    plan = plan_of(spec(tokens=15 * 4096, ratios_in="seconds", costs=COSTS))
    assert [s.num_steps for s in plan.stages] == [8, 4, 2, 1]


def test_seconds_shared_by_seconds_carry_what_is_left_over() -> None:
    # Boundaries at 10, 20, 30, 40 s: 10 steps of 1 s, 5 of 2 s, 2 of 4 s (28 s), 1 of 8 s (36 s).
    plan = plan_of(spec(seconds=40, ratios_in="seconds", costs=COSTS))
    assert [s.num_steps for s in plan.stages] == [10, 5, 2, 1]
    assert plan.calibrated_microseconds(plan.num_steps) == 36_000_000
    assert plan.calibrated_microseconds(11) == 12_000_000


def test_seconds_shared_by_tokens() -> None:
    # One step of each length costs 15 s: 3 of each are 45 s.
    plan = plan_of(spec(seconds=46, costs=COSTS))
    assert [s.num_steps for s in plan.stages] == [3, 3, 3, 3]


def test_seconds_without_calibration_have_no_plan_yet() -> None:
    assert plan_if_known(spec(seconds=40, ratios_in="seconds")) is None
    assert plan_if_known(spec(tokens=40960, ratios_in="seconds")) is None
    assert plan_if_known(spec(tokens=40960)) is not None


def test_a_stage_without_a_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage 0 \(seq_len 128.*0 of 3 steps"):
        plan_of(spec(tokens=3 * 4096))


def test_a_length_missing_from_the_calibration_is_refused() -> None:
    with pytest.raises(UserError, match="1024 is not in the calibration, which has 128, 256, 512"):
        plan_of(spec(seconds=40, costs={k: v for k, v in COSTS.items() if k < 1024}))


def test_events_after_a_step_are_a_literal_list() -> None:
    # 40 steps a stage; scored again 16 steps after each boundary, at 56, 96 and 136.
    pipeline = spec(tokens=160 * 4096)
    often = {"log_every_steps": 10, "checkpoint_every_tokens": 48 * 4096}
    evaluation = {"every_tokens": 56 * 4096}
    plan = plan_of(pipeline.derive(compute=often, evaluation=evaluation))
    seen = {n: [str(event) for event in plan.events_after(n)] for n in range(1, 161)}
    only_logged = [n for n, events in seen.items() if events == ["log"]]
    assert only_logged == [10, 20, 30, 50, 60, 70, 90, 100, 110, 130, 140, 150]
    assert {n: events for n, events in seen.items() if len(events) > 1} == {
        40: ["log", "checkpoint", "evaluate"],
        48: ["log", "checkpoint"],
        56: ["log", "rescore", "evaluate"],
        80: ["log", "checkpoint", "evaluate"],
        96: ["log", "rescore", "checkpoint"],
        112: ["log", "evaluate"],
        120: ["log", "checkpoint", "evaluate"],
        136: ["log", "rescore"],
        144: ["log", "checkpoint"],
        160: ["log", "checkpoint", "evaluate"],
    }


def test_stage_boundaries_that_are_not_scored_keep_their_checkpoints() -> None:
    pipeline = spec(tokens=160 * 4096)
    plan = plan_of(pipeline.derive(evaluation={"stage_ends": False}))
    seen = {n: [str(event) for event in plan.events_after(n)] for n in range(1, 161)}
    assert {n: events for n, events in seen.items() if len(events) > 1} == {
        40: ["log", "checkpoint"],
        80: ["log", "checkpoint"],
        120: ["log", "checkpoint"],
        160: ["log", "checkpoint", "evaluate"],
    }
    assert plan.boundaries == ()


def test_the_rate_is_of_the_declared_budget() -> None:
    # 10 batches and a rest of half of one: the middle of step 4 lies at 4.5 of 10.5 batches.
    plan = plan_of(spec(tokens=10 * 4096 + 2048))
    assert plan.num_steps == 10
    assert plan.progress(4) == Fraction(9, 21)
    # 36 of 40 declared seconds are used: the last step, of 8 s, has its middle at 32 s.
    plan = plan_of(spec(seconds=40, ratios_in="seconds", costs=COSTS))
    assert plan.progress(plan.num_steps - 1) == Fraction(32, 40)


def test_schedules_that_agree_so_far_have_the_same_rates_so_far() -> None:
    optimizer = OptimizerSpec(lr=0.01)
    paths = [
        spec(ratios, seconds=41, ratios_in="seconds", costs=COSTS)
        for ratios in ((1, 1, 1, 1), (1, 2, 1))
    ]
    one, other = (plan_of(path) for path in paths)
    assert one.num_steps != other.num_steps
    assert one.stages[0] == other.stages[0]
    rates = [[learning_rate(optimizer, plan, n) for n in range(10)] for plan in (one, other)]
    assert rates[0] == rates[1]


ratio = st.floats(0.01, 100).map(lambda x: round(x, 3))


@given(st.integers(0, 10**9), st.lists(ratio, min_size=1, max_size=6))
def test_split_loses_nothing_and_is_within_one(total: int, ratios: list[float]) -> None:
    weights = [Fraction(str(r)) for r in ratios]
    parts = split(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1


@given(
    st.lists(ratio, min_size=4, max_size=4),
    st.lists(st.integers(1, 10**7), min_size=4, max_size=4),
    st.integers(1, 10**5),
    st.sampled_from(["tokens", "seconds"]),
)
def test_a_budget_in_seconds_is_used_up_to_a_step(
    ratios: list[float], costs: list[int], seconds: int, share: Unit
) -> None:
    pipeline = spec(
        ratios, seconds=seconds, ratios_in=share, costs=dict(zip(LENGTHS, costs, strict=True))
    )
    try:
        plan = plan_of(pipeline)
    except UserError:
        return  # a stage without a step
    calibrated = plan.calibrated_microseconds(plan.num_steps)
    assert calibrated is not None
    assert calibrated <= seconds * 1_000_000
    if share == "seconds":
        assert seconds * 1_000_000 - calibrated < costs[-1]
        boundary = Fraction(0)
        for stage, ratio_ in zip(plan.stages, ratios, strict=True):
            boundary += (
                seconds * 1_000_000 * Fraction(str(ratio_)) / sum(Fraction(str(r)) for r in ratios)
            )
            at_end = plan.calibrated_microseconds(stage.end_step)
            assert at_end is not None
            assert at_end <= boundary
    else:
        more = split(plan.num_steps + 1, [Fraction(str(r)) for r in ratios])
        assert sum(n * c for n, c in zip(more, costs, strict=True)) > seconds * 1_000_000


@given(st.lists(ratio, min_size=4, max_size=4), st.integers(400, 10**6))
def test_progress_rises_inside_the_unit_interval(ratios: list[float], num_steps: int) -> None:
    try:
        plan = plan_of(spec(ratios, tokens=num_steps * 4096))
    except UserError:
        return
    seen = [plan.progress(step) for step in (0, 1, num_steps // 2, num_steps - 1)]
    assert seen == sorted(seen)
    assert seen[0] > 0
    assert seen[-1] < 1


def test_progress_in_seconds_follows_calibrated_time() -> None:
    plan = plan_of(spec(seconds=60, costs=COSTS))  # 4 steps of each length: 4, 8, 16, 32 s
    assert plan.progress(0) == Fraction(1, 120)
    assert plan.progress(4) == Fraction(5, 60)
    assert plan.progress(15) == Fraction(56, 60)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LinearSchedule(warmup=0.2, final=0.0), {0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}),
        (CosineSchedule(warmup=0.2, final=0.1), {0.1: 0.5, 0.2: 1.0, 0.6: 0.55, 1.0: 0.1}),
        (
            StableDecaySchedule(warmup=0.2, decay=0.4, final=0.0),
            {0.1: 0.5, 0.2: 1.0, 0.5: 1.0, 0.6: 1.0, 0.8: 0.5, 1.0: 0.0},
        ),
    ],
)
def test_scheduled_rate(schedule: ScheduleSpec, expected: dict[float, float]) -> None:
    for progress, share in expected.items():
        rate = scheduled_rate(schedule, 0.01, Fraction(str(progress)))
        assert rate == pytest.approx(0.01 * share, abs=1e-12)


def test_the_rate_rises_again_after_each_boundary() -> None:
    optimizer = OptimizerSpec(lr=0.01, schedule=LinearSchedule(warmup=0.0), rewarm_steps=3)
    plan = plan_of(spec(tokens=40 * 4096))  # 10 steps a stage
    shares = [
        learning_rate(optimizer, plan, step)
        / scheduled_rate(optimizer.schedule, 0.01, plan.progress(step))
        for step in range(8, 22)
    ]
    once = [1, 1, 0.25, 0.5, 0.75, *[1] * 7, 0.25, 0.5]
    assert shares == pytest.approx(once)


def own_stages(*stages: object, **fields: object) -> PipelineSpec:
    """The pipeline with an arm of these stages."""
    changes: dict[str, object] = {"arms": [{"name": "own", "stages": stages}]}
    return spec(tokens=48 * 4096).derive(**changes, **fields)


LATE = {"seq_len": 1024, "ratio": 2, "tokens_per_batch": 8192, "lr_factor": 0.5}


def test_stages_have_their_own_batches() -> None:
    # 48 batches of 4,096: 12 at 128; 24 batches' tokens in 12 of twice the size; 12 at 256.
    plan = plan_of(own_stages({"seq_len": 128}, LATE, {"seq_len": 256}))
    assert [(s.windows_per_batch, s.first_step, s.num_steps) for s in plan.stages] == [
        (32, 0, 12),
        (8, 12, 12),
        (16, 24, 12),
    ]
    assert [s.tokens_per_batch for s in plan.stages] == [4096, 8192, 4096]
    assert plan.num_tokens == 48 * 4096
    trained = [plan.tokens_after(step) // 4096 for step in (0, 1, 12, 13, 24, 25, 36)]
    assert trained == [0, 1, 12, 14, 36, 37, 48]
    # The middle of step 12 lies at 13 of 48 batches' tokens, that of step 24 at 36.5.
    assert [plan.progress(step) for step in (12, 24)] == [Fraction(13, 48), Fraction(73, 96)]


def test_what_a_larger_batch_leaves_over_passes_to_the_next_stage() -> None:
    # Boundaries at 16, 32 and 48: 5 batches of 3 (15), 5 of 3 (30), 18 of 1.
    three: dict[str, object] = {"tokens_per_batch": 3 * 4096}
    plan = plan_of(own_stages({"seq_len": 128, **three}, {"seq_len": 256, **three}, 512))
    assert [s.num_steps for s in plan.stages] == [5, 5, 18]
    # At the end less than a batch is left: 16 batches of 3 are 48 of 49 and a half.
    fields: dict[str, object] = {"budget": {"tokens": 49 * 4096 + 2048}}
    plan = plan_of(own_stages({"seq_len": 128}, {"seq_len": 256, "ratio": 3, **three}, **fields))
    assert [s.num_steps for s in plan.stages] == [12, 12]


def test_seconds_price_a_batch_by_its_tokens() -> None:
    # A step of 8,192 tokens at 1,024 costs 16 s: 32 s at 128 are 32 steps, 64 s are 4.
    fields: dict[str, object] = {"calibration": {"step_microseconds": COSTS}}
    seconds = fields | {"budget": {"tokens": None, "seconds": 96}}
    plan = plan_of(own_stages({"seq_len": 128}, LATE, ratios_in="seconds", **seconds))
    assert [(s.num_steps, s.step_microseconds) for s in plan.stages] == [
        (32, 1_000_000),
        (4, 16_000_000),
    ]
    assert plan.progress(32) == Fraction(40, 96)
    # By tokens one step at 128 goes with one at 1,024, 17 s: five of each are 85 s.
    plan = plan_of(own_stages({"seq_len": 128}, LATE, **seconds))
    assert [s.num_steps for s in plan.stages] == [5, 5]
    # 16 s each: 16 steps at 128, and one at 1,024, which trains as much as two of 18 batches.
    both = fields | {"budget": {"tokens": 18 * 4096}}
    late = LATE | {"ratio": 1}
    plan = plan_of(own_stages({"seq_len": 128}, late, ratios_in="seconds", **both))
    assert [s.num_steps for s in plan.stages] == [16, 1]
    assert plan.total_cost({128: 1.0, 1024: 8.0}) == 16 + 16


def test_a_stage_multiplies_the_scheduled_rate() -> None:
    optimizer = OptimizerSpec(lr=0.01, schedule=LinearSchedule(warmup=0.0), rewarm_steps=1)
    plan = plan_of(own_stages({"seq_len": 128}, LATE, {"seq_len": 256}))
    shares = [
        learning_rate(optimizer, plan, step)
        / scheduled_rate(optimizer.schedule, 0.01, plan.progress(step))
        for step in (11, 12, 13, 23, 24, 25)
    ]
    assert shares == pytest.approx([1, 0.25, 0.5, 0.5, 0.5, 1])


def test_events_come_every_so_many_tokens_in_any_batch() -> None:
    # Every 6 batches' tokens: after steps 6 and 12 of one, then every third of two, then every
    # sixth again; stages end after 12, 24 and 36.
    often = {"compute": {"checkpoint_every_tokens": 6 * 4096 + 5}}
    plan = plan_of(own_stages({"seq_len": 128}, LATE, {"seq_len": 256}, **often))
    steps = [n for n in range(1, 37) if "checkpoint" in plan.events_after(n)]
    assert steps == [6, 12, 15, 18, 21, 24, 30, 36]
    # A multiple that lies inside a batch counts after it: 5, 10; 15, 20, 25, 30, 35; 40, 45.
    often = {"compute": {"checkpoint_every_tokens": 5 * 4096}}
    plan = plan_of(own_stages({"seq_len": 128}, LATE, {"seq_len": 256}, **often))
    steps = [n for n in range(1, 37) if "checkpoint" in plan.events_after(n)]
    assert steps == [5, 10, 12, 14, 16, 19, 21, 24, 28, 33, 36]


@given(
    st.lists(st.tuples(ratio, st.integers(1, 5)), min_size=1, max_size=4),
    st.integers(500, 10**5),
    st.integers(0, 4095),
    st.sampled_from(["tokens", "seconds"]),
    st.booleans(),
)
def test_any_batches_use_the_budget_up_to_a_step(
    stages: list[tuple[float, int]], num_batches: int, rest: int, share: Unit, timed: bool
) -> None:
    """Each stage ends less than a step before its boundary, in what the budget counts."""
    declared = [
        {"seq_len": length, "ratio": ratio_, "tokens_per_batch": 1024 * size}
        for length, (ratio_, size) in zip(LENGTHS, stages, strict=False)
    ]
    seconds, tokens = num_batches * 4, num_batches * 4096 + rest
    budget = {"seconds": seconds if timed else None, "tokens": None if timed else tokens}
    costs = {"step_microseconds": COSTS}
    pipeline = own_stages(*declared, budget=budget, ratios_in=share, calibration=costs)
    try:
        plan = plan_of(pipeline)
    except UserError:
        return  # a stage without a step
    assert [s.tokens_per_batch for s in plan.stages] == [1024 * size for _, size in stages]
    assert plan.progress(plan.num_steps - 1) < 1
    last = plan.stages[-1]
    if not timed:
        assert 0 <= tokens - plan.num_tokens < last.tokens_per_batch
    else:
        used = plan.calibrated_microseconds(plan.num_steps)
        assert used is not None
        assert last.step_microseconds is not None
        assert used <= seconds * 1_000_000
        if share == "seconds":
            assert seconds * 1_000_000 - used < last.step_microseconds
    if share == "tokens":
        whole = sum(Fraction(str(ratio_)) for ratio_, _ in stages)
        exact = [plan.num_tokens * Fraction(str(ratio_)) / whole for ratio_, _ in stages]
        largest = max(s.tokens_per_batch for s in plan.stages)
        for stage, wanted in zip(plan.stages, exact, strict=True):
            assert abs(stage.num_steps * stage.tokens_per_batch - wanted) < 2 * largest


def test_boundaries_between_stages() -> None:
    plan = plan_of(spec(tokens=80 * 4096))  # 20 steps a stage
    first, _, last = plan.boundaries
    assert (first.step, first.from_seq_len, first.to_seq_len) == (20, 128, 256)
    assert first.rescore_step == 36
    assert (last.step, last.rescore_step) == (60, 76)
    assert [step for step in range(80) if not plan.is_watched(step)] == []
    long = plan_of(spec(ratios=(100, 1, 1, 1), tokens=103 * 4096))
    assert [boundary.rescore_step for boundary in long.boundaries] == [101, 102, 103]
    assert [step for step in range(103) if long.is_watched(step)] == list(range(68, 103))
