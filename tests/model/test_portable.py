"""``config.json`` of an exported model: literal, and one model whichever names are read."""

from itertools import product
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from glray.model.config import model_config
from glray.model.portable import portable_config
from glray.model.positions import rope_parameters
from glray.spec import (
    BaseFrequencies,
    Extrapolation,
    GPTNeoXModel,
    Interpolation,
    LlamaModel,
    NtkAware,
    PositionsSpec,
    Yarn,
)
from glray.spec.model import ModelSpec

SHAPE: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 32,
}
MODELS: dict[str, ModelSpec] = {
    "gpt_neox": GPTNeoXModel(**SHAPE, rope_theta=500.0),
    "llama": LlamaModel(**SHAPE, rope_theta=500.0),
}
POSITIONS: dict[str, PositionsSpec] = {
    "extrapolation": Extrapolation(),
    "interpolation": Interpolation(),
    "ntk": NtkAware(),
    "theta": BaseFrequencies(thetas=(500.0, 80_000.0)),
    "yarn": Yarn(),
}


def written(model: str, positions: str, **more: object) -> dict[str, Any]:
    """``config.json`` as transformers 5 writes it, at the second of two stages."""
    config = model_config(MODELS[model], vocab_size=128, eos_id=0, max_seq_len=1024)
    config.rope_parameters = rope_parameters(POSITIONS[positions], config, (128, 1024), 1)
    return config.to_dict() | {"dtype": "float32"} | more


def added(model: str, positions: str, **more: object) -> dict[str, Any]:
    before = written(model, positions, **more)
    after = portable_config(before)
    assert after["rope_parameters"] == before["rope_parameters"]
    return {name: value for name, value in after.items() if name not in before}


def test_gpt_neox_has_the_names_of_version_4() -> None:
    # θ of ntk: 8 dimensions turn, so 500 × 8^(8/6) = 500 × 16
    names = {"rotary_pct": 0.25, "torch_dtype": "float32"}
    assert added("gpt_neox", "extrapolation") == names | {"rotary_emb_base": 500.0}
    assert added("gpt_neox", "ntk") == names | {"rotary_emb_base": pytest.approx(8000)}
    assert added("gpt_neox", "theta") == names | {"rotary_emb_base": 80_000.0}
    assert added("gpt_neox", "interpolation") == names | {
        "rotary_emb_base": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }


def test_llama_has_the_names_of_version_4() -> None:
    assert added("llama", "extrapolation") == {"rope_theta": 500.0, "torch_dtype": "float32"}
    assert added("llama", "yarn") == {
        "rope_theta": 500.0,
        "torch_dtype": "float32",
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 128,
        },
    }


def test_what_a_folder_of_version_4_had_in_its_own_words_does_not_contradict() -> None:
    # A GPT-NeoX folder that version 4 saved has both; version 5 keeps them as they were.
    stale = written("gpt_neox", "theta", rope_theta=500.0, partial_rotary_factor=0.1)
    after = portable_config(stale)
    assert after["rotary_emb_base"] == 80_000.0
    assert "rope_theta" not in after
    assert "partial_rotary_factor" not in after


@pytest.mark.parametrize(("model", "positions"), [*product(MODELS, POSITIONS)])
def test_the_installed_version_reads_what_it_wrote(model: str, positions: str) -> None:
    before = written(model, positions)
    read = AutoConfig.for_model(**portable_config(before))
    assert read.rope_parameters == before["rope_parameters"]
    assert read.dtype == torch.float32
    expected = AutoConfig.for_model(**before)
    assert read.to_dict() == expected.to_dict()
