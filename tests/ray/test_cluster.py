import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private import node, state

from glray.errors import UserError
from glray.ray import cluster
from glray.ray.cluster import (
    START_TIMEOUT,
    connect,
    groups_with_room,
    require_cpu,
    require_workers,
    starting_workers,
    wait_for_room,
    worker_resources,
    workers_with_room,
)
from glray.spec import ComputeSpec

REPOSITORY = Path(__file__).parents[2]


def silent(line: str) -> None:
    """A ``say`` that says nothing."""


def test_room_counts_whole_workers_on_single_nodes() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}, {"CPU": 1.0, "GPU": 8.0}, {"memory": 1e9}]
    two_cpus = worker_resources(ComputeSpec(cpus_per_worker=2))
    assert workers_with_room(two_cpus, nodes) == 2 + 1 + 0 + 0
    with_gpu = worker_resources(ComputeSpec(cpus_per_worker=1, use_gpu=True))
    assert workers_with_room(with_gpu, nodes) == 1 + 0 + 1 + 0


def test_room_for_groups_is_room_for_all_of_their_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "_nodes", lambda: [{"CPU": 4.0}, {"CPU": 3.0}])
    free = {"a": {"CPU": 1.0}, "b": {"CPU": 2.0}}
    monkeypatch.setattr(cluster, "available_resources_per_node", lambda: free)
    assert groups_with_room(ComputeSpec(cpus_per_worker=2)) == 3
    assert groups_with_room(ComputeSpec(cpus_per_worker=2, num_workers=2)) == 1
    assert groups_with_room(ComputeSpec(cpus_per_worker=1, num_workers=2)) == 3
    assert groups_with_room(ComputeSpec(cpus_per_worker=1, use_gpu=True)) == 0
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # others may hold the rest
    assert groups_with_room(ComputeSpec(cpus_per_worker=2)) == 1


def test_waiting_ends_when_there_is_room() -> None:
    room = iter([0, 1, 3])
    said: list[str] = []
    assert wait_for_room(2, lambda: next(room), said.append, wait_seconds=60, poll_seconds=0) == 3
    assert len(said) == 1
    assert "2 workers" in said[0]
    assert "room for 0" in said[0]


def test_waiting_ends_when_the_time_is_over() -> None:
    said: list[str] = []
    room = wait_for_room(
        4, lambda: 1, said.append, wait_seconds=0.2, say_seconds=0.05, poll_seconds=0.01
    )
    assert room == 1
    assert 2 <= len(said) <= 4


