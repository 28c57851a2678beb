"""The live line fits a terminal and says how long is left."""

import io

from rich.console import Console

from glray.files import write_json
from glray.watch import progress_line, watching

PROGRESS = {
    "run": "growlength",
    "phase": "training",
    "stage": 3,
    "num_stages": 4,
    "seq_len": 512,
    "step": 200,
    "num_steps": 279,
    "tokens": 819_200,
    "loss": 4.71234,
    "tokens_per_second": 8192.3,
    "mfu": 0.384,
    "measured_seconds": 100.0,
    "charged_seconds": 98.0,
    "seconds_left": 62.0,
}


def test_the_line_fits_80_columns():
    line = progress_line(PROGRESS)
    assert line == (
        "growlength 3/4 seq_len 512 step 200/279 loss 4.71 8192 tok/s 38% MFU 1:02 left"
    )
    assert len(line) <= 80


def test_a_long_run_fits_as_well():
    line = progress_line(
        PROGRESS
        | {
            "run": "growlength-128-to-4096-seed10",
            "seq_len": 4096,
            "step": 123_456,
            "num_steps": 476_837,
            "tokens_per_second": 1_234_567.8,
            "seconds_left": 43_509.0,
        }
    )
    assert line == (
        "growle… 3/4 seq_len 4096 step 123k/477k loss 4.71 1.23M tok/s 38% MFU 12h05 left"
    )
    assert len(line) <= 80


def test_only_events_from_now_on_are_shown(tmp_path):
    events = tmp_path / "events.log"
    events.write_text("2026-01-01 00:00:00 old\n")
    output = io.StringIO()
    with watching(tmp_path, Console(file=output, width=80)):
        with events.open("a") as file:
            file.write("2026-01-01 00:00:01 grow: resumed at step 4\n")
        write_json(tmp_path / "progress.json", PROGRESS)
    assert "old" not in output.getvalue()
    assert "00:00:01 grow: resumed at step 4" in output.getvalue()
