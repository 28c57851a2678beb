"""Several workers train as one does: same tokens, same gradient, also where rows do not divide."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from glray.data.corpus import PreparedCorpus, open_corpus
from glray.spec.loading import validate
from glray.training.context import LocalContext
from glray.training.run_directory import settle
from glray.training.worker import train_all

from ..tiny import tiny_spec


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work(rank: int, world_size: int, port: int, spec_json: str, tokens: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    spec = validate(json.loads(spec_json), "test")
    train_all(spec, open_corpus(spec, json.loads(tokens)), LocalContext(rank, world_size))
    torch.distributed.destroy_process_group()


def train_with(world_size: int, storage: Path, corpus: PreparedCorpus):
    spec = tiny_spec(storage, budget={"tokens": 6 * 64})
    if world_size == 1:
        train_all(spec, corpus, LocalContext())
    else:
        spec_json = json.dumps(spec.model_dump(mode="json"))
        torch.multiprocessing.spawn(
            work,
            (world_size, free_port(), spec_json, json.dumps(corpus.directories)),
            nprocs=world_size,
        )
    return settle(spec, corpus)


def records(run):
    return [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, corpus):
    torch.set_num_threads(1)
    return train_with(1, tmp_path_factory.mktemp("alone"), corpus)


# At seq_len 32 a batch has 2 rows: of 3 ranks one has none.
@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_together_are_one_worker(alone, tmp_path, corpus, world_size):
    together = train_with(world_size, tmp_path, corpus)
    for run, expected in zip(together, alone, strict=True):
        ours, theirs = records(run), records(expected)
        assert [r["proof"] for r in ours] == [r["proof"] for r in theirs]
        for key in ("loss", "grad_norm"):
            np.testing.assert_allclose(
                [r[key] for r in ours], [r[key] for r in theirs], rtol=2e-5, err_msg=key
            )
        last = f"evaluations/step-{run.plan.num_steps:08d}.json"
        for a, b in zip(
            json.loads((run.directory / last).read_text())["lengths"],
            json.loads((expected.directory / last).read_text())["lengths"],
            strict=True,
        ):
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
            np.testing.assert_allclose(a["loss_by_position"], b["loss_by_position"], rtol=1e-3)
