"""What is said while runs train: lines of ``events.log``, and a progress file of each group."""

import time
from contextlib import suppress

from glray.errors import UserError
from glray.files import AnyPath, Outbox, StorePath, add_line, line_path
from glray.progress import Work
from glray.run.records import Progress
from glray.run.run import EVENTS
from glray.train.context import WorkerContext

LAST_WORDS_SECONDS = 10.0
_OUTBOX = Outbox()
"""To a store all of it goes beside training, and how a group stands every some seconds."""


class Announcer:
    """Rank 0's words to whoever watches: ``events.log``, which all worker groups of a pipeline
    share, and ``progress.json``, of the second group ``progress-1.json``, and so on."""

    def __init__(self, directory: AnyPath, ctx: WorkerContext) -> None:
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
        path = self._directory / EVENTS
        if not self._silent and isinstance(path, StorePath):
            _OUTBOX.put(line_path(path), f"{_stamped(text)}\n".encode())
        elif not self._silent:
            write_event(self._directory, text)

    def progress(self, progress: Progress) -> None:
        """Replace the progress file, at most once a second while the phase is the same."""
        now, phase = time.monotonic(), f"{progress.run} {progress.phase}"
        recent = now - self._last_progress < 1.0 and phase == self._last_phase
        if self._silent or recent:
            return
        self._last_progress, self._last_phase = now, phase
        if isinstance(self._progress, StorePath):
            _OUTBOX.put(self._progress, progress.model_dump_json(indent=1).encode())
        else:
            progress.write(self._progress, sync=False)  # the disk would keep steps waiting

    def flush(self) -> None:
        """Return when all of it can be read, or a store has not taken it for a while."""
        if not self._silent and isinstance(self._directory, StorePath):
            with suppress(OSError, UserError):  # what matters has been written, or has failed
                _OUTBOX.flush(LAST_WORDS_SECONDS)


def write_event(directory: AnyPath, text: str) -> None:
    """Append one line to ``events.log``, in one piece: other processes append theirs."""
    add_line(directory / EVENTS, _stamped(text))


def _stamped(text: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
