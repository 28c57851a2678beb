"""``ray job submit``: the run trains on the cluster it was submitted to, and resumes there."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")

PIPELINE = """
from pathlib import Path

from glray.spec import (
    ArmSpec, BpeTokenizer, BudgetSpec, ComputeSpec, EvaluationSpec, GPTNeoXModel, OptimizerSpec,
    PipelineSpec, TextCorpus,
)

from common import SEQ_LENS  # beside this file


def pipeline():
    return PipelineSpec(
        name="tiny",
        corpus=TextCorpus(paths=(str(Path(__file__).parent / "text"),)),
        tokenizer=BpeTokenizer(vocab_size=257),
        model=GPTNeoXModel(num_layers=2, hidden_size=32, num_heads=2, intermediate_size=64),
        arms=(ArmSpec(name="grow", stages=SEQ_LENS),),
        budget=BudgetSpec(tokens=200 * 256),
        tokens_per_batch=256,
        optimizer=OptimizerSpec(lr=1e-3),
        evaluation=EvaluationSpec(seq_lens=(32, 64), num_tokens=256),
        compute=ComputeSpec(checkpoint_every_tokens=50 * 256, log_every_steps=5),
    )
"""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Head:
    """A Ray head that takes jobs."""

    url: str
    temp: Path
    environment: dict[str, str]

    def ray(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """A ``ray`` command as this cluster's user gives it."""
        return subprocess.run(
            [str(RAY), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def takes_jobs(self) -> bool:
        """Whether a job that does nothing is accepted: only then is an agent there to start one."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            f"{self.url}/api/jobs/",
            b'{"entrypoint": "true"}',
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=60).close()
        except OSError:
            return False
        return True

    def sessions(self) -> list[Path]:
        """The sessions of every cluster that the head or one of its jobs started."""
        return [path for path in (self.temp / "ray").glob("session_2*") if path.is_dir()]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head of two CPUs on loopback that asks for a token; ends with all its processes."""
    # Sockets lie below it, whose paths must stay under 108 characters.
    temp = Path(tempfile.mkdtemp(prefix="glray-", dir="/tmp"))
    token = tmp_path_factory.mktemp("head") / "token"
    token.touch(mode=0o600)
    token.write_text(os.urandom(32).hex())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback, see glray.ray.cluster
        "RAY_TMPDIR": str(temp),  # inherited by jobs: a cluster of their own would show up here
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    port, dashboard_port, agent_port = free_ports(3)
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    command += [f"--dashboard-agent-listen-port={agent_port}", f"--object-store-memory={2**28}"]
    log = token.with_name("head.log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{dashboard_port}"
    head = Head(url, temp, environment)
    try:
        # Not with `ray job`: each call is seconds of a core, which the start needs.
        wait_until(head.takes_jobs, 120, log)
        yield head
    finally:
        # At once: asked politely, Ray takes half a minute.
        wait_until(lambda: end_processes_of(temp) == 0, 30)
        process.terminate()  # where there is no /proc
        process.wait()
        shutil.rmtree(temp, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def wait_until(condition: Callable[[], bool], seconds: float, log: Path | None = None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s\n{log.read_text() if log else ''}")
        time.sleep(0.2)


def end_processes_of(temp: Path) -> int:
    """Kill a head's processes, known by its own folder in the environment they inherit.

    Returns how many there were.
    """
    found = 0
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RAY_TMPDIR={temp}\0".encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
                found += 1
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    """The package, a pipeline, its neighbour and its text: what a person uploads."""
    folder = tmp_path / "upload"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "glray", folder / "glray", ignore=ignore)
    (folder / "tiny.py").write_text(PIPELINE)
    (folder / "common.py").write_text("SEQ_LENS = (32, 64)\n")
    (folder / "text").mkdir()
    for document in range(100):
        words = " ".join(f"word{(document * 7919 + place) % 1013}" for place in range(500))
        (folder / "text" / f"{document:03d}.txt").write_text(words)
    return folder


@pytest.mark.parametrize("is_stopped", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_submitted_run_trains_there_and_resumes(
    head: Head, working_dir: Path, tmp_path: Path, is_stopped: bool
) -> None:
    num_steps = 2000 if is_stopped else 200  # to be stopped it has to last
    storage = tmp_path / "storage"
    run = storage / "tiny" / "grow-seed0"

    def submit(job: str, *more: str) -> subprocess.CompletedProcess[str]:
        submission = ["job", "submit", "--address", head.url, "--submission-id", job, *more]
        submission += ["--working-dir", str(working_dir), "--", sys.executable, "-m", "glray"]
        fields = (f"compute.storage={storage}", f"budget.tokens={num_steps * 256}")
        return head.ray(*submission, "run", "tiny.py", *(f"--set={field}" for field in fields))

    def logs(job: str) -> str:
        return head.ray("job", "logs", "--address", head.url, job).stdout

    if is_stopped:  # the first job, once it has left a committed checkpoint
        first = submit("first", "--no-wait")
        assert first.returncode == 0, first.stdout + first.stderr
        committed = f"{run.relative_to(storage)}/checkpoints/*/COMMITTED"
        try:
            wait_until(lambda: any(storage.glob(committed)), 240)
        except pytest.fail.Exception:
            pytest.fail(logs("first"))
        stopped = head.ray("job", "stop", "--address", head.url, "first")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        assert not (run / "result.json").exists(), "it was over before it was stopped"

    last = submit("last")
    assert last.returncode == 0, last.stdout + last.stderr
    assert ("resumed at step" in last.stdout) == is_stopped
    assert json.loads((run / "result.json").read_text())["steps"] == num_steps

    # All ran on the head's own cluster, and none was started beside it.
    (session,) = head.sessions()  # a second cluster would have left its own
    workers = list(session.glob("logs/train/ray-train-app-worker-*.log"))
    assert len(workers) == 1 + is_stopped

    # Ray Train writes what they log as JSON.
    lines = [json.loads(line) for path in workers for line in path.read_text().splitlines()]
    (finished,) = (line for line in lines if "finished at step" in line["message"])
    asked = ("pipeline", "run", "stage", "step", "rank", "levelname")
    shown = tuple(finished[name] for name in asked)
    assert shown == ("tiny", "grow-seed0", 1, num_steps, 0, "INFO")
    assert finished["asctime"]


@pytest.mark.soak  # tests/test_storage.py refuses it under the variable that Ray sets in a job
def test_a_relative_storage_is_refused(head: Head, working_dir: Path) -> None:
    submission = ["job", "submit", "--address", head.url, "--working-dir", str(working_dir), "--"]
    done = head.ray(*submission, sys.executable, "-m", "glray", "run", "tiny.py")
    assert done.returncode != 0
    assert "--set compute.storage=/" in done.stdout + done.stderr
