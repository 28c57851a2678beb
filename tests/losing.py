"""Runs of two workers on a cluster that loses things, and what became of them.

Lost are workers, the driver, nodes, the head, and for a minute the store or a part of the network.

Each node is a machine of its own (``nodes``), the store a server that all of them reach. As on a
managed cluster, a node that has ended is replaced, and a job whose command has failed is submitted
again. ``benchmarks/losses.py`` and ``tests/integration/test_losses.py`` share this.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from glray.data.corpus import run_corpus
from glray.files import AnyPath, StorePath, copy_file, copy_tree, files_below, read_log
from glray.run.run import Run, run_directory
from glray.spec import load_pipeline

from .command import start_glray
from .group import join_group, start_group, train
from .integration.test_survival import write_pipeline
from .killing import same_run
from .nodes import Network, Node, network, only_child
from .stores import BUCKET, StoreServer, serving

REPOSITORY = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
PORT = 6379
STORE_BYTES = 2**27
HEALTH = {"RAY_health_check_period_ms": "2000", "RAY_health_check_timeout_ms": "3000"}
"""Of the head, as docs/cluster.md advises: by default a node that is gone without a word is missed
after a minute."""
NUM_STEPS, EVERY_STEPS = 2400, 200
"""Of a run, and of those until its next checkpoint."""
AWAY_SECONDS = 60.0
"""How long the store, or the network between two nodes, is away."""
NOTICE_SECONDS = 15
"""From a spot notice until the node is taken away."""
RUN = "grow-seed0"


@contextmanager
def losing_cluster() -> Iterator["Cluster"]:
    """A cluster with a store and a folder with a pipeline, all gone after the block."""
    # Sockets lie below it, whose paths must stay under 108 characters.
    folder = Path(tempfile.mkdtemp(prefix="glray-", dir="/tmp"))
    try:
        with serving() as server, network(folder) as bridge:
            write_pipeline(folder, num_steps=NUM_STEPS, every_steps=EVERY_STEPS, num_workers=2)
            yield Cluster(bridge, server, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """A head without CPUs and two nodes of one CPU; what ends is replaced, at a new address."""

    def __init__(self, network: Network, server: StoreServer, folder: Path) -> None:
        self.network, self.server, self.folder = network, server, folder
        self.storage = StorePath(f"s3://{BUCKET}/runs")
        persons = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        self._environment = persons | {
            "AWS_ENDPOINT_URL": server.listen(network.listen()),
            "AWS_ALLOW_HTTP": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "RAY_AUTH_MODE": "disabled",  # nobody else reaches these nodes
            **HEALTH,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._count = 0
        self.start()

    def start(self) -> None:
        """A new head, and new nodes that join it; those before may go on for a while."""
        options = ("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        self.head = self._start_node("head", *options)
        self.workers = [self._start_worker() for _ in range(2)]

    def tend(self) -> None:
        """Replace what has ended."""
        if not self.head.is_up:
            self.start()
        self.workers = [node if node.is_up else self._start_worker() for node in self.workers]

    def environment(self, node: Node) -> dict[str, str]:
        """Of a command on a node that joins the cluster."""
        return self._environment | {
            "RAY_TMPDIR": str(self.folder / node.name),
            "RAY_ADDRESS": self.address,
        }

    @property
    def address(self) -> str:
        """Of the head."""
        return f"{self.head.address}:{PORT}"

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A ``ray`` command on the head."""
        inside = ["nsenter", f"--target={self.head.pid}", "--net", "--pid", "--mount", "--uts"]
        return subprocess.run(
            [*inside, str(RAY), *arguments],
            env=self.environment(self.head),
            capture_output=True,
            text=True,
            check=True,
        )

    def _start_worker(self) -> Node:
        return self._start_node("worker", f"--address={self.address}", "--num-cpus=1")

    def _start_node(self, kind: str, *more: str) -> Node:
        self._count += 1
        name = f"{kind}-{self._count}"
        address = f"10.77.{self._count // 250}.{self._count % 250 + 2}"
        (self.folder / name).mkdir()
        environment = self._environment | {"RAY_TMPDIR": str(self.folder / name)}
        command = [str(RAY), "start", "--block", f"--node-ip-address={address}", *more]
        command += [f"--object-store-memory={STORE_BYTES}"]
        log = self.folder / f"{name}.log"
        return self.network.start_node(name, address, environment, log, *command)


