"""Checkpoints: a directory that counts once its ``COMMITTED`` manifest is there.

``checkpoints/step-00000123/`` holds ``tensors/`` (model, optimizer moments and random state, each
worker's share in a file of its own: see ``glray.train.tensor_files``), ``state.json`` and, written
last, ``COMMITTED`` with the size and SHA-256 of each. The latest is found by reading the storage,
so a killed controller cannot lose it.
"""

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from glray.errors import UserError
from glray.files import new_directory, sha256_of, write_text
from glray.record import Record
from glray.run.records import TrainState

COMMITTED = "COMMITTED"
TENSORS = "tensors"
STATE = "state.json"
KEPT = 2
"""Checkpoints kept of a run: the latest, and one more should the latest be damaged. Those that
another run is to fork from, or that ``compute.keep_checkpoints`` asks for, are kept as well."""


class CommittedFile(Record):
    """A file of a checkpoint as it was committed."""

    bytes: int
    sha256: str


class Commitment(Record):
    """``COMMITTED``: every file of a checkpoint."""

    remedy = "delete its folder: an unfinished run goes on from the checkpoint before it"

    step: int
    files: dict[str, CommittedFile]
    """By the path within the checkpoint."""


def commit(
    partial: Path,
    path: Path,
    state: TrainState,
    tensors: dict[str, CommittedFile],
    needed: Collection[int] = (),
) -> None:
    """Make the folder ``partial``, which holds the ``tensors``, the checkpoint ``path``; older ones
    beyond ``KEPT`` go, except at the ``needed`` steps."""
    state_file = partial / STATE
    write_text(state_file, state.model_dump_json(indent=1) + "\n")
    files = {f"{TENSORS}/{name}": file for name, file in tensors.items()}
    files[STATE] = CommittedFile(bytes=state_file.stat().st_size, sha256=sha256_of(state_file))
    Commitment(step=state.step, files=files).write(partial / COMMITTED)
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    prune(path.parent, needed)
    for left in path.parent.glob(".partial-*"):  # by an attempt that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)


def prune(directory: Path, needed: Collection[int] = ()) -> None:
    """Delete the checkpoints before the ``KEPT`` latest, except at the ``needed`` steps."""
    for old in committed_checkpoints(directory)[:-KEPT]:
        if step_of(old) not in needed:
            shutil.rmtree(old, ignore_errors=True)


def adopt(source: Path, path: Path) -> None:
    """Commit another run's checkpoint as ``path``. Its files never change, so both share them where
    the storage has hard links."""
    with new_directory(path) as partial:
        shutil.copytree(source, partial, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def committed_checkpoints(directory: Path) -> list[Path]:
    """Committed checkpoints, oldest first. Raises OSError if the folder is there and cannot be
    read: a run would start again over its own records."""
    names = os.listdir(directory) if os.path.lexists(directory) else []
    paths = [directory / name for name in names if re.fullmatch(r"step-\d{8,}", name)]
    return sorted((path for path in paths if (path / COMMITTED).exists()), key=step_of)


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps is."""
    return directory / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint's directory, or of a record's file."""
    return int(path.stem.removeprefix("step-"))


def size_of(path: Path) -> int:
    """Bytes of a committed checkpoint."""
    return sum(file.bytes for file in _committed_files(path).values())


def state_of(path: Path) -> TrainState:
    """The state of a committed checkpoint."""
    return TrainState.model_validate_json((path / STATE).read_bytes())


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its manifest. Raises UserError."""
    for name, expected in _committed_files(path).items():
        file = path / name
        size = file.stat().st_size if file.exists() else 0
        if size != expected.bytes:
            raise UserError(
                f"{file}: {size:,} bytes, {expected.bytes:,} were committed: the checkpoint "
                f"is damaged; {Commitment.remedy}"
            )
        digest = sha256_of(file)
        if digest != expected.sha256:
            raise UserError(
                f"{file}: SHA-256 {digest[:12]}…, {expected.sha256[:12]}… was committed: the "
                f"checkpoint is damaged; {Commitment.remedy}"
            )


def _committed_files(path: Path) -> dict[str, CommittedFile]:
    """Size and SHA-256 of each file of a checkpoint. Raises UserError if its manifest is damaged,
    belongs to another checkpoint, or does not name every file."""
    commitment = Commitment.read(path / COMMITTED)
    assert commitment is not None, "a committed checkpoint has it"
    if commitment.step != step_of(path):
        raise UserError(
            f"{path}: its manifest belongs to step {commitment.step}, its name to step "
            f"{step_of(path)}: it was not committed there; {commitment.remedy}"
        )
    present = {
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.is_file() and file.name != COMMITTED
    }
    unnamed = (present | {STATE}) - commitment.files.keys()
    if unnamed:
        raise UserError(f"{path / min(unnamed)}: not in its manifest; {commitment.remedy}")
    return commitment.files
