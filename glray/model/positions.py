"""Rotary positions of a stage: what ``transformers`` is told of them."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from glray.errors import UserError
from glray.spec.positions import PositionsSpec, stage_scaling


def rope_parameters(
    positions: PositionsSpec, config: PreTrainedConfig, seq_lens: Sequence[int], stage: int
) -> dict[str, Any]:
    """``config.rope_parameters`` at a stage of an arm whose stages have ``seq_lens`` tokens.

    Up to the reference length positions are what the config declares. Raises UserError if the model
    has too few rotary dimensions.
    """
    declared = dict(config.rope_parameters)
    scaling = stage_scaling(positions, seq_lens, stage)
    if scaling is None:
        return declared
    if scaling.kind == "theta":
        return declared | {"rope_theta": scaling.value}
    if scaling.kind == "interpolation":
        return declared | {"rope_type": "linear", "factor": scaling.value}
    if scaling.kind == "ntk":
        dims = rotary_dims(config)
        if dims <= 2:
            raise UserError(
                f"positions: ntk needs more than 2, but the heads rotate {dims} dimensions; use "
                "interpolation or more rotary dimensions"
            )
        return declared | {
            "rope_theta": declared["rope_theta"] * scaling.value ** (dims / (dims - 2))
        }
    return declared | {
        "rope_type": "yarn",
        "factor": scaling.value,
        "original_max_position_embeddings": scaling.reference,
    }


def scoring_parameters(
    scaling: PositionsSpec, config: PreTrainedConfig, trained_len: int, seq_len: int
) -> dict[str, Any]:
    """``rope_parameters`` to score ``seq_len`` tokens under ``scaling``, for a model trained up to
    ``trained_len`` tokens with those of ``config``."""
    return rope_parameters(scaling, config, (trained_len, seq_len), int(seq_len > trained_len))


def rotary_dims(config: PreTrainedConfig) -> int:
    """Dimensions of each head that RoPE rotates."""
    return int(head_dim(config) * config.rope_parameters.get("partial_rotary_factor", 1.0))


def head_dim(config: PreTrainedConfig) -> int:
    """Dimensions of each head: declared, or the width's share."""
    declared = getattr(config, "head_dim", None)
    return config.hidden_size // config.num_attention_heads if declared is None else declared
