"""A profile shown, and what it says of a plan: figures by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from glray.cli.pipelines import settings_of
from glray.errors import UserError
from glray.report.length_plots import costs_by_length
from glray.report.look import save
from glray.report.plan_sheets import plan_sheets
from glray.report.profile_sheets import profile_sheets, saved_share, saving_text
from glray.run.profile import (
    LengthCost,
    Profile,
    Setting,
    SettingCosts,
    profile_path,
)
from glray.spec import OptimizerSpec, StableDecaySchedule, fixed, load_pipeline

from ..tiny import tiny_spec
from .test_table import rendered, rows_of

OWN = Setting("sdpa", False, "float32")
PARTS = {"forward": 0.4, "backward": 0.59, "optimizer": 0.01}
COSTS = SettingCosts(
    OWN,
    (
        LengthCost(8, 2**30, 4096, (0.9, 1.0, 1.1), PARTS),
        LengthCost(16, 2**31, 2048, (2.0, 2.0), PARTS),
        LengthCost(32, 2**32, 1024, (4.0,), PARTS),
    ),
)
PROFILE = Profile(
    pipeline="tiny",
    tokens_per_batch=64,
    budget_bytes=2**33,
    environment={"gpu": None, "processor": "an abacus"},
    settings=(COSTS,),
)


def test_each_length_stands_beside_the_longest(tmp_path: Path) -> None:
    text = rendered(profile_sheets(PROFILE, tiny_spec(tmp_path)))
    assert rows_of(text, "8")[0] == (
        ["8", "1,000", "5%", "25%", "40/59/1", "1.00", "25%", "4,096", "400%"]
    )
    assert rows_of(text, "32")[0][1:4] == ["4,000", "0%", "100%"]
    assert "no schedule saves more than 75% of fixed 32's time" in text
    assert "grow saves 42% of fixed 32." in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    costs = SettingCosts(OWN, (COSTS.lengths[0], LengthCost(16384, None, 0)))
    profile = PROFILE.model_copy(update={"settings": (costs,)})
    text = rendered(profile_sheets(profile, tiny_spec(tmp_path)))
    assert "does not fit" in text
    assert "there is nothing to grow" in text
    assert "100%" in text  # of itself: the longest that fits
    assert save(costs_by_length(profile), tmp_path / "profile.png").exists()


def test_savings_by_hand(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    grow, fixed = spec.arms
    # A third of the tokens at each of 1, 2 and 4 seconds, against 4.
    assert saved_share(COSTS, spec, grow) == pytest.approx(1 - 7 / 12)
    assert saved_share(COSTS, spec, fixed) is None
    # A third of the time at each: 1 + 1/2 + 1/4 steps take 3 seconds, fixed 4 × 1.75.
    by_seconds = spec.derive(ratios_in="seconds", budget={"seconds": 9, "tokens": None})
    assert saved_share(COSTS, by_seconds, grow) == pytest.approx(1 - 3 / 7)
    short = SettingCosts(OWN, COSTS.lengths[1:])
    assert saved_share(short, spec, grow) is None


def test_a_plan_is_priced(tmp_path: Path) -> None:
    text = rendered(plan_sheets(tiny_spec(tmp_path), PROFILE))
    # 4 steps at each length, and 12 at 32
    assert "predicted on one worker: 28.0 s, 4.00 GiB at most" in text
    assert "predicted on one worker: 48.0 s, 4.00 GiB at most" in text
    assert "saves 42% of fixed 32's time on as many tokens" in text
    assert "priced by glray profile on an abacus" in text


def test_a_plan_has_each_arms_own_rate(tmp_path: Path) -> None:
    schedule = StableDecaySchedule(warmup=0, decay=0.5, final=0)
    arms = (fixed(8), fixed(32, lr=0.2))
    spec = tiny_spec(tmp_path, arms=arms, optimizer=OptimizerSpec(lr=0.1, schedule=schedule))
    text = rendered(plan_sheets(spec))
    # The middle of the last of 12 steps is 11/12 through the decay.
    assert rows_of(text, "8")[0][-1] == "1.0e-1→8.3e-3"
    assert rows_of(text, "32")[0][-1] == "2.0e-1→1.7e-2"


@pytest.mark.parametrize(
    ("precision", "compiled", "remark"),
    [
        ("float32", False, "in float32 (--set precision=bfloat16) and not compiled ("),
        ("float32", True, "on a GPU, but in float32 (--set precision=bfloat16): most of"),
        ("bfloat16", False, "on a GPU, but not compiled (--set compute.compile=true): most of"),
        ("bfloat16", True, None),
    ],
)
def test_what_leaves_a_gpu_unused_is_remarked_on(
    tmp_path: Path, precision: str, compiled: bool, remark: str | None
) -> None:
    spec = tiny_spec(tmp_path, precision=precision).derive(compute={"compile": compiled})
    assert "on a GPU" not in rendered(plan_sheets(spec))
    text = rendered(plan_sheets(spec.derive(compute={"use_gpu": True})))
    assert ("on a GPU" in text) is (remark is not None)
    assert remark is None or remark in text


def test_a_plan_shows_and_prices_what_stages_have_of_their_own(tmp_path: Path) -> None:
    own = {"seq_len": 16, "tokens_per_batch": 128, "lr_factor": 0.5, "weights": {"stdlib": 2}}
    arms = ({"name": "own", "stages": [8, own, 32]}, fixed(32))
    spec = tiny_spec(tmp_path, arms=arms)
    text = rendered(plan_sheets(spec, PROFILE))
    assert "at 16: batch 128, rate × 0.5, weights stdlib 2" in text
    assert "8 steps × 64 + 2 steps × 128 = 768 tokens" in text
    assert rows_of(text, "16")[0][:5] == ["16", "8", "2", "256", "33.3%"]
    assert "28.0 s" in text  # 4 × 1 s, 2 × 4 s and 4 × 4 s
    # The same once seconds decide: 28 s by tokens.
    timed = spec.derive(budget={"tokens": None, "seconds": 28})
    assert "at 16: batch 128" in rendered(plan_sheets(timed))
    assert rows_of(rendered(plan_sheets(timed, PROFILE)), "16")[0][2:4] == ["2", "256"]


def test_where_seconds_decide_the_prices_give_the_steps(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, ratios_in="seconds", budget={"seconds": 12})
    assert "after calibration" in rendered(plan_sheets(spec))
    text = rendered(plan_sheets(spec, PROFILE))
    assert "after calibration" not in text
    assert rows_of(text, "8")[0][:3] == ["8", "8", "4"]  # 4 s of 1 s each
    assert "so a run calibrates again" in " ".join(text.split())


def test_a_profile_of_another_setting_prices_nothing_and_that_is_said(tmp_path: Path) -> None:
    compute = {"compile": True}
    text = rendered(plan_sheets(tiny_spec(tmp_path, compute=compute), PROFILE))
    assert "predicted" not in text
    assert "not priced" in text


def test_a_plan_in_tokens_says_nothing_of_seconds_or_of_memory_that_was_not_counted(
    tmp_path: Path,
) -> None:
    uncounted = tuple(replace(cost, peak_bytes=None) for cost in COSTS.lengths)
    profile = PROFILE.model_copy(update={"settings": (SettingCosts(OWN, uncounted),)})
    text = rendered(plan_sheets(tiny_spec(tmp_path), profile))
    assert "28.0 s" in text
    assert "GiB" not in text
    assert "calibrates again" not in text


def test_the_plan_of_days_on_a_cluster_has_whole_numbers_at_80_columns() -> None:
    costs = {128: 1_500_000, 256: 1_650_000, 512: 1_980_000, 1024: 2_250_000}
    spec = load_pipeline("pipelines/quickstart.py").derive(
        budget={"seconds": 259_200},
        tokens_per_batch=524_288,
        calibration={"step_microseconds": costs},
    )
    text = rendered(plan_sheets(spec))
    assert "128 4,096 43,200 22.6 B 30.0% 1,500 64,800 4.3e-7→2.6e-3" in " ".join(text.split())
    assert "= 75,496,947,712 tokens" in text


def test_prices_that_leave_a_stage_without_a_step_leave_that_to_the_run(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, ratios_in="seconds", budget={"seconds": 4.5})
    assert "after calibration" in rendered(plan_sheets(spec, PROFILE))


def test_the_cheapest_length_is_the_ceiling_wherever_it_is(tmp_path: Path) -> None:
    slow_start = (replace(COSTS.lengths[0], step_seconds=(3.0,)), *COSTS.lengths[1:])
    profile = PROFILE.model_copy(update={"settings": (SettingCosts(OWN, slow_start),)})
    text = rendered(profile_sheets(profile, tiny_spec(tmp_path)))
    assert "more than 50% of fixed 32's time, as 16 alone does" in " ".join(text.split())
    nothing = tuple(replace(cost, largest_batch_tokens=0) for cost in slow_start)
    profile = PROFILE.model_copy(update={"settings": (SettingCosts(OWN, nothing),)})
    assert save(costs_by_length(profile), tmp_path / "profile.png").exists()


def test_a_profile_keeps_what_it_does_not_measure_again_unless_on_another_machine(
    tmp_path: Path,
) -> None:
    path = tmp_path / "profile.json"
    eager = SettingCosts(replace(OWN, kernel="eager"), COSTS.lengths)
    again = SettingCosts(OWN, (LengthCost(16, None, None, (2.5,)), LengthCost(64, None, None)))

    def kept(settings: SettingCosts, processor: str = "an abacus") -> tuple[SettingCosts, ...]:
        environment = {"gpu": None, "processor": processor}
        fields = {"settings": (settings,), "environment": environment}
        PROFILE.model_copy(update=fields).keep(path)
        profile = Profile.read(path)
        assert profile is not None
        return profile.settings

    assert kept(COSTS) == (COSTS,)
    assert kept(eager) == (eager, COSTS)
    eight, _, thirty_two = COSTS.lengths
    merged = SettingCosts(OWN, (eight, again.lengths[0], thirty_two, again.lengths[1]))
    assert kept(again) == (merged, eager)
    assert kept(eager, "a slide rule") == (eager,)


def test_a_schedule_that_costs_more_saves_nothing() -> None:
    said = [saving_text(saved, "fixed 32") for saved in (0.123, 0.004, -0.004, -0.2)]
    assert said == [
        *("saves 12% of fixed 32", "saves 0% of fixed 32", "saves 0% of fixed 32"),
        "takes 20% more than fixed 32",
    ]


def test_a_profile_is_kept_for_what_decides_a_steps_cost(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    PROFILE.keep(profile_path(spec))
    assert Profile.read(profile_path(spec.derive(name="other", seeds=(3,)))) == PROFILE
    assert Profile.read(profile_path(spec.derive(tokens_per_batch=128))) is None
    for damaged in ("{}", "[]", '{"settings": [{"setting": {}}]}'):
        profile_path(spec).write_text(damaged)
        with pytest.raises(UserError, match=r"damaged.*run glray profile again"):
            Profile.read(profile_path(spec))


def test_settings_are_every_combination() -> None:
    chosen = settings_of(OWN, "sdpa,eager", "off,on", None)
    assert [setting.name for setting in chosen] == [
        "sdpa, not compiled, float32",
        "sdpa, compiled, float32",
        "eager, not compiled, float32",
        "eager, compiled, float32",
    ]
    with pytest.raises(UserError, match="--attention flash: unknown; choose from sdpa, eager"):
        settings_of(OWN, "flash", None, None)
