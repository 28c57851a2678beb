"""The ``glray`` command."""

import sys

import glray.ray  # noqa: F401 (before a pipeline's file may import Ray: see there)
from glray.cli import cluster, comparisons, jobs, pipelines, runs, search
from glray.cli.app import app, console
from glray.cli.watch import LiveWork
from glray.errors import UserError
from glray.machine import unsupported
from glray.progress import heard_by

__all__ = ["app", "cluster", "comparisons", "jobs", "main", "pipelines", "runs", "search"]


def main() -> None:
    """Run the command; an error that a person can fix is one line on stderr and status 2."""
    with heard_by(LiveWork(console)):
        try:
            _run()
        finally:
            if cluster := sys.modules.get("glray.ray.cluster"):
                cluster.stop_own()


def _run() -> None:
    try:
        if (why := unsupported()) is not None:
            raise UserError(why)
        app()
    except (UserError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError):
            if error.filename is None:
                raise
            message = f"{error.filename}: {error.strerror}"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(2) from None
