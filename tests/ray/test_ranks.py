"""Groups of two workers on Ray: what one rank meets ends the group once, for all of them."""

import errno
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from glray.data.blocks.token_blocks import open_token_blocks
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.errors import UserError
from glray.ray.cluster import wait_for_free_workers
from glray.ray.train import RayContext, Work, WorkerGroups
from glray.run.run import pipeline_directory
from glray.spec import ComputeSpec, PipelineSpec
from glray.train.worker import train_all

from ..tiny import tiny_spec
from ..tokens import damage

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def error_of(work: Work, spec: PipelineSpec, corpus: PreparedCorpus) -> str:
    """What a group of two workers ends with, which is one line, after a single start."""
    with pytest.raises(UserError) as error:
        WorkerGroups(work, spec, corpus).run()
    directory = pipeline_directory(spec)
    events = directory / "events.log"
    assert not events.exists() or "worker group" not in events.read_text()
    assert not list(directory.glob(".seen-*"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_block_that_one_rank_cannot_read(
    ray_local: None, corpus: PreparedCorpus, tmp_path: Path
) -> None:
    (source,) = corpus.sources
    shutil.copytree(str(source.blocks.directory), tmp_path / "tokens")
    damaged = PreparedCorpus((PreparedSource("stdlib", 1, open_token_blocks(tmp_path / "tokens")),))
    path = damage(damaged.sources[0].blocks)
    starts = tmp_path / "starts"

    def train(spec: PipelineSpec, corpus: PreparedCorpus, ctx: RayContext) -> None:
        with starts.open("a") as file:
            file.write(f"{ctx.rank}\n")
        train_all(spec, damaged if ctx.rank == 1 else corpus, ctx)  # rank 0 waits in a collective

    spec = tiny_spec(tmp_path, compute={"storage": str(tmp_path), "num_workers": 2})
    said = error_of(train, spec, corpus)
    assert said.startswith(f"{path}: block 0 is damaged")
    assert sorted(starts.read_text().split()) == ["0", "1"]


@pytest.mark.soak  # tests/train/test_workers.py has the same without Ray
def test_a_disk_that_is_full_on_one_rank(
    ray_local: None, corpus: PreparedCorpus, tmp_path: Path
) -> None:
    def no_space(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and "/checkpoints/" in str(arguments[0]) and arguments[1] == "w":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    def train(spec: PipelineSpec, corpus: PreparedCorpus, ctx: RayContext) -> None:
        if ctx.rank == 0:
            sys.addaudithook(no_space)  # where it commits, and rank 1 waits for it
        train_all(spec, corpus, ctx)

    spec = tiny_spec(tmp_path, compute={"storage": str(tmp_path), "num_workers": 2})
    said = error_of(train, spec, corpus)
    assert "the checkpoint of step" in said
    assert os.strerror(errno.ENOSPC) in said
    assert not list(tmp_path.glob("tiny/*/checkpoints/*"))


def test_a_node_that_does_not_see_the_storage_is_named(
    ray_local: None, corpus: PreparedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(spec: PipelineSpec, corpus: PreparedCorpus, ctx: RayContext) -> None:
        raise AssertionError("begins without its storage")

    folder = f".glray-test-{os.getpid()}"
    elsewhere = Path.home() / folder  # of the workers, whose HOME is that of before
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = tiny_spec(tmp_path, compute={"storage": f"~/{folder}", "num_workers": 2})
    said = error_of(train, spec, corpus)
    assert said.startswith(f"node {ray.util.get_node_ip_address()} does not see what the command")
    assert f"{elsewhere}/tiny" in said
    assert not elsewhere.exists()


def test_a_group_that_has_no_room_any_more_says_what_it_waits_for(ray_local: None) -> None:
    compute, said = ComputeSpec(num_workers=2), list[str]()
    taken = ray.util.placement_group([{"CPU": 3}])
    assert taken.wait(30)

    def leave(text: str) -> None:
        said.append(text)
        ray.util.remove_placement_group(taken)

    while len(said) < 1:  # the node says a moment later what is taken of it
        time.sleep(0.1)
        wait_for_free_workers(compute, 1, leave, threading.Event())
    asks = "waiting for 2 workers, the cluster has room for 1 (0 s); each takes 1 CPU"
    assert said == [asks]

    stop = threading.Event()
    stop.set()
    wait_for_free_workers(ComputeSpec(num_workers=99), 1, said.append, stop)
    assert said == [asks]
