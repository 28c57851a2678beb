"""The Ray Train edge: one worker group that calibrates once and then trains every run in turn.

A ``fit()`` costs 12–36 s, so the arms of a pipeline share one. Ray Train's own storage holds
nothing that matters: checkpoints and records are glray's, in the run's directory.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
import ray.train.torch
import torch

from glray.data.corpus import PreparedCorpus, open_corpus
from glray.data.stream import ray_batches, start_reader
from glray.data.windows import Batch, StageReads
from glray.errors import UserError
from glray.files import sole_writer, write_text
from glray.spec.loading import validate
from glray.spec.pipeline import PipelineSpec
from glray.training.context import from_rank_zero
from glray.training.run_directory import pipeline_directory

WORKER_FAILURES = 3
"""Times that one ``fit`` starts a worker group anew after a worker died. If a checkpoint was
committed meanwhile another ``fit`` follows: a run of weeks may lose any number of workers, one that
dies at the same step each time ends."""
ORPHAN_SECONDS = 120.0
"""How long a group waits for one whose driver was killed: its workers were seen to train on for
some seconds, and two would write the same files."""
RESIZE_SECONDS = 60.0
"""How often Ray Train looks whether a group of (fewest, most) workers could grow."""


class RayContext:
    """A worker of a Ray Train group."""

    def __init__(self, stop_file: Path) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._stop_file = stop_file

    def batches(self, corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Iterator[Batch]:
        """See WorkerContext: through Ray Data."""
        return ray_batches(corpus, segments)

    def stop_requested(self) -> bool:
        """See WorkerContext: whether the driver has left its stop file."""
        return self._stop_file.exists()

    def preempted(self) -> bool:
        """See WorkerContext: whether Ray drains a node that a worker is on."""
        return ray.train.get_preemption_info() is not None

    def report(self, metrics: dict[str, float]) -> None:
        """See WorkerContext. Blocks until the controller polls, so it is called at checkpoints."""
        ray.train.report(metrics)


def fit(spec: PipelineSpec, corpus: PreparedCorpus, callbacks: list[Any] | None = None) -> None:
    """Train every unfinished run of the pipeline in one worker group. Ray is connected.

    ``callbacks`` are Ray Train user callbacks (Tune's, within a trial). Raises what a worker
    raised, wrapped by Ray Train.
    """
    _run_group(_training_worker, spec, corpus, callbacks or [])


def calibrate_in_group(spec: PipelineSpec, corpus: PreparedCorpus, path: Path) -> None:
    """Calibrate in a worker group like training's and leave ``path``."""
    _run_group(_calibrating_worker, spec, corpus, [], path=str(path))


def stop_file(spec: PipelineSpec) -> Path:
    """Its existence asks the workers of a pipeline to stop at the next logging border."""
    return pipeline_directory(spec) / "STOP"


def _run_group(
    worker: Callable[[dict[str, str]], None],
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    callbacks: list[Any],
    **config: str,
) -> None:
    """One TorchTrainer over the spec's workers; its own storage is thrown away at the end."""
    storage = pipeline_directory(spec) / ".ray-train"
    error_file = _error_file(spec)
    error_file.unlink(missing_ok=True)
    try:
        while True:
            before = _committed(spec)
            try:
                _trainer(worker, spec, corpus, callbacks, config, storage).fit()
                return
            except ray.train.WorkerGroupError:
                if error_file.exists() or _committed(spec) == before:
                    raise
            except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
                raise UserError(
                    f"{pipeline_directory(spec)}: Ray lost the node that led the run "
                    f"({type(error).__name__}): training has stopped; the same command goes on "
                    "from the latest checkpoint"
                ) from None
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        if error_file.exists():
            raise UserError(error_file.read_text(encoding="utf-8"))


def _trainer(
    worker: Callable[[dict[str, str]], None],
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    callbacks: list[Any],
    config: dict[str, str],
    storage: Path,
) -> ray.train.torch.TorchTrainer:
    compute = spec.compute
    gpu = {"GPU": 1} if compute.use_gpu else {}
    return ray.train.torch.TorchTrainer(
        worker,
        train_loop_config={
            "spec": json.dumps(spec.model_dump(mode="json")),
            "tokens": json.dumps(corpus.directories),
            **config,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.num_workers,
            use_gpu=compute.use_gpu,
            resources_per_worker={"CPU": compute.cpus_per_worker} | gpu,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex[:8],
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
            callbacks=callbacks,
        ),
    )


def _committed(spec: PipelineSpec) -> set[Path]:
    """Committed checkpoints and results of all runs: what has changed is progress."""
    directory = pipeline_directory(spec)
    return {*directory.glob("*/checkpoints/*/COMMITTED"), *directory.glob("*/result.json")}


def _training_worker(config: dict[str, str]) -> None:
    start_reader()
    from glray.training.worker import train_all  # the model's code is not for the driver: 5 s

    with _joined(config) as (spec, corpus, ctx):
        train_all(spec, corpus, ctx)


def _calibrating_worker(config: dict[str, str]) -> None:
    from glray.training.worker import calibrate_alone

    with _joined(config) as (spec, corpus, ctx):
        calibrate_alone(spec, corpus, ctx, Path(config["path"]))


@contextmanager
def _joined(config: dict[str, str]) -> Iterator[tuple[PipelineSpec, PreparedCorpus, RayContext]]:
    """What each worker of a group starts from.

    A person's error is left for the driver. A lone worker then returns, so that Ray does not start
    it anew to fail the same way; with others it raises, or they would wait for it for ever.
    """
    spec = validate(json.loads(config["spec"]), "the worker's spec")
    torch.set_num_threads(spec.compute.cpus_per_worker)
    ctx = RayContext(stop_file(spec))
    alone = sole_writer(pipeline_directory(spec), lock=".worker-lock", wait_seconds=ORPHAN_SECONDS)
    try:
        with alone if ctx.rank == 0 else nullcontext():
            if ctx.rank == 0:
                _error_file(spec).unlink(missing_ok=True)  # of an attempt that Ray started anew
            from_rank_zero(ctx, 0)  # what others read of the storage, an orphan writes no more
            yield spec, open_corpus(spec, json.loads(config["tokens"])), ctx
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        said = str(error)
        if isinstance(error, OSError):
            said = f"{error.filename}: {error.strerror}; the same command goes on when it is mended"
        write_text(_error_file(spec), said)
        if ctx.world_size > 1:
            raise


def _error_file(spec: PipelineSpec) -> Path:
    return pipeline_directory(spec) / "ERROR"
