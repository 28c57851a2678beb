"""benchmarks/surface.py: what a replayed search costs, and how far its choice is from the best."""

from pathlib import Path

import pytest

from benchmarks import surface_page, surface_records
from benchmarks.surface_page import Answers, methods_sheet, picture
from benchmarks.surface_records import Noise, Surface, tenths
from benchmarks.surface_replay import replay, replayed
from glray.errors import UserError
from glray.files import write_json
from glray.search.space import Candidate, Space
from glray.spec import SearchSpec

from .tiny import arm, tiny_spec

LENGTHS = (8, 16, 32)
EARLY = Candidate(LENGTHS, (20, 30, 50))
LATE = Candidate(LENGTHS, (20, 60, 20))
LATEST = Candidate(LENGTHS, (20, 70, 10))
SURFACE = Surface(
    losses={EARLY.name: 3.5, LATE.name: 3.2, LATEST.name: 3.3},
    apart={},
    seconds_per_unit={8: 1.0, 16: 2.0, 32: 4.0},
    tokens_per_unit=100.0,
)


def test_the_path_of_a_schedule_is_its_length_by_tenths() -> None:
    assert tenths(EARLY) == [8, 8, 16, 16, 16, 32, 32, 32, 32, 32]


def test_a_trial_pays_for_what_it_shares_with_none_before_it() -> None:
    found = replayed(SURFACE, [EARLY, LATE, LATEST], SURFACE.losses)
    # Whole: 2 × 1 + 3 × 2 + 5 × 4 = 28. Forked after 5 tenths: 3 × 2 + 2 × 4 = 14. After 8: 2 + 4.
    assert found.seconds.tolist() == [28, 42, 48]
    assert found.regret.tolist() == pytest.approx([0.3, 0, 0])


def test_without_a_checkpoint_within_a_stage_a_trial_forks_at_its_end() -> None:
    found = replayed(SURFACE, [LATE, EARLY], SURFACE.losses, at_ends=True)
    # Whole: 2 × 1 + 6 × 2 + 2 × 4 = 22. The five tenths in common end within a stage of the first,
    # so after two: 3 × 2 + 5 × 4 = 26.
    assert found.seconds.tolist() == [22, 48]


def test_the_choice_is_by_what_is_seen_and_the_regret_by_what_is_true() -> None:
    seen = {EARLY.name: 3.0, LATE.name: 3.2, LATEST.name: 3.3}
    found = replayed(SURFACE, [LATE, EARLY], seen)
    assert found.regret.tolist() == pytest.approx([0, 0.3])
    assert found.at(0) == 0
    assert found.at(1000) == pytest.approx(0.3)


def test_noise_is_what_first_boundaries_have_in_common_and_the_rest() -> None:
    """Means of -1 and 1: variance 2, less a third of the 0.25 within; half of it is a seed's."""
    apart = {"8x10-16x90": -1.5, "8x10-16x80": -0.5, "8x10-32x90": -1.0}
    apart |= {"8x20-16x80": 0.5, "8x20-16x70": 1.5, "8x20-32x80": 1.0}
    noise = Noise.of(apart)
    assert noise.within == pytest.approx((0.25 / 2) ** 0.5)
    assert noise.between == pytest.approx(((2 - 0.25 / 3) / 2) ** 0.5)


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    """36 schedules of 8, 16 and 32, whose surface is kept in a folder of its own."""
    grown = arm("grow", *LENGTHS)
    space = Space.of(tiny_spec(tmp_path, arms=(grown,), search=SearchSpec(arm="grow", grid=10)))
    monkeypatch.setattr(surface_records, "RESULTS", tmp_path)
    for module in (surface_records, surface_page):
        monkeypatch.setattr(module, "space", lambda: space)
    return space


def keep_surface(folder: Path, space: Space) -> None:
    """Later first boundaries are better; the seeds differ by the same everywhere."""
    losses = {each.name: 4.0 - each.units[0] / 1000 for each in space.all()}
    again = {each.name: losses[each.name] + 0.5 for each in space.designed(27)}
    best = min(losses, key=lambda name: losses[name])
    fresh = {str(seed): {best: losses[best] + 0.01} for seed in (2, 3)}
    by_seed = {"0": losses, "1": again | {best: losses[best] + 0.01}, **fresh}
    kept = {"tokens": 1000, "seconds_per_token": {"8": 0.01, "16": 0.02, "32": 0.04}}
    write_json(folder / "surface.json", kept | {"losses": by_seed})


def test_a_kept_surface_is_replayed(tmp_path: Path, space: Space) -> None:
    """Each method is measured at random's seconds."""
    with pytest.raises(UserError, match="has 0 of 36 schedules under seed 0"):
        Surface.kept()
    keep_surface(tmp_path, space)
    found = Surface.kept()
    assert found.noise.within == pytest.approx(0)
    assert found.noise.between == pytest.approx(0)
    assert found.seconds_per_unit == {8: 1.0, 16: 2.0, 32: 4.0}
    result = replay(found, space, 2)
    assert set(result["methods"]) == {"random", "tree", "optuna"}
    regrets = result["methods"]["random"]["regret"]
    assert regrets == sorted(regrets, reverse=True)
    assert result["methods"]["random"]["less_random"] == [[0, 0, 0]] * 4


def test_the_answers_are_beside_the_studys_arms(tmp_path: Path, space: Space) -> None:
    """The best has 8 of 10 tenths at 8: 3.92 nats, 8 × 1 + 2 + 4 = 14 s. The full length has 4.0
    after 1,000 tokens, which take 40 s, and falls by 0.1 with each doubling: 3.92 after 1,741."""
    keep_surface(tmp_path, space)
    at_full = {"llm32-50": 4.1, "llm32-60": 4.0737, "llm32-80": 4.0322, "llm32": 4.0}
    tokens = {"llm32-50": 500, "llm32-60": 600, "llm32-80": 800, "llm32": 1000}
    arms = {
        label: {"heldout": {"32": loss}, "tokens_by_seq_len": {"32": tokens[label]}}
        for label, loss in at_full.items()
    }
    equal = {"8": 333, "16": 333, "32": 334}
    arms["growlength"] = {"heldout": {"32": 3.95}, "tokens_by_seq_len": equal}
    answers = Answers(Surface.kept(), {seed: {"arms": arms} for seed in range(4)})
    assert answers.surface.best == "8x80-16x10-32x10"
    soonest, share = next(iter(answers.shares_of_full.items()))
    assert soonest == answers.surface.best
    assert share == pytest.approx(14 / (1741 * 0.04), rel=1e-3)
    assert answers.share_of("growlength") == pytest.approx(23.35 / (1414 * 0.04), rel=1e-3)
    replayed = replay(answers.surface, space, 2)
    assert answers.fresh == (
        "8x80-16x10-32x10 less equal quarters is -0.030 under the seed that chose it, -0.020 "
        "(-0.020 to -0.020) under 3 other seeds."
    )
    assert methods_sheet(replayed).columns[0] == "method"
    assert len(picture(answers, replayed).axes) == 3
