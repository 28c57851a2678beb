"""What a search tries: the candidates, their arms, and how they are drawn and designed."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from glray.errors import UserError
from glray.plan import make_plan
from glray.search.confirm import best_pipeline
from glray.search.space import (
    Candidate,
    Space,
    baselines,
    candidates,
    check_search,
    fresh_seeds,
    open_pipeline,
    ranking_seq_len,
    search_pipeline,
)
from glray.spec import (
    ArmSpec,
    BaseFrequencies,
    CalibrationSpec,
    Extrapolation,
    Interpolation,
    PipelineSpec,
    Yarn,
    to_yaml,
)
from glray.tree import Trajectory, tree

from ..tiny import arm, tiny_spec

COSTS = CalibrationSpec(step_microseconds={8: 1000, 16: 1100, 32: 1300, 64: 1700})
FOUR = arm("grow", 8, 16, 32, 64)


def searched(*arms: ArmSpec, **fields: object) -> PipelineSpec:
    """A minute of an arm of 8, 16 and 32, or of other arms."""
    return tiny_spec(
        Path("unused"),
        arms=arms or (arm("grow", 8, 16, 32),),
        budget={"seconds": 60},
        calibration=COSTS,
        search={"arm": "grow"} | fields,
    )


def names(tried: list[Candidate]) -> list[str]:
    return [candidate.name for candidate in tried]


def test_a_schedule_has_one_name_and_one_arm_on_every_grid() -> None:
    coarse, fine = Candidate((8, 32), (1, 3)), Candidate((8, 32), (25, 75))
    assert coarse == fine
    assert coarse.name == "8x25-32x75"
    assert coarse.arm(FOUR) == arm("8x25-32x75", 8, 32).derive(stages={8: 25, 32: 75})
    assert Candidate((8, 16, 32), (10, 10, 10)).name == "8x1-16x1-32x1"  # no whole percents
    assert Candidate((8, 16, 8), (5, 4, 1)).name == "8x50-16x40-8x10"


def test_a_candidate_says_what_is_not_the_arms_own() -> None:
    grow = arm("grow", 8, 32, lr=0.5, positions=Yarn())
    own = Candidate((8, 32), (1, 1)).arm(grow)
    assert (own.lr, own.rewarm_steps, own.positions) == (0.5, None, Yarn())
    other = Candidate((8, 32), (1, 1), 3e-3, 20, Interpolation(relative_to="previous"))
    assert other.name == "8x50-32x50-lr3e-3-rewarm20-interpolation-previous"
    trained = other.arm(grow)
    assert (trained.lr, trained.rewarm_steps) == (3e-3, 20)
    assert trained.positions == Interpolation(relative_to="previous")
    thetas = Candidate((8, 32), (1, 1), positions=BaseFrequencies(thetas=(1e4, 5e5)))
    assert thetas.name == "8x50-32x50-theta1e4-5e5"


def test_a_long_name_is_shortened_and_stays_unique() -> None:
    lengths = tuple(2**n for n in range(7, 19))
    first, second = (Candidate(lengths, (1,) * 10 + last) for last in ((1, 2), (2, 1)))
    assert len(first.name) == len(second.name) == 80
    assert first.name != second.name
    first.arm(FOUR)


def test_the_space_has_every_combination() -> None:
    space = Space.of(searched(lengths=((32,), (8, 32)), grid=4, lrs=(1e-3, 2e-3)))
    assert (space.num_schedules, space.num_candidates) == (4, 8)
    assert names(space.all()) == [
        "32x100-lr1e-3",
        "32x100-lr2e-3",
        "8x25-32x75-lr1e-3",
        "8x50-32x50-lr1e-3",
        "8x75-32x25-lr1e-3",
        "8x25-32x75-lr2e-3",
        "8x50-32x50-lr2e-3",
        "8x75-32x25-lr2e-3",
    ]


def test_what_would_train_the_same_is_there_once() -> None:
    """One length has no boundary; two stages scale to the first as to the previous."""
    scalings = (Extrapolation(), Interpolation(), Interpolation(relative_to="previous"), Yarn())
    spec = searched(
        lengths=((32,), (8, 32), (8, 16, 32)),
        grid=3,
        rewarm_steps=(0, 10),
        positions=scalings,
    )
    counts = [family.num_candidates for family in Space.of(spec).families]
    assert counts == [1, 2 * 2 * 3, 1 * 2 * 4]


def test_after_a_parent_one_length_has_a_boundary_before_it() -> None:
    """There it is re-warmed, and scaled to the parent's lengths, which the space does not know."""
    scalings = (Extrapolation(), Interpolation(), Interpolation(relative_to="previous"))
    spec = searched(
        arm("grow", 32), rewarm_steps=(0, 10), positions=scalings, num_trials=99
    ).derive(model=None, start={"run": "runs/parent/short"})
    assert names(candidates(spec)) == names(baselines(spec))
    assert names(Space.of(spec).all()) == [
        "32x100-rewarm0-extrapolation",
        "32x100-rewarm0-interpolation",
        "32x100-rewarm0-interpolation-previous",
        "32x100-rewarm10-extrapolation",
        "32x100-rewarm10-interpolation",
        "32x100-rewarm10-interpolation-previous",
    ]