@pytest.mark.ray
def test_more_workers_than_this_machine_has_is_refused(
    ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    compute = ComputeSpec(num_workers=1000, cpus_per_worker=1)
    with pytest.raises(UserError, match=r"1000 of 1 CPUs.*--set compute\.num_workers=\d"):
        require_workers(compute, silent)
    require_workers(ComputeSpec(num_workers=1, cpus_per_worker=1), silent)


@pytest.mark.ray
def test_a_joined_cluster_is_waited_for(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # connected already: it only says that we joined
    said: list[str] = []
    with pytest.raises(UserError, match=r"1000 of 1 CPUs.*after 1 s"):
        require_workers(ComputeSpec(num_workers=1000, wait_seconds=1), said.append)
    (line,) = said
    assert line.startswith("waiting for 1,000 workers, the cluster has room for ")
    assert line.endswith(" (0 of 1 s); each takes 1 CPU")


@pytest.mark.ray
def test_a_cluster_whose_cpus_never_come_is_refused(
    ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_nodes", lambda: [{"memory": 1e9}])
    said: list[str] = []
    with pytest.raises(UserError, match="has 0 CPUs after 1 s"):
        require_cpu(ComputeSpec(wait_seconds=1), said.append)
    assert said[0] == "waiting for 1 CPU, the cluster has room for 0 (0 of 1 s)"
    monkeypatch.setattr(cluster, "_nodes", lambda: [{"CPU": 0.0}, {"CPU": 1.0}])
    require_cpu(ComputeSpec(wait_seconds=0), silent)


@pytest.mark.ray
def test_what_starts_says_how_much_of_a_joined_cluster_is_free(
    ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert starting_workers(ComputeSpec()) == "starting the workers"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "_nodes", lambda: [{"CPU": 4.0}, {"CPU": 3.0}])
    monkeypatch.setattr(cluster, "available_resources_per_node", lambda: {"a": {"CPU": 1.0}})
    compute = ComputeSpec(num_workers=2, cpus_per_worker=2)
    assert starting_workers(compute) == (
        "starting 2 workers of 2 CPUs: 1 of the cluster's 7 CPUs are free"
    )


def test_an_address_where_nothing_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=address):
            connect(ComputeSpec(), silent)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001", "head"])
def test_an_address_that_is_no_cluster_head_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=address):
        connect(ComputeSpec(), silent)


def test_a_machine_too_busy_to_start_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(**_: object) -> None:
        raise Exception(f"The current node {START_TIMEOUT}. This could happen because …")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", too_slow)
    with pytest.raises(UserError, match=r"^Ray did not start here within its limit [^\n]*$"):
        connect(ComputeSpec(), silent)
    assert START_TIMEOUT in inspect.getsource(node), (
        "Ray's own words have changed: find what ray.init raises when a node starts too slowly"
    )


BELOW_UV = """
import os, subprocess, sys

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as taskset does
done = subprocess.run([sys.argv[1], "-c", sys.argv[2]], timeout=120)
sys.exit(done.returncode)
"""
"""A script named run, for a Python named uv: to Ray its child looks like one of ``uv run``."""

OWN_CLUSTER = """
import json, os, socket, sys
sys.path.remove("")  # as in the glray command: what lies in the current folder is no module
from glray.ray.cluster import connect, is_own_cluster
from glray.spec import ComputeSpec
import ray, ray.data

said = []
connect(ComputeSpec(), said.append)
connect(ComputeSpec(), said.append)  # the second call does nothing
ray.data.range(10).materialize()


@ray.remote
def seen():
    import glray, wave

    poll = os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]
    return poll, (glray.__file__, wave.__file__, sys.executable)


(poll, paths), here = ray.get(seen.remote()), os.getcwd()
import glray, wave

host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect(("203.0.113.1", 9))  # sends nothing; asks which of our addresses would be used
    outward = probe.getsockname()[0]
with socket.socket() as client:
    client.settimeout(5)
    outside = client.connect_ex((outward, int(port)))
with socket.socket() as client:
    inside = client.connect_ex(("127.0.0.1", int(port)))
print(json.dumps({
    "own": is_own_cluster(),
    "nodes": [node["NodeManagerAddress"] for node in ray.nodes()],
    "outward": outward, "outside": outside, "inside": inside,
    "poll": poll,
    "same": paths == (glray.__file__, wave.__file__, sys.executable),
    "here": here,
    "cpus": ray.cluster_resources()["CPU"],
    "said": said,
}))
"""


@pytest.mark.ray
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a system without masks")
def test_a_cluster_of_its_own_is_quiet_on_loopback_and_has_what_this_process_has(
    tmp_path: Path,
) -> None:
    """Started below ``uv run`` with one CPU and a long TMPDIR, in a folder with modules that have
    the names of others."""
    (tmp_path / "uv").symlink_to(sys.executable)
    (tmp_path / "run").write_text(BELOW_UV)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    (tmp_path / "wave.py").write_text("raise ImportError('not the standard library')")
    (tmp_path / "glray").mkdir()
    (tmp_path / "glray" / "__init__.py").write_text("raise ImportError('another glray')")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
    environment |= {"TMPDIR": str(tmp_path / ("long" * 20)), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [tmp_path / "uv", "run", sys.executable, OWN_CLUSTER],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)  # and so nothing else was printed
    assert done.stderr == ""
    assert seen["nodes"] == ["127.0.0.1"], (
        "Ray no longer goes by RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0: find its switch for the "
        "address of a node that ray.init starts, and set it in glray/ray/__init__.py"
    )
    assert seen["own"]
    assert seen["inside"] == 0
    if not seen["outward"].startswith("127."):
        assert seen["outside"] != 0
    assert seen["poll"] == "0.25"  # the person's own value, where Ray Train reads it
    assert not (tmp_path / ".ray").exists()  # no token left behind
    assert seen["same"], "workers import what the current folder has, see connect"
    assert seen["here"] == str(tmp_path)
    assert seen["cpus"] == 1
    (said,) = seen["said"]
    assert f"/ray-{os.getuid()}: " in said
    assert "bytes long" in said


@pytest.mark.ray
def test_ray_has_what_glray_uses_of_its_private_names(ray_local: None) -> None:
    uses = {
        path.name
        for path in Path(cluster.__file__).parents[1].rglob("*.py")
        if "from ray._private" in path.read_text()
    }
    assert uses == {"cluster.py"}, "name a private use of Ray in cluster.py, and test it here"
    advice = (
        "ray._private.state.available_resources_per_node has changed: glray/ray/cluster.py, "
        "groups_with_room, needs what is free on each node. Look for it in ray.nodes() or in "
        "ray/_private/state.py; without it, ray.available_resources() of the whole cluster is a "
        "bound"
    )
    assert hasattr(state, "available_resources_per_node"), advice
    ours = vars(cluster)["available_resources_per_node"]
    assert ours is state.available_resources_per_node, advice
    (free,) = state.available_resources_per_node().values()
    assert 0 <= free.get("CPU", 0) <= 4, advice
    assert not cluster.is_own_cluster()  # it was started by the tests
