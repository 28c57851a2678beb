"""A worker, the driver and a node's raylet, killed on Ray at random moments: nothing is lost."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glray.data.corpus import run_corpus
from glray.files import read_json
from glray.run.run import Run
from glray.spec import PipelineSpec, load_pipeline

from ..command import start_glray, status_of
from ..group import join_group, start_group, train
from ..weights import same_weights

PIPELINE = """
from glray.spec import *


def pipeline():
    return PipelineSpec(
        name="tiny",
        corpus=TextCorpus(paths=("text",)),
        heldout_fraction=0.2,
        tokenizer=BpeTokenizer(vocab_size=300),
        model=GPTNeoXModel(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32),
        arms=(ArmSpec(name="grow", stages=(16, 32)),),
        budget=BudgetSpec(tokens={num_steps} * 128),
        tokens_per_batch=128,
        optimizer=OptimizerSpec(lr=1e-2),
        evaluation=EvaluationSpec(seq_lens=(16, 32), num_tokens=1024),
        compute=ComputeSpec(num_workers={num_workers}, checkpoint_every_tokens={every_steps} * 128),
    )
"""
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of a pipeline; nothing that was started with it outlives it."""
    yield tmp_path
    for command in multiprocessing.active_children():
        command.kill()
    for process in processes_of(tmp_path):
        os.kill(process, signal.SIGKILL)


def write_pipeline(folder: Path, **fields: object) -> None:
    """``tiny.py`` and 60 documents of about a thousand bytes."""
    (folder / "tiny.py").write_text(PIPELINE.format(**fields))
    (folder / "text").mkdir()
    for document in range(60):
        words = " ".join(f"word{(document * 7919 + place) % 1013}" for place in range(150))
        (folder / "text" / f"{document:02d}.txt").write_text(words)


def processes_of(folder: Path, name: str = "") -> list[int]:
    """What the runs of a folder have started whose command has ``name`` in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if name in command and f"GLRAY_TEST={folder}\0".encode() in environment:
            found.append(int(entry.name))
    return found


class GlrayRun:
    """``glray run`` in a process of its own, and what belongs to it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.run = folder / "runs" / "tiny" / "grow-seed0"
        self.log = folder / "log"
        marked = os.environ | {"GLRAY_TEST": str(folder)} | environment
        self.process = start_glray(folder, self.log, marked, "run", "tiny.py")

    def status(self, seconds: float) -> int:
        """The exit status, once it has ended."""
        return status_of(self.process, self.log, seconds)

    def kill(self, sent: int = signal.SIGKILL) -> None:
        """Send the command's own process a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, sent)

    def step(self) -> int:
        """The last step logged."""
        metrics = self.run / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from."""
        return any(self.run.glob("checkpoints/*/COMMITTED"))

    def resumptions(self) -> int:
        """How often a worker group has gone on from a checkpoint."""
        events = self.run.parent / "events.log"
        return events.read_text().count("resumed at step") if events.exists() else 0

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for the condition, which must come before the run ends."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or self.process.exitcode is not None:
                pytest.fail(f"did not come about\n{self.log.read_text()}")
            time.sleep(0.05)


# What comes on Ray after the first start of it trains in the same loop: each start for it takes a
# minute of a core.
long_or_short = pytest.mark.parametrize(
    "ends_on_ray", [False, pytest.param(True, marks=pytest.mark.soak)]
)