def test_every_schedule_of_a_list_is_as_likely_as_the_others_and_every_list() -> None:
    space = Space.of(searched(lengths=((8, 32), (8, 16, 32)), grid=6))
    rng = random.Random(1)
    drawn = Counter(space.draw(rng) for _ in range(3000))
    two, three = (list(family) for family in space.families)
    assert (len(two), len(three)) == (5, 10)
    for family in (two, three):
        assert chisquare([drawn[candidate] for candidate in family]).pvalue > 0.01
    assert sum(drawn[candidate] for candidate in two) == pytest.approx(1500, abs=3 * 27)


def test_the_last_share_of_four_is_that_of_the_flat_simplex() -> None:
    """At 5, 50 and 95%: the flat simplex has 0.02, 0.21 and 0.63. (Ratios drawn one by one and
    divided by their sum had 0.08, 0.23 and 0.51.)"""
    space = Space.of(searched(FOUR))
    rng = random.Random(1)
    last = sorted(space.draw(rng).shares[-1] for _ in range(4000))
    assert [last[round(at * 4000)] for at in (0.05, 0.5, 0.95)] == [0.05, 0.2, 0.6]
    exact = sorted(candidate.shares[-1] for candidate in space.all())
    assert [exact[round(at * 969)] for at in (0.05, 0.5, 0.95)] == [0.05, 0.2, 0.6]


def test_the_floor_of_the_last_share_holds_without_renormalising() -> None:
    space = Space.of(searched(FOUR, last=(0.3, 0.6), shares={16: (0, 0.2)}))
    rng = random.Random(1)
    for _ in range(200):
        candidate = space.draw(rng)
        assert sum(candidate.units) == 100
        assert all(share % 5 == 0 for share in candidate.units)
        assert 30 <= candidate.units[-1] <= 60
        assert 5 <= candidate.units[1] <= 20


def test_a_sample_has_no_candidate_twice_and_grows_by_its_end() -> None:
    space = Space.of(searched(lengths=((32,), (8, 32)), grid=5))
    some, more, every = (space.sample(num, random.Random(3)) for num in (2, 4, 99))
    assert more[:2] == some
    assert len(set(more)) == 4
    assert sorted(names(every)) == sorted(names(space.all()))


def test_the_design_shares_trunks() -> None:
    """27 schedules cost as much as 11.3: the boundaries at 15/25/35, 40/50/60 and 65/75/85%."""
    spec = searched(FOUR, shares={8: (0.15, 1)}, last=(0.15, 1), num_trials=27).derive(
        budget={"seconds": None, "tokens": 64 * 2000}, calibration=None
    )
    tried = Space.of(spec).designed(27)
    assert names(tried[:4]) == [
        "8x15-16x25-32x25-64x35",
        "8x15-16x25-32x35-64x25",
        "8x15-16x25-32x45-64x15",
        "8x15-16x35-32x15-64x35",
    ]
    pipeline = search_pipeline(spec, tried)
    plans = [(arm, make_plan(pipeline, arm)) for arm in pipeline.arms]
    branches = tree([Trajectory.of(pipeline, arm, 0, plan) for arm, plan in plans if plan])
    assert len(branches) == 27
    whole = 27 * 2000 / sum(branch.own_steps for branch in branches)
    assert whole == pytest.approx(2.389, abs=0.001)


