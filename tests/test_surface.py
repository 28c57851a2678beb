"""benchmarks/surface.py: what a replayed search costs, and how far its choice is from the best."""

from pathlib import Path

import pytest

from benchmarks import surface
from benchmarks.surface import Surface, replay, replayed, tenths
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
    noise=0.0,
    seconds_per_unit={8: 1.0, 16: 2.0, 32: 4.0},
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


def test_a_kept_surface_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later boundaries are better here; each method is measured at random's seconds."""
    monkeypatch.setattr(surface, "RESULTS", tmp_path)
    spec = tiny_spec(
        tmp_path, arms=(arm("grow", 8, 16, 32),), search=SearchSpec(arm="grow", grid=10)
    )
    space = Space.of(spec)
    monkeypatch.setattr(surface, "_space", lambda: space)
    with pytest.raises(UserError, match="has 0 of 36 schedules under seed 0"):
        Surface.kept()
    losses = {each.name: 4.0 - 0.1 * each.shares[0] for each in space.all()}
    again = {each.name: 4.5 - 0.1 * each.shares[0] for each in space.designed(6)}
    kept = {"tokens": 1000, "seconds_per_token": {"8": 0.01, "16": 0.02, "32": 0.04}}
    write_json(tmp_path / "surface.json", kept | {"losses": {"0": losses, "1": again}})
    found = Surface.kept()
    assert found.noise == pytest.approx(0)  # the seeds differ by the same everywhere
    assert found.seconds_per_unit == {8: 1.0, 16: 2.0, 32: 4.0}
    result = replay(found, space, 2)
    assert set(result["methods"]) == {"random", "tree", "optuna"}
    regrets = result["methods"]["random"]["regret"]
    assert regrets == sorted(regrets, reverse=True)
    assert result["methods"]["random"]["less_random"] == [[0, 0, 0]] * 4
