"""What a command shows while it works: live lines on a terminal, elsewhere a line now and then.

In the driver they say what its main thread works on (``glray.progress``). While runs train, the
workers write ``events.log`` and each group's progress file to the storage, and these are shown;
nothing is asked of Ray.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from rich.console import Console

from glray.files import AnyPath, NewLines, StorePath
from glray.progress import Work
from glray.run.checkpoint import COMMITTED, committed_checkpoints, step_of
from glray.run.records import Progress
from glray.run.run import EVENTS

POLL_SECONDS = 0.5
STORE_POLL_SECONDS = 5.0
"""How often a store is asked, which takes two requests and as many as there are groups."""
COLUMNS = 78
"""Of a terminal's 80 the spinner takes two."""
QUIET_LINE_SECONDS = 15.0
"""Where there is no terminal to redraw, lines are printed this often,"""
FIRST_LINE_SECONDS = 5.0
"""and once when something has lasted this long."""

Lines = Mapping[str, str]
"""Live lines, each under a key that stays the same as long as the same work goes on."""


@contextmanager
def live(
    console: Console, lines: Callable[[], Lines], poll_seconds: float | None = None
) -> Iterator[None]:
    """Show what ``lines`` returns, which is called twice a second or as told, until the block ends;
    it may print what is to stay. After the block it is called once more."""
    done = threading.Event()
    thread = threading.Thread(
        target=_show,
        args=(console, lines, done, poll_seconds or POLL_SECONDS),
        name="live lines",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(
    console: Console, lines: Callable[[], Lines], done: threading.Event, poll_seconds: float
) -> None:
    log = _Log(console)
    with ExitStack() as shown:
        status = None
        while not done.wait(poll_seconds):
            now = lines()
            if not console.is_terminal:
                log.show(now)
            elif now:
                text = "\n  ".join(now.values())  # below the first, which follows the spinner
                if status is None:
                    status = shown.enter_context(console.status(text))
                status.update(text)
    if not console.is_terminal:
        log.show(lines())
    else:
        lines()


class _Log:
    """Live lines where nothing can be redrawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._since: dict[str, float] = {}
        self._said: set[str] = set()
        self._last = time.monotonic()

    def show(self, lines: Lines) -> None:
        """Print the lines if it is time to."""
        now = time.monotonic()
        self._since = {key: self._since.get(key, now) for key in lines}
        lasting = {key for key, since in self._since.items() if now - since >= FIRST_LINE_SECONDS}
        if lines and (lasting - self._said or now - self._last >= QUIET_LINE_SECONDS):
            self._last, self._said = now, set(lines)
            for line in lines.values():
                self._console.print(line, markup=False)


class LiveWork:
    """Listens to what the driver's main thread works on and shows it, one line, while it lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._work: Work | None = None
        self._shown = ExitStack()

    def __call__(self, work: Work | None) -> None:
        """See ``glray.progress.Listener``."""
        before, self._work = self._work, work
        if before is None and work is not None:
            self._shown.enter_context(live(self._console, self._lines))
        elif work is None:
            self._shown.close()

    def _lines(self) -> Lines:
        work = self._work
        if work is None:
            return {}
        line = work_line(work.what, work.share, work.note, work.seconds_left, work.seconds)
        return {f"{work.what} {work.start}": line}


@contextmanager
def watching(
    directory: AnyPath,
    console: Console,
    starting: Callable[[], str] = lambda: "starting the workers",
) -> Iterator[None]:
    """Show what the pipeline of ``directory`` writes from now on, until the block ends; first
    what ``starting`` returns."""
    seconds = STORE_POLL_SECONDS if isinstance(directory, StorePath) else None
    with live(console, _Watch(directory, console, starting).lines, seconds):
        yield


class _Watch:
    """A pipeline's directory: what is new in it since this was made."""

    def __init__(self, directory: AnyPath, console: Console, starting: Callable[[], str]) -> None:
        self._directory, self._console, self._starting = directory, console, starting
        self._events = NewLines(directory / EVENTS)
        self._before = _progress_files(directory)
        self._start = time.monotonic()
        self._phases: dict[str, float] = {}
        self._last: Lines = {}

    def lines(self) -> Lines:
        """Print the events that are new; a line for each group that says how it stands, as it did
        last while the store is away."""
        with suppress(OSError):
            self._last = self._look()
        return self._last

    def _look(self) -> Lines:
        for line in self._events.read():
            # drop the date: it stays in the file
            self._console.print(line.partition(" ")[2], markup=False)
        now = time.monotonic()
        found = {
            path: progress
            for path, modified in _progress_files(self._directory).items()
            if modified != self._before.get(path)  # else of an earlier launch
            if (progress := Progress.read(path)) is not None
        }
        if not found:
            return {"": work_line(self._starting(), None, "", None, now - self._start)}
        keys = {path: f"{path.name} {it.run} {it.phase}" for path, it in found.items()}
        self._phases = {key: self._phases.get(key, now) for key in keys.values()}
        return {
            keys[path]: progress_line(it, now - self._phases[keys[path]])
            for path, it in found.items()
        }


def standing(directory: AnyPath) -> list[str]:
    """How each worker group of a pipeline's directory stood when it last said so, and how old the
    latest checkpoint of what it trains is; empty where nothing was trained yet."""
    lines, now = [], time.time()
    for path, modified in _progress_files(directory).items():
        if (progress := Progress.read(path)) is None:
            continue
        lines.append(f"{progress_line(progress)} ({_ago(now - modified / 1e9)})")
        committed = committed_checkpoints(directory / (progress.run or "") / "checkpoints")
        if progress.run and committed:
            age = _ago(now - (committed[-1] / COMMITTED).stat().st_mtime_ns / 1e9)
            lines.append(f"checkpoint of step {step_of(committed[-1]):,}, {age}")
        elif progress.run:
            lines.append("no checkpoint yet")
    return lines


def _ago(seconds: float) -> str:
    """Clocks of two machines may differ."""
    return f"{duration(max(0.0, seconds))} ago"


def _progress_files(directory: AnyPath) -> dict[AnyPath, int]:
    """When each group's progress file was last written, in the order of the groups."""
    found = {}
    for path in directory.glob("progress*.json"):
        with suppress(FileNotFoundError):  # a launch removes those of the one before
            found[path] = path.stat().st_mtime_ns
    return dict(sorted(found.items(), key=lambda item: (len(item[0].name), item[0].name)))


def progress_line(progress: Progress, seconds: float = 0.0) -> str:
    """One line of at most 78 columns for a ``progress.json``: arm, stage, step, loss, speed, MFU,
    time left; or what else is done, ``seconds`` so far. The name is cut where it must be."""
    now, name = progress.training, progress.run or ""
    if now is None:
        what = f"{name}: {progress.phase}" if name else progress.phase
        return work_line(what, progress.share, "", progress.seconds_left, seconds)
    last = now.last_step
    line = (
        f" {last.stage + 1}/{now.num_stages} seq_len {last.seq_len} "
        f"step {_short(last.step)}/{_short(now.num_steps)} "
        f"loss {last.loss:.2f} {_short(last.tokens_per_second)} tok/s "
        f"{last.mfu:.0%} MFU {duration(now.seconds_left)} left"
    )
    return _cut(name, COLUMNS - len(line)) + line


def work_line(
    what: str, share: float | None, note: str, seconds_left: float | None, seconds: float
) -> str:
    """One line of at most 78 columns: what is done, how much of it, and about how long is left; or,
    if nobody knows, that it has taken ``seconds`` so far. ``what`` is cut where it must be."""
    said = [] if share is None else [f"{share:.0%}"]
    said += [note] if note else []
    said += [] if seconds_left is None else [f"about {duration(seconds_left)} left"]
    end = f": {', '.join(said)}" if said else ""
    if seconds_left is None and seconds >= 1:
        end += f" ({duration(seconds)})"
    return _cut(what, COLUMNS - len(end)) + end


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: max(0, room - 1)]}…"


def duration(seconds: float) -> str:
    """``1:02`` in minutes and seconds, from an hour on ``12h05``."""
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes}:{int(seconds) % 60:02d}"
    return f"{minutes // 60}h{minutes % 60:02d}"


def _short(count: float) -> str:
    """``819k``: whole up to four digits, else three of them."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10_000 and count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
