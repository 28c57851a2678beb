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

from glray.ray import jobs

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


STOPPABLE = """
import signal, sys, time

def stop(*_):
    time.sleep(4)  # Ray's own limit is 3 s
    print("01:02:03 grow-seed0: stopped at step 50", flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
print("grow 1/2 seq_len 32 step 49/200", flush=True)
time.sleep(120)
"""
"""What a job runs here in place of ``glray run``, with less to import."""


GLRAY = """
import sys
import glray.cli
from glray.ray import jobs

jobs.ENTRYPOINT = sys.argv.pop(1)
tail, to_lose = jobs.Jobs._tail, [1, 2]


async def losing(self, job, shown):
    def losing_shown(text, position):
        shown(text, position)
        if to_lose and to_lose.pop():
            raise RuntimeError("connection lost")

    await tail(self, job, losing_shown)


jobs.Jobs._tail = losing
glray.cli.main()
"""
"""``glray``, whose jobs run another command, and whose follower loses its first two connections to
a log. A new Python: in one that has imported Ray without a token it is too late to have one."""


@dataclass
class Terminal:
    """Commands given in a folder that has a pipeline."""

    head: Head
    folder: Path
    storage: Path
    command: str
    """What the jobs run."""
    count: int = 0

    def start(self, *arguments: str, **environment: str) -> tuple[subprocess.Popen[bytes], Path]:
        """The process of ``glray ARGUMENTS``, and where its output goes."""
        self.count += 1
        log = self.folder / f"log-{self.count}"
        command = [sys.executable, "-c", GLRAY, self.command, *arguments]
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, "--address", self.head.url],
                cwd=self.folder,
                env=self.head.environment | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return process, log

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """The exit status of ``glray ARGUMENTS``, and its output."""
        process, log = self.start(*arguments, **environment)
        return process.wait(300), log.read_text()

    def fields(self, **fields: object) -> list[str]:
        """Options that set fields of the spec."""
        given = {"compute.storage": self.storage, "corpus.paths": "[/text]"} | fields
        return [f"--set={name}={value}" for name, value in given.items()]


@pytest.fixture
def terminal(head: Head, tmp_path: Path) -> Terminal:
    (tmp_path / "tiny.py").write_text(PIPELINE)
    (tmp_path / "common.py").write_text("SEQ_LENS = (32, 64)\n")
    return Terminal(head, tmp_path, tmp_path / "storage", "true")


def test_a_submission_passes_on_log_and_exit_status_and_again_is_another_attempt(
    terminal: Terminal,
) -> None:
    secret = {"SECRET_OF_THIS_MACHINE": "abc"}
    terminal.command = "cat pipeline.yaml; ls; env; exit 3"
    for attempt in (1, 2):
        status, said = terminal.run("submit", "tiny.py", *terminal.fields(), **secret)
        assert status == 3, said
        assert f"-{attempt}: submitted, attempt {attempt}: the resolved spec of 1," in said
        assert f"-{attempt} failed with exit status 3" in said
        assert f"\n  storage: {terminal.storage}\n" in said
        assert "\npipeline.yaml\n" in said
        assert "RAY_JOB_STOP_WAIT_TIME_S=600" in said
        assert "SECRET_OF_THIS_MACHINE" not in said
    status, said = terminal.run("status", "tiny.py")
    assert (status, said.count("\n")) == (0, 1)
    assert "-2: FAILED with exit status 3, 0:" in said
    status, said = terminal.run("stop", "tiny.py")
    assert status == 2
    assert said.startswith("error: no job of the pipeline 'tiny' runs at http")


def test_a_second_submission_follows_and_a_stop_waits_for_the_checkpoint(
    terminal: Terminal,
) -> None:
    (terminal.folder / "stoppable.py").write_text(STOPPABLE)
    terminal.command = f"python {terminal.folder / 'stoppable.py'}"
    submission = ("submit", "tiny.py", *terminal.fields(name="stopped"))
    first, log = terminal.start(*submission)
    wait_until(lambda: "step 49" in log.read_text() or first.poll() is not None, 120, log)
    first_job = log.read_text().partition(":")[0]

    second, second_log = terminal.start(*submission, "--set=compute.log_every_steps=7")
    wait_until(lambda: "step 49" in second_log.read_text(), 120, second_log)
    assert f"{first_job}: runs already, attempt 1: following it" in second_log.read_text()
    assert "not applied to it: compute.log_every_steps: 5 → 7;" in second_log.read_text()
    status, said = terminal.run(*submission, "--set=optimizer.lr=0.5")
    assert status == 2
    assert "with another identity (optimizer.lr: 0.001 → 0.5): both would write" in said

    second.send_signal(signal.SIGINT)
    assert second.wait(60) == 130
    assert f"{first_job} goes on; the same command follows it" in second_log.read_text()
    status, said = terminal.run("status")
    assert status == 0
    assert f"{first_job}: RUNNING, for 0:" in said
    assert "\n  grow 1/2 seq_len 32 step 49/200\n" in said

    status, said = terminal.run("stop", "tiny.py", "--set=name=stopped")
    assert status == 0, said
    assert said.splitlines() == [
        f"{first_job}: asked to stop at its next checkpoint",
        "01:02:03 grow-seed0: stopped at step 50",
        f"{first_job}: stopped, its checkpoint is committed; submit it again to resume",
    ]
    assert first.wait(60) == 143
    for line in ("grow 1/2 seq_len 32 step 49/200\n", "grow-seed0: stopped at step 50\n"):
        assert log.read_text().count(line) == 1


@pytest.mark.soak  # the same with less to import is above, and a plain submission that trains
def test_a_submitted_pipeline_is_stopped_and_resumed(terminal: Terminal, working_dir: Path) -> None:
    terminal.command = jobs.ENTRYPOINT
    run = terminal.storage / "tiny" / "grow-seed0"
    fields = {"budget.tokens": 4000 * 256, "corpus.paths": f"[{working_dir / 'text'}]"}
    submission = ("submit", "tiny.py", *terminal.fields(**fields))
    first, log = terminal.start(*submission)
    committed = f"{run.relative_to(terminal.storage)}/checkpoints/*/COMMITTED"
    wait_until(lambda: any(terminal.storage.glob(committed)), 240, log)
    status, said = terminal.run("status", "tiny.py")
    assert "step" in said.splitlines()[1]
    assert said.splitlines()[2].startswith("  checkpoint of step ")
    status, said = terminal.run("stop", "tiny.py")
    assert status == 0, said
    assert "stopped, its checkpoint is committed" in said
    assert first.wait(60) == 143
    stopped_at = int(said.split("stopped at step ")[1].split()[0].replace(",", ""))

    status, said = terminal.run(*submission)
    assert status == 0, said
    assert "submitted, attempt 2" in said
    assert f"resumed at step {stopped_at:,}" in said
    assert json.loads((run / "result.json").read_text())["steps"] == 4000


def test_a_cluster_that_cannot_be_asked_is_one_line(terminal: Terminal) -> None:
    status, said = terminal.run("status", RAY_AUTH_MODE="disabled")
    assert status == 2
    assert f"error: --address {terminal.head.url}: the cluster asks for its token" in said
