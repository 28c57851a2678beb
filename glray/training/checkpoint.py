"""Checkpoints: a directory that counts once its ``COMMITTED`` manifest is there.

``checkpoints/step-00000123/`` holds ``model.safetensors``, ``optimizer.safetensors``,
``state.json`` and, written last, ``COMMITTED`` with the size and SHA-256 of each. The latest is
found by reading the storage, so a killed controller cannot lose it.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from glray.errors import UserError
from glray.files import new_directory, read_record, write_json

COMMITTED = "COMMITTED"
KEPT = 2
"""Checkpoints kept of a run: the latest, and one more should the latest be damaged."""


@dataclass
class TrainState:
    """Where a run stands. The data position is ``step`` alone (times ``tokens_per_batch``)."""

    step: int = 0
    proof: int = 0
    """Token proof of all steps so far, modulo 2^64."""
    measured_seconds: float = 0.0
    eval_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    wall_seconds: float = 0.0
    """Over all attempts, everything included from the first batch's wait on."""
    tokens_by_seq_len: dict[str, int] = field(default_factory=dict)
    """Ledger: tokens trained at each length."""


def save_checkpoint(
    directory: Path,
    state: TrainState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Path:
    """Write and commit the checkpoint of ``state.step``; older ones beyond ``KEPT`` go."""
    path = directory / f"step-{state.step:08d}"
    with new_directory(path) as partial:
        save_file(dict(model.state_dict()), partial / "model.safetensors")
        save_file(_optimizer_tensors(optimizer), partial / "optimizer.safetensors")
        write_json(partial / "state.json", asdict(state))
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(partial.iterdir())
        }
        write_json(partial / COMMITTED, {"step": state.step, "files": files})
    for old in committed_checkpoints(directory)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def committed_checkpoints(directory: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    return sorted(
        (path for path in directory.glob("step-*") if (path / COMMITTED).exists()),
        key=lambda path: int(path.name.removeprefix("step-")),
    )


def load_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> TrainState:
    """Load a checkpoint's tensors into ``model`` and ``optimizer``; returns the state.

    Raises UserError if a file is not what was committed.
    """
    load_weights(path, model)
    tensors = load_file(path / "optimizer.safetensors")
    layout = optimizer.state_dict()
    layout["state"] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        layout["state"].setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(layout)
    return TrainState(**json.loads((path / "state.json").read_text()))


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Load a checkpoint's weights alone. Raises UserError if a file is damaged."""
    verify(path)
    device = next(model.parameters()).device
    model.load_state_dict(load_file(path / "model.safetensors", device=str(device)))


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its manifest. Raises UserError."""
    manifest = read_record(path / COMMITTED, "files")
    remedy = f"delete {path}: an unfinished run goes on from the checkpoint before it"
    for name, expected in manifest["files"].items():
        file = path / name
        size = file.stat().st_size if file.exists() else 0
        if size != expected["bytes"]:
            raise UserError(
                f"{file}: {size:,} bytes, {expected['bytes']:,} were committed: the checkpoint "
                f"is damaged; {remedy}"
            )
        digest = _sha256(file)
        if digest != expected["sha256"]:
            raise UserError(
                f"{file}: SHA-256 {digest[:12]}…, {expected['sha256'][:12]}… was committed: the "
                f"checkpoint is damaged; {remedy}"
            )


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """``{"<parameter's index>.exp_avg": tensor, …}``: all of an optimizer that is not spec."""
    return {
        f"{index}.{name}": tensor
        for index, values in optimizer.state_dict()["state"].items()
        for name, tensor in values.items()
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
