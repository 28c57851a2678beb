"""The live line fits a terminal and says how long is left; each worker group has one."""

import io
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glray.cli import watch
from glray.cli.watch import LiveWork, duration, progress_line, standing, watching, work_line
from glray.files import StorePath, add_line, paths, write_text
from glray.progress import advance, heard_by, working
from glray.run.records import Progress, TrainingProgress

from ..stores import StoreServer

LAST_STEP = {
    "stage": 2,
    "seq_len": 512,
    "step": 200,
    "tokens": 819_200,
    "lr": 0.001,
    "loss": 4.71234,
    "grad_norm": 0.5,
    "checksum": "0" * 16,
    "tokens_per_second": 8192.3,
    "mfu": 0.384,
    "measured_seconds": 100.0,
    "calibrated_seconds": 98.0,
    "data_wait_seconds": 0.0,
    "memory_bytes": None,
}
TRAINING = {"num_stages": 4, "num_steps": 279, "seconds_left": 62.0}


def progress(run: str, **changed: Any) -> Progress:
    last_step = {name: changed.pop(name, value) for name, value in LAST_STEP.items()}
    training = TrainingProgress.model_validate({"last_step": last_step} | TRAINING | changed)
    return Progress(run=run, phase="training", training=training)


def test_the_line_fits_80_columns() -> None:
    line = progress_line(progress("growlength"))
    assert line == (
        "growlength 3/4 seq_len 512 step 200/279 loss 4.71 8192 tok/s 38% MFU 1:02 left"
    )
    assert len(line) <= 78  # the spinner takes two


def test_a_long_run_fits_as_well() -> None:
    line = progress_line(
        progress(
            "growlength-128-to-4096-seed10",
            seq_len=4096,
            step=123_456,
            num_steps=476_837,
            tokens_per_second=1_234_567.8,
            seconds_left=43_509.0,
        )
    )
    assert line == (
        "grow… 3/4 seq_len 4096 step 123k/477k loss 4.71 1.23M tok/s 38% MFU 12h05 left"
    )
    assert len(line) <= 78


def test_only_events_from_now_on_are_shown(tmp_path: Path) -> None:
    events = tmp_path / "events.log"
    events.write_text("2026-01-01 00:00:00 old\n")
    output = io.StringIO()
    with watching(tmp_path, Console(file=output, width=80)):
        with events.open("a") as file:
            file.write("2026-01-01 00:00:01 grow: resumed at step 4\n")
        progress("growlength").write(tmp_path / "progress.json")
    assert "old" not in output.getvalue()
    assert "00:00:01 grow: resumed at step 4" in output.getvalue()


def test_a_store_is_watched_alike(bucket: StorePath) -> None:
    add_line(bucket / "tiny/events.log", "2026-01-01 00:00:00 old")
    progress("stale").write(bucket / "tiny/progress-2.json")
    output = io.StringIO()
    with watching(bucket / "tiny", Console(file=output, width=80)):
        add_line(bucket / "tiny/events.log", "2026-01-01 00:00:01 grow: resumed at step 4")
        progress("growlength").write(bucket / "tiny/progress.json")
    assert "old" not in output.getvalue()
    assert "00:00:01 grow: resumed at step 4" in output.getvalue()
    assert "stale" not in output.getvalue()


def test_a_store_that_is_away_for_a_while_is_watched_on(
    bucket: StorePath, server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(watch, "STORE_POLL_SECONDS", 0.1)
    output = io.StringIO()
    with watching(bucket / "tiny", Console(file=output, width=80)):
        server.refuse("503 Slow Down")
        time.sleep(1)
        server.recover()
        add_line(bucket / "tiny/events.log", "2026-01-01 00:00:01 grow: resumed at step 4")
        end = time.monotonic() + 30
        while "resumed" not in output.getvalue() and time.monotonic() < end:
            time.sleep(0.1)
        assert "00:00:01 grow: resumed at step 4" in output.getvalue()


def shown(tmp_path: Path, **console: Any) -> str:
    """What a second group's progress adds while an earlier launch's file of a third lies there."""
    progress("stale").write(tmp_path / "progress-2.json")
    os.utime(tmp_path / "progress-2.json", ns=(1, 1))
    output = io.StringIO()
    with watching(tmp_path, Console(file=output, width=80, **console)):
        progress("fixed512").write(tmp_path / "progress-1.json")
        progress("growlength").write(tmp_path / "progress.json")
        time.sleep(2 * watch.POLL_SECONDS)
    return output.getvalue()


def test_a_terminal_shows_a_line_for_each_group(tmp_path: Path) -> None:
    written = shown(tmp_path, force_terminal=True)
    growing, fixed = [line for line in written.splitlines() if "seq_len 512" in line][-2:]
    assert "growlength 3/4" in growing
    assert fixed.startswith("  fixed512 3/4")
    assert "stale" not in written


def test_elsewhere_a_line_for_each_group_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "QUIET_LINE_SECONDS", 0.0)
    assert shown(tmp_path).splitlines()[-2:] == [
        progress_line(progress("growlength")),
        progress_line(progress("fixed512")),
    ]


