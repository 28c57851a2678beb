"""Checkpoints: a directory that counts once its ``COMMITTED`` manifest is there.

``checkpoints/step-00000123/`` holds ``tensors/`` (model, optimizer moments and random state, each
worker's share in a file of its own: see ``tensor_files``), ``state.json`` and, written last,
``COMMITTED`` with the size and SHA-256 of each. The latest is found by reading the storage, so a
killed controller cannot lose it. Any number of workers, replicated or sharded, loads any
checkpoint.
"""

import json
import os
import re
import shutil
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from glray.errors import UserError
from glray.files import sha256_of, write_json
from glray.train.context import WorkerContext, from_rank_zero
from glray.train.tensor_files import (
    WrittenFile,
    read_tensors,
    write_tensors,
    written_names,
)

COMMITTED = "COMMITTED"
TENSORS = "tensors"
KEPT = 2
"""Checkpoints kept of a run: the latest, and one more should the latest be damaged."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW holds of each parameter, its count of steps apart: that is the state's ``step``."""


@dataclass
class TrainState:
    """Where a run stands. The data position is ``step`` alone (times ``tokens_per_batch``)."""

    step: int = 0
    checksum: int = 0
    """Token checksum of all steps so far, modulo 2^64."""
    calibrated_seconds: float | None = None
    """On the calibrated clock; None without a calibration."""
    measured_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    eval_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    wall_seconds: float = 0.0
    """Over all attempts, everything included from the first batch's wait on."""
    tokens_by_seq_len: dict[str, int] = field(default_factory=dict)
    """Ledger: tokens trained at each length."""


def save_checkpoint(
    directory: Path,
    state: TrainState,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    ctx: WorkerContext,
) -> Path:
    """Write and commit the checkpoint of ``state.step``; older ones beyond ``KEPT`` go.

    Every rank calls it, writes its share and returns once the whole is committed. Raises OSError
    where the storage is full, and leaves nothing.
    """
    path = directory / f"step-{state.step:08d}"
    partial = directory / f".partial-{path.name}-{from_rank_zero(ctx, uuid.uuid4().int % 2**32):x}"
    try:
        files = write_tensors(
            partial / TENSORS, _tensors(network, optimizer), no_dist=ctx.world_size == 1
        )
        if ctx.rank == 0:
            _commit(partial, path, state, files)
        from_rank_zero(ctx, 0)  # returns once rank 0 has come so far
    finally:
        if ctx.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _commit(partial: Path, path: Path, state: TrainState, tensors: list[WrittenFile]) -> None:
    state_file = partial / "state.json"
    write_json(state_file, asdict(state))
    files = {
        f"{TENSORS}/{file.name}": {"bytes": file.num_bytes, "sha256": file.sha256}
        for file in tensors
    }
    files[state_file.name] = {
        "bytes": state_file.stat().st_size,
        "sha256": sha256_of(state_file),
    }
    write_json(partial / COMMITTED, {"step": state.step, "files": files})
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    for old in committed_checkpoints(path.parent)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    for left in path.parent.glob(".partial-*"):  # of an attempt that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)


def committed_checkpoints(directory: Path) -> list[Path]:
    """Committed checkpoints, oldest first. Raises OSError if the folder is there and cannot be
    read: a run would start anew over its own records."""
    names = os.listdir(directory) if os.path.lexists(directory) else []
    paths = [directory / name for name in names if re.fullmatch(r"step-\d{8,}", name)]
    return sorted((path for path in paths if (path / COMMITTED).exists()), key=step_of)


def step_of(path: Path) -> int:
    """The step of a checkpoint's directory."""
    return int(path.name.removeprefix("step-"))


def load_checkpoint(
    path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer, ctx: WorkerContext
) -> TrainState:
    """Load a checkpoint into ``network``, ``optimizer`` and the random state; returns the state.

    Every rank calls it; rank 0 compares the files with their manifest. Raises UserError if one is
    not what was committed.
    """
    if ctx.rank == 0:
        verify(path)
    state = state_of(path)
    for values in optimizer.state.values():
        values["step"].fill_(state.step)
    tensors = _tensors(network, optimizer)
    if "random.cuda" not in written_names(path / TENSORS):  # it was written on a CPU
        tensors.pop("random.cuda", None)
    read_tensors(path / TENSORS, tensors, no_dist=ctx.world_size == 1)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], ctx.device)
    return state


def load_weights(path: Path, network: torch.nn.Module) -> None:
    """Load a checkpoint's weights alone, in one process. Raises UserError if a file is damaged."""
    verify(path)
    read_tensors(path / TENSORS, _weights(network), no_dist=True)


def state_of(path: Path) -> TrainState:
    """The state of a committed checkpoint."""
    return TrainState(**json.loads((path / "state.json").read_text()))


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its manifest. Raises UserError."""
    remedy = f"delete {path}: an unfinished run goes on from the checkpoint before it"
    for name, expected in _manifest(path, remedy).items():
        file = path / name
        size = file.stat().st_size if file.exists() else 0
        if size != expected["bytes"]:
            raise UserError(
                f"{file}: {size:,} bytes, {expected['bytes']:,} were committed: the checkpoint "
                f"is damaged; {remedy}"
            )
        digest = sha256_of(file)
        if digest != expected["sha256"]:
            raise UserError(
                f"{file}: SHA-256 {digest[:12]}…, {expected['sha256'][:12]}… was committed: the "
                f"checkpoint is damaged; {remedy}"
            )


def _manifest(path: Path, remedy: str) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of a checkpoint. Raises UserError if it says anything else."""
    try:
        manifest = json.loads((path / COMMITTED).read_text(encoding="utf-8"))
        files, step = manifest["files"], manifest["step"]
        sound = all(
            isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)
            for entry in files.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path / COMMITTED}: damaged, it is no manifest of files; {remedy}")
    if step != step_of(path):
        raise UserError(
            f"{path}: its manifest is of step {step}, its name of step {step_of(path)}: it is not "
            f"what was committed there; {remedy}"
        )
    present = {
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.is_file() and file.name != COMMITTED
    }
    unnamed = (present | {"state.json"}) - files.keys()
    if unnamed:
        raise UserError(f"{path / min(unnamed)}: its manifest does not name it; {remedy}")
    return files


def _tensors(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """``{"model.<name>": …, "exp_avg.<name>": …, "exp_avg_sq.<name>": …, "random.cpu": …}``.

    The very tensors of the network and optimizer, so that loading fills them; the random state is
    some rank's: nothing that training draws differs between ranks.
    """
    tensors = _weights(network)
    for name, parameter in network.named_parameters():
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"model.{name}": p.detach() for name, p in network.named_parameters()}
