"""The decoder: ``GPTNeoXForCausalLM`` of ``transformers``, built from its config.

Rotary positions are computed for whatever length comes, from 0 at each window's start: growing
the length is direct positional extrapolation (the paper's section 3.1) and needs no other change.
"""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from glray.model.attention import CAUSAL


def build_model(config: GPTNeoXConfig, seed: int, device: torch.device) -> GPTNeoXForCausalLM:
    """A model with fresh float32 weights, drawn on the CPU from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPTNeoXForCausalLM._from_config(config, attn_implementation=CAUSAL)
    return model.to(device=device, dtype=torch.float32)
