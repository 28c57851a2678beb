"""A cluster whose head has no CPU: what is waited for is said, and found once a node comes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..command import start_glray, status_of
from .test_cli import PIPELINE, persons_environment
from .test_job import RAY, end_processes_of, free_ports, wait_until

CLUSTER = """
from ray.cluster_utils import Cluster

STORE_BYTES = 2**27
head = {"num_cpus": 0, "object_store_memory": STORE_BYTES}
cluster = Cluster(initialize_head=True, head_node_args=head)
print(cluster.address, flush=True)
input()
cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
input()
"""
"""A head, and a second node once a line comes."""

HEAD_NODE = "f" * 51 + "00000"
AUTOSCALER: dict[str, Any] = {
    "cluster_name": "fake",
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "fake_multinode",  # each node is a raylet here
        "head_node_id": HEAD_NODE,
        "launch_multiple": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 2**27},
            "node_config": {},
            "max_workers": 2,
        },
    },
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "file_mounts_sync_continuously": False,
}
"""What Ray's wheel lacks of its fake multi-node autoscaler is the file with this. (And its
``AutoscalingCluster`` begins with ``ray stop``, which ends whatever of Ray runs on the machine.)"""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Head:
    """A head without CPUs, on loopback."""

    process: subprocess.Popen[str]
    environment: dict[str, str]
    """Of the commands that join it."""

    def add_node(self) -> None:
        """A node of one CPU."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Of a cluster on loopback, which ends with all its processes."""
    temp = Path(tempfile.mkdtemp(prefix="glray-", dir="/tmp"))  # short: sockets lie below it
    yield persons_environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(32).hex(),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback, see glray.ray.cluster
        "RAY_TMPDIR": str(temp),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    wait_until(lambda: end_processes_of(temp) == 0, 30)
    shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture
def head(environment: dict[str, str]) -> Iterator[Head]:
    """Without CPUs and, at first, without another node."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    yield Head(process, environment | {"RAY_ADDRESS": address})
    process.kill()
    process.wait()


def write_pipeline(folder: Path) -> Path:
    """``tiny.py`` and its text; returns where a command's output is to go."""
    (folder / "tiny.py").write_text(PIPELINE)
    (folder / "text").mkdir()
    for document in range(60):
        (folder / "text" / f"{document:02d}.txt").write_text(f"document {document} " * 99)
    log = folder / "log"
    log.touch()
    return log


def test_prepare_says_that_the_cluster_has_no_cpu_and_goes_on_when_it_has(
    head: Head, tmp_path: Path
) -> None:
    log = write_pipeline(tmp_path)
    prepare = start_glray(tmp_path, log, head.environment, "prepare", "tiny.py")
    said = "waiting for 1 CPU, the cluster has room for 0 (0 of 600 s)"
    wait_until(lambda: said in log.read_text() or prepare.exitcode is not None, 120, log)
    assert said in log.read_text()
    head.add_node()
    assert status_of(prepare, log, 120) == 0, log.read_text()
    assert "training tokens in 1 block" in log.read_text()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_an_autoscaler_is_asked_for_nodes_and_a_run_trains_on_them(
    environment: dict[str, str], tmp_path: Path
) -> None:
    port, metric_port = free_ports(2)
    address = f"127.0.0.1:{port}"
    config = tmp_path / "autoscaler.json"
    provider = AUTOSCALER["provider"] | {"gcs_address": address}
    config.write_text(json.dumps(AUTOSCALER | {"provider": provider}))
    faked = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_METRIC_PORT": str(metric_port),
    }
    head = [str(RAY), "start", "--head", "--num-cpus=0", f"--port={port}"]
    head += ["--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    head += [f"--object-store-memory={2**27}", f"--autoscaling-config={config}"]
    subprocess.run(head, env=environment | faked, check=True, capture_output=True)

    log = write_pipeline(tmp_path)
    joined = environment | {"RAY_ADDRESS": address}
    command = [sys.executable, "-m", "glray", "run", "tiny.py", "--set=compute.num_workers=2"]
    with log.open("w") as output:  # a new Python: see test_job.py
        status = subprocess.run(
            command, cwd=tmp_path, env=joined, stdout=output, stderr=output, timeout=600
        ).returncode
    said = log.read_text()
    assert status == 0, said
    assert "waiting for 1 CPU, the cluster has room for 0 (0 of 600 s)" in said
    assert (
        "waiting for 2 workers, the cluster has room for 1 (0 of 600 s); each takes 1 CPU" in said
    )