@dataclass
class Loss:
    """A loss, and how the run went on."""

    kind: str
    run: str
    committed_step: int
    """Of the latest checkpoint then."""
    begun_step: int
    """Of the latest checkpoint that was begun then, committed or not."""
    shown_step: int
    """The last step that the store showed then: its log is some seconds behind."""
    resumed_step: int | None = None
    """Where a worker group went on, None if none had to start again."""
    seconds: float = 0.0
    """From the loss until the store showed a further step; a minute's absence is part of it."""
    submissions: int = 0
    """How often the job was submitted again."""
    said: list[str] = field(default_factory=list)
    """What ``events.log`` says of it."""

    @property
    def repeated_steps(self) -> int:
        """Steps that were trained twice, at least."""
        trained = max(self.shown_step, self.begun_step)
        return 0 if self.resumed_step is None else max(0, trained - self.resumed_step)


class Job:
    """A run, trained by ``glray run`` on the head, which is given again until it succeeds."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.log = cluster.folder / f"{name}.log"
        self.submissions = 0
        self.process = self._submit()

    # ---- how it stands

    @property
    def directory(self) -> AnyPath:
        """The pipeline's."""
        return self.cluster.storage / self.name

    @property
    def is_over(self) -> bool:
        """Whether the command has succeeded."""
        return self.process.exitcode == 0

    def events(self) -> list[str]:
        """What was said so far."""
        return read_log(self.directory / "events.log").decode().splitlines()

    def step(self) -> int:
        """The last step that the store shows."""
        lines = read_log(self.directory / RUN / "metrics.jsonl").splitlines()
        return len(lines)

    def checkpoints(self) -> tuple[int, int]:
        """The steps of the latest checkpoint that is committed, and of the latest begun; 0 without
        one."""
        names = [Path(name) for name in files_below(self.directory / RUN / "checkpoints")]
        step = {name: int(name.parts[0].removeprefix("step-")) for name in names}
        committed = (step[name] for name in names if name.name == "COMMITTED")
        return max(committed, default=0), max(step.values(), default=0)

    # ---- waiting

    def tend(self) -> None:
        """Replace nodes that have ended, and submit the job again if it has failed."""
        self.cluster.tend()
        if self.process.exitcode not in (None, 0):
            self.submissions += 1
            self.process = self._submit()

    def wait(self, seconds: float) -> None:
        """Let the time pass, without looking at the store."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.tend()
            time.sleep(min(left, 0.5))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 400) -> bool:
        """Whether the condition came about before the job was over. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not condition():
            if self.is_over:
                return False
            if time.monotonic() > end:
                raise TimeoutError(f"{self.log}:\n{self.log.read_text()[-3000:]}")
            self.tend()
            time.sleep(0.5)
        return True

    # ---- losing

    def lose(self, lose: "Lose", rng: random.Random) -> Loss:
        """Lose something; return when the run goes on, or is over."""
        committed, begun = self.checkpoints()
        loss = Loss(lose.__name__, self.name, committed, begun, self.step())
        said, submitted, start = len(self.events()), self.submissions, time.monotonic()
        lose(self, rng)
        step = self.step() if lose in PASSING else None

        def goes_on() -> bool:
            loss.said = self.events()[said:]
            resumed = [line for line in loss.said if "resumed at step" in line]
            if resumed:
                words = resumed[-1].partition("resumed at step ")[2]
                loss.resumed_step = int(words.partition(" of")[0].replace(",", ""))
            now = self.step()
            if loss.resumed_step is not None:
                return now > loss.resumed_step
            return step is not None and now > step

        self.wait_until(goes_on)
        loss.seconds = time.monotonic() - start
        loss.submissions = self.submissions - submitted
        return loss

    def wait_for_checkpoint(self) -> bool:
        """Return once there is a further checkpoint; False if the job was over before."""
        before, _ = self.checkpoints()
        return self.wait_until(lambda: self.checkpoints()[0] > before)

    def _submit(self) -> BaseProcess:
        head = self.cluster.head
        return start_glray(
            self.cluster.folder,
            self.log,
            self.cluster.environment(head),
            *("run", "tiny.py"),
            *("--set", f"name={self.name}", "--set", f"compute.storage={self.cluster.storage}"),
            node=head.pid,
        )


