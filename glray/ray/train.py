"""The Ray Train boundary: as many worker groups side by side as the cluster has room for.

Each calibrates if need be, with the others, and then trains run after run, whichever is next. To
start a group costs 12–36 s, so it is started once: where there is room for one alone, or one run,
it trains all. One group of one worker without a GPU, on a cluster that this process has started, is
not worth a process of its own: it trains in this one (Ray Train's local mode). Ray Train's own
storage is a temporary folder, since it holds nothing that matters: checkpoints and records are
glray's, in the run's directory.
"""

import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import ray.exceptions
import ray.train
import ray.train.torch
import torch

from glray.data.blocks.reading import reads_whole_blocks
from glray.data.corpus import PreparedCorpus
from glray.data.windows import Batch, StageReads
from glray.errors import UserError
from glray.files import AnyPath, versions_of_leases
from glray.model.config import starting_model
from glray.ray.cluster import (
    groups_with_room,
    has_free_workers,
    is_own_cluster,
    starting_workers,
    wait_for_free_workers,
    worker_resources,
)
from glray.ray.coordinator import launch
from glray.ray.metrics import Prometheus, RestartGauges
from glray.ray.stream import ray_batches, start_reader
from glray.run.records import Progress
from glray.run.run import ENDS, Run, pipeline_directory, with_calibration
from glray.spec.compute import ComputeSpec
from glray.spec.pipeline import PipelineSpec
from glray.storage import is_seen, nonce_file
from glray.train.announcer import Announcer, write_event
from glray.train.context import Tracker, WorkerContext
from glray.train.group import WorkerGroup
from glray.train.runs import plan_runs

WORKER_FAILURES = 3
"""Times in a row that a worker group is started again after a worker died and no checkpoint was
committed meanwhile: a run of weeks may lose any number of workers, one that dies at the same step
each time ends."""
PREEMPTIONS = 100
"""The same where the worker's node was taken away: that says nothing about the run. But each start
takes half a minute or more, and nodes that never stay for one checkpoint would be paid for in
vain."""
RESIZE_SECONDS = 60.0
"""How often Ray Train looks whether a group of (fewest, most) workers could grow."""


