"""Pipelines as jobs of a Ray cluster, through the job server of its dashboard.

Only the resolved spec is uploaded, as YAML. It needs no code, so a node lacks nothing of this
machine and sees nothing of it; glray itself is in the cluster's image. The environment is the
cluster's too: no variable is copied, and so no secret. The driver asks for no CPU, so Ray starts it
on the head: a worker may be a spot node, and a driver ends with its node.

A job's id is ``glray-<pipeline>-<fingerprint>-<attempt>``. Ray gives an id only once: of two
commands that submit the same attempt one finds that the other was faster, and follows its job.
"""

import asyncio
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError

from glray.errors import UserError
from glray.progress import working
from glray.spec.identity import differences, fingerprint
from glray.spec.loading import to_yaml
from glray.spec.pipeline import PipelineSpec

STOP_SECONDS = 600
"""How long a job that is asked to stop may take to commit a checkpoint. Then Ray ends it; its own
limit is 3 s, in which no checkpoint of size is written."""
SILENT_SECONDS = 60.0
"""A log without a new line for so long is asked for again: a connection may be lost unnoticed."""
LOST_SECONDS = 120.0
"""How long a cluster that has stopped answering is asked again."""
POLL_SECONDS = 0.5
FILE = "pipeline.yaml"
"""What a job finds in its working directory."""
ENTRYPOINT = f"python -m glray run {FILE}"
DECLARED = "glray_spec"
"""The resolved spec in a job's metadata, as JSON."""
EXECUTION = ("compute", "evaluation", "search", "calibration")
"""Fields of a spec that do not change what ``glray run`` trains."""

Declared = dict[str, Any]
"""A resolved spec as plain values, which another version of glray may have written."""


@dataclass(frozen=True)
class Job:
    """One attempt at a pipeline's runs, as it was when the cluster was asked."""

    submission_id: str
    declared: Declared
    status: str
    """Ray's: PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED."""
    message: str
    """Ray's, on its status."""
    start_time: float
    """Seconds since the epoch, by the head's clock, as is ``end_time``."""
    end_time: float | None
    exit_code: int | None
    """Of the command; None unless it has ended by itself."""

    @property
    def name(self) -> str:
        """The pipeline's."""
        return str(self.declared["name"])

    @property
    def storage(self) -> str:
        """Where the pipeline's runs are."""
        return str(self.declared["compute"]["storage"])

    @property
    def attempt(self) -> int:
        """From 1; each later one resumes what the one before has left."""
        return int(self.submission_id.rpartition("-")[2])

    @property
    def has_ended(self) -> bool:
        """Whether its command runs no more."""
        return self.status in ("SUCCEEDED", "STOPPED", "FAILED")


