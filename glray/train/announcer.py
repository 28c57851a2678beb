"""What is said while runs train: lines of ``events.log``, and a progress file of each group."""

import time
from pathlib import Path

from glray.files import naming
from glray.progress import Work
from glray.run.records import Progress
from glray.train.context import WorkerContext


class Announcer:
    """Rank 0's words to whoever watches: ``events.log``, which all worker groups of a pipeline
    share, and ``progress.json``, of the second group ``progress-1.json``, and so on."""

    def __init__(self, directory: Path, ctx: WorkerContext) -> None:
        index = ctx.group.index
        self._directory = directory
        self._progress = directory / (f"progress-{index}.json" if index else "progress.json")
        self._silent = ctx.rank != 0
        self._last_progress = 0.0
        self._last_phase = ""

    def hear(self, work: Work | None) -> None:
        """Write what this worker is busy with: see ``glray.progress.Listener``."""
        if work is not None:
            self.progress(
                Progress(
                    run=work.run,
                    phase=work.what,
                    share=work.share,
                    seconds_left=work.seconds_left,
                    training=work.detail,
                )
            )

    def event(self, text: str) -> None:
        """Append one line to ``events.log``."""
        if not self._silent:
            write_event(self._directory, text)

    def progress(self, progress: Progress) -> None:
        """Replace the progress file, at most once a second while the phase is the same."""
        now, phase = time.monotonic(), f"{progress.run} {progress.phase}"
        recent = now - self._last_progress < 1.0 and phase == self._last_phase
        if self._silent or recent:
            return
        self._last_progress, self._last_phase = now, phase
        progress.write(self._progress, sync=False)  # the disk would keep steps waiting


def write_event(directory: Path, text: str) -> None:
    """Append one line to ``events.log``, in one piece: other processes append theirs."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "events.log"
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
