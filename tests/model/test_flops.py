"""The FLOPs of a token against those that PyTorch counts in a real forward and backward."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from glray.model.config import model_config
from glray.model.flops import training_flops_per_token
from glray.model.loss import NextTokenLoss
from glray.spec.model import PYTHIA_160M

COMMON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT_NEOX = GPTNeoXConfig(**COMMON, intermediate_size=80)
LLAMA = LlamaConfig(**COMMON, intermediate_size=72, num_key_value_heads=2, tie_word_embeddings=True)
WIDE_HEADS = LlamaConfig(**COMMON, intermediate_size=72, num_key_value_heads=1, head_dim=16)


@pytest.mark.parametrize("config", [GPT_NEOX, LLAMA, WIDE_HEADS])
@pytest.mark.parametrize("seq_len", [8, 24])
def test_it_is_what_pytorch_counts(config: PreTrainedConfig, seq_len: int) -> None:
    rows = 3
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    tokens = torch.randint(config.vocab_size, (rows, seq_len + 1))
    with FlopCounterMode(display=False) as counter:
        NextTokenLoss(model)(tokens[:, :-1], tokens[:, 1:]).backward()

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head_dim
    # Eager attention computes the full square: seq_len positions where causal ones are half.
    not_causal = 6 * config.num_hidden_layers * width * (seq_len - 1)
    expected = rows * seq_len * (training_flops_per_token(config, seq_len) + not_causal)
    assert counter.get_total_flops() == expected


def test_longer_windows_cost_what_their_attention_does() -> None:
    config = model_config(PYTHIA_160M, vocab_size=50_304, eos_id=0, max_seq_len=2048)
    matrices = 12 * 12 * 768**2 + 768 * 50_304
    assert training_flops_per_token(config, 128) == 6 * matrices + 6 * 12 * 768 * 129
    assert training_flops_per_token(config, 2048) == 6 * matrices + 6 * 12 * 768 * 2049