class Jobs:
    """The jobs that glray has submitted to the cluster whose dashboard is at ``address``."""

    def __init__(self, address: str) -> None:
        """Raises UserError if no Ray dashboard answers there, or not without a token."""
        if not re.match(r"https?://", address):
            raise UserError(
                f"--address {address}: jobs go to the dashboard of the cluster, not to its head's "
                "own port; give its URL, http://HEAD:8265"
            )
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # else Ray prefers RAY_ADDRESS to any other
        self.address = address
        with self._answers():
            from ray.job_submission import JobSubmissionClient

            for handler in logging.getLogger("ray").handlers:
                handler.setLevel(logging.WARNING)  # uploads and connections are no news
            self._client = JobSubmissionClient(address)

    def all(self) -> list[Job]:
        """Every attempt that the cluster knows, in the order of time."""
        with self._answers():
            details = self._client.list_jobs()
        found = [_job(it) for it in details if it.submission_id and DECLARED in (it.metadata or {})]
        return sorted(found, key=lambda job: job.start_time)

    def get(self, job: Job) -> Job:
        """The job as it is now."""
        with self._answers():
            return _job(self._client.get_job_info(job.submission_id))

    def running(self, name: str) -> list[Job]:
        """What runs, or is about to, of a pipeline, in any storage."""
        return [job for job in self.all() if not job.has_ended and job.name == name]

    def submit(self, spec: PipelineSpec) -> tuple[Job, bool]:
        """The job that trains the pipeline's runs, and whether it is new: one that runs already is
        returned as it is.

        Raises UserError if what runs under the pipeline's name, in its storage, is to train
        something else.
        """
        declared = spec.resolved().model_dump(mode="json")
        base = f"glray-{spec.name}-{job_fingerprint(declared)}"
        known = self.all()
        for running in known:
            place = (running.name, running.storage)
            if running.has_ended or place != (spec.name, spec.compute.storage):
                continue
            if other := differences(identity_of(running.declared), identity_of(declared)):
                raise UserError(
                    f"{running.submission_id}: runs the pipeline {spec.name!r} of this storage "
                    f"with another identity ({_cut('; '.join(other))}): both would write to the "
                    "same runs; wait for it, end it with glray stop, or use another name (--set "
                    "name=…)"
                )
            return running, False
        attempts = [job.attempt for job in known if job.submission_id.startswith(f"{base}-")]
        submission_id = f"{base}-{max(attempts, default=0) + 1}"
        with tempfile.TemporaryDirectory() as folder, self._answers():
            Path(folder, FILE).write_text(to_yaml(spec), encoding="utf-8")
            try:
                self._client.submit_job(
                    entrypoint=ENTRYPOINT,
                    submission_id=submission_id,
                    runtime_env={
                        "working_dir": folder,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                    },
                    metadata={DECLARED: json.dumps(declared)},
                )
                is_new = True
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                is_new = False  # another command was faster
            return _job(self._client.get_job_info(submission_id)), is_new

    def stop(self, job: Job) -> None:
        """Ask it for a checkpoint and its end, as Ctrl-C does; it takes up to ``STOP_SECONDS``."""
        with self._answers():
            self._client.stop_job(job.submission_id)

    def log(self, job: Job) -> str:
        """All that its command has printed."""
        with self._answers():
            return str(self._client.get_job_logs(job.submission_id))

    def follow(self, job: Job, write: Callable[[str], None], *, skip: int = 0) -> Job:
        """``write`` its log but for the first ``skip`` characters, as it grows; return the job once
        it has ended.

        Raises UserError if the cluster does not answer for ``LOST_SECONDS``.
        """
        import aiohttp  # of ray[default]

        shown, answered = _Shown(skip, write), time.monotonic()
        while True:
            with suppress(OSError, RuntimeError, TimeoutError, aiohttp.ClientError):
                asyncio.run(self._tail(job.submission_id, shown))
            try:
                job = self.get(job)
                answered = time.monotonic()
            except UserError as error:
                if time.monotonic() - answered > LOST_SECONDS:
                    raise UserError(
                        f"{error}; nothing was heard for {LOST_SECONDS:.0f} s, so whether "
                        f"{job.submission_id} goes on is not known: once the cluster answers, the "
                        "same command follows it, or resumes what it has left"
                    ) from None
            if job.has_ended:
                shown(self.log(job), 0)  # what came after the last look
                return job
            time.sleep(POLL_SECONDS)

    async def _tail(self, submission_id: str, shown: "_Shown") -> None:
        """Show the log until the job ends; raises TimeoutError where nothing comes for long."""
        position, lines = 0, self._client.tail_job_logs(submission_id)
        while True:
            async with asyncio.timeout(SILENT_SECONDS):
                text = await anext(lines, None)
            if text is None:
                return
            shown(text, position)
            position += len(text)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Errors of the client within the block are a person's, on one line."""
        try:
            with working(f"asking the Ray cluster at {self.address}"):
                yield
        except AuthenticationError:
            raise UserError(
                f"--address {self.address}: the cluster requires a token, and none or a wrong "
                "one was sent: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE to what its "
                "head was started with"
            ) from None
        except OSError as error:  # requests' errors are OSErrors, as is ConnectionError
            raise UserError(
                f"--address {self.address}: no Ray dashboard answers there "
                f"({_cut(str(error)).rstrip('.')}): correct it, forward the port (ssh -L, kubectl "
                "port-forward), or start the head with ray[default] installed"
            ) from None
        except RuntimeError as error:
            if "ray[default]" in str(error):
                raise UserError(
                    "jobs need Ray's client for them, which this Python lacks: nothing was "
                    "submitted; install it with pip install 'glray[cluster]'"
                ) from None
            said = str(error).strip().splitlines()  # of a server's traceback the last line counts
            raise UserError(f"--address {self.address}: {_cut(said[-1])}") from None


class _Shown:
    """What of a log is written: each character once, though it may come again."""

    def __init__(self, count: int, write: Callable[[str], None]) -> None:
        self._count, self._write = count, write

    def __call__(self, text: str, position: int) -> None:
        """Write of a text that begins at ``position`` what is new."""
        new = text[max(0, self._count - position) :]
        if new:
            self._write(new)
            self._count = position + len(text)


def identity_of(declared: Declared) -> dict[str, Any]:
    """What of a spec decides which weights its job trains, as far as it is known before there are
    token blocks; named items by their names."""
    kept = {name: value for name, value in declared.items() if name not in EXECUTION}
    return kept | {"arms": {arm["name"]: arm for arm in declared["arms"]}}


def job_fingerprint(declared: Declared) -> str:
    """Eight digits that tell apart what pipelines of one name train, and where."""
    storage = {"storage": declared["compute"]["storage"]}
    return fingerprint(identity_of(declared) | storage)[:8]


def _job(details: Any) -> Job:
    """Ray's ``JobDetails``, whose times are in milliseconds."""
    ended = details.end_time
    return Job(
        submission_id=details.submission_id,
        declared=json.loads(details.metadata[DECLARED]),
        status=str(details.status),
        message=details.message or "",
        start_time=details.start_time / 1000,
        end_time=None if ended is None else ended / 1000,
        exit_code=details.driver_exit_code,
    )


def _cut(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
