"""Checkpoints: a directory that counts once its ``COMMITTED`` manifest is there.

``checkpoints/step-00000123/`` holds ``tensors/`` (model, optimizer moments and random state, each
worker's share in a file of its own: see ``glray.train.tensor_files``), ``state.json`` and, written
last, ``COMMITTED`` with the size and SHA-256 of each. The latest is found by reading the storage,
so a killed controller cannot lose it.

Here the folder is filled under another name and then renamed. In a store, which renames nothing, it
is filled where it stays, each attempt under file names of its own: one that was killed may still
write.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from glray.errors import UserError
from glray.files import (
    AnyPath,
    copy_file,
    files_below,
    new_directory,
    remove,
    remove_tree,
    sha256_of,
    write_bytes,
)
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
    partial: AnyPath,
    path: AnyPath,
    state: TrainState,
    tensors: dict[str, CommittedFile],
    needed: Collection[int] = (),
) -> None:
    """Make the folder ``partial``, which holds the ``tensors``, the checkpoint ``path``, where it
    may lie already; older ones beyond ``KEPT`` go, except at the ``needed`` steps."""
    text = f"{state.model_dump_json(indent=1)}\n".encode()
    write_bytes(partial / STATE, text)
    files = {f"{TENSORS}/{name}": file for name, file in tensors.items()}
    files[STATE] = CommittedFile(bytes=len(text), sha256=hashlib.sha256(text).hexdigest())
    Commitment(step=state.step, files=files).write(partial / COMMITTED)
    if isinstance(partial, Path) and isinstance(path, Path):
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    with suppress(OSError):  # it counts already, and the next commit deletes what was left
        if not isinstance(path, Path):  # by an attempt that was killed
            for name in {*files_below(path)} - {COMMITTED, *files}:
                remove(path / name)
        prune(path.parent, needed)
        _discard(path.parent)


def prune(directory: AnyPath, needed: Collection[int] = ()) -> None:
    """Delete the checkpoints before the ``KEPT`` latest, except at the ``needed`` steps."""
    for old in committed_checkpoints(directory)[:-KEPT]:
        if step_of(old) not in needed:
            remove_checkpoint(old)


def remove_checkpoint(path: AnyPath) -> None:
    """Delete a checkpoint: first it no longer counts. Raises OSError."""
    remove(path / COMMITTED)
    remove_tree(path)


def _discard(directory: AnyPath) -> None:
    """Delete what was left by who was killed while it wrote or deleted."""
    if isinstance(directory, Path):
        for left in directory.glob(".partial-*"):
            remove_tree(left)
    for name, is_committed in _checkpoints(directory).items():
        if not is_committed:
            remove_tree(directory / name)


def _checkpoints(directory: AnyPath) -> dict[str, bool]:
    """The folders of checkpoints, and whether each is committed. Raises OSError if they cannot be
    listed."""
    if isinstance(directory, Path):
        names = os.listdir(directory) if os.path.lexists(directory) else []
        found = {name: (directory / name / COMMITTED).exists() for name in names}
    else:
        files = files_below(directory)  # in one request, and not one for each
        found = {name.partition("/")[0]: False for name in files if "/" in name}
        found |= {name: True for name in found if f"{name}/{COMMITTED}" in files}
    return {name: found[name] for name in found if re.fullmatch(r"step-\d{8,}", name)}


def adopt(source: AnyPath, path: AnyPath) -> None:
    """Commit another run's checkpoint as ``path``. Its files never change, so both share them where
    the storage has hard links; a store copies them itself, and what commits them last. Raises
    FileNotFoundError if it is not there any more."""
    commitment = Commitment.read(source / COMMITTED)
    if commitment is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source / COMMITTED))
    names = [*commitment.files, COMMITTED]
    if isinstance(path, Path):
        with new_directory(path) as partial:
            for name in names:
                _link(source / name, partial / name)
        return
    for name in names:
        copy_file(source / name, path / name)


def _link(source: AnyPath, target: Path) -> None:
    """One file of two names where there are hard links, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(str(source), target)
    except OSError:
        copy_file(source, target)


def committed_checkpoints(directory: AnyPath) -> list[AnyPath]:
    """Committed checkpoints, oldest first. Raises OSError if the folder is there and cannot be
    read: a run would start again over its own records."""
    found = _checkpoints(directory)
    return sorted((directory / name for name in found if found[name]), key=step_of)


def checkpoint_path(directory: AnyPath, step: int) -> AnyPath:
    """Where the checkpoint after ``step`` steps is."""
    return directory / f"step-{step:08d}"


def step_of(path: AnyPath) -> int:
    """The step of a checkpoint's directory, or of a record's file."""
    return int(path.stem.removeprefix("step-"))


def tensor_files(path: AnyPath) -> list[str]:
    """The names of a committed checkpoint's files of tensors, in ``TENSORS``."""
    names = (name.rpartition("/") for name in _committed_files(path))
    return [name for folder, _, name in names if folder == TENSORS]


def size_of(path: AnyPath) -> int:
    """Bytes of a committed checkpoint."""
    return sum(file.bytes for file in _committed_files(path).values())


def state_of(path: AnyPath) -> TrainState:
    """The state of a committed checkpoint."""
    return TrainState.model_validate_json((path / STATE).read_bytes())


def verify(path: AnyPath) -> None:
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


def _committed_files(path: AnyPath) -> dict[str, CommittedFile]:
    """Size and SHA-256 of each file of a checkpoint. Raises UserError if its manifest is damaged,
    belongs to another checkpoint, or does not name every file."""
    commitment = Commitment.read(path / COMMITTED)
    assert commitment is not None, "a committed checkpoint has it"
    if commitment.step != step_of(path):
        raise UserError(
            f"{path}: its manifest belongs to step {commitment.step}, its name to step "
            f"{step_of(path)}: it was not committed there; {commitment.remedy}"
        )
    # In a store an attempt that was killed may have left some.
    present = {*files_below(path)} - {COMMITTED} if isinstance(path, Path) else set()
    unnamed = (present | {STATE}) - commitment.files.keys()
    if unnamed:
        raise UserError(f"{path / min(unnamed)}: not in its manifest; {commitment.remedy}")
    return commitment.files