def ended_run(job: Job) -> Run:
    """The run of a job that is over, copied to this machine with its tokens."""
    storage, here = job.cluster.storage, job.cluster.folder / "ended"
    for name in ("tokens", f"{job.name}/{RUN}"):
        copy_tree(storage / name, here / name)
    copy_file(job.directory / "spec.yaml", here / job.name / "spec.yaml")
    return Run.open(here / job.name / RUN)


def undisturbed_run(run: Run) -> Run:
    """The same run, trained by two workers here that nothing disturbs."""
    pipeline = run.directory.parent
    alone = load_pipeline(pipeline / "spec.yaml").derive(
        compute={"storage": str(pipeline.parents[1] / "alone")}
    )
    assert join_group(start_group(train, 2, alone, run_corpus(run))), "an undisturbed run"
    return Run.open(run_directory(alone, "grow", 0))


def is_same(run: Run, expected: Run) -> bool:
    """Whether two runs end bit-identical, after the same steps with the same losses."""
    steps, wanted = run.log, expected.log
    are_equal = np.array_equal(steps.step, wanted.step) and np.array_equal(steps.loss, wanted.loss)
    return are_equal and same_run(run, expected)


# ---- what can be lost

Lose = Callable[[Job, random.Random], None]


def worker(job: Job, rng: random.Random) -> None:
    """One of the two workers, killed."""
    workers = [pid for node in job.cluster.workers for pid in node.processes("RayTrainWorker")]
    os.kill(rng.choice(workers), signal.SIGKILL)


def driver(job: Job, rng: random.Random) -> None:
    """The command, killed."""
    assert job.process.pid is not None
    os.kill(only_child(job.process.pid), signal.SIGKILL)
    job.process.join()


def raylet(job: Job, rng: random.Random) -> None:
    """The raylet of a worker's node, killed."""
    (pid,) = rng.choice(job.cluster.workers).processes("raylet/raylet")
    os.kill(pid, signal.SIGKILL)


def node(job: Job, rng: random.Random) -> None:
    """A worker's node, as by a loss of power: nothing of it says good-bye."""
    lost = rng.choice(job.cluster.workers)
    job.cluster.network.cut(lost)
    lost.kill()


def head(job: Job, rng: random.Random) -> None:
    """The head with its driver, likewise. The old nodes go on for as long as they do; the job is
    submitted again to a new cluster."""
    lost = job.cluster.head
    job.cluster.network.cut(lost)
    lost.kill()
    job.process.join()


def drained_node(job: Job, rng: random.Random) -> None:
    """A node that is taken away after a notice."""
    lost = rng.choice(job.cluster.workers)
    (raylet,) = lost.processes("raylet/raylet")
    command = Path(f"/proc/{raylet}/cmdline").read_text().split("\0")
    (node_id,) = (word.partition("=")[2] for word in command if word.startswith("--node_id="))
    job.cluster.ray(
        *("drain-node", "--address", job.cluster.address, "--node-id", node_id),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"),
        *("--deadline-remaining-seconds", str(NOTICE_SECONDS)),
    )
    job.wait(NOTICE_SECONDS)
    lost.kill()


def store(job: Job, rng: random.Random) -> None:
    """The store, which answers 503 for a minute."""
    with job.cluster.server.refusing("503 Slow Down"):
        job.wait(AWAY_SECONDS)


def workers_network(job: Job, rng: random.Random) -> None:
    """The network between the two workers' nodes, for a minute."""
    with job.cluster.network.partition(*job.cluster.workers):
        job.wait(AWAY_SECONDS)


def heads_network(job: Job, rng: random.Random) -> None:
    """The network between the head and a worker's node, for a minute."""
    with job.cluster.network.partition(job.cluster.head, rng.choice(job.cluster.workers)):
        job.wait(AWAY_SECONDS)


PASSING: tuple[Lose, ...] = (store, workers_network, heads_network)
"""What comes back, so that perhaps nothing has to start again."""
LOSSES: tuple[Lose, ...] = (worker, driver, raylet, node, head, drained_node, *PASSING)
