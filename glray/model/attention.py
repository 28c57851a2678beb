"""Causal attention of whole windows, through the fastest kernel that PyTorch has for them.

``transformers``' own ``sdpa`` looks in each forward pass whether several documents are packed into
a row: it waits for the device to answer, and inside ``torch.compile``, where it cannot wait, builds
a mask that rules the fused causal kernels out. A window is one row from position 0 on, so nothing
needs to be looked at. https://huggingface.co/docs/transformers/attention_interface
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

CAUSAL = "glray_causal"
"""The name under which ``transformers`` knows ``causal_attention``; with it it makes no mask."""


def causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Each token attends to itself and those before it in its window.

    ``query`` is [rows, heads, seq_len, head_dim]; ``key`` and ``value`` may have fewer heads, each
    for a group of the query's. Returns [rows, seq_len, heads, head_dim].
    """
    groups = query.shape[1] // key.shape[1]
    on_gpu_in_float32 = query.is_cuda and not torch.is_autocast_enabled("cuda")
    if groups > 1 and on_gpu_in_float32:
        # No fused kernel takes grouped heads in float32, one takes as many heads as the query has.
        key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
        groups = 1
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL, causal_attention)
