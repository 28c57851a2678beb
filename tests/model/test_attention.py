"""Documents kept apart in a window: exactly as if each had been trained alone."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glray.model.attention import DocumentPlaces, causal_attention
from glray.model.config import model_config
from glray.model.decoder import build_model, place_positions
from glray.model.loss import NextTokenLoss
from glray.spec import GPTNeoXModel, LlamaModel
from glray.spec.model import ModelSpec

EOS = 9
SHAPE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_heads": 4,
    "intermediate_size": 64,
}
MODELS: dict[str, ModelSpec] = {
    "gpt_neox": GPTNeoXModel(**SHAPE),
    "llama": LlamaModel(**SHAPE, num_kv_heads=2),
}
SCALED = {
    "as they are": {},
    "squeezed": {"rope_type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16},
}
CPU = torch.device("cpu")


def test_places_by_hand() -> None:
    tokens = torch.tensor([[1, 2, EOS, 3, EOS, EOS, 4], [EOS, 1, 2, 3, 4, 5, EOS]])
    places = DocumentPlaces(tokens, EOS)
    assert places.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    assert places.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


@given(st.lists(st.lists(st.integers(7, EOS), min_size=5, max_size=5), min_size=1, max_size=3))
def test_a_token_attends_to_those_since_the_last_separator(rows: list[list[int]]) -> None:
    mask = DocumentPlaces(torch.tensor(rows), EOS).mask()
    for row, tokens in enumerate(rows):
        for query in range(5):
            for key in range(5):
                attends = key <= query and EOS not in tokens[key:query]
                assert mask[row, 0, query, key] == attends


@pytest.mark.parametrize("scaled", SCALED)
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradients_are_those_of_each_document_alone(kind: str, scaled: str) -> None:
    config = model_config(MODELS[kind], vocab_size=128, eos_id=EOS, max_seq_len=48)
    model = NextTokenLoss(build_model(config, 0, CPU), "document")
    alone = NextTokenLoss(build_model(config, 0, CPU))
    for each in (model, alone):
        place_positions(each.network, config.rope_parameters | SCALED[scaled])
    tokens = torch.randint(10, 128, (2, 49), generator=torch.Generator().manual_seed(0))
    tokens[0, 10] = tokens[0, 11] = tokens[0, 40] = tokens[1, 0] = EOS
    documents = [(0, 0, 11), (0, 11, 12), (0, 12, 41), (0, 41, 48), (1, 0, 1), (1, 1, 48)]

    total = model(tokens[:, :-1], tokens[:, 1:])
    total.backward()
    expected = torch.zeros(())
    for row, start, end in documents:
        inputs, targets = tokens[row, start:end], tokens[row, start + 1 : end + 1]
        loss = alone(inputs[None], targets[None])
        loss.backward()
        expected += loss.detach()
    torch.testing.assert_close(total.detach(), expected, rtol=1e-6, atol=0)
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    for parameter, reference in pairs:
        assert parameter.grad is not None
        assert reference.grad is not None
        error = (parameter.grad - reference.grad).norm() / reference.grad.norm()
        assert error < 1e-5


def test_it_matters() -> None:
    config = model_config(MODELS["gpt_neox"], vocab_size=128, eos_id=EOS, max_seq_len=48)
    tokens = torch.randint(10, 128, (2, 49), generator=torch.Generator().manual_seed(0))
    apart, across = (
        NextTokenLoss(build_model(config, 0, CPU), attention)
        for attention in ("document", "window")
    )
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    torch.testing.assert_close(apart(inputs, targets), across(inputs, targets))
    inputs[:, 5] = EOS
    assert abs(apart(inputs, targets) - across(inputs, targets)) > 1e-3


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("key_heads", [4, 2])
def test_flex_attention_does_what_the_mask_does(key_heads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 10, (2, 200), generator=draw)
    places = DocumentPlaces(tokens, EOS)
    query = torch.randn(2, 4, 200, 16, generator=draw)
    key, value = (torch.randn(2, key_heads, 200, 16, generator=draw) for _ in range(2))
    module = torch.nn.Module()
    masked, _ = causal_attention(module, query, key, value, places.mask(), scaling=0.25)
    flex, _ = causal_attention(module, query, key, value, places.block_mask(), scaling=0.25)
    torch.testing.assert_close(flex, masked, rtol=1e-4, atol=1e-5)
