"""The ``glray`` command."""

import sys
from typing import NoReturn

from glray.cli import comparisons, pipelines, runs
from glray.cli.app import app
from glray.errors import UserError

__all__ = ["app", "comparisons", "main", "pipelines", "runs"]


def main() -> None:
    """Run the command; what a person can mend is one line on stderr and status 2."""
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}")


def _refuse(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
