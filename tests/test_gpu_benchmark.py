"""The script for a GPU's first hour, at toy size: nothing that it measured is ever lost."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_parts
from glray.train.context import WorkerContext
from glray.train.execution import driver_version, environment

SCRIPT = Path(gpu.__file__)


def measures(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["measures"] if path.exists() else {}


def link_packages_without_ray(folder: Path) -> None:
    """All packages that this environment has, Ray apart."""
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if entry.name != "ray" and not entry.name.startswith("ray-"):
            (folder / entry.name).symlink_to(entry)


def main_without_ray(packages: Path, arguments: list[str]) -> None:
    """``gpu.main`` in this process, which finds no package but those of a folder, and no Ray."""
    sys.modules["ray"] = None  # type: ignore[assignment]
    sys.path = [str(packages) if Path(path).name == "site-packages" else path for path in sys.path]
    gpu.main(arguments)


def test_what_was_measured_before_a_kill_is_kept_and_the_rest_needs_no_ray(tmp_path: Path) -> None:
    packages, out = tmp_path / "packages", tmp_path / "out"
    packages.mkdir()
    link_packages_without_ray(packages)
    context = multiprocessing.get_context("fork")

    def start(*parts: str) -> multiprocessing.process.BaseProcess:
        arguments = [*(f"--part={part}" for part in parts), "--out", str(out)]
        process = context.Process(target=main_without_ray, args=(packages, arguments))
        process.start()
        return process

    killed = start("loss")
    while not measures(out / "gpu-toy-loss.json"):
        assert killed.is_alive()
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    before = measures(out / "gpu-toy-loss.json")
    assert "kernels of a step" not in before
    again = start("loss", "steps")
    again.join()
    assert again.exitcode == 0
    after = measures(out / "gpu-toy-loss.json")
    assert before.items() <= after.items()  # not measured again
    assert set(after) >= {"loss, eager", "matrix products", "a block at 64", "kernels of a step"}
    steps = measures(out / "gpu-toy-steps.json")
    assert set(steps) >= {"256 tokens at 64", "256 tokens at 128", "loop, flushed every 10 steps"}
    assert steps["256 tokens at 64"]["seconds"] > 0
    machine = json.loads((out / "gpu-toy-steps.json").read_text())["environment"]
    assert (machine["ray"], machine["gpu"]) == (None, None)


@pytest.fixture
def python_without_ray(tmp_path: Path) -> Path:
    """An environment without Ray."""
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    link_packages_without_ray(packages)
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.soak
def test_every_part_measures_without_ray_but_the_run(
    tmp_path: Path, python_without_ray: Path
) -> None:
    out = tmp_path / "out"
    environ = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(
        [python_without_ray, SCRIPT, "--out", out],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
    )
    taken = {part: measures(out / f"gpu-toy-{part}.json") for part in gpu.MOST_SECONDS}
    assert [part for part in taken if any("error" in each for each in taken[part].values())] == [
        "run"
    ], done.stderr
    assert set(taken["loss"]) >= {"loss, eager", "matrix products", "a block at 64"}
    assert {"256 tokens at 64", "loop, flushed every 10 steps"} <= set(taken["steps"])
    assert taken["largest"]["at 64"]["tokens"] % 64 == 0
    assert taken["largest"]["longest over shortest"]["ratio"] > 0
    # It asks for the command's exit status: without Ray it cannot start.
    assert taken["run"]["undisturbed"]["error"].startswith("RuntimeError: glray run ended with")
    assert "run: incomplete" in done.stdout
    assert done.returncode == 1
    machine = json.loads((out / "gpu-toy-loss.json").read_text())["environment"]
    assert (machine["ray"], machine["gpu"]) == (None, None)


def test_a_part_is_ended_when_its_time_is_over_and_the_next_one_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def hangs(*_: object) -> None:
        time.sleep(60)

    def main() -> None:
        gpu_parts.PARTS["loss"] = gpu_parts.PARTS["steps"] = hangs
        gpu.main(["--part", "loss", "--part", "steps", "--out", str(tmp_path), "--max-seconds=1"])

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    process.join()
    assert process.exitcode == 1
    said = capfd.readouterr().out
    assert said.count("ended by its time limit") == 2


@pytest.mark.soak
@pytest.mark.ray
def test_a_run_is_killed_and_resumed(tmp_path: Path) -> None:
    def run_part(out: Path, *more: str) -> int:
        command = [sys.executable, str(SCRIPT), "--part", "run", "--out", str(out), *more]
        return subprocess.run(command, check=False).returncode

    assert run_part(tmp_path) == 0
    found = measures(tmp_path / "gpu-toy-run.json")["killed and resumed"]
    assert found["losses_apart_at_most"] == 0
    assert found["execution_changed"] is False
    assert run_part(tmp_path / "b", "--max-seconds", "25") == 1
    late = measures(tmp_path / "b" / "gpu-toy-run.json")
    assert "within the time of this part" in late["undisturbed"]["error"]
    assert late["killed and resumed"]["error"]


# ---- what a result says of its machine


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Rel", "580.65.06"),
        ("none", None),
    ],
)
def test_the_drivers_version(tmp_path: Path, text: str, version: str | None) -> None:
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == version
    assert driver_version(tmp_path / "missing") is None


def test_a_machine_without_a_gpu_has_none_of_its_versions() -> None:
    assert not {"cuda", "cudnn", "driver"} & set(environment(WorkerContext()))
