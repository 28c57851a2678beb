"""A group of workers on this machine without Ray: processes that one ``WorkerContext`` each joins.

The tests of several workers train in it.
"""

import gc
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import torch

from glray.data.corpus import PreparedCorpus, open_corpus
from glray.spec import PipelineSpec
from glray.spec.loading import validate
from glray.train.context import WorkerContext
from glray.train.worker import train_all

from .command import fork_server
from .measuring import measure_briefly

Work = Callable[..., None]
"""``work(spec, corpus, ctx, *arguments)``: what each worker of a group does."""


def train(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> None:
    """Train all runs of the pipeline."""
    train_all(spec, corpus, ctx)


def start_group(
    work: Work, world_size: int, spec: PipelineSpec, corpus: PreparedCorpus, *arguments: object
) -> list[BaseProcess]:
    """Start ``world_size`` processes that are one gloo group; returns at once.

    A server that has imported what takes seconds forks each of them.
    """
    context = fork_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    declared = json.dumps(spec.model_dump(mode="json"))
    processes: list[BaseProcess] = [
        context.Process(
            target=_worker,
            args=(work, rank, world_size, port, declared, corpus.directories, arguments),
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def join_group(processes: list[BaseProcess], seconds: float = 120) -> bool:
    """Wait for a group to end; whether all of it ended well. If one fails the others are ended, as
    Ray Train does: they would wait for it forever."""
    end = time.monotonic() + seconds
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() > end:
            kill_group(processes)
        time.sleep(0.01)
    return all(process.exitcode == 0 for process in processes)


def kill_group(processes: list[BaseProcess]) -> None:
    """SIGKILL every process of a group and wait until it is gone."""
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()


def _worker(
    work: Work,
    rank: int,
    world_size: int,
    port: int,
    declared: str,
    tokens: list[str],
    arguments: tuple[object, ...],
) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # what was imported is no garbage, and takes 0.2 s to go through
    measure_briefly()
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
        )
    spec = validate(json.loads(declared), "a worker's spec")
    work(spec, open_corpus(spec, tokens), WorkerContext(rank, world_size), *arguments)
    if world_size > 1:
        torch.distributed.destroy_process_group()
