"""Several workers train as one does: same tokens, same gradient, also where rows do not divide."""

import json
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.windows import local_batches, stage_reads
from glray.errors import UserError
from glray.files import read_json
from glray.model.config import model_config
from glray.plan import make_plan
from glray.run.checkpoint import CommittedFile, committed_checkpoints, step_of
from glray.run.run import Run, pipeline_directory, with_calibration
from glray.spec import PipelineSpec, fixed
from glray.train.context import WorkerContext
from glray.train.execution import execution
from glray.train.tensor_files import RankFile
from glray.train.trainee import Trainee
from glray.train.worker import train_all
from tests.planned import planned

from ..disk import files_of_a_kilobyte
from ..group import Work, join_group, start_group, train
from ..tiny import tiny_spec
from ..tokens import write_tokens


def in_a_group(
    work: Work, world_size: int, spec: PipelineSpec, corpus: PreparedCorpus, *arguments: object
) -> None:
    assert join_group(start_group(work, world_size, spec, corpus, *arguments))


def train_until(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, stop_after: int
) -> None:
    """Train, and stop when the ``stop_after``-th time is asked."""
    asked = count(1)
    train_all(spec, corpus, replace(ctx, stop=lambda: next(asked) >= stop_after))


def train_twice_blind(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> None:
    """Train, stop, and train to the end; ranks other than 0 fail if they look into the pipeline's
    directory for anything but the files of a checkpoint, which rank 0 has named."""
    directory, looks = f"{pipeline_directory(spec)}/", {"open", "os.listdir", "os.scandir"}

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in looks and str(arguments[0]).startswith(directory):
            assert "/checkpoints/" in str(arguments[0]), f"rank {ctx.rank} looks at {arguments[0]}"

    if ctx.rank:
        sys.addaudithook(refuse)
    train_until(spec, corpus, ctx, 3)
    train_all(spec, corpus, ctx)


def train_with(
    world_size: int, storage: Path, corpus: PreparedCorpus, parallelism: str = "ddp"
) -> list[Run]:
    spec = tiny_spec(storage, budget={"tokens": 6 * 64})
    spec = spec.derive(compute={"parallelism": parallelism})
    if world_size == 1:
        train_all(spec, corpus, WorkerContext())
    else:
        in_a_group(train, world_size, spec, corpus)
    return planned(spec, corpus)


def records(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> list[Run]:
    torch.set_num_threads(1)
    return train_with(1, tmp_path_factory.mktemp("alone"), corpus)


# At seq_len 32 a batch has 2 rows: of 3 ranks one has none, of 4 two.
@pytest.mark.parametrize(
    ("world_size", "parallelism"), [(2, "ddp"), (3, "ddp"), (4, "ddp"), (3, "fsdp")]
)
def test_workers_together_are_one_worker(
    alone: list[Run], tmp_path: Path, corpus: PreparedCorpus, world_size: int, parallelism: str
) -> None:
    together = train_with(world_size, tmp_path, corpus, parallelism)
    for run, expected in zip(together, alone, strict=True):
        ours, theirs = records(run), records(expected)
        assert [r["checksum"] for r in ours] == [r["checksum"] for r in theirs]
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


def test_what_the_storage_says_rank_zero_alone_decides(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path, budget={"seconds": 0.3}, ratios_in="seconds")
    spec = spec.derive(compute={"micro_batch_tokens": "auto"})
    in_a_group(train_twice_blind, 2, spec, corpus)
    events = (tmp_path / "tiny" / "events.log").read_text()
    assert "resumed at step" in events
    assert events.count("calibration:") == 1
    assert all(run.is_finished for run in planned(with_calibration(spec), corpus))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return whole(parameter.grad).clone()


def save_gradients(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, out: str
) -> None:
    """The gradient of one step of each stage, all at the initial weights."""
    assert spec.model is not None
    config = model_config(
        spec.model,
        vocab_size=corpus.vocabulary.vocab_size,
        eos_id=corpus.vocabulary.eos_id,
        max_seq_len=32,
    )
    executed = execution(spec, ctx)
    trainee = Trainee.scratch(config, spec, ctx, executed)
    plan = make_plan(spec, spec.arms[0])
    assert plan is not None
    segments = stage_reads(
        corpus.order(plan.chunk_len, seed=0),
        plan,
        first_step=0,
        steps_per_segment=100,
        rank=ctx.rank,
        world_size=ctx.world_size,
    )
    gradients = {}
    for batch in local_batches(corpus, segments):
        if batch.step in (0, *plan.stage_ends):
            trainee.gradients(batch)
            gradients[batch.seq_len] = [whole_gradient(p) for p in trainee.model.parameters()]
            trainee.model.zero_grad(set_to_none=True)
    if ctx.rank == 0:
        torch.save(gradients, out)


def test_the_gradient_of_several_workers_is_that_of_one(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    gradients = {}
    for world_size, parallelism in ((1, "ddp"), (2, "ddp"), (3, "ddp"), (4, "ddp"), (3, "fsdp")):
        spec = tiny_spec(tmp_path)
        spec = spec.derive(compute={"parallelism": parallelism})
        out = str(tmp_path / f"{world_size}-{parallelism}.pt")
        in_a_group(save_gradients, world_size, spec, corpus, out)
        gradients[world_size, parallelism] = torch.load(out, weights_only=True)
    alone = gradients.pop((1, "ddp"))
    for seq_len in (8, 16, 32):
        one = torch.cat([g.double().ravel() for g in alone[seq_len]])
        for together in gradients.values():
            other = torch.cat([g.double().ravel() for g in together[seq_len]])
            assert (other - one).norm() / one.norm() < 1e-6  # float32 has 6e-8


def test_workers_that_come_and_go_go_on_at_the_cursor(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
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
    train_all(alone, both, WorkerContext())

    spec = tiny_spec(tmp_path / "elastic", **mixture)
    for world_size, parallelism, stop_after in (
        (2, "ddp", 2),
        (3, "fsdp", 3),
        (1, "ddp", 2),
        (4, "fsdp", 4),
        (3, "ddp", 1000),
    ):
        spec = spec.derive(compute={"parallelism": parallelism})
        in_a_group(train_until, world_size, spec, both, stop_after)
    for run, expected in zip(planned(spec, both), planned(alone, both), strict=True):
        ours, theirs = records(run), records(expected)
        assert [r["step"] for r in ours] == list(range(1, 25))
        assert [r["checksum"] for r in ours] == [r["checksum"] for r in theirs]
        results = [read_json(r.directory / "result.json") for r in (run, expected)]
        assert results[0]["checksum"] == results[1]["checksum"]
        assert results[0]["tokens_by_seq_len"] == results[1]["tokens_by_seq_len"]
    executions = read_json(tmp_path / "elastic" / "tiny" / "grow-seed0" / "run.json")["executions"]
    assert [entry["num_workers"] for entry in executions] == [2, 3, 1, 4, 3]
    events = (tmp_path / "elastic" / "tiny" / "events.log").read_text()
    assert "bit-identity ends at step 3: num_workers 2 → 3; parallelism ddp → fsdp" in events


def train_beside_a_slow_writer(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, out: str
) -> None:
    """Rank 1 writes nothing before the fourth logging boundary; rank 0 notes at each what counts
    as a checkpoint."""
    asked, released, seen = count(1), threading.Event(), []
    write = RankFile.write

    def slowly(file: RankFile, *events: threading.Event) -> CommittedFile:
        assert ctx.rank == 0 or released.wait(60)
        return write(file, *events)

    def stop() -> bool:
        seen.append([step_of(path) for path in committed_checkpoints(run.checkpoints)])
        if next(asked) == 4:
            released.set()
        return False

    (run,) = planned(spec, corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankFile, "write", slowly)
        train_all(spec, corpus, replace(ctx, stop=stop))
    if ctx.rank == 0:
        Path(out).write_text(json.dumps(seen))


def test_a_checkpoint_counts_once_the_slowest_rank_has_written(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path, arms=(fixed(32),))  # checkpoints at 3, 6, 9; boundaries 2, 3, 4, 6
    out = tmp_path / "seen.json"
    in_a_group(train_beside_a_slow_writer, 2, spec, corpus, str(out))
    seen = json.loads(out.read_text())
    assert seen[:4] == [[]] * 4
    assert 3 in seen[4]  # the next one waited for it
    (run,) = planned(spec, corpus)
    assert run.is_finished
    shares = committed_checkpoints(run.checkpoints)[-1] / "tensors"
    assert len(list(shares.iterdir())) == 2


def train_with_one_full_disk(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, out: str
) -> None:
    """No file of rank 1 can grow beyond a kilobyte; each rank notes what it says."""
    disk = files_of_a_kilobyte() if ctx.rank == 1 else nullcontext()
    with disk, pytest.raises(UserError) as error:
        train_all(spec, corpus, ctx)
    (Path(out) / f"rank-{ctx.rank}").write_text(str(error.value))


def test_a_disk_that_is_full_for_one_rank_ends_all_with_the_same_line(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path)
    in_a_group(train_with_one_full_disk, 2, spec, corpus, str(tmp_path))
    checkpoints = planned(spec, corpus)[0].checkpoints
    said = {(tmp_path / f"rank-{rank}").read_text() for rank in range(2)}
    assert said == {
        f"{checkpoints}: the checkpoint of step 3 cannot be written: File too large; the one "
        "before it stays, make room there and the same command goes on from it"
    }
    assert list(checkpoints.iterdir()) == []
