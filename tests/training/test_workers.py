"""Several workers train as one does: same tokens, same gradient, also where rows do not divide."""

import json
import socket
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from glray.data.corpus import PreparedCorpus, PreparedSource, open_corpus
from glray.data.windows import local_batches, stage_reads
from glray.files import read_json
from glray.model.config import model_config
from glray.model.decoder import build_model
from glray.plan import make_plan
from glray.spec import PipelineSpec
from glray.spec.loading import validate
from glray.training.context import LocalContext
from glray.training.run_directory import settle
from glray.training.step import accumulate_gradients, distributed
from glray.training.worker import train_all

from ..tiny import tiny_spec
from ..tokens import write_tokens


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def worker(
    rank: int,
    work: Callable[..., None],
    world_size: int,
    port: int,
    spec_json: str,
    tokens: str,
    *arguments: object,
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    spec = validate(json.loads(spec_json), "test")
    work(spec, open_corpus(spec, json.loads(tokens)), rank, world_size, *arguments)
    torch.distributed.destroy_process_group()


def in_a_group(
    work: Callable[..., None],
    world_size: int,
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    *arguments: object,
) -> None:
    """``work(spec, corpus, rank, world_size, *arguments)`` in processes that are one group."""
    # A server that has imported what takes seconds forks each process.
    torch.multiprocessing.set_forkserver_preload(["glray.training.worker"])
    spec_json, tokens = json.dumps(spec.model_dump(mode="json")), json.dumps(corpus.directories)
    torch.multiprocessing.start_processes(
        worker,
        (work, world_size, free_port(), spec_json, tokens, *arguments),
        nprocs=world_size,
        start_method="forkserver",
    )


def train(
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    rank: int,
    world_size: int,
    stop_after: int | None = None,
) -> None:
    """Train, or stop when the ``stop_after``-th time is asked."""
    asked = count(1)
    stop = (lambda: False) if stop_after is None else lambda: next(asked) >= stop_after
    train_all(spec, corpus, LocalContext(rank, world_size, stop=stop))


def train_with(world_size: int, storage: Path, corpus: PreparedCorpus):
    spec = tiny_spec(storage, budget={"tokens": 6 * 64})
    if world_size == 1:
        train(spec, corpus, 0, 1)
    else:
        in_a_group(train, world_size, spec, corpus)
    return settle(spec, corpus)


def records(run):
    return [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, corpus):
    torch.set_num_threads(1)
    return train_with(1, tmp_path_factory.mktemp("alone"), corpus)


# At seq_len 32 a batch has 2 rows: of 3 ranks one has none, of 4 two.
@pytest.mark.parametrize("world_size", [2, 3, 4])
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


def save_gradients(
    spec: PipelineSpec, corpus: PreparedCorpus, rank: int, world_size: int, out: str
) -> None:
    """The gradient of one step of each stage, all at the initial weights."""
    config = model_config(
        spec.model, vocab_size=corpus.vocab_size, eos_id=corpus.eos_id, max_seq_len=32
    )
    ctx = LocalContext(rank, world_size)
    model = distributed(build_model(config, seed=0, device=ctx.device), ctx)
    plan = make_plan(spec, spec.arms[0])
    segments = stage_reads(
        corpus.order(plan.chunk_len, seed=0),
        plan,
        first_step=0,
        steps_per_segment=100,
        rank=rank,
        world_size=world_size,
    )
    gradients = {}
    for batch in local_batches(corpus, segments):
        if batch.step in (0, *plan.edges):
            accumulate_gradients(model, batch, spec, ctx)
            gradients[batch.seq_len] = [p.grad.clone() for p in model.parameters()]
            model.zero_grad(set_to_none=True)
    if rank == 0:
        torch.save(gradients, out)


def test_the_gradient_of_several_workers_is_that_of_one(tmp_path, corpus):
    spec = tiny_spec(tmp_path)
    gradients = {}
    for world_size in (1, 2, 3, 4):
        out = str(tmp_path / f"{world_size}.pt")
        in_a_group(save_gradients, world_size, spec, corpus, out)
        gradients[world_size] = torch.load(out, weights_only=True)
    for seq_len in (8, 16, 32):
        one = torch.cat([g.double().ravel() for g in gradients[1][seq_len]])
        for world_size in (2, 3, 4):
            other = torch.cat([g.double().ravel() for g in gradients[world_size][seq_len]])
            assert (other - one).norm() / one.norm() < 1e-6  # float32 has 6e-8


def test_workers_that_come_and_go_go_on_at_the_cursor(tmp_path, corpus):
    # Two sources, so that the cursor is arithmetic over both; 24 steps of 2 chunks each.
    rng = np.random.default_rng(1)
    other = write_tokens(
        tmp_path / "tokens", rng.integers(1, 300, size=777), [rng.integers(1, 300, size=200)], "o"
    )
    (source,) = corpus.sources
    both = PreparedCorpus((source, PreparedSource("other", 2, other)))
    sources = [
        {"name": name, "weight": weight, "corpus": {"kind": "stdlib"}}
        for name, weight in (("stdlib", 1), ("other", 2))
    ]
    mixture = {"corpus": {"kind": "mixture", "sources": sources}, "budget": {"tokens": 24 * 64}}
    alone = tiny_spec(tmp_path / "alone", **mixture)
    train(alone, both, 0, 1)

    spec = tiny_spec(tmp_path / "elastic", **mixture)
    for world_size, stop_after in ((2, 2), (3, 3), (1, 2), (4, 4), (3, None)):
        in_a_group(train, world_size, spec, both, stop_after)
    for run, expected in zip(settle(spec, both), settle(alone, both), strict=True):
        ours, theirs = records(run), records(expected)
        assert [r["step"] for r in ours] == list(range(1, 25))
        assert [r["proof"] for r in ours] == [r["proof"] for r in theirs]
        results = [read_json(r.directory / "result.json") for r in (run, expected)]
        assert results[0]["proof"] == results[1]["proof"]
        assert results[0]["tokens_by_seq_len"] == results[1]["tokens_by_seq_len"]
