"""The live line fits a terminal and says how long is left; each worker group has one."""

import io
import os
import time

from rich.console import Console

from glray.cli import watch
from glray.cli.watch import progress_line, watching
from glray.run.records import Progress, TrainingProgress

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


def progress(run: str, **changed) -> Progress:
    last_step = {name: changed.pop(name, value) for name, value in LAST_STEP.items()}
    training = TrainingProgress(last_step=last_step, **(TRAINING | changed))
    return Progress(run=run, phase="training", training=training)


def test_the_line_fits_80_columns():
    line = progress_line(progress("growlength"))
    assert line == (
        "growlength 3/4 seq_len 512 step 200/279 loss 4.71 8192 tok/s 38% MFU 1:02 left"
    )
    assert len(line) <= 78  # the spinner takes two


def test_a_long_run_fits_as_well():
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


def test_only_events_from_now_on_are_shown(tmp_path):
    events = tmp_path / "events.log"
    events.write_text("2026-01-01 00:00:00 old\n")
    output = io.StringIO()
    with watching(tmp_path, Console(file=output, width=80)):
        with events.open("a") as file:
            file.write("2026-01-01 00:00:01 grow: resumed at step 4\n")
        progress("growlength").write(tmp_path / "progress.json")
    assert "old" not in output.getvalue()
    assert "00:00:01 grow: resumed at step 4" in output.getvalue()


def shown(tmp_path, **console) -> str:
    """What a second group's progress adds while an earlier launch's file of a third lies there."""
    progress("stale").write(tmp_path / "progress-2.json")
    os.utime(tmp_path / "progress-2.json", ns=(1, 1))
    output = io.StringIO()
    with watching(tmp_path, Console(file=output, width=80, **console)):
        progress("fixed512").write(tmp_path / "progress-1.json")
        progress("growlength").write(tmp_path / "progress.json")
        time.sleep(2 * watch.POLL_SECONDS)
    return output.getvalue()


def test_a_terminal_shows_a_line_for_each_group(tmp_path):
    written = shown(tmp_path, force_terminal=True)
    growing, fixed = [line for line in written.splitlines() if "seq_len 512" in line][-2:]
    assert "growlength 3/4" in growing
    assert fixed.startswith("  fixed512 3/4")
    assert "stale" not in written


def test_elsewhere_a_line_for_each_group_is_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "QUIET_LINE_SECONDS", 0.0)
    assert shown(tmp_path).splitlines()[-2:] == [
        progress_line(progress("growlength")),
        progress_line(progress("fixed512")),
    ]