class RayContext(WorkerContext):
    """A worker of a Ray Train group."""

    def __init__(self, group: WorkerGroup) -> None:
        context = ray.train.get_context()
        rank, world_size = context.get_world_rank(), context.get_world_size()
        self._node_share = context.get_local_world_size() / world_size
        super().__init__(rank, world_size, ray.train.torch.get_device(), group=group)
        self._prometheus: Prometheus | None = None

    def batches(self, corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Generator[Batch]:
        """See WorkerContext: through Ray Data."""
        return ray_batches(corpus, segments, whole=reads_whole_blocks(self._node_share))

    def stop_requested(self) -> bool:
        """See WorkerContext: whether the driver asks the launch's groups to stop."""
        return self.rank == 0 and self.group.stop_requested()

    def preempted(self) -> bool:
        """See WorkerContext: whether Ray drains a node that a worker is on."""
        return ray.train.get_preemption_info() is not None

    def trackers(self, run: Run) -> list[Tracker]:
        """See WorkerContext: what Prometheus sees, through Ray."""
        self._prometheus = Prometheus(run, self.rank)
        return [self._prometheus]

    def report(self, metrics: dict[str, float]) -> None:
        """See WorkerContext. Blocks until the controller polls, so it is called at checkpoints."""
        if self._prometheus is not None:
            self._prometheus.saved()
        ray.train.report(metrics)


@dataclass
class Restarts:
    """What a worker group was started again after since it last committed a checkpoint."""

    failures: int = 0
    preemptions: int = 0

    def count(
        self,
        failure: ray.train.WorkerGroupError | ray.train.PreemptionError,
        *,
        is_progress: bool,
    ) -> None:
        """Count the failure of a group, or none if it has committed something since its start."""
        if is_progress:
            self.failures = self.preemptions = 0
        elif _is_preemption(failure):
            self.preemptions += 1
        else:
            self.failures += 1


Work = Callable[[PipelineSpec, PreparedCorpus, RayContext], None]
"""What each worker of a group does."""


def fit(spec: PipelineSpec, corpus: PreparedCorpus, *, stop: threading.Event | None = None) -> None:
    """Train every unfinished run of the pipeline, or until ``stop`` is set. Ray is connected.

    Raises what a worker raised first, wrapped by Ray Train, when all groups have ended.
    """
    runs = plan_runs(with_calibration(spec), corpus, starting_model(spec))
    total = len(spec.trained_arms) * len(spec.seeds)
    unfinished = total if runs is None else sum(not run.has_ended for run in runs)
    count = groups_at_once(spec, unfinished)
    groups = WorkerGroups(train_runs, spec, corpus, count)
    groups.say(f"{unfinished} runs to train")
    groups.run(stop)


def groups_at_once(spec: PipelineSpec, unfinished: int) -> int:
    """One for each unfinished run, as far as there is room; an elastic group takes all of it."""
    if spec.compute.least_workers != spec.compute.most_workers:
        return 1
    most = unfinished if spec.compute.groups is None else min(unfinished, spec.compute.groups)
    return max(1, min(most, groups_with_room(spec.compute)))


def is_lone_worker(compute: ComputeSpec) -> bool:
    """Whether a group is one worker that needs no GPU."""
    return compute.least_workers == compute.most_workers == 1 and not compute.use_gpu


@dataclass(frozen=True)
class WorkerGroups:
    """Groups of the spec's workers that do the same work side by side."""

    work: Work
    spec: PipelineSpec
    corpus: PreparedCorpus
    count: int = 1

    def say(self, work: str) -> None:
        """Say what several groups do side by side."""
        if self.count > 1:
            said = f"{self.count} worker groups side by side, {work}"
            write_event(self.directory, said)

    @property
    def in_driver(self) -> bool:
        """Whether the one worker works in this process."""
        return self.count == 1 and is_lone_worker(self.spec.compute) and is_own_cluster()

    def run(self, stop: threading.Event | None = None) -> None:
        """Have the groups work until the last has ended; ``stop`` asks them to. Raises what was
        raised first."""
        stop = stop or threading.Event()
        with launch(self.directory, self.count, stop=stop, in_driver=self.in_driver) as groups:
            if self.count == 1:  # in the caller's thread
                self._run_group(groups[0], stop)
            else:
                self._run_all(groups, stop)

    @contextmanager
    def standing(self, stop: threading.Event) -> Iterator[tuple[WorkerGroup, Future[None]]]:
        """The groups at work beside the block, which may offer them arms: one group to ask, and a
        future that ends when all groups have ended. After the block nothing more is offered: they
        train what is left, unless the block has failed. Raises what was raised first."""
        with (
            launch(
                self.directory, self.count, stop=stop, in_driver=self.in_driver, is_open=True
            ) as groups,
            ThreadPoolExecutor(1, thread_name_prefix="groups") as pool,
        ):
            working = pool.submit(self._run_all, groups, stop)
            try:
                yield groups[0], working
            except BaseException:
                stop.set()
                raise
            finally:
                groups[0].close()
            working.result()

    @property
    def directory(self) -> AnyPath:
        """The pipeline's."""
        return pipeline_directory(self.spec)

    def _run_all(self, groups: list[WorkerGroup], stop: threading.Event) -> None:
        """Run all groups; raises what was raised first once all have ended."""
        errors: list[BaseException] = []
        with ThreadPoolExecutor(len(groups), thread_name_prefix="group") as pool:
            working = {pool.submit(self._run_group, group, stop): group for group in groups}
            for ended in as_completed(working):  # in the order of time
                working[ended].release()  # others may wait for one of its runs
                if error := ended.exception():  # the others go on, for hours perhaps
                    errors.append(error)
                    what = " ".join(str(error).split())[:300] or type(error).__name__
                    index = working[ended].index
                    write_event(self.directory, f"worker group {index} ended: {what}")
        if errors:
            raise errors[0]

    def _run_group(self, group: WorkerGroup, stop: threading.Event) -> None:
        """Fit, and again as long as there is progress between the deaths of workers; not after what
        a person can fix, whichever rank has met it.

        Ray Train itself starts no group again: it does not know why one has ended, and says nothing
        while it waits for a node.
        """
        directory, restarts = self.directory, Restarts()
        shown = RestartGauges(self.spec, group)
        try:
            while True:
                before = _committed(directory, group)
                # Of workers that died; their time goes by while the next ones start.
                group.saw(versions_of_leases(directory))
                try:
                    with nonce_file(directory) as nonce, TemporaryDirectory() as folder:
                        self._trainer(group, nonce, folder).fit()
                    return
                except (ray.train.WorkerGroupError, ray.train.PreemptionError) as failure:
                    if said := group.error():
                        raise UserError(said) from None
                    restarts.count(failure, is_progress=_committed(directory, group) != before)
                    lost = f"worker group {group.index} {_lost(failure)}"
                    if restarts.failures > WORKER_FAILURES:
                        times = f"{WORKER_FAILURES} times since its last checkpoint"
                        write_event(directory, f"{lost}; it was started again {times}: it ends")
                        raise
                    if restarts.preemptions > PREEMPTIONS:
                        raise UserError(
                            f"{directory}: {lost}; it was started again {PREEMPTIONS} times "
                            "without time for one more checkpoint: nothing new would be trained; "
                            "give it nodes that stay longer, or lower "
                            "compute.checkpoint_every_seconds, and the same command goes on"
                        ) from None
                    write_event(directory, lost)
                    shown.add("preemption" if _is_preemption(failure) else "failure")
                self._await_room(group, stop)
                if stop.is_set():
                    return
        except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
            raise UserError(
                f"{directory}: Ray lost the node that led the run ({type(error).__name__}): "
                "training has stopped; the same command goes on from the latest checkpoint"
            ) from None
        finally:
            shown.close()

    def _await_room(self, group: WorkerGroup, stop: threading.Event) -> None:
        """Return once there is room to start a group again, or once ``stop`` is set; say so where
        its workers have said how they stand. A group that has to wait for long leaves its runs to
        the others, which may wait for one of them and hold the room meanwhile."""
        compute = self.spec.compute
        if has_free_workers(compute, stop):
            return
        group.release()
        announcer = Announcer(self.directory, WorkerContext(group=group))
        announcer.progress(Progress(phase="waiting for room to start the workers again"))
        wait_for_free_workers(compute, self.count, announcer.event, stop)
        if not stop.is_set():
            announcer.progress(Progress(phase=starting_workers(compute)))

    def _trainer(self, group: WorkerGroup, nonce: str, folder: str) -> ray.train.torch.TorchTrainer:
        """``folder`` is Ray Train's own, on this node, where its controller is too."""
        work, spec, corpus, compute = self.work, self.spec, self.corpus, self.spec.compute

        def start_worker() -> None:
            with _joined(spec, group, nonce) as ctx:
                work(spec, corpus, ctx)

        return ray.train.torch.TorchTrainer(
            start_worker,
            scaling_config=ray.train.ScalingConfig(
                num_workers=0 if self.in_driver else compute.num_workers,
                use_gpu=compute.use_gpu,
                resources_per_worker=worker_resources(compute),
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            ),
            run_config=ray.train.RunConfig(
                name=uuid.uuid4().hex[:8],
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )


def _committed(directory: AnyPath, group: WorkerGroup) -> set[AnyPath]:
    """Committed checkpoints and ends of the group's runs: what has changed is progress."""
    runs = [directory / name for name in group.claimed()]
    patterns = ("checkpoints/*/COMMITTED", *ENDS)
    return {path for run in runs for pattern in patterns for path in run.glob(pattern)}


def _is_preemption(failure: ray.train.WorkerGroupError | ray.train.PreemptionError) -> bool:
    """Whether a group was lost with a node that was taken away. If one worker was, the errors of
    the others follow from it; and if not, they come again without it."""
    if isinstance(failure, ray.train.PreemptionError):
        return True
    causes = (  # Ray Train wraps what its poll of a dead worker has met
        getattr(error, "health_check_failure", error) for error in failure.worker_failures.values()
    )
    return any(isinstance(e, ray.exceptions.RayActorError) and e.preempted for e in causes)


def _lost(failure: ray.train.WorkerGroupError | ray.train.PreemptionError) -> str:
    """Why a group has ended."""
    if _is_preemption(failure):
        return "has lost a node that was taken away"
    errors = {rank: type(error).__name__ for rank, error in failure.worker_failures.items()}
    shown = ", ".join(f"{name} on rank {rank}" for rank, name in sorted(errors.items()))
    return f"has died ({shown})"


def train_runs(spec: PipelineSpec, corpus: PreparedCorpus, ctx: RayContext) -> None:
    """What each worker of a group does: train run after run."""
    start_reader()
    from glray.train.worker import train_all  # the model's code is not for every driver: 5 s

    train_all(spec, corpus, ctx)


@contextmanager
def _joined(spec: PipelineSpec, group: WorkerGroup, nonce: str) -> Iterator[RayContext]:
    """What each worker of a group starts from.

    An error of a person's, on whichever rank, is left for the driver and ends the group: Ray Train
    ends the other ranks, which wait for this one in a collective.
    """
    torch.set_num_threads(spec.compute.cpus_per_worker)
    ctx = RayContext(group)
    try:
        _check_storage(spec, nonce)
        yield ctx
    except UserError as error:
        group.set_error(str(error))
        raise
    except OSError as error:
        if error.filename is None:
            raise
        said = f"{error.filename}: {error.strerror}; the same command goes on when it is fixed"
        group.set_error(said)
        raise UserError(said) from error


def _check_storage(spec: PipelineSpec, nonce: str) -> None:
    """Raises UserError unless this worker's node sees what the driver has written."""
    directory = pipeline_directory(spec)
    if not is_seen(directory / nonce):
        raise UserError(
            f"node {ray.util.get_node_ip_address()} does not see what the command writes to "
            f"{directory}: its worker would find no token blocks there, or write where nobody "
            "looks; mount the storage on every node under this path, or give a place that all "
            "see, --set compute.storage=… (of an object store its URL, with the same endpoint and "
            "credentials on every node)"
        )
