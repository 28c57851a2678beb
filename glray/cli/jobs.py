"""Commands for a cluster that is elsewhere: submit, status, stop."""

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from glray.cli.app import (
    INTERRUPTED_STATUS,
    TERMINATED_STATUS,
    Overrides,
    PipelineFile,
    app,
    console,
    declared_spec,
)
from glray.cli.watch import duration, standing
from glray.data.read.sources import is_uri
from glray.errors import UserError
from glray.files import check_credentials
from glray.progress import working
from glray.run.run import pipeline_directory
from glray.spec import ComputeSpec, PipelineSpec
from glray.spec.base import named_files
from glray.spec.identity import differences
from glray.spec.loading import to_yaml
from glray.storage import reached, storage_path

if TYPE_CHECKING:
    from glray.ray.jobs import Job, Jobs

LOG_LINES = 3
"""How many of a job's last lines stand for a storage that this machine does not see."""

ADDRESS = typer.Option(
    envvar="RAY_API_SERVER_ADDRESS",
    help="URL of the cluster's dashboard: http://HEAD:8265.",
)
Address = Annotated[str, ADDRESS]


@app.command()
def submit(pipeline: PipelineFile, address: Address, overrides: Overrides = None) -> None:
    """Have a Ray cluster prepare, train, evaluate and report every arm, and follow it.

    Submitted again, what runs is followed, and what has ended is resumed. Ctrl-C leaves it running.
    """
    spec = declared_spec(pipeline, overrides)
    check_paths(spec)
    jobs = _jobs(address)
    job, is_new = jobs.submit(spec)
    if is_new:
        size = len(to_yaml(spec).encode())
        console.print(
            f"{job.submission_id}: submitted, attempt {job.attempt}: the resolved spec of "
            f"{size:,} bytes, no code, no environment"
        )
    else:
        console.print(f"{job.submission_id}: runs already, attempt {job.attempt}: following it")
        _say_unapplied(job, spec)
    try:
        ended = jobs.follow(job, _print)
    except KeyboardInterrupt:
        console.print(
            f"\n{job.submission_id} goes on; the same command follows it, glray stop ends it with "
            "a checkpoint"
        )
        raise typer.Exit(INTERRUPTED_STATUS) from None
    exit_as(ended)


@app.command()
def status(
    pipeline: Annotated[
        str | None, typer.Argument(metavar="[PIPELINE]", help="As for glray run.")
    ] = None,
    address: Annotated[str | None, ADDRESS] = None,
    overrides: Overrides = None,
) -> None:
    """Say how jobs of a cluster stand, or how a pipeline's storage says that it stands.

    With an address: the latest job of the pipeline, or of each. Without: what the pipeline's
    directory says, if this machine sees it.
    """
    spec = None if pipeline is None else declared_spec(pipeline, overrides)
    if address is not None:
        _say_jobs(_jobs(address), spec)
    elif spec is None:
        raise UserError(
            "status: neither a pipeline nor a cluster was named: give a PIPELINE to read its "
            "storage, or --address http://HEAD:8265 to list a cluster's jobs"
        )
    else:
        directory = reached(pipeline_directory(spec))
        _say_standing(f"{directory}: nothing was trained there yet", standing(directory))


@app.command()
def stop(pipeline: PipelineFile, address: Address, overrides: Overrides = None) -> None:
    """Have a submitted pipeline commit a checkpoint and end, and wait for that."""
    from glray.ray.jobs import STOP_SECONDS

    spec = declared_spec(pipeline, overrides)
    jobs = _jobs(address)
    job = _running(jobs, spec)
    before = jobs.log(job)
    start = time.monotonic()
    jobs.stop(job)
    console.print(f"{job.submission_id}: asked to stop at its next checkpoint")
    said: list[str] = []

    def write(text: str) -> None:
        said.append(text)
        _print(text)

    try:
        ended = jobs.follow(job, write, skip=len(before))
    except KeyboardInterrupt:
        console.print(f"\n{job.submission_id} goes on stopping; glray status tells when it has")
        raise typer.Exit(INTERRUPTED_STATUS) from None
    again = "submit it again to resume"
    if ended.status != "STOPPED":  # it was faster
        exit_as(ended)
    if "stopped at step" in "".join(said):
        console.print(f"{job.submission_id}: stopped, its checkpoint is committed; {again}")
    elif time.monotonic() - start < STOP_SECONDS:
        console.print(f"{job.submission_id}: stopped; no run was training; {again}")
    else:
        raise UserError(
            f"{job.submission_id}: committed no checkpoint in {STOP_SECONDS} s, so Ray has ended "
            f"it: the checkpoint before stays; {again}"
        )


