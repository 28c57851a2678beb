"""The weights of a network, drawn or read from a folder, one parameter at a time.

Where the network is sharded each rank keeps its rows, and nobody ever holds the whole of it.
"""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from glray.errors import UserError
from glray.model.pretrained import PretrainedFolder

HEADS = ("lm_head.weight", "embed_out.weight")
"""Names of the output layer: in GPT-NeoX's files the second, in its models either, by version."""

Weights = Callable[[PreTrainedModel], None]
"""Gives every parameter of a network its values, or this rank's rows of them; every rank calls it,
for itself."""


def drawn(seed: int) -> Weights:
    """Fresh weights, which follow from ``seed`` alone."""
    return partial(draw_weights, seed=seed)


def from_folder(folder: PretrainedFolder) -> Weights:
    """Those of a folder that ``check_weights`` has let pass."""
    return partial(read_weights, folder=folder)


@torch.no_grad()
def draw_weights(network: PreTrainedModel, seed: int) -> None:
    """Give ``network`` the weights that ``transformers`` draws for its config on a CPU, bit for
    bit, however it is sharded and wherever it lies.

    A generator gives its numbers in order, so each rank draws all of them, and keeps of one
    parameter after the other what it holds. The global generator is left alone.
    """
    steps = _initialization(network.config)
    parameters = dict(network.named_parameters())
    last = {step.name: place for place, step in enumerate(steps)}
    memory = torch.empty(max(step.shape.numel() for step in steps))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for place, step in enumerate(steps):
            whole = memory[: step.shape.numel()].view(step.shape)
            for write in step.writes:
                write(whole)
            if step.name in parameters and last[step.name] == place:
                parameter = parameters[step.name]
                own_shard(parameter).copy_(whole[_own_rows(parameter)])


@torch.no_grad()
def read_weights(network: PreTrainedModel, folder: PretrainedFolder) -> None:
    """Give ``network`` the weights of ``folder``, in its own precision; of each parameter only this
    rank's rows are read. Raises UserError if a tied weight is there twice, with two values."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    given = set()
    for stored, read in _stored(folder):
        name = _name_in(network, stored, parameters)
        if name is None:
            continue
        shard, rows = own_shard(parameters[name]), _own_rows(parameters[name])
        values = read(rows).to(shard) if len(shard) else shard
        if id(parameters[name]) not in given:
            shard.copy_(values)
        elif not torch.equal(shard, values):
            raise UserError(
                f"{folder.path}: {stored} differs from the weight that config.json ties it to, so "
                "one of them would be lost; set tie_word_embeddings to false there"
            )
        given.add(id(parameters[name]))


def check_weights(network: PreTrainedModel, folder: PretrainedFolder) -> None:
    """Raises UserError unless ``folder`` has exactly the weights of ``network``; only the headers
    of its files are read."""
    path, parameters = folder.path, dict(network.named_parameters(remove_duplicate=False))
    found, unexpected = set(), []
    for file in _tensor_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for stored in sorted(tensors.keys()):
                name = _name_in(network, stored, parameters)
                if name is None:
                    unexpected += [stored] if not _is_ignored(network, stored) else []
                    continue
                shape = tensors.get_slice(stored).get_shape()
                expected = list(parameters[name].shape)
                if shape != expected:
                    raise UserError(
                        f"{path}: {stored} has shape {shape}, but config.json asks for {expected}: "
                        "it would be drawn at random; restore the folder"
                    )
                found.add(id(parameters[name]))
    remedy = "give the folder of a whole causal language model"
    missing = [name for name, parameter in parameters.items() if id(parameter) not in found]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the weights that its config.json asks for, such "
            f"as {min(missing)}: they would be drawn at random; {remedy}"
        )
    if unexpected:
        raise UserError(
            f"{path} has {len(unexpected)} weights that its config.json does not ask for, "
            f"such as {min(unexpected)}: they would be left out; {remedy}"
        )


# ---- what a rank holds of a parameter


def own_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a parameter or of its moments: all of them unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _own_rows(parameter: torch.Tensor) -> slice:
    """Which rows these are: FSDP2 cuts the first dimension as ``torch.chunk`` does."""
    if not isinstance(parameter, DTensor):
        return slice(None)
    mesh, num_rows = parameter.device_mesh, parameter.shape[0]
    first = mesh.get_local_rank() * -(-num_rows // mesh.size())
    return slice(first, first + parameter.to_local().shape[0])


# ---- drawn weights


Write = Callable[[torch.Tensor], object]


class _Recorder(TorchDispatchMode):
    """Within it tensors are made without memory, and what is written into them is recorded."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writes: list[tuple[torch.Tensor, Write]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            return func(*args, **kwargs | {"device": torch.device("meta")})
        if func._schema.is_mutable and args[0].is_meta:
            self.writes.append((args[0], lambda whole: func(whole, *args[1:], **kwargs)))
            return args[0]
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Step:
    """What gives a parameter its values."""

    name: str
    """Empty if the model does not keep the parameter."""
    shape: torch.Size
    writes: list[Write]


def _initialization(config: PreTrainedConfig) -> list[_Step]:
    """How ``transformers`` gives a new model its weights, in order. A parameter may come several
    times, and the last values count; those before are drawn for the generator's sake."""
    with _Recorder() as recorder:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    steps = []
    for _, group in groupby(recorder.writes, key=lambda write: id(write[0])):
        together = list(group)
        written = together[0][0]
        writes = [write for _, write in together]
        steps.append(_Step(names.get(id(written), ""), written.shape, writes))
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:  # made with its values
            made = methodcaller("copy_", parameter.detach())
            steps.append(_Step(name, parameter.shape, [made]))
    assert {step.name for step in steps} >= set(names.values()), "some would be undefined"
    return steps


# ---- weights of a folder


def _tensor_files(folder: PretrainedFolder) -> list[Path]:
    return [file for file in folder.weight_files if file.suffix == ".safetensors"]


def _stored(folder: PretrainedFolder) -> Iterator[tuple[str, Callable[[slice], torch.Tensor]]]:
    """Every tensor of a folder by its name, and what reads rows of it."""
    for file in _tensor_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dict)
                yield name, tensors.get_slice(name).__getitem__


def _name_in(network: PreTrainedModel, stored: str, names: Any) -> str | None:
    """The parameter of a stored name, which lacks a prefix where the model was saved without its
    head; None if there is none."""
    candidates = [stored, f"{network.base_model_prefix}.{stored}"]
    candidates += HEADS if stored in HEADS else ()
    return next((name for name in candidates if name in names), None)


def _is_ignored(network: PreTrainedModel, stored: str) -> bool:
    """Whether ``transformers`` does without: buffers that earlier versions kept among weights."""
    patterns = network._keys_to_ignore_on_load_unexpected or ()
    return any(re.search(pattern, stored) for pattern in (*patterns, r"rotary_emb\.inv_freq"))
