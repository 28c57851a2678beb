"""The Ray Train boundary: as many worker groups side by side as the cluster has room for.

Each calibrates if need be, with the others, and then trains run after run, whichever is next. To
start a group costs 12–36 s, so it is started once: where there is room for one alone, or one run,
it trains all. Ray Train's own storage holds nothing that matters: checkpoints and records are
glray's, in the run's directory.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
import ray.train.torch
import torch

from glray.data.corpus import PreparedCorpus, open_corpus
from glray.data.windows import Batch, StageReads
from glray.errors import UserError
from glray.files import write_text
from glray.model.config import starting_model
from glray.ray.cluster import groups_with_room, worker_resources
from glray.ray.stream import ray_batches, start_reader
from glray.run.run import pipeline_directory, with_calibration
from glray.spec.loading import validate
from glray.spec.pipeline import PipelineSpec
from glray.train.announcer import write_event
from glray.train.context import from_rank_zero
from glray.train.groups import WorkerGroup, launch
from glray.train.runs import plan_runs

WORKER_FAILURES = 3
"""Times that one ``fit`` starts a worker group anew after a worker died. If a checkpoint was
committed meanwhile another ``fit`` follows: a run of weeks may lose any number of workers, one that
dies at the same step each time ends."""
RESIZE_SECONDS = 60.0
"""How often Ray Train looks whether a group of (fewest, most) workers could grow."""


class RayContext:
    """A worker of a Ray Train group."""

    def __init__(self, stop_file: Path, group: WorkerGroup) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self.group = group
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
    """Train every unfinished run of the pipeline. Ray is connected.

    ``callbacks`` are Ray Train user callbacks (Tune's, within a trial, which is one group). Raises
    what a worker raised first, wrapped by Ray Train, when all groups have ended.
    """
    count = 1
    if not callbacks:
        runs = plan_runs(with_calibration(spec), corpus, starting_model(spec))
        total = len(spec.trained_arms) * len(spec.seeds)
        unfinished = total if runs is None else sum(not run.is_finished for run in runs)
        count = groups_at_once(spec, unfinished)
    if count > 1:
        said = f"{count} worker groups side by side, {unfinished} runs to train"
        write_event(pipeline_directory(spec), said)
    _run_groups(_training_worker, spec, corpus, count=count, callbacks=callbacks)


def groups_at_once(spec: PipelineSpec, unfinished: int) -> int:
    """One for each unfinished run, as far as there is room; an elastic group takes all of it."""
    if spec.compute.least_workers != spec.compute.most_workers:
        return 1
    most = unfinished if spec.compute.groups is None else min(unfinished, spec.compute.groups)
    return max(1, min(most, groups_with_room(spec.compute)))


def calibrate_in_group(spec: PipelineSpec, corpus: PreparedCorpus, path: Path) -> None:
    """Calibrate in a worker group like training's and leave ``path``."""
    _run_groups(_calibrating_worker, spec, corpus, path=str(path))


def stop_file(spec: PipelineSpec) -> Path:
    """Its existence asks the workers of a pipeline to stop at the next logging border."""
    return pipeline_directory(spec) / "STOP"


def _run_groups(
    worker: Callable[[dict[str, str]], None],
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    *,
    count: int = 1,
    callbacks: list[Any] | None = None,
    **config: str,
) -> None:
    """Have ``count`` groups of the spec's workers do ``worker`` until the last has ended."""
    config |= {
        "spec": json.dumps(spec.model_dump(mode="json")),
        "tokens": json.dumps(corpus.directories),
    }

    errors: list[Exception] = []  # in the order of time

    def run(group: WorkerGroup) -> None:
        try:
            _run_group(worker, spec, group, config, callbacks or [])
        except Exception as error:
            errors.append(error)
            if count > 1:  # the others go on, for hours perhaps
                what = " ".join(str(error).split())[:300] or type(error).__name__
                write_event(pipeline_directory(spec), f"worker group {group.index} ended: {what}")

    with launch(pipeline_directory(spec), count) as groups:
        if count == 1:
            run(groups[0])  # in the caller's thread: Tune knows its trial by it
        else:
            with ThreadPoolExecutor(count, thread_name_prefix="group") as pool:
                list(pool.map(run, groups))
    if errors:
        raise errors[0]


def _run_group(
    worker: Callable[[dict[str, str]], None],
    spec: PipelineSpec,
    group: WorkerGroup,
    config: dict[str, str],
    callbacks: list[Any],
) -> None:
    """One TorchTrainer over the spec's workers."""
    error_file = _error_file(group)
    config = config | {"group": json.dumps(asdict(group) | {"folder": str(group.folder)})}
    try:
        while True:
            before = _committed(spec, group)
            try:
                _trainer(worker, spec, group, config, callbacks).fit()
                return
            except ray.train.WorkerGroupError:
                if error_file.exists() or _committed(spec, group) == before:
                    raise
            except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
                raise UserError(
                    f"{pipeline_directory(spec)}: Ray lost the node that led the run "
                    f"({type(error).__name__}): training has stopped; the same command goes on "
                    "from the latest checkpoint"
                ) from None
    finally:
        if error_file.exists():
            raise UserError(error_file.read_text(encoding="utf-8"))


def _trainer(
    worker: Callable[[dict[str, str]], None],
    spec: PipelineSpec,
    group: WorkerGroup,
    config: dict[str, str],
    callbacks: list[Any],
) -> ray.train.torch.TorchTrainer:
    compute = spec.compute
    return ray.train.torch.TorchTrainer(
        worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.num_workers,
            use_gpu=compute.use_gpu,
            resources_per_worker=worker_resources(compute),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex[:8],
            storage_path=str(group.folder),
            failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
            callbacks=callbacks,
        ),
    )


def _committed(spec: PipelineSpec, group: WorkerGroup) -> set[Path]:
    """Committed checkpoints and results of the group's runs: what has changed is progress."""
    runs = [pipeline_directory(spec) / name for name in group.claimed()]
    patterns = ("checkpoints/*/COMMITTED", "result.json")
    return {path for run in runs for pattern in patterns for path in run.glob(pattern)}


def _training_worker(config: dict[str, str]) -> None:
    start_reader()
    from glray.train.worker import train_all  # the model's code is not for the driver: 5 s

    with _joined(config) as (spec, corpus, ctx):
        train_all(spec, corpus, ctx)


def _calibrating_worker(config: dict[str, str]) -> None:
    from glray.train.worker import calibrate_alone

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
    group = json.loads(config["group"])
    group = WorkerGroup(**(group | {"folder": Path(group["folder"])}))
    ctx = RayContext(stop_file(spec), group)
    try:
        if ctx.rank == 0:
            _error_file(group).unlink(missing_ok=True)  # of an attempt that Ray started anew
        from_rank_zero(ctx, 0)
        yield spec, open_corpus(spec, json.loads(config["tokens"])), ctx
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        said = str(error)
        if isinstance(error, OSError):
            said = f"{error.filename}: {error.strerror}; the same command goes on when it is mended"
        write_text(_error_file(group), said)
        if ctx.world_size > 1:
            raise


def _error_file(group: WorkerGroup) -> Path:
    assert group.folder is not None, "a launch has one"
    return group.folder / f"ERROR-{group.index}"
