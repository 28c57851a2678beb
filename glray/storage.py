"""Where a pipeline's files go: the storage folder as an absolute path."""

import os
from pathlib import Path

from glray.errors import UserError
from glray.spec.compute import ComputeSpec

# Set by Ray's job supervisor in every submitted job; the name is its own, copied from
# ray._private.runtime_env.constants so that this module needs no Ray.
_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def storage_path(compute: ComputeSpec) -> Path:
    """The absolute path of ``compute.storage``, ``~`` expanded. Touches nothing.

    Raises UserError for a URL, and for a relative path in a submitted Ray job.
    """
    if "://" in compute.storage:
        raise UserError(
            f"compute.storage {compute.storage!r} is a URL, but glray writes to a folder: mount "
            "the bucket on every node and give the mount, --set compute.storage=/mnt/bucket"
        )
    path = Path(os.path.expanduser(compute.storage))
    if not path.is_absolute() and _SUBMITTED_JOB_VARIABLE in os.environ:
        raise UserError(
            f"compute.storage {compute.storage!r} is in the submitted job's copy, {Path.cwd()}, "
            "deleted with it: give what every node sees, --set compute.storage=/absolute/path"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"compute.storage {compute.storage!r} is a file; give a folder")
    return path.resolve()
