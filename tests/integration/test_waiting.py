"""A cluster whose head has no CPU: what is waited for is said, and found once a node comes."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..command import start_glray, status_of
from .test_cli import PIPELINE, persons_environment
from .test_job import end_processes_of, wait_until

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
def head() -> Iterator[Head]:
    """Ends with all its processes."""
    temp = Path(tempfile.mkdtemp(prefix="glray-", dir="/tmp"))  # short: sockets lie below it
    environment = persons_environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(32).hex(),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback, see glray.ray.cluster
        "RAY_TMPDIR": str(temp),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        yield Head(process, environment | {"RAY_ADDRESS": address})
    finally:
        wait_until(lambda: end_processes_of(temp) == 0, 30)
        process.wait()
        shutil.rmtree(temp, ignore_errors=True)


def test_prepare_says_that_the_cluster_has_no_cpu_and_goes_on_when_it_has(
    head: Head, tmp_path: Path
) -> None:
    (tmp_path / "tiny.py").write_text(PIPELINE)
    (tmp_path / "text").mkdir()
    for document in range(60):
        (tmp_path / "text" / f"{document:02d}.txt").write_text(f"document {document} " * 99)
    log = tmp_path / "log"
    log.touch()
    prepare = start_glray(tmp_path, log, head.environment, "prepare", "tiny.py")
    said = "waiting for 1 CPU, the cluster has room for 0 (0 of 600 s)"
    wait_until(lambda: said in log.read_text() or prepare.exitcode is not None, 120, log)
    assert said in log.read_text()
    head.add_node()
    assert status_of(prepare, log, 120) == 0, log.read_text()
    assert "training tokens in 1 block" in log.read_text()
