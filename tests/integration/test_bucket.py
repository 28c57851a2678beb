"""``glray run`` with a bucket for its storage: prepared, trained on Ray, killed and ended there."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from glray.data.corpus import run_corpus
from glray.errors import UserError
from glray.files import StorePath, files_below, read_log, sole_writer
from glray.run.checkpoint import committed_checkpoints
from glray.run.run import Run
from glray.spec import load_pipeline
from glray.train.context import WorkerContext
from glray.train.worker import train_all
from tests.measuring import measure_briefly

from ..command import start_glray, status_of
from ..stores import BUCKET
from ..weights import same_weights
from .test_cli import persons_environment
from .test_survival import write_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.soak  # tests/train/test_in_store.py has the same without Ray
def test_a_killed_command_goes_on_in_a_bucket(bucket: StorePath, tmp_path: Path) -> None:
    write_pipeline(tmp_path, num_steps=1200, num_workers=1, every_steps=100)
    arguments = ("run", "tiny.py", "--set", f"compute.storage=s3://{BUCKET}/runs")
    pipeline, log = bucket / "runs/tiny", tmp_path / "log"
    first = start_glray(tmp_path, log, persons_environment(), *arguments)
    end = time.monotonic() + 240
    while not committed_checkpoints(pipeline / "grow-seed0/checkpoints"):
        assert time.monotonic() < end, log.read_text()
        assert first.exitcode is None, log.read_text()
        time.sleep(0.2)
    with pytest.raises(UserError, match="another glray process is writing"), sole_writer(pipeline):
        pass
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    assert status_of(first, log, 60) == -signal.SIGKILL

    spec, killed = load_pipeline(pipeline / "spec.yaml"), Run.open(pipeline / "grow-seed0")
    corpus = run_corpus(killed)
    torch.set_num_threads(1)
    measure_briefly()
    for storage in (bucket / "runs", tmp_path / "alone"):
        train_all(spec.derive(compute={"storage": str(storage)}), corpus, WorkerContext())
    undisturbed = Run.open(tmp_path / "alone/tiny/grow-seed0")
    assert same_weights(killed, undisturbed)
    assert killed.log.step.tolist() == list(range(1, 1201))
    events = read_log(pipeline / "events.log").decode()
    assert events.count("resumed at step") == 1
    assert "bit-identity" not in events

    last = start_glray(tmp_path, log, persons_environment(), *arguments)
    assert status_of(last, log, 120) == 0, log.read_text()
    assert "nothing to train" in log.read_text()
    assert f"report: s3://{BUCKET}/runs/tiny/report.html" in log.read_text()
    assert "report.html" in files_below(pipeline)
