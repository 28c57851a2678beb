"""Worker groups side by side, and the folder through which those of one launch agree.

A launch is one call of ``fit``. In its folder stands which group has claimed which run and, where a
calibration is missing, what a step has cost each group while the others measured as well: beside
others it costs more, and so it will in training. The folder goes with its launch: a group whose
driver was killed is seen to train on for some seconds, finds it gone and begins nothing more.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from glray.errors import UserError
from glray.files import read_json, write_json

MEETING_SECONDS = 120.0
"""How long a group waits for the others: one may have found no room after all, or have died."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class WorkerGroup:
    """One of the worker groups of a launch. Its rank 0 alone calls what waits or writes."""

    index: int = 0
    count: int = 1
    folder: Path | None = None
    """None without a launch: a group on its own, which has everything to do."""

    def claims(self, task: str) -> bool:
        """Whether a task, such as the run of a name, is this group's: the first that asks has it,
        and has it still after Ray has started it anew. In a launch that is over nobody has."""
        if self.folder is None:
            return True
        path = self.folder / "claims" / task
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(str(self.index))
        except FileExistsError:
            return path.read_text(encoding="utf-8") == str(self.index)
        except FileNotFoundError:
            return False
        return True

    def claimed(self) -> list[str]:
        """What this group has claimed so far."""
        if self.folder is None:
            return []
        claims = (self.folder / "claims").iterdir()
        return [path.name for path in claims if path.read_text(encoding="utf-8") == str(self.index)]

    def meet(self) -> None:
        """Return when all groups have come here, or after ``MEETING_SECONDS``."""
        if self.folder is None or not self.folder.exists():
            return
        self._file("came", self.index).touch()
        wait_until(lambda: len(self._came()) == self.count)

    def mean_of_all(self, costs: dict[int, int]) -> dict[int, int]:
        """The mean over all groups that have come to ``meet`` of what each brings, by length."""
        if self.folder is None or not self.folder.exists():
            return costs
        write_json(self._file("costs", self.index), costs)
        wait_until(lambda: all(self._file("costs", other).exists() for other in self._came()))
        found = [read_json(self._file("costs", other)) for other in self._came()]
        brought = [by_length for by_length in found if by_length is not None]
        return {
            length: round(sum(by_length[str(length)] for by_length in brought) / len(brought))
            for length in costs
        }

    def settle_on(self, costs: dict[int, int]) -> None:
        """Tell all groups, also those that come later, the costs to train with."""
        if self.folder is not None:
            write_json(self.folder / "settled.json", costs)

    def settled(self) -> dict[int, int] | None:
        """What some group has told to ``settle_on``."""
        told = None if self.folder is None else read_json(self.folder / "settled.json")
        return None if told is None else {int(length): cost for length, cost in told.items()}

    def wait_until_settled(self) -> dict[int, int] | None:
        """What is ``settled``, once it is; None where no launch is that could. Raises UserError if
        the group that has to ``settle_on`` the costs does not."""
        if self.folder is None or not self.folder.exists():
            return None
        if not wait_until(lambda: self.settled() is not None):
            raise UserError(
                f"calibration: another of the {self.count} worker groups had to write it and has "
                f"not, in {MEETING_SECONDS:.0f} s; the same command starts anew"
            )
        return self.settled()

    def _came(self) -> list[int]:
        return [other for other in range(self.count) if self._file("came", other).exists()]

    def _file(self, what: str, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{what}-{index}"


ALONE = WorkerGroup()


@contextmanager
def launch(directory: Path, count: int) -> Iterator[list[WorkerGroup]]:
    """The groups of a new launch in a pipeline's directory; what an earlier one left is gone."""
    for left in directory.glob(".launch-*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in directory.glob("progress-*.json"):  # of groups that this launch may not have
        left.unlink(missing_ok=True)
    folder = directory / f".launch-{uuid.uuid4().hex[:8]}"
    (folder / "claims").mkdir(parents=True)
    try:
        yield [WorkerGroup(index, count, folder) for index in range(count)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait for the condition, at most ``MEETING_SECONDS``; whether it has come about."""
    end = time.monotonic() + MEETING_SECONDS
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return met
