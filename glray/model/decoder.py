"""The decoder: a causal language model of ``transformers``, built from its config.

Rotary positions are computed for whatever length comes, from 0 at each window's start: where
nothing else is declared, growing the length is direct positional extrapolation (the paper's section
3.1).
"""

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from glray.errors import UserError
from glray.model.attention import CAUSAL
from glray.model.pretrained import PretrainedFolder
from glray.model.weights import check_weights, draw_weights, read_weights


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model in float32 without memory: its parameters and buffers are on ``meta``, where they
    have shapes alone. Its config is its own."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=CAUSAL)
    return model.float()


def pretrained_meta_model(folder: PretrainedFolder, config: PreTrainedConfig) -> PreTrainedModel:
    """The same for the weights of ``folder``, whose ``config`` it is, as ``model_config`` gives it.

    Raises UserError unless the folder has exactly the weights of that model.
    """
    try:
        model = meta_model(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder.path}: transformers cannot load it ({type(error).__name__}: {error}): its "
            "config.json is wrong; restore the folder"
        ) from None
    check_weights(model, folder)
    return model


def allocate(model: torch.nn.Module, device: torch.device) -> None:
    """Give a model on ``meta``, or a module around it, memory on ``device``: on each rank as much
    as it holds. Its positions are then those of its config, its weights anything."""
    network = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    model.to_empty(device=device)
    network.tie_weights()  # each of the tied got memory of its own
    place_positions(network, network.config.rope_parameters)


def build_model(config: PreTrainedConfig, seed: int, device: torch.device) -> PreTrainedModel:
    """A whole model with fresh float32 weights, which follow from ``seed`` alone."""
    model = meta_model(config)
    allocate(model, device)
    draw_weights(model, seed)
    return model


def load_pretrained(
    folder: PretrainedFolder, config: PreTrainedConfig, device: torch.device
) -> PreTrainedModel:
    """A whole model with the weights of ``folder``, in float32; see ``pretrained_meta_model``."""
    model = pretrained_meta_model(folder, config)
    allocate(model, device)
    read_weights(model, folder)
    return model


@torch.no_grad()
def place_positions(network: PreTrainedModel, parameters: dict[str, Any]) -> None:
    """Set a network, and the config that it is exported with, to ``rope_parameters``."""
    network.config.rope_parameters = dict(parameters)
    rotary = network.base_model.rotary_emb
    fresh = type(rotary)(network.config)
    for name, values in fresh.named_buffers():
        rotary.get_buffer(name).copy_(values)  # in place: what refers to the buffers keeps them
    rotary.rope_type, rotary.attention_scaling = fresh.rope_type, fresh.attention_scaling
