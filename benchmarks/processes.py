"""Commands that a benchmark has train, and the processes that they start, their Ray's too."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

MARK = "GLRAY_BENCHMARK"
"""A variable that all of them inherit."""


DIVERGED = 3
"""Exit status of ``glray run`` and ``glray compare`` where a run has diverged."""


def trained(command: str, reference: str, settings: Sequence[str]) -> int:
    """Have ``glray run`` or ``glray compare`` train, or ``glray prepare`` prepare. Returns its exit
    status, but 0 where a run has diverged: its record says so."""
    own = [argument for setting in settings for argument in ("--set", setting)]
    arguments = [sys.executable, "-m", "glray", command, reference, *own]
    status = subprocess.run(arguments, check=False).returncode
    return 0 if status == DIVERGED else status


def start_glray_run(
    spec_path: Path, work: Path, log: IO[str] | None = None
) -> subprocess.Popen[bytes]:
    """``glray run``, marked with its folder; what it says goes to ``log``, or errors alone to the
    terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "glray", "run", str(spec_path)],
        stdout=log or subprocess.DEVNULL,
        stderr=log,
        env=os.environ | {MARK: str(work)},
    )


def processes_of(work: Path) -> dict[int, str]:
    """The commands of all that is marked with a folder, by process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={work}\0".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_text()
    return found


def kill_processes_of(work: Path, process: subprocess.Popen[bytes]) -> None:
    """Return when ``process`` and all that is marked with its folder are gone."""
    while left := processes_of(work):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