@long_or_short
def test_a_run_that_loses_worker_driver_and_raylet_ends_bit_identical(
    folder: Path, ends_on_ray: bool
) -> None:
    """The raylet only where the run ends on Ray."""
    write_pipeline(folder, **size(ends_on_ray), num_workers=2)
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill times from seed {seed}")
    rng = random.Random(seed)

    def later(run: GlrayRun, step: int) -> None:
        """Some moment after steps went on from ``step``."""
        run.wait_until(lambda: run.step() > step)
        time.sleep(rng.uniform(0, 1 if ends_on_ray else 0.5))

    run = GlrayRun(folder)
    run.wait_until(run.has_checkpoint)
    later(run, 50)
    before = run.step()
    os.kill(rng.choice(processes_of(folder, "RayTrainWorker")), signal.SIGKILL)
    run.wait_until(lambda: run.resumptions() > 0)  # goes on by itself
    assert "worker group 0 has died (" in events(folder)
    later(run, before)
    resumptions = run.resumptions()
    run.kill()
    assert run.status(60) == -signal.SIGKILL

    if ends_on_ray:
        # Ray notices a lost node after some seconds of these instead of a minute.
        patience = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}
        again = GlrayRun(folder, **patience)
        again.wait_until(lambda: again.resumptions() > resumptions)
        later(again, 0)
        (raylet,) = processes_of(folder, "raylet/raylet")
        os.kill(raylet, signal.SIGKILL)
        status = again.status(120)
        assert status in (1, 2)  # 1 where Ray itself ends the driver, before or after it says why
        said = "the same command goes on from the latest checkpoint" in again.log.read_text()
        assert said or status == 1

    end(folder, 2, ends_on_ray)
    least = 3 if ends_on_ray else 2
    assert events_of_the_same_bits(folder, num_workers=2).count("resumed at step") >= least


@long_or_short
def test_a_killed_command_that_trains_in_its_own_process_goes_on_bit_identical(
    folder: Path, ends_on_ray: bool
) -> None:
    write_pipeline(folder, **size(ends_on_ray), num_workers=1)
    run = GlrayRun(folder)
    run.wait_until(run.has_checkpoint)
    assert processes_of(folder, "RayTrainWorker") == []
    run.kill()
    assert run.status(60) == -signal.SIGKILL

    again = GlrayRun(folder)
    again.wait_until(lambda: again.resumptions() == 1)
    step = again.step()
    again.wait_until(lambda: again.step() > step)
    again.kill(signal.SIGTERM)
    assert again.status(60) == 143, again.log.read_text()
    (stopped_at,) = [line for line in events(folder).splitlines() if "stopped at step" in line]
    assert f"stopped at step {again.step():,}" in stopped_at

    end(folder, 1, ends_on_ray)
    assert events_of_the_same_bits(folder, num_workers=1).count("resumed at step") == 2


def size(ends_on_ray: bool) -> dict[str, int]:
    """Of a run that is long enough to be killed so often."""
    return {"num_steps": 500 if ends_on_ray else 300, "every_steps": 40}


def end(folder: Path, num_workers: int, on_ray: bool) -> None:
    """Train to the end; the command then says that this is so."""
    if not on_ray:
        run = Run.open(folder / "runs" / "tiny" / "grow-seed0")
        assert join_group(start_group(train, num_workers, spec_of(folder), run_corpus(run)))
    last = GlrayRun(folder)
    assert last.status(240) == 0, last.log.read_text()
    assert ("nothing to train" in last.log.read_text()) is not on_ray


def events_of_the_same_bits(folder: Path, num_workers: int) -> str:
    """What the folder's run has said, which ended as one that nothing has disturbed."""
    killed = Run.open(folder / "runs" / "tiny" / "grow-seed0")
    alone = spec_of(folder).derive(compute={"storage": str(folder / "alone")})
    assert join_group(start_group(train, num_workers, alone, run_corpus(killed)))
    undisturbed = Run.open(folder / "alone" / "tiny" / "grow-seed0")
    assert same_weights(killed, undisturbed)
    results = [read_json(r.directory / "result.json") for r in (killed, undisturbed)]
    assert results[0]["checksum"] == results[1]["checksum"]
    assert steps(killed) == list(range(1, killed.plan.num_steps + 1))
    assert "bit-identity" not in events(folder)
    return events(folder)


def spec_of(folder: Path) -> PipelineSpec:
    return load_pipeline(folder / "runs" / "tiny" / "spec.yaml")


def events(folder: Path) -> str:
    return (folder / "runs" / "tiny" / "events.log").read_text()


def steps(run: Run) -> list[int]:
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]
