"""What Optuna is asked and told outlives a kill."""

from pathlib import Path

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
