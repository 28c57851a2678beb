"""Positions of a stage: by hand, against transformers' own RoPE code, and without drift."""

import math
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import (
    apply_rotary_pos_emb as turned_by_gpt_neox,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as turned_by_llama

from glray.model.config import model_config
from glray.model.decoder import build_model, place_positions
from glray.model.positions import rope_parameters, rotary_dims
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

CPU = torch.device("cpu")
SEQ_LENS = (128, 512, 1024)
MODELS: dict[str, ModelSpec] = {
    "gpt_neox": GPTNeoXModel(num_layers=1, hidden_size=64, num_heads=2, intermediate_size=32),
    "llama": LlamaModel(
        num_layers=1, hidden_size=64, num_heads=2, intermediate_size=32, num_kv_heads=1
    ),
}
KINDS: dict[str, PositionsSpec] = {
    "extrapolation": Extrapolation(),
    "interpolation": Interpolation(),
    "interpolation of the previous": Interpolation(relative_to="previous"),
    "ntk": NtkAware(),
    "theta": BaseFrequencies(thetas=(10_000.0, 40_000.0, 80_000.0)),
    "yarn": Yarn(),
    "yarn of 256": Yarn(relative_to=256),
}


def config_of(model: str) -> PreTrainedConfig:
    return model_config(MODELS[model], vocab_size=128, eos_id=0, max_seq_len=SEQ_LENS[-1])


def network_at(model: str, kind: str, stage: int) -> PreTrainedModel:
    config = config_of(model)
    network = build_model(config, 0, CPU)
    for earlier in range(stage + 1):  # as training comes there
        place_positions(network, rope_parameters(KINDS[kind], config, SEQ_LENS, earlier))
    return network


def cosines_and_sines(network: PreTrainedModel, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float32[seq_len, rotary dims] each, as the decoder's blocks are given them."""
    positions = torch.arange(seq_len)[None]
    cos, sin = network.base_model.rotary_emb(torch.zeros(1), positions)
    return cos[0], sin[0]


# ---- by hand: 16 (gpt_neox: 32 × 0.25 = 8) dimensions at position p turn by p × frequency


@pytest.mark.parametrize(
    ("kind", "stage", "frequencies"),
    [
        # θ = 10,000 and 8 dimensions: 10,000^(-0/8), ^(-2/8), ^(-4/8), ^(-6/8)
        ("extrapolation", 2, [1, 0.1, 0.01, 0.001]),
        ("interpolation", 0, [1, 0.1, 0.01, 0.001]),
        ("interpolation", 1, [1 / 4, 0.1 / 4, 0.01 / 4, 0.001 / 4]),
        ("interpolation", 2, [1 / 8, 0.1 / 8, 0.01 / 8, 0.001 / 8]),
        ("interpolation of the previous", 1, [1 / 4, 0.1 / 4, 0.01 / 4, 0.001 / 4]),
        ("interpolation of the previous", 2, [1 / 2, 0.1 / 2, 0.01 / 2, 0.001 / 2]),
        # θ × 8^(8/6): the fastest turn stays, the slowest is divided by 8
        ("ntk", 2, [1, 0.1 / 2, 0.01 / 4, 0.001 / 8]),
        ("theta", 1, [1, 40_000**-0.25, 40_000**-0.5, 40_000**-0.75]),
    ],
)
def test_frequencies_of_a_stage_by_hand(kind: str, stage: int, frequencies: list[float]) -> None:
    network = network_at("gpt_neox", kind, stage)
    cos, sin = cosines_and_sines(network, 8)
    expected = 7 * np.array(frequencies * 2)
    assert cos[7].numpy() == pytest.approx(np.cos(expected), abs=1e-6)
    assert sin[7].numpy() == pytest.approx(np.sin(expected), abs=1e-6)


def test_yarn_keeps_fast_turns_interpolates_slow_ones_and_sharpens_attention() -> None:
    network = network_at("llama", "yarn", 2)  # 8 times 128 tokens
    scaled = network.base_model.rotary_emb.inv_freq
    plain = 10_000.0 ** (-torch.arange(0, 32, 2) / 32)
    ratios = [round(ratio, 4) for ratio in (plain / scaled).tolist()]
    assert ratios == sorted(ratios)
    assert (ratios[0], ratios[-1]) == (1, 8)
    assert network.base_model.rotary_emb.attention_scaling == pytest.approx(1 + math.log(8) / 10)


# ---- against transformers' own code, on random queries and keys


@pytest.mark.parametrize(("model", "kind"), [*product(MODELS, KINDS)])
def test_scores_of_random_queries_and_keys_are_those_of_transformers(model: str, kind: str) -> None:
    stage, seq_len = 2, 40
    network = network_at(model, kind, stage)
    parameters = rope_parameters(KINDS[kind], config_of(model), SEQ_LENS, stage)
    config = config_of(model)
    config.rope_parameters = parameters
    if parameters["rope_type"] == "default":
        theta = parameters["rope_theta"]
        dims = rotary_dims(config)
        inv_freq, sharper = theta ** (-torch.arange(0, dims, 2) / dims), 1.0
    else:
        inv_freq, sharper = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, CPU)
    angles = torch.outer(torch.arange(seq_len).float(), inv_freq).repeat(1, 2)
    expected = angles.cos()[None] * sharper, angles.sin()[None] * sharper

    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 2, seq_len, 32, generator=generator)
    turned = turned_by_gpt_neox if model == "gpt_neox" else turned_by_llama

    def scores(cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        turned_query, turned_key = turned(query, key, cos, sin)
        return turned_query @ turned_key.mT

    own = cosines_and_sines(network, seq_len)
    torch.testing.assert_close(scores(own[0][None], own[1][None]), scores(*expected))


@pytest.mark.parametrize(("model", "kind"), [*product(MODELS, KINDS)])
def test_a_saved_network_scores_the_same_in_transformers(
    tmp_path: Path, model: str, kind: str
) -> None:
    network = network_at(model, kind, 1).eval()
    network.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.arange(600)[None] % 128  # beyond the stage's 512 as well
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, network(tokens).logits)


