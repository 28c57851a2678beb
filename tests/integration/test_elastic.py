"""A cluster of two nodes that loses one and gets one back: the run shrinks, grows and goes on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from glray.data.corpus import run_corpus
from glray.files import read_json
from glray.run.run import Run
from glray.train.context import WorkerContext
from glray.train.worker import train_all

from .test_survival import GlrayRun, steps, write_pipeline

STORE_BYTES = 2**27
EVERY_STEPS = 500

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head of one CPU on loopback; the second node comes and goes."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # On loopback, see glray/ray/__init__.py: also the driver and the nodes' processes.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    head = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def test_a_node_is_drained_one_comes_and_one_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    write_pipeline(tmp_path, num_steps=20_000, every_steps=EVERY_STEPS, num_workers=(1, 2))
    second = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    run = GlrayRun(tmp_path, RAY_ADDRESS=cluster.address)
    pipeline = tmp_path / "runs" / "tiny"
    said: list[str] = []

    def wait_for(words: str) -> str:
        """The next event that has ``words``."""
        found: list[str] = []

        def is_there() -> bool:
            events = pipeline / "events.log"
            lines = events.read_text().splitlines() if events.exists() else []
            found[:] = [line for line in lines[len(said) :] if words in line]
            if found:
                said[:] = lines[: lines.index(found[0], len(said)) + 1]
            return bool(found)

        run.wait_until(is_there, seconds=240)
        return found[0]

    wait_for("starts")
    run.wait_until(lambda: any(run.run.glob("checkpoints/*/COMMITTED")))

    drain(cluster, second.node_id, seconds=10)
    wait_for("a node is about to be taken away, saving")
    wait_for("num_workers 2 → 1")
    cluster.remove_node(second, allow_graceful=False)

    third = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    wait_for("num_workers 1 → 2")
    wait_for("resumed at step")
    step = run.step()
    run.wait_until(lambda: run.step() > step + EVERY_STEPS)

    step = run.step()
    cluster.remove_node(third, allow_graceful=False)
    resumed = wait_for("resumed at step")
    first_step = int(resumed.split("resumed at step ")[1].split(" of")[0].replace(",", ""))
    assert step - first_step <= EVERY_STEPS + 10  # the last log is up to ten steps old
    assert run.status(300) == 0, run.log.read_text()

    # Not the bits of one worker, whose sums have another order, but its tokens, all of them once.
    elastic = Run.open(run.run)
    alone = elastic.spec.derive(compute={"storage": str(tmp_path / "alone"), "num_workers": 1})
    train_all(alone, run_corpus(elastic), WorkerContext())
    expected = Run.open(tmp_path / "alone" / "tiny" / "grow-seed0")
    results = [read_json(r.directory / "result.json") for r in (elastic, expected)]
    assert results[0]["checksum"] == results[1]["checksum"]
    assert results[0]["tokens_by_seq_len"] == results[1]["tokens_by_seq_len"]
    assert steps(elastic) == steps(expected)
    losses = [
        read_json(r.evaluation_path(r.plan.num_steps))["lengths"][-1]["loss"]
        for r in (elastic, expected)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    print("\n".join(said))


def drain(cluster: Cluster, node_id: str, *, seconds: int) -> None:
    """Tell Ray, as a cloud's notice does, that a node will be taken away in ``seconds``."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
    command += ["--address", cluster.address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "notice"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
    )