def test_the_design_treats_lists_alike_and_crosses_schedules_with_rates() -> None:
    spec = searched(lengths=((32,), (8, 32), (8, 16, 32)), lrs=(1e-3, 2e-3))
    tried = Space.of(spec).designed(14)
    assert names(tried) == [
        "32x100-lr1e-3",
        "32x100-lr2e-3",
        "8x20-32x80-lr1e-3",
        "8x50-32x50-lr1e-3",
        "8x80-32x20-lr1e-3",
        "8x20-32x80-lr2e-3",
        "8x50-32x50-lr2e-3",
        "8x80-32x20-lr2e-3",
        "8x25-16x35-32x40-lr1e-3",
        "8x25-16x50-32x25-lr1e-3",
        "8x25-16x65-32x10-lr1e-3",
        "8x25-16x35-32x40-lr2e-3",
        "8x25-16x50-32x25-lr2e-3",
        "8x25-16x65-32x10-lr2e-3",
    ]


@given(
    st.integers(1, 60),
    st.sampled_from([((32,),), ((8, 32),), ((32,), (8, 32), (8, 16, 32)), ((8, 16, 32), (16, 32))]),
    st.integers(1, 3),
)
def test_a_design_is_of_the_space_and_no_larger_than_asked(
    most: int, lists: tuple[tuple[int, ...], ...], num_rates: int
) -> None:
    space = Space.of(searched(lengths=lists, grid=8, lrs=(1e-3, 2e-3, 4e-3)[:num_rates]))
    tried = space.designed(most)
    assert len(set(tried)) == len(tried) <= most
    assert set(tried) <= set(space.all())
    assert tried == space.all() or space.num_candidates > most
    assert tried


class HypothesisTrial:
    """Suggests what hypothesis draws, as an ``optuna.Trial`` does what its sampler says. A
    parameter has one range in all trials, or samplers could not learn of it."""

    def __init__(self, data: st.DataObject, ranges: dict[str, object]) -> None:
        self._data, self._ranges = data, ranges

    def suggest_categorical(self, name: str, choices: Sequence[str], /) -> Any:
        return self._drawn(name, choices, st.sampled_from(choices))

    def suggest_float(self, name: str, low: float, high: float, /) -> float:
        return self._drawn(name, (low, high), st.floats(low, high))

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        return self._drawn(name, (low, high), st.integers(low, high))

    def _drawn(self, name: str, known: object, strategy: st.SearchStrategy[Any]) -> Any:
        assert self._ranges.setdefault(name, known) == known
        return self._data.draw(strategy, label=name)


RANGES: dict[str, object] = {}


@given(st.data())
def test_whatever_is_suggested_is_a_candidate(data: st.DataObject) -> None:
    spec = searched(
        lengths=((32,), (8, 32), (8, 16, 32)),
        grid=10,
        last=(0.3, 0.6),
        shares={16: (0.2, 0.4)},
        lrs=(1e-3, 2e-3),
        rewarm_steps=(0, 10),
        positions=(Extrapolation(), Interpolation(), Interpolation(relative_to="previous")),
    )
    space = Space.of(spec)
    assert space.suggest(HypothesisTrial(data, RANGES)) in space.all()


def test_the_longest_length_is_tried_at_every_rate_and_so_are_equal_shares() -> None:
    spec = searched(lengths=((8, 32),), lrs=(1e-3, 2e-3))
    assert names(baselines(spec)) == [
        "32x100-lr1e-3",
        "32x100-lr2e-3",
        "8x1-16x1-32x1-lr1e-3",
        "8x1-16x1-32x1-lr2e-3",
    ]
    assert names(baselines(searched())) == ["32x100", "8x1-16x1-32x1"]
    assert names(baselines(searched(arm("grow", 32)))) == ["32x100"]


def test_baselines_have_the_scalings_that_one_length_knows() -> None:
    scalings = (Extrapolation(), Yarn(), Yarn(relative_to=8))
    spec = searched(arm("grow", 8, 32), positions=scalings)
    assert names(baselines(spec)) == ["32x100-extrapolation", "32x100-yarn-8", "8x50-32x50"]
    grow = arm("grow", 8, 32, positions=BaseFrequencies(thetas=(1e4, 1e5)))
    fixed, _ = baselines(searched(grow))
    assert fixed.arm(grow).positions == BaseFrequencies(thetas=(1e5,))