# ---- no drift


@given(
    kind=st.sampled_from([Interpolation, NtkAware, Yarn]),
    relative_to=st.sampled_from(["first", "previous", 100]),
    path=st.lists(st.sampled_from(range(len(SEQ_LENS))), max_size=6),
    stage=st.sampled_from(range(len(SEQ_LENS))),
)
def test_positions_of_a_stage_do_not_depend_on_how_it_was_come_to(
    kind: type[Interpolation | NtkAware | Yarn],
    relative_to: Literal["first", "previous"] | int,
    path: list[int],
    stage: int,
) -> None:
    positions, config = kind(relative_to=relative_to), config_of("gpt_neox")
    direct, roundabout = (build_model(config, 0, CPU) for _ in range(2))
    for earlier in path:
        place_positions(roundabout, rope_parameters(positions, config, SEQ_LENS, earlier))
    for network in (direct, roundabout):
        place_positions(network, rope_parameters(positions, config, SEQ_LENS, stage))
    assert direct.config.rope_parameters == roundabout.config.rope_parameters
    for one, other in zip(
        cosines_and_sines(direct, 64), cosines_and_sines(roundabout, 64), strict=True
    ):
        assert torch.equal(one, other)


def test_shorter_than_the_reference_is_as_declared() -> None:
    config = config_of("gpt_neox")
    declared = rope_parameters(Extrapolation(), config, (128,), 0)
    for positions in (Interpolation(relative_to=4096), NtkAware(relative_to=4096)):
        assert rope_parameters(positions, config, (128, 2048), 1) == declared
    assert rope_parameters(Yarn(), config, (512, 128), 1) == declared