def _running(jobs: "Jobs", spec: PipelineSpec) -> "Job":
    """The pipeline's job that runs in the spec's storage. Raises UserError."""
    running = jobs.running(spec.name)
    if not running:
        raise UserError(
            f"no job of the pipeline {spec.name!r} runs at {jobs.address}: nothing was stopped; "
            "glray status lists what does"
        )
    there = [job for job in running if job.storage == spec.compute.storage]
    if not there:
        places = " and ".join(job.storage for job in running)
        raise UserError(
            f"{spec.name!r} runs in {places}, not in {spec.compute.storage}: nothing was stopped, "
            "as it may be somebody else's; name its storage with --set compute.storage=…"
        )
    return there[0]


def check_paths(spec: PipelineSpec) -> None:
    """Raises UserError for a path that the cluster's nodes cannot see as it is declared, and for a
    URI with a credential, which anybody there could read."""
    for field, path in (*named_files(spec), ("compute.storage", spec.compute.storage)):
        check_credentials(path, field)
        if not is_uri(path) and not os.path.isabs(path):
            raise UserError(
                f"{field} {path!r} is relative to a folder of this machine, which the cluster does "
                "not see: nothing was submitted; give an absolute path that every node sees, or a "
                "URI (s3://bucket/folder)"
            )


def _say_unapplied(job: "Job", spec: PipelineSpec) -> None:
    """Say what of the spec does not apply to a job that was submitted with other execution."""
    sides = (job.declared, spec.model_dump(mode="json"))
    execution = ({name: side[name] for name in ("compute", "evaluation")} for side in sides)
    if other := differences(*execution):
        console.print(
            f"not applied to it: {'; '.join(other)}; glray stop, then submit again, applies it",
            markup=False,
        )


def _jobs(address: str) -> "Jobs":
    with working("importing Ray"):
        from glray.ray.jobs import Jobs

    return Jobs(address)


def _print(text: str) -> None:
    console.out(text, end="")


def exit_as(job: "Job") -> NoReturn:
    """Exit as the job's command did."""
    if job.status == "SUCCEEDED":
        raise typer.Exit(0)
    if job.status == "STOPPED":
        console.print(f"{job.submission_id} was stopped; the same command resumes")
        raise typer.Exit(TERMINATED_STATUS)  # as Ray has asked it
    if job.exit_code is None:  # not the command's end, but its node's, or it never began
        raise UserError(
            f"{job.submission_id}: {job.message[:300]}: the job ended, and its command left no "
            "exit status; what is committed stays, the same command resumes"
        )
    console.print(f"{job.submission_id} failed with exit status {job.exit_code}")
    raise typer.Exit(job.exit_code if job.exit_code > 0 else 128 - job.exit_code)


def _say_jobs(jobs: "Jobs", spec: PipelineSpec | None) -> None:
    """Say how the latest job of the pipeline, or of each that the cluster knows, stands."""
    latest = {
        (job.name, job.storage): job for job in jobs.all() if spec is None or job.name == spec.name
    }
    if not latest:
        whose = "glray" if spec is None else f"the pipeline {spec.name!r}"
        console.print(f"{jobs.address} knows no job of {whose}")
    for job in latest.values():
        seconds = duration(max(0.0, time.time() - (job.end_time or job.start_time)))
        since = f"{seconds} ago" if job.has_ended else f"for {seconds}"
        failed = f" with exit status {job.exit_code}" if job.exit_code else ""
        console.print(f"{job.submission_id}: {job.status}{failed}, {since}, attempt {job.attempt}")
        if not job.has_ended:
            _say_standing("it has printed nothing yet", _standing(jobs, job))


def _standing(jobs: "Jobs", job: "Job") -> list[str]:
    """From the storage, if this machine sees it there; else the last lines of the job's log."""
    with suppress(UserError, OSError):
        directory = reached(storage_path(ComputeSpec(storage=job.storage))) / job.name
        if lines := standing(directory):
            return lines
    return jobs.log(job).splitlines()[-LOG_LINES:]


def _say_standing(nothing: str, lines: list[str]) -> None:
    for line in lines or [nothing]:
        console.print(f"  {line}", markup=False)
