"""What TensorBoard and Weights & Biases are shown, read back from their files."""

import errno
import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from typer.testing import CliRunner

from glray.cli import app
from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import AnyPath, matching, read_json
from glray.run.run import Run
from glray.spec import ComputeSpec, PipelineSpec
from glray.spec.loading import to_yaml
from glray.train import trackers
from glray.train.context import WorkerContext
from glray.train.probe import peak
from glray.train.probe.peak import matmul_peak, measured_peak, nominal_peak
from glray.train.trackers import TensorBoard
from glray.train.worker import train_all
from tests.planned import planned

from ..disk import files_of_a_kilobyte
from ..tiny import tiny_spec

CPU = torch.device("cpu")


def events(path: AnyPath) -> Iterator[Event]:
    """The events of one file, as TensorBoard reads them: framed, each part with its checksum."""
    with path.open("rb") as file:

        def part(size: int) -> bytes:
            content, checksum = file.read(size), file.read(4)
            assert struct.unpack("<I", checksum) == (masked_crc32c(content),)
            return content

        while file.tell() < path.stat().st_size:
            (length,) = struct.unpack("<Q", part(8))
            yield Event.FromString(part(length))


def shown(run: Run) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} after all files of the run, restarts hiding what they repeat."""
    scalars: dict[str, dict[int, float]] = {}
    for path in matching(run.directory / "tensorboard", "*"):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                scalars = {
                    tag: {step: value for step, value in values.items() if step < event.step}
                    for tag, values in scalars.items()
                }
            for value in event.summary.value:
                steps = scalars.setdefault(value.tag, {})
                assert event.step not in steps, f"{value.tag} twice at {event.step}"
                steps[event.step] = value.simple_value
    return scalars


def metrics(run: Run) -> list[dict[str, Any]]:
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def one_arm(storage: Path, **compute: object) -> PipelineSpec:
    spec = tiny_spec(storage)
    return spec.derive(arms=spec.arms[:1], compute=compute)


class Killed(Exception):
    """Stands for a death between two steps."""


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> Run:
    """Killed at step 9, when 7 and 8 were logged and no checkpoint of them was committed; then
    trained to the end."""
    torch.set_num_threads(1)
    spec = one_arm(tmp_path_factory.mktemp("seen"))
    asked = iter([False] * 5)  # after steps 2, 3, 4, 6 and 8

    def die() -> bool:
        if next(asked, True):
            raise Killed
        return False

    with pytest.raises(Killed):
        train_all(spec, corpus, WorkerContext(stop=die))
    (run,) = planned(spec, corpus)
    assert metrics(run)[-1]["step"] == 8
    train_all(spec, corpus, WorkerContext())
    return run


def test_tensorboard_shows_each_step_once_as_metrics_has_it(killed_and_resumed: Run) -> None:
    run = killed_and_resumed
    assert len(list((run.directory / "tensorboard").iterdir())) == 2
    scalars = shown(run)
    assert {tag for tag in scalars if tag.startswith("train/")} == {
        f"train/{name}"
        for name, value in metrics(run)[0].items()
        if name != "step" and isinstance(value, int | float)
    }
    for name in ("loss", "mfu", "seq_len"):
        values = scalars[f"train/{name}"]
        assert sorted(values) == list(range(1, 13))
        for line in metrics(run):
            assert math.isclose(values[line["step"]], line[name], rel_tol=1e-6)


def test_tensorboard_shows_the_heldout_losses_of_every_boundary(killed_and_resumed: Run) -> None:
    run = killed_and_resumed
    scalars = shown(run)
    for step in run.plan.stage_ends:
        for entry in read_json(run.evaluation_path(step))["lengths"]:
            value = scalars[f"heldout/loss/{entry['seq_len']}"][step]
            assert math.isclose(value, entry["loss"], rel_tol=1e-6)


def test_speed_is_of_the_steps_between_two_flushes(killed_and_resumed: Run) -> None:
    run = killed_and_resumed
    peak = read_json(run.directory / "run.json")["environment"]["matmul_flops_per_second"]
    assert peak["nominal"] is None
    lines = {line["step"]: line for line in metrics(run)}
    for last in (2, 6, 8, 12):  # flushed with the step before, which has the same length
        pair = [lines[last - 1], lines[last]]
        assert pair[0]["mfu"] == pair[1]["mfu"] > 0
        assert pair[0]["tokens_per_second"] == pair[1]["tokens_per_second"]
        flops_per_token = run.manifest.flops_per_token[pair[0]["stage"]]
        if last > 6:  # since the resumption, whose peak run.json has
            assert pair[0]["mfu"] == pytest.approx(
                pair[0]["tokens_per_second"] * flops_per_token / peak["measured"]
            )
        assert pair[0]["memory_bytes"] > 10 * 2**20
    seconds = sum(64 / line["tokens_per_second"] for line in lines.values())
    assert 0 < seconds <= read_json(run.directory / "result.json")["measured_seconds"]


def test_model_flops_count_each_stage_at_its_length(killed_and_resumed: Run) -> None:
    run = killed_and_resumed
    first, second, third = (64 * flops for flops in run.manifest.flops_per_token)
    assert first < second < third
    assert run.model_flops(0) == 0
    assert run.model_flops(5) == 4 * first + second
    assert run.model_flops(12) == 4 * (first + second + third)


def test_the_measured_peak_is_one_that_training_cannot_reach(killed_and_resumed: Run) -> None:
    assert all(line["mfu"] < 1 for line in metrics(killed_and_resumed))
    assert measured_peak(CPU, torch.float32) > 1e8
    assert matmul_peak(WorkerContext(), "float32").nominal is None


def test_a_gpu_is_warm_before_its_peak_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card whose first product takes a second, whose clock is low for 0.15 s of work after it,
    and of which the fastest product then counts: 1e14 FLOP/s instead of 2e13."""
    clock, worked = [0.0], [0.0]

    def product_seconds(size: int) -> float:
        is_first, is_warm = worked[0] == 0, worked[0] > 0.15
        seconds = 1.0 if is_first else 2 * size**3 / (1e14 if is_warm else 2e13)
        worked[0] += seconds if not is_first else 1e-9
        clock[0] += seconds
        return seconds

    monkeypatch.setattr(peak, "ENOUGH_SECONDS", 0.02)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(peak, "_operands", lambda size, device, dtype: [size])
    monkeypatch.setattr(peak, "_product_seconds", product_seconds)
    assert measured_peak(torch.device("cuda"), torch.bfloat16) == pytest.approx(1e14)
    assert worked[0] > 0.2