def test_each_method_tries_the_baselines_first_and_nothing_twice() -> None:
    fields = {"lengths": ((8, 32),), "grid": 4, "num_trials": 2}
    grow = arm("grow", 8, 32)
    first = ["32x100", "8x50-32x50"]
    assert names(candidates(searched(grow, method="optuna", **fields))) == first
    assert names(candidates(searched(grow, method="tree", **fields | {"num_trials": 9}))) == [
        *first,
        "8x25-32x75",
        "8x75-32x25",
    ]
    drawn = [
        candidates(searched(grow, method="random", seed=seed, **fields | {"grid": 20}))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_one_pipeline_trains_all_candidates() -> None:
    spec = searched(arm("grow", 8, 16), lengths=((8, 32),), num_trials=3).derive(
        seeds=(4, 5), only=("grow",)
    )
    tried = candidates(spec)
    pipeline = search_pipeline(spec, tried)
    assert [arm.name for arm in pipeline.arms] == names(tried)
    assert (pipeline.name, pipeline.seeds, pipeline.search) == ("tiny-search", (4,), None)
    assert (pipeline.only, pipeline.chunk_len) == (None, 32)
    assert (pipeline.budget, pipeline.calibration) == (spec.budget, spec.calibration)
    assert "ratios_in: seconds" in to_yaml(pipeline)
    for trained in pipeline.arms:
        plan = make_plan(pipeline, trained)
        assert plan is not None
        used = plan.calibrated_microseconds(plan.num_steps)
        assert used is not None
        assert 0 <= 60_000_000 - used < 1300  # equal calibrated seconds, to less than a step
    in_tokens = spec.derive(budget={"seconds": None, "tokens": 6400}, ratios_in="seconds")
    pipeline = search_pipeline(in_tokens, tried)
    assert pipeline.ratios_in == "tokens"
    for trained in pipeline.arms:
        plan = make_plan(pipeline, trained)
        assert plan is not None
        assert plan.num_steps == 100


@pytest.mark.parametrize("method", ["tree", "random", "optuna"])
def test_all_lengths_of_a_search_are_calibrated_also_those_that_come_later(method: str) -> None:
    """Optuna suggests during the search, and a later call may have more trials."""
    lists = ((4, 32), (16, 32), (64,), (8, 64))
    spec = searched(arm("grow", 16, 32), lengths=lists, method=method, num_trials=1)
    tried = candidates(spec)
    assert open_pipeline(spec, tried).all_seq_lens == (4, 8, 16, 32, 64)
    assert open_pipeline(spec, tried).arms == search_pipeline(spec, tried).arms
    every = search_pipeline(spec, tried)
    assert best_pipeline(spec, open_pipeline(spec, tried), tried[0]) == best_pipeline(
        spec, every, tried[0]
    )


def test_the_best_are_confirmed_on_seeds_that_chose_nothing() -> None:
    assert fresh_seeds(searched()) == (1, 2, 3)
    assert fresh_seeds(searched(confirm_seeds=2).derive(seeds=(1, 0))) == (0, 2)


def test_trials_are_ranked_at_the_longest_evaluated_length_of_the_search() -> None:
    with_longer_arm = (arm("grow", 8, 16), arm("fixed64", 64))
    spec = searched(*with_longer_arm).derive(evaluation={"seq_lens": (8, 16, 64)})
    assert ranking_seq_len(spec) == 16
    check_search(spec)
    shorter = spec.derive(evaluation={"seq_lens": (4, 8)})
    with pytest.raises(UserError, match="ends at 8, the search trains up to 16 tokens"):
        check_search(shorter)
    check_search(shorter.derive(search={"confirm": 0}))
    unscored = spec.derive(evaluation={"seq_lens": (64,), "num_tokens": 64})
    with pytest.raises(UserError, match=r"\(64,\) are all longer than 16"):
        check_search(unscored)
    check_search(spec.derive(name="n" * 72))
    with pytest.raises(UserError, match=r"73 characters, but .* use one of at most 72"):
        check_search(spec.derive(name="n" * 73))
    with pytest.raises(UserError, match="declares no search"):
        check_search(spec.derive(search=None))
    with pytest.raises(UserError, match=r"max_rise 0\.1 would stop trials"):
        check_search(spec.derive(evaluation={"seq_lens": (16, 64), "max_rise": 0.1}))
