"""The decoder: a causal language model of ``transformers``, built from its config.

Rotary positions are computed for whatever length comes, from 0 at each window's start: where
nothing else is declared, growing the length is direct positional extrapolation (the paper's section
3.1).
"""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from glray.errors import UserError
from glray.model.attention import CAUSAL
from glray.model.pretrained import PretrainedFolder


def build_model(config: PreTrainedConfig, seed: int, device: torch.device) -> PreTrainedModel:
    """A model with fresh float32 weights, drawn on the CPU from ``seed`` alone, and a config of its
    own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=CAUSAL)
    return model.to(device=device, dtype=torch.float32)


def load_pretrained(
    folder: PretrainedFolder, config: PreTrainedConfig, device: torch.device
) -> PreTrainedModel:
    """A model with the weights of ``folder``, in float32.

    ``config`` is the folder's, as ``model_config`` gives it. Raises UserError unless the folder has
    exactly the weights of that model.
    """
    path = folder.path
    disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            attn_implementation=CAUSAL,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, on one line
            output_loading_info=True,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: transformers cannot load it ({type(error).__name__}: {error}): its "
            "config.json or its index is wrong; restore the folder"
        ) from None
    _check_weights(path, found)
    model.config.name_or_path = ""  # nothing of the folder but its weights,
    model.generation_config = GenerationConfig.from_model_config(config)  # as after a resume
    return model.train().to(device)


@torch.no_grad()
def place_positions(network: PreTrainedModel, parameters: dict[str, Any]) -> None:
    """Set a network, and the config that it is exported with, to ``rope_parameters``."""
    network.config.rope_parameters = dict(parameters)
    rotary = network.base_model.rotary_emb
    fresh = type(rotary)(network.config)
    for name, values in fresh.named_buffers():
        rotary.get_buffer(name).copy_(values)  # in place: what refers to the buffers keeps them
    rotary.rope_type, rotary.attention_scaling = fresh.rope_type, fresh.attention_scaling


def _check_weights(path: Path, found: dict[str, Any]) -> None:
    for name, shape, expected in sorted(found["mismatched_keys"]):
        raise UserError(
            f"{path}: {name} has shape {list(shape)}, but config.json asks for "
            f"{list(expected)}: it would be drawn at random; restore the folder"
        )
    remedy = "give the folder of a whole causal language model"
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{path} lacks {len(missing)} of the weights that its config.json asks for, such "
            f"as {missing[0]}: they would be drawn at random; {remedy}"
        )
    if unexpected := sorted(found["unexpected_keys"]):
        raise UserError(
            f"{path} has {len(unexpected)} weights that its config.json does not ask for, "
            f"such as {unexpected[0]}: they would be left out; {remedy}"
        )
