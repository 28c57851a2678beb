"""The decoders are Pythia's and Llama's, and their positions extrapolate directly."""

import pytest
import torch
from transformers import GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from glray import spec as specs
from glray.errors import UserError
from glray.model.config import embedding_rows, model_config
from glray.model.decoder import build_model, meta_model
from glray.model.loss import NextTokenLoss
from glray.spec import GPTNeoXModel
from glray.spec.model import ModelSpec

TINY = specs.GPTNeoXModel(num_layers=2, hidden_size=32, num_heads=2, intermediate_size=64)
LLAMA = specs.LlamaModel(
    num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, intermediate_size=48
)
CPU = torch.device("cpu")


# Biderman et al. 2023 and the model cards: all parameters, and those that are not embeddings.
@pytest.mark.parametrize(
    ("model", "total", "without_embeddings"),
    [
        (specs.PYTHIA_70M, 70_426_624, 18_915_328),
        (specs.PYTHIA_160M, 162_322_944, 85_056_000),
        (specs.PYTHIA_410M, 405_334_016, 302_311_424),
        (specs.PYTHIA_1B, 1_011_781_632, 805_736_448),
        (specs.PYTHIA_1_4B, 1_414_647_808, 1_208_602_624),
    ],
)
def test_a_preset_has_pythias_published_number_of_parameters(
    model: GPTNeoXModel, total: int, without_embeddings: int
) -> None:
    config = model_config(model, vocab_size=50_277, eos_id=0, max_seq_len=2048)
    assert config.vocab_size == 50_304
    with torch.device("meta"):
        decoder = GPTNeoXForCausalLM(config)
    parameters = dict(decoder.named_parameters())
    embeddings = [p for p in parameters.values() if 50_304 in p.shape]
    assert len(embeddings) == 2
    counted = sum(p.numel() for p in parameters.values())
    assert counted == total
    assert counted - sum(p.numel() for p in embeddings) == without_embeddings


# The published safetensors of TinyLlama 1.1B, SmolLM 135M (tied) and Llama 2 7B.
@pytest.mark.parametrize(
    ("shape", "vocab_size", "total"),
    [
        ((22, 2048, 32, 4, 5632, False), 32_000, 1_100_048_384),
        ((30, 576, 9, 3, 1536, True), 49_152, 134_515_008),
        ((32, 4096, 32, None, 11_008, False), 32_000, 6_738_415_616),
    ],
)
def test_a_llama_has_the_published_number_of_parameters(
    shape: tuple[int, int, int, int | None, int, bool], vocab_size: int, total: int
) -> None:
    names = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size")
    model = specs.LlamaModel.model_validate(
        dict(zip((*names, "tie_embeddings"), shape, strict=True))
    )
    config = model_config(model, vocab_size=vocab_size, eos_id=0, max_seq_len=2048)
    decoder = meta_model(config)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == total


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_llama_has_the_logits_of_transformers_own(tie_embeddings: bool) -> None:
    declared = LLAMA.derive(tie_embeddings=tie_embeddings, rope_theta=500.0, vocab_size=128)
    config = model_config(declared, vocab_size=100, eos_id=0, max_seq_len=32)
    model = build_model(config, 0, CPU)
    own = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            tie_word_embeddings=tie_embeddings,
            attn_implementation="eager",
        )
    )
    own.load_state_dict(model.state_dict())
    tokens = torch.randint(128, (3, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, own(tokens).logits)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == tie_embeddings


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused() -> None:
    small = TINY.derive(vocab_size=299)
    with pytest.raises(UserError, match="has 299 rows, less than the tokenizer's 300 ids"):
        embedding_rows(small, 300)
    assert embedding_rows(TINY, 300) == 384


@pytest.mark.parametrize("declared", [TINY, LLAMA], ids=lambda model: model.kind)
def test_weights_follow_from_the_seed_alone(declared: ModelSpec) -> None:
    config = model_config(declared, vocab_size=128, eos_id=0, max_seq_len=32)
    torch.manual_seed(5)
    one = build_model(config, 0, CPU).state_dict()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == after  # drawing weights leaves the global generator alone
    two = build_model(config, 0, CPU).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("declared", [TINY, LLAMA], ids=lambda model: model.kind)
def test_a_window_is_its_own_context_and_longer_windows_agree_on_the_shared_start(
    declared: ModelSpec,
) -> None:
    # Direct extrapolation: nothing in a forward pass depends on a length seen before.
    config = model_config(declared, vocab_size=128, eos_id=0, max_seq_len=8)
    model = NextTokenLoss(build_model(config, 0, CPU)).eval()
    tokens = torch.randint(128, (1, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        long = model(tokens[:, :-1], tokens[:, 1:])
        cut = model(tokens[:, :-1].reshape(4, 16), tokens[:, 1:].reshape(4, 16))
    torch.testing.assert_close(cut[0], long[0, :16], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cut[1], long[0, 16:32], rtol=1e-3)
