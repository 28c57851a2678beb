"""benchmarks/surface.py: what a replayed search costs, and how far its choice is from the best."""

import pytest

from benchmarks.surface import Surface, path, replayed
from glray.search.space import Candidate

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
    assert path(EARLY) == [8, 8, 16, 16, 16, 32, 32, 32, 32, 32]


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
