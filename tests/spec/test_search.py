"""A search that has no possible point cannot be declared."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from glray.spec import BaseFrequencies, PipelineSpec, SearchSpec, Yarn, log_rates

from ..tiny import arm, tiny_spec


def searched(**fields: object) -> PipelineSpec:
    """The search of an arm of 8, 16 and 32."""
    return tiny_spec(Path("runs"), search={"arm": "grow"} | fields)


def units(seq_lens: tuple[int, ...], **fields: object) -> tuple[tuple[int, int], ...]:
    return SearchSpec.model_validate({"arm": "grow"} | fields).bounds(seq_lens)


def test_bounds_are_in_units_of_the_grid_and_all_hold() -> None:
    assert units((8, 16, 32)) == ((1, 20), (1, 20), (1, 20))
    assert units((8, 16, 32), least=0.15) == ((3, 20), (3, 20), (3, 20))
    assert units((8, 16, 32), last=(0.3, 0.7)) == ((1, 20), (1, 20), (6, 14))
    assert units((8, 32), shares={8: (0, 0.6), 32: (0.1, 0.5)}, last=(0.3, 0.7)) == (
        (1, 12),
        (6, 10),
    )
    assert units((8, 16, 8), shares={8: (0.2, 0.4)}, grid=10) == ((2, 4), (1, 10), (2, 4))


def test_a_single_length_has_the_whole_budget_whatever_the_bounds() -> None:
    assert units((32,), shares={32: (0.1, 0.2)}, last=(0.3, 0.7), grid=10) == ((10, 10),)
    searched(lengths=((32,), (8, 32)), shares={32: (0.1, 0.2)})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"shares": {8: (0.15, 0.33)}},
            "search.shares[8] 0.33 is not a multiple of 1/20, the grid: no schedule could have "
            "that share; use 0.3 or 0.35, or another search.grid",
        ),
        (
            {"least": 0.1, "grid": 4},
            "search.least 0.1 is not a multiple of 1/4, the grid: no schedule could have that "
            "share; use 0 or 0.25, or another search.grid",
        ),
        (
            {"last": (0.7, 0.3)},
            "search.last 0.7 to 0.3 is not a range of shares, so it would bound nothing; give the "
            "least and then the most, each from 0 to 1 (the whole budget)",
        ),
        ({"last": (0.5, 1.5)}, "search.last 0.5 to 1.5 is not a range of shares"),
        (
            {"shares": {8: (0.6, 1)}, "last": (0.4, 1)},
            "search: lengths 8-16-32: the least shares of its stages sum to 1.05, more than 1, "
            "the whole budget, so no schedule is possible; lower search.least, search.shares or "
            "search.last",
        ),
        (
            {"lengths": ((8, 16, 32), (8, 32)), "shares": {8: (0, 0.3)}, "last": (0, 0.6)},
            "search: lengths 8-32: the greatest shares of its stages sum to 0.9, less than 1, the "
            "whole budget, so no schedule is possible; raise search.shares or search.last",
        ),
        (
            {"shares": {32: (0, 0.2)}, "last": (0.3, 1)},
            "search: lengths 8-16-32: the stage of 32 has a least share of 0.3 and a greatest of "
            "0.2, so no schedule is possible; change search.least, search.shares or search.last",
        ),
        (
            {"grid": 2},
            "search: lengths 8-16-32: the least shares of its stages sum to 1.5, more than 1",
        ),
        (
            {"shares": {64: (0.1, 0.2)}},
            "search.shares has 64, which is in none of the lists of lengths, 8-16-32: it would "
            "bound nothing; remove it",
        ),
        (
            {"lengths": ((8, 8, 32),)},
            "search: lengths 8-8-32 have 8 twice in a row, which is one stage, so one schedule "
            "would be tried as several; remove one",
        ),
        (
            {"lengths": ((8, 32), (8, 32))},
            "search.lengths lists (8, 32) twice, so it would be tried twice as often; remove one",
        ),
        (
            {"positions": (BaseFrequencies(thetas=(1e4, 1e5)),)},
            "search: lengths 8-16-32: positions.thetas needs a value for each, 3, but has 2, so "
            "they could not be trained; use another kind of positions",
        ),
        (
            {"lrs": (1e-2, 1e-3)},
            "search.lrs lists 0.001 after 0.01, but they must ascend, as a sampler learns from "
            "their order; list each once, lowest first",
        ),
        ({"rewarm_steps": (5, 5)}, "search.rewarm_steps lists 5 after 5, but they must ascend"),
        ({"lengths": ((8, 24),)}, "seq_len 24 does not divide chunk_len 32"),
        ({"arm": "shrink"}, "has no arm 'shrink'; its arms are grow, fixed32"),
    ],
)
def test_what_has_no_schedule_is_an_error_on_one_line(
    fields: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError) as error:
        searched(**fields)
    (problem,) = error.value.errors()
    assert words in problem["msg"]
    assert "\n" not in problem["msg"]


def test_the_arms_own_base_frequencies_fit_only_lists_of_as_many_lengths() -> None:
    grow = arm("grow", 8, 32, positions=BaseFrequencies(thetas=(1e4, 1e5)))
    spec = tiny_spec(Path("runs"), arms=(grow,))
    spec.derive(search={"arm": "grow", "lengths": ((16, 32),)})
    spec.derive(search={"arm": "grow", "lengths": ((8, 16, 32),), "positions": (Yarn(),)})
    with pytest.raises(ValidationError, match=r"lengths 32: .* a value for each, 1, but has 2"):
        spec.derive(search={"arm": "grow", "lengths": ((32,),)})


def test_an_arms_own_rate_and_rewarming_take_the_place_of_the_pipelines() -> None:
    spec = tiny_spec(Path("runs"), optimizer={"lr": 1e-2, "rewarm_steps": 5})
    for own, lr, rewarm_steps in (
        ({}, 1e-2, 5),
        ({"lr": 1e-3}, 1e-3, 5),
        ({"rewarm_steps": 0}, 1e-2, 0),
        ({"lr": 1e-3, "rewarm_steps": 7}, 1e-3, 7),
    ):
        optimizer = spec.optimizer_of(arm("grow", 8, 32, **own))
        assert (optimizer.lr, optimizer.rewarm_steps) == (lr, rewarm_steps)


def test_rates_are_spaced_by_one_factor() -> None:
    assert log_rates(1e-3, 1e-2, num=3) == (1e-3, 3.16e-3, 1e-2)
    assert log_rates(3e-4, 4.8e-3, num=5) == (3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3)
