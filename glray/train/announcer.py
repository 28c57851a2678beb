"""What is said while runs train: lines of ``events.log``, and a progress file of each group.

Whatever is said is also logged with where it comes from, for machines: through Python's logging,
which Ray Train writes as JSON in the processes of its workers. Nothing of it is shown by itself.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from glray.errors import UserError
from glray.files import AnyPath, Outbox, StorePath, add_line, line_path
from glray.progress import Work
from glray.run.records import Progress
from glray.run.run import EVENTS
from glray.train.context import WorkerContext

LOG = logging.getLogger("glray")
LOG.addHandler(logging.NullHandler())
PLACE = ("pipeline", "run", "stage", "step", "rank")
"""Where a logged line comes from; None where it is of no run, or of the command."""

Place = dict[str, Any]

LAST_WORDS_SECONDS = 10.0
_OUTBOX = Outbox()
"""To a store all of it goes beside training, and how a group stands every some seconds."""


class Announcer:
    """Rank 0's words to whoever watches: ``events.log``, which all worker groups of a pipeline
    share, and ``progress.json``, of the second group ``progress-1.json``, and so on.

    ``place`` says which run, stage and step the words are about.
    """

    def __init__(
        self, directory: AnyPath, ctx: WorkerContext, place: Callable[[], Place] = dict
    ) -> None:
        index = ctx.group.index
        self._directory = directory
        self._progress = directory / (f"progress-{index}.json" if index else "progress.json")
        self._rank, self._silent = ctx.rank, ctx.rank != 0
        self._place = place
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
        """Append one line to ``events.log``, and log it."""
        path = self._directory / EVENTS
        if not self._silent and isinstance(path, StorePath):
            self.log(text)
            _OUTBOX.put(line_path(path), f"{_stamped(text)}\n".encode())
        elif not self._silent:
            write_event(self._directory, text, self._where())

    def log(self, text: str) -> None:
        """Log what is not for ``events.log``."""
        if not self._silent:
            log(self._directory, text, self._where())

    def failed(self, error: Exception) -> None:
        """Log what ends this worker's run, on whichever rank."""
        log(self._directory, str(error), self._where(), error)

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

    def _where(self) -> Place:
        return {"rank": self._rank, **self._place()}


def write_event(directory: AnyPath, text: str, place: Place | None = None) -> None:
    """Append one line to ``events.log``, in one piece: other processes append theirs; and log it.

    ``directory`` is the pipeline's.
    """
    log(directory, text, place or {})
    add_line(directory / EVENTS, _stamped(text))


def log(directory: AnyPath, text: str, place: Place, error: Exception | None = None) -> None:
    """Log one line; of an error that no person can fix, with its traceback."""
    where = dict.fromkeys(PLACE) | {"pipeline": directory.name} | place
    level = logging.INFO if error is None else logging.ERROR
    trace = None if isinstance(error, UserError) else error
    LOG.log(level, text, extra=where, exc_info=trace)


def _stamped(text: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
