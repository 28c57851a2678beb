"""Commands about the cluster that a pipeline is to run on: cluster check."""

from pathlib import Path
from typing import Annotated

import typer

from glray.cli.app import Overrides, PipelineFile, app, console
from glray.spec import load_pipeline

cluster = typer.Typer(no_args_is_help=True, help="Look at what a pipeline is to run on.")
app.add_typer(cluster, name="cluster")


@cluster.callback()
def about() -> None:
    """Look at what a pipeline is to run on."""


@cluster.command()
def check(
    manifest: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST",
            help="A RayJob, a file of Ray's cluster launcher or a Slurm script.",
        ),
    ],
    pipeline: PipelineFile,
    overrides: Overrides = None,
) -> None:
    """Compare a manifest with a pipeline, offline: room, storage, versions, times, open ports.

    The pipeline is taken with the --set of the manifest's own command, then with those given here.
    Each finding is a line; the exit status is 2 if there is one.
    """
    from glray.manifest.check import findings, most_workers, read_manifest

    read = read_manifest(manifest)
    own = read.command.overrides if read.command else ()
    spec = load_pipeline(pipeline, [*own, *(overrides or [])]).resolved()
    found = findings(read, spec, str(pipeline))
    for finding in found:
        console.print(f"{manifest}: {finding}", markup=False)
    if found:
        raise typer.Exit(2)
    room = most_workers(read, spec.compute)
    console.print(
        f"{manifest} fits {pipeline}: room for {room} workers, {spec.compute.num_workers} asked "
        f"for; storage {spec.compute.storage}",
        markup=False,
    )