def test_how_a_pipeline_stands_is_its_groups_last_words_and_their_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr("glray.cli.watch.time.time", lambda: now)
    assert standing(tmp_path) == []
    progress("growlength").write(tmp_path / "progress.json")
    progress("fixed512").write(tmp_path / "progress-1.json")
    Progress(phase="starting 2 workers").write(tmp_path / "progress-2.json")
    (tmp_path / "progress-3.json").touch()  # emptied by a machine that failed
    committed = tmp_path / "growlength" / "checkpoints"
    for step in (100, 150):
        write_text(committed / f"step-{step:08d}" / "COMMITTED", "{}")
    (committed / "step-00000175").mkdir()  # not committed
    ages = {
        "progress.json": 3,
        "progress-1.json": -60,  # another clock
        "progress-2.json": 43_509,
        "growlength/checkpoints/step-00000100/COMMITTED": 500,
        "growlength/checkpoints/step-00000150/COMMITTED": 62,
    }
    for name, seconds in ages.items():
        os.utime(tmp_path / name, times=(now - seconds,) * 2)
    assert standing(tmp_path) == [
        f"{progress_line(progress('growlength'))} (0:03 ago)",
        "checkpoint of step 150, 1:02 ago",
        f"{progress_line(progress('fixed512'))} (0:00 ago)",
        "no checkpoint yet",
        "starting 2 workers (12h05 ago)",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.9, "0:00"), (62, "1:02"), (3_599, "59:59"), (43_509, "12h05")]
)
def test_a_duration_is_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (("starting Ray", None, "", None, 0.4), "starting Ray"),
        (("starting Ray", None, "", None, 7.0), "starting Ray (0:07)"),
        (("hashing /models/a", 0.0, "", None, 7.0), "hashing /models/a: 0% (0:07)"),
        (("hashing /models/a", 0.25, "", 21.0, 7.0), "hashing /models/a: 25%, about 0:21 left"),
        (
            ("prepare: stdlib: encoding 11.9 MB", 0.4, "3.1 MB/s, 0.92 Mtok/s", 6.0, 4.0),
            "prepare: stdlib: encod…: 40%, 3.1 MB/s, 0.92 Mtok/s, about 0:06 left",
        ),
    ],
)
def test_a_line_says_what_is_done_and_how_long_is_left(
    work: tuple[str, float | None, str, float | None, float],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "COLUMNS", 68)
    assert work_line(*work) == line
    assert len(line) <= 68


@pytest.mark.parametrize(
    "note", ["", "12.3 MB/s, 0.92 Mtok/s", "0 of the cluster's 96 CPUs are free"]
)
@pytest.mark.parametrize("name", ["a", "a-pipeline-with-a-long-name-" * 5])
def test_no_line_is_wider_than_a_terminal(name: str, note: str) -> None:
    line = work_line(f"{name}: evaluating after seq_len 131072", 1.0, note, 1e6, 1e6)
    assert len(line) <= 78


def test_what_a_group_does_besides_training_has_a_line_of_its_own() -> None:
    doing = Progress(run="grow-seed0", phase="evaluating after seq_len 128")
    assert progress_line(doing, 6.0) == "grow-seed0: evaluating after seq_len 128 (0:06)"
    known = doing.model_copy(update={"share": 0.5, "seconds_left": 6.0})
    assert progress_line(known, 6.0) == (
        "grow-seed0: evaluating after seq_len 128: 50%, about 0:06 left"
    )


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a second is 100 times, and 5 s are 50 ms."""
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(watch, "FIRST_LINE_SECONDS", 0.05)


def listened(console: Console, *works: str) -> None:
    """Works on each until it has been shown, the first around the others."""
    with heard_by(LiveWork(console)), working(works[0], 4):
        advance(1)
        for what in works[1:]:
            with working(what):
                shown_within(console, what, 10)
        shown_within(console, works[0], 10)


def printed_on(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown_within(console: Console, what: str, seconds: float) -> None:
    """Returns when the console has printed it."""
    deadline = time.monotonic() + seconds
    while what not in printed_on(console):
        assert time.monotonic() < deadline, printed_on(console)
        time.sleep(0.005)


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.usefixtures("quickly")
def test_what_lasts_is_shown(is_terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=is_terminal)
    listened(console, "outer", "inner", "second")
    written = printed_on(console)
    assert written.index("inner") < written.index("second")
    assert "outer: 25%, about 0:00 left" in written


def test_what_is_quick_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 60)
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), width=80, force_terminal=is_terminal)
        with heard_by(LiveWork(console)):
            for _ in range(3):
                with working("quick"):
                    pass
        assert printed_on(console) == ""


def test_a_log_says_a_work_once_and_then_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=80)
    log = watch._Log(console)
    for second in range(61):
        now = 100.0 + second
        log.show({"first" if second < 40 else "second": f"after {second} s"})
    assert printed_on(console).splitlines() == [
        *("after 5 s", "after 20 s", "after 35 s"),
        *("after 45 s", "after 60 s"),
    ]