def test_the_nominal_peak_is_known_by_the_whole_name() -> None:
    assert nominal_peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert nominal_peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16") is None


def test_a_full_disk_is_an_error_that_names_the_file(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    run = planned(one_arm(tmp_path), corpus)[0]
    run.directory.mkdir(parents=True)
    tracker = TensorBoard(run, step=0)

    def write_and_flush(times: int) -> None:
        for _ in range(times):
            tracker.write(1, {"train/loss": 1.0})
            tracker.flush()

    write_and_flush(1)
    with files_of_a_kilobyte(), pytest.raises(OSError, match=r"tfevents\.") as caught:
        write_and_flush(100)
    assert caught.value.errno == errno.EFBIG


def asked_of_wandb(project: str = "glray") -> ComputeSpec:
    return ComputeSpec(wandb_project=project)


def test_a_missing_wandb_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    pipeline = tmp_path / "spec.yaml"
    pipeline.write_text(to_yaml(one_arm(tmp_path / "storage", wandb_project="glray").resolved()))
    result = CliRunner().invoke(app, ["run", str(pipeline)])
    assert isinstance(result.exception, UserError), result.output
    assert "pip install 'glray[wandb]'" in str(result.exception)
    assert result.output == ""
    assert list((tmp_path / "storage").iterdir()) == []


def test_wandb_needs_a_key_unless_it_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name, value in (("HOME", str(tmp_path)), ("WANDB_API_KEY", ""), ("NETRC", "")):
        monkeypatch.setenv(name, value)

    def ask(**variables: str) -> str:
        """In a process of its own: wandb reads its settings once."""
        code = (
            "from glray.spec import ComputeSpec; from glray.train.trackers import validate_tracker;"
            "validate_tracker(ComputeSpec(wandb_project='glray'), needs_key=True)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True
        )
        last = done.stderr.strip().rpartition("\n")[2]
        return last.partition("UserError: ")[2]

    assert re.match("compute.wandb_project glray: there is no API key .* WANDB_MODE=offline", ask())
    assert "must have 40+ characters" in ask(WANDB_API_KEY="short")
    assert "Input should be 'online'" in ask(WANDB_MODE="none")
    assert ask(WANDB_MODE="offline") == ask(WANDB_MODE="disabled") == ""
    assert ask(WANDB_API_KEY="0" * 40) == ""


def test_wandb_offline_resumes_under_one_id(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    spec = one_arm(tmp_path, wandb_project="glray")
    asked = iter([False, True])
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))
    train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    folders = matching(run.directory / "wandb", "offline-run-*")
    ids = {folder.name.rpartition("-")[2] for folder in folders}
    assert len(ids) == 1
    assert all(matching(folder, "*.wandb") for folder in folders)
