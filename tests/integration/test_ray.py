"""What only Ray can show: its stream is the local one, and groups train side by side."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from glray.data.blocks.token_blocks import open_token_blocks
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.windows import StageReads, local_batches, read_windows, stage_reads
from glray.errors import UserError
from glray.files import sha256_of
from glray.plan import make_plan
from glray.ray import train as ray_train
from glray.ray.stream import ray_batches, segment_dataset
from glray.ray.train import fit
from glray.train.context import WorkerContext
from glray.train.session import SEGMENT_TOKENS
from glray.train.worker import train_all
from tests.planned import planned

from ..killing import same_run
from ..tiny import tiny_spec
from ..tokens import damage

pytestmark = pytest.mark.ray


def reads(
    corpus: PreparedCorpus, storage: Path, *, first_step: int, rank: int, world_size: int
) -> Iterator[StageReads]:
    spec = tiny_spec(storage, budget={"tokens": 120 * 64})
    plan = make_plan(spec, spec.arms[0])
    assert plan is not None
    order = corpus.order(plan.chunk_len, seed=0)
    return stage_reads(
        order,
        plan,
        first_step=first_step,
        steps_per_segment=15,
        rank=rank,
        world_size=world_size,
    )


def test_the_dataset_has_arrow_token_columns(
    ray_local: None, corpus: PreparedCorpus, tmp_path: Path
) -> None:
    segment = next(reads(corpus, tmp_path, first_step=3, rank=0, world_size=1))
    dataset = segment_dataset(corpus, segment)
    schema = dataset.schema().base_schema
    assert schema.field("offset").type == pa.int64()
    assert schema.field("tokens").type == pa.fixed_shape_tensor(pa.uint16(), (9,))
    table = pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    offsets = segment.offsets.ravel()
    assert table.column("offset").to_pylist() == offsets.tolist()
    expected = read_windows(corpus.block_places(offsets), offsets, 8)
    got = table.column("tokens").combine_chunks().to_numpy_ndarray()
    assert got.dtype == np.uint16
    assert got.tobytes() == expected.tobytes()


# Of 3 ranks one has no rows at seq_len 32; step 50 lies inside the second of three stages.
@pytest.mark.parametrize(("first_step", "rank", "world_size"), [(0, 0, 1), (50, 1, 2), (50, 0, 3)])
def test_rays_stream_is_the_local_one(
    ray_local: None,
    corpus: PreparedCorpus,
    tmp_path: Path,
    first_step: int,
    rank: int,
    world_size: int,
) -> None:
    def segments() -> Iterator[StageReads]:
        return reads(corpus, tmp_path, first_step=first_step, rank=rank, world_size=world_size)

    steps = []
    for ours, theirs in zip(
        ray_batches(corpus, segments()), local_batches(corpus, segments()), strict=True
    ):
        assert (ours.step, ours.seq_len) == (theirs.step, theirs.seq_len)
        assert ours.tokens_per_batch == theirs.tokens_per_batch == 64
        assert ours.offsets.tolist() == theirs.offsets.tolist()
        assert ours.tokens.dtype == theirs.tokens.dtype
        assert ours.tokens.shape == theirs.tokens.shape
        assert ours.tokens.tobytes() == theirs.tokens.tobytes()
        steps.append(ours.step)
    assert steps == list(range(first_step, 120))


@pytest.mark.soak  # 10 s
def test_reads_ahead_end_while_the_loop_is_slow(ray_local: None, corpus: PreparedCorpus) -> None:
    # Reads that Ray Data holds back have its thread spin in the worker's process.
    offsets = np.zeros((SEGMENT_TOKENS // 2**14, 2**4), dtype=np.int64)  # steps of 2^14 tokens
    segments = (StageReads(n * len(offsets), 2**10, 2**14, offsets) for n in range(2))
    batches = ray_batches(corpus, segments)
    next(batches)
    end = time.monotonic() + 60
    while any(thread.name.startswith("StreamingExecutor") for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.1)
    batches.close()


def test_a_stream_that_is_closed_early_leaves_no_thread_that_uses_ray(
    ray_local: None, corpus: PreparedCorpus, tmp_path: Path
) -> None:
    # One that drops a block while Ray shuts down would end the process with status 1.
    batches = ray_batches(corpus, reads(corpus, tmp_path, first_step=0, rank=0, world_size=1))
    next(batches)
    names = ("iter_threaded", "StreamingExecutor", "read-ahead")

    def left() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith(names)]

    assert left()
    batches.close()
    assert not left()


def test_a_damaged_block_is_one_line(
    ray_local: None, corpus: PreparedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process, as on a cluster of its own: a group takes half a minute to start.
    monkeypatch.setattr(ray_train, "is_own_cluster", lambda: True)
    (source,) = corpus.sources
    directory = tmp_path / "tokens"
    shutil.copytree(str(source.blocks.directory), directory)
    damaged = PreparedCorpus((PreparedSource("stdlib", 1, open_token_blocks(directory)),))
    path = damage(damaged.sources[0].blocks)
    spec = tiny_spec(tmp_path)
    spec = spec.derive(arms=spec.arms[:1])
    threads = torch.get_num_threads()
    with pytest.raises(UserError, match=rf"^{path}: block 0 is damaged, [^\n]*$"):
        fit(spec, damaged)
    torch.set_num_threads(threads)


def test_runs_side_by_side_end_as_they_do_one_after_another(
    ray_local: None, corpus: PreparedCorpus, tmp_path: Path
) -> None:
    alone = tiny_spec(tmp_path / "alone", seeds=(0, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker below: the same sums
    train_all(alone, corpus, WorkerContext())
    torch.set_num_threads(threads)
    spec = tiny_spec(tmp_path / "beside", seeds=(0, 1))
    fit(spec.derive(compute={"groups": 2}), corpus)

    directory = tmp_path / "beside" / "tiny"
    events = (directory / "events.log").read_text()
    assert "2 worker groups side by side, 4 runs to train\n" in events
    trained = {name: (directory / name).exists() for name in ("progress.json", "progress-1.json")}
    assert trained == {"progress.json": True, "progress-1.json": True}
    for run, expected in zip(planned(spec, corpus), planned(alone, corpus), strict=True):
        assert events.count(f"{run.name}: starts") == 1
        assert same_run(run, expected)
        models = [(r.directory / "model" / "model.safetensors") for r in (run, expected)]
        assert sha256_of(models[0]) == sha256_of(models[1])
