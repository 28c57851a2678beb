"""What tests run in a process of its own, to be killed, forked from a server that has imported it.

A new Python takes 5 to 8 s of a core for what glray imports, which is not what these tests test.
"""

import atexit
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import glray.cli
import glray.ray

from .measuring import measure_briefly
from .nodes import in_node

IMPORTED = [
    *("glray.train.worker", "glray.cli", "glray.ray.prepare", "glray.ray.train"),
    *("tensorboardX", "transformers.models.gpt_neox.modeling_gpt_neox"),  # as training starts
]


def fork_server() -> ForkServerContext:
    """The server that forks: it imports once, where the first of its processes starts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def start_glray(
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    *arguments: str,
    node: int | None = None,
) -> BaseProcess:
    """Start ``glray ARGUMENTS`` in a folder, or there on the node that a process is of (see
    ``nodes``); what it prints is added to the log."""
    if node is not None:
        return start(_glray_in_node, folder, log, environment, node, *arguments)
    return start(_glray, folder, log, environment, *arguments)


def start(
    work: Callable[..., None],
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    *arguments: object,
) -> BaseProcess:
    """Start ``work(*arguments)`` in a folder; what it prints is added to the log."""
    process = fork_server().Process(
        target=_work, args=(work, folder, log, dict(environment), arguments)
    )
    process.start()
    return process


def status_of(process: BaseProcess, log: Path, seconds: float) -> int:
    """The exit status, once it has ended; below 0 if a signal ended it."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"not over within {seconds} s\n{log.read_text()}")
    return process.exitcode


def _work(
    work: Callable[..., None],
    folder: Path,
    log: Path,
    environment: dict[str, str],
    arguments: tuple[object, ...],
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    importlib.reload(glray.ray)  # sets its variables
    measure_briefly()
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        work(*arguments)
    finally:
        atexit._run_exitfuncs()  # Ray's, which a forked process would leave out


def _glray(*arguments: str) -> None:
    sys.argv = ["glray", *arguments]
    glray.cli.main()


def _glray_in_node(node: int, *arguments: str) -> None:
    in_node(node)
    _glray(*arguments)
