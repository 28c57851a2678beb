"""Where a run is watched from outside: TensorBoard always, Weights & Biases where it is asked for.

Rank 0 alone writes them, at the flushes of the metrics and at evaluations. What cannot be written
is an error, as it is for ``metrics.jsonl``: a run that nobody sees is not what was asked for.
"""

import socket
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glray.errors import UserError
from glray.files import StorePath, copy_file, naming, remove_tree
from glray.run.run import Run
from glray.spec.compute import ComputeSpec
from glray.spec.identity import fingerprint
from glray.train.context import Tracker, WorkerContext

MOST_WRITTEN_AGAIN = 2**20
"""Bytes of an event file that goes to a store once more with each checkpoint."""
OFFLINE = ("offline", "dryrun", "disabled")
"""Modes of Weights & Biases that need no key."""


def open_trackers(run: Run, ctx: WorkerContext, step: int) -> list[Tracker]:
    """Trackers of a run that goes on after ``step`` steps: those of the worker's context and, on
    rank 0, those that need its directory."""
    trackers = ctx.trackers(run)
    if ctx.rank == 0:
        trackers.append(TensorBoard(run, step))
        if run.spec.compute.wandb_project is not None:
            trackers.append(WeightsAndBiases(run))
    return trackers


def validate_tracker(compute: ComputeSpec, *, needs_key: bool) -> None:
    """Raises UserError if a Weights & Biases project is named and its package is missing, or with
    ``needs_key`` if this machine has no key for it. Asks nothing of its service."""
    if (project := compute.wandb_project) is None:
        return
    if find_spec("wandb") is None:
        raise UserError(
            f"compute.wandb_project {project}: the package wandb is not installed, nothing would "
            "be tracked there; pip install 'glray[wandb]', or set it to null"
        )
    if not needs_key:
        return
    import wandb

    try:
        is_ready = wandb.setup().settings.mode in OFFLINE or wandb.login(prompt=False, verify=False)
    except (wandb.errors.Error, ValueError) as error:  # a key or a setting that is malformed
        raise _untracked(project, error) from None
    if not is_ready:
        raise _untracked(project, "there is no API key on this machine")


def _untracked(project: str, reason: object) -> UserError:
    said = " ".join(str(reason).split()).rstrip(".")
    return UserError(
        f"compute.wandb_project {project}: {said}: nothing would be tracked; run wandb "
        "login or set WANDB_API_KEY, or WANDB_MODE=offline to send it later, or --set "
        "compute.wandb_project=null"
    )


class TensorBoard:
    """An event file under ``tensorboard/`` for each start of the run.

    Its records are written in this thread: tensorboardX's ``SummaryWriter`` has one of its own,
    which a full disk ends without a word; after that its queue blocks training forever.
    """

    def __init__(self, run: Run, step: int) -> None:
        # Imported here, as it takes long: it imports boto3 where that is installed.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._event = Event
        self._directory = run.directory / "tensorboard"
        if isinstance(self._directory, Path):
            self._here = self._directory
            self._here.mkdir(exist_ok=True)
        else:
            self._here = Path(tempfile.mkdtemp(prefix="glray-tensorboard-"))
        self._writer = RecordWriter
        self._open()
        # Hides what earlier files have from the next step on: it is trained again.
        restart = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=step + 1, session_log=restart))

    def _open(self) -> None:
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._path = self._here / name
        self._records = self._writer(str(self._path))
        self._append(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """See Tracker."""
        event = self._event(wall_time=time.time(), step=step)
        for tag, value in scalars.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._append(event)

    def flush(self) -> None:
        """See Tracker."""
        with naming(self._path):
            self._records.flush()

    def keep(self) -> None:
        """See Tracker: to a store, which cannot append, the file goes whole, and when it is long
        another one is begun."""
        self.flush()
        if isinstance(self._directory, StorePath):
            copy_file(self._path, self._directory / self._path.name)
            if self._path.stat().st_size >= MOST_WRITTEN_AGAIN:
                self._records.close()
                self._path.unlink()
                self._open()

    def close(self) -> None:
        """See Tracker. What has come to a store's run since its last checkpoint is trained
        again."""
        with naming(self._path):
            self._records.close()
        if isinstance(self._directory, StorePath):
            remove_tree(self._here)

    def _append(self, event: Any) -> None:
        with naming(self._path):
            self._records.write(event.SerializeToString())


class WeightsAndBiases:
    """A run of ``compute.wandb_project``, the same one whenever this run is resumed.

    Its service drops steps that it has: what is trained again shows once.
    """

    def __init__(self, run: Run) -> None:
        import wandb

        name = f"{run.spec.name}-{run.name}"
        is_remote = isinstance(run.directory, StorePath)
        project = run.spec.compute.wandb_project
        try:
            self._run = wandb.init(
                project=project,
                # With its name: the copy of a pipeline under another one has the same identity.
                id=fingerprint({"name": name, "identity": run.manifest.identity}),
                name=name,
                group=run.spec.name,
                resume="allow",
                dir=tempfile.gettempdir() if is_remote else str(run.directory),
                config=run.manifest.identity,
            )
        except wandb.errors.Error as error:  # a key that it refuses, no way to its service
            raise _untracked(str(project), error) from None

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """See Tracker."""
        self._run.log(scalars, step=step)

    def flush(self) -> None:
        """See Tracker: a process of its own sends what it is given."""

    def keep(self) -> None:
        """See TensorBoard: its service keeps it."""

    def close(self) -> None:
        """See Tracker."""
        self._run.finish()
