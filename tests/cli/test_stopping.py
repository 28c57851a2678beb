"""A command that is stopped before anything trains says so, with the signal's exit status."""

import os
import signal
import time

import pytest
import typer

from glray.cli.app import resumable


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_wait_is_stopped_by_a_signal(
    sent: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def wait() -> None:
        with resumable():
            os.kill(os.getpid(), sent)
            time.sleep(10)

    with pytest.raises(typer.Exit) as exit_:
        wait()
    assert exit_.value.exit_code == status
    assert capsys.readouterr().out == "stopped; the same command resumes\n"
    assert signal.getsignal(signal.SIGTERM) == before
