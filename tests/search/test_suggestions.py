"""What Optuna is asked and told outlives a kill."""

from pathlib import Path

import pytest

from glray.search.space import Candidate, Space
from glray.search.suggestions import JOURNAL, Suggestions

from .test_space import searched

LRS = {"lengths": ((8, 32), (8, 16, 32)), "lrs": (1e-3, 2e-3)}


def told(space: Space, folder: Path, *losses: float) -> list[Candidate]:
    """Candidates, each of which gets its loss."""
    suggestions, candidates = Suggestions(space, folder), []
    for loss in losses:
        number, candidate = suggestions.ask()
        suggestions.tell(number, loss)
        candidates.append(candidate)
    return candidates


def test_a_journal_that_ends_anywhere_goes_on(tmp_path: Path) -> None:
    """Wherever it was cut, by a kill or by a full disk: what was told before stays."""
    space = Space.of(searched(**LRS))
    tried = told(space, tmp_path / "whole", 3.0, 2.0)
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    assert len(lines) > 10  # a line for each parameter
    for num_whole in range(len(lines)):
        folder = tmp_path / str(num_whole)
        folder.mkdir()
        cut = lines[num_whole][: len(lines[num_whole]) // 2]
        (folder / JOURNAL).write_bytes(b"".join(lines[:num_whole]) + cut)
        before = Suggestions(space, folder).ended
        assert before == tried[: len(before)]
        new = told(space, folder, 1.0)
        assert Suggestions(space, folder).ended == [*before, *new]


def test_a_lock_that_a_killed_command_has_left_is_not_waited_for(tmp_path: Path) -> None:
    """Optuna waits half a minute for its own, and forever once the storage was moved."""
    space = Space.of(searched(**LRS))
    tried = told(space, tmp_path, 3.0)
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / "moved" / JOURNAL)
    assert [*tried, *told(space, tmp_path, 2.0)] == Suggestions(space, tmp_path).ended


@pytest.mark.parametrize(
    "other",
    [
        {"lengths": ((8, 32),), "lrs": (1e-3, 2e-3)},
        {"lengths": ((8, 32), (8, 16, 32))},
        {"lengths": ((8, 32), (8, 16, 32)), "lrs": (2e-3, 4e-3)},
        {"lengths": ((8, 32), (8, 16, 32)), "lrs": (1e-3, 2e-3), "grid": 10},
    ],
)
def test_losses_of_another_space_are_not_taken_for_this_ones(
    tmp_path: Path, other: dict[str, object]
) -> None:
    """The same parameters mean other candidates there."""
    space = Space.of(searched(**LRS))
    tried = told(space, tmp_path, 3.0, 2.0)
    assert Suggestions(Space.of(searched(**other)), tmp_path).ended == []
    theirs = told(Space.of(searched(**other)), tmp_path, 1.0)
    assert Suggestions(Space.of(searched(**other)), tmp_path).ended == theirs
    changed = Space.of(searched(**LRS, num_trials=99, seed=-1, confirm=0, max_behind=0.1))
    assert Suggestions(changed, tmp_path).ended == tried


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_any_whole_number_is_a_seed(tmp_path: Path, seed: int) -> None:
    assert len(told(Space.of(searched(**LRS, seed=seed)), tmp_path, 3.0)) == 1
