"""Killed at random moments and started again, a run ends as if nothing had happened.

The kills are SIGKILLs from outside at times drawn from a printed seed; the run's checkpoints are
close together, so that some kills land inside one.
"""

import json
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from glray.files import read_json
from glray.training.checkpoint import committed_checkpoints
from glray.training.context import LocalContext
from glray.training.run_directory import settle
from glray.training.worker import train_all

from ..tiny import tiny_spec

WORKER = """
import json, sys, torch
from pathlib import Path
from glray.data.corpus import open_corpus
from glray.spec.loading import validate
from glray.training.context import LocalContext
from glray.training.worker import train_all
torch.set_num_threads(1)
spec = validate(json.loads(sys.argv[1]), "test")
print("ready", flush=True)
train_all(spec, open_corpus(spec, json.loads(sys.argv[2])), LocalContext())
"""


@pytest.mark.parametrize(
    "num_kills", [2, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_a_run_killed_at_random_moments_ends_bit_identical(tmp_path, corpus, num_kills):
    fields = {"budget": {"tokens": 300 * 64}}
    undisturbed, killed = (tiny_spec(tmp_path / name, **fields) for name in ("one", "two"))
    start = time.monotonic()
    train_all(undisturbed, corpus, LocalContext())
    seconds = time.monotonic() - start

    seed = random.SystemRandom().randrange(10**6)
    print(f"kill times from seed {seed}")
    rng = random.Random(seed)
    arguments = [json.dumps(killed.model_dump(mode="json")), json.dumps(corpus.directories)]
    command = [sys.executable, "-c", WORKER, *arguments]
    kills = 0
    while kills < num_kills:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()  # past the imports: the time drawn is training time
        time.sleep(rng.uniform(0, seconds / 2))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    print(f"{kills} kills")
    for run, expected in zip(settle(killed, corpus), settle(undisturbed, corpus), strict=True):
        result, wanted = (read_json(r.directory / "result.json") for r in (run, expected))
        assert result["proof"] == wanted["proof"]
        ours, theirs = (
            load_file(committed_checkpoints(r.checkpoints)[-1] / "model.safetensors")
            for r in (run, expected)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
