"""Saving and loading the tensors of a checkpoint: any number of workers, replicated or sharded,
loads what any other number has written."""

import shutil
import uuid
from collections.abc import Collection
from pathlib import Path

import torch

from glray.run.checkpoint import TENSORS, checkpoint_path, commit, state_of, verify
from glray.run.records import TrainState
from glray.train.context import WorkerContext, from_rank_zero
from glray.train.tensor_files import read_tensors, write_tensors, written_names

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW holds of each parameter beside its count of steps, which is the state's ``step``."""


def save_checkpoint(
    directory: Path,
    state: TrainState,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    ctx: WorkerContext,
    needed: Collection[int] = (),
) -> None:
    """Write and commit the checkpoint of ``state.step``; older ones go, but for the latest and
    those at the ``needed`` steps.

    Every rank calls it, writes its share and returns once the whole is committed. Raises OSError
    where the storage is full, and leaves nothing.
    """
    path = checkpoint_path(directory, state.step)
    partial = directory / f".partial-{path.name}-{from_rank_zero(ctx, uuid.uuid4().int % 2**32):x}"
    try:
        files = write_tensors(
            partial / TENSORS, _tensors(network, optimizer), no_dist=ctx.world_size == 1
        )
        if ctx.rank == 0:
            commit(partial, path, state, files, needed)
        from_rank_zero(ctx, 0)  # returns once rank 0 has come so far
    finally:
        if ctx.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)


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
