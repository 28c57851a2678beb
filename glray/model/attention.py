"""Causal attention of windows, through the fastest kernel that PyTorch has for them.

``transformers``' own ``sdpa`` looks in each forward pass whether several documents are packed into
a row: it waits for the device to answer, and inside ``torch.compile``, where it cannot wait, builds
a mask that rules the fused causal kernels out. A window is one row from position 0 on, so nothing
needs to be looked at; where documents are kept apart, the mask is made here, once for all layers.
https://huggingface.co/docs/transformers/attention_interface
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

CAUSAL = "glray_causal"
"""The name under which ``transformers`` knows ``causal_attention``; with it it makes no mask."""


def causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Each token attends to itself and those before it in its window, or as a mask of
    ``DocumentPlaces`` says.

    ``query`` is [rows, heads, seq_len, head_dim]; ``key`` and ``value`` may have fewer heads, each
    for a group of the query's. Returns [rows, seq_len, heads, head_dim].
    """
    groups = query.shape[1] // key.shape[1]
    if isinstance(attention_mask, BlockMask):
        flex = _compiled(flex_attention) if query.is_cuda else flex_attention
        out = flex(
            query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=groups > 1
        )
        return out.transpose(1, 2).contiguous(), None
    on_gpu_in_float32 = query.is_cuda and not torch.is_autocast_enabled("cuda")
    if groups > 1 and on_gpu_in_float32:
        # No fused kernel takes grouped heads in float32, one takes as many heads as the query has.
        key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
        groups = 1
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=attention_mask is None,
        scale=scaling,
        enable_gqa=groups > 1,
    )
    return out.transpose(1, 2).contiguous(), None


class DocumentPlaces:
    """Where the documents of windows lie: a token attends to those of its own, and positions start
    from 0 at each.

    ``inputs`` is int64[rows, seq_len]. A ``separator`` ends the document that it follows. What a
    window has of a document begun before it counts as one that begins with the window.
    """

    def __init__(self, inputs: torch.Tensor, separator: int) -> None:
        self._places = torch.arange(inputs.shape[1], device=inputs.device)
        after = torch.where(inputs[:, :-1] == separator, self._places[1:], 0)
        self._starts = F.pad(after, (1, 0)).cummax(dim=1).values

    @property
    def positions(self) -> torch.Tensor:
        """int64[rows, seq_len]: in the document."""
        return self._places - self._starts

    def mask(self) -> torch.Tensor:
        """bool[rows, 1, seq_len, seq_len]: which token (the last axis) each may attend to."""
        same = self._starts[:, :, None] == self._starts[:, None, :]
        return (same & (self._places[:, None] >= self._places))[:, None]

    def block_mask(self) -> BlockMask:
        """The same for flex attention, which passes over blocks that are masked as a whole and
        never has the mask in memory."""
        starts = self._starts

        def attends(
            row: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor
        ) -> torch.Tensor:
            return (query >= key) & (starts[row, query] == starts[row, key])

        make = _compiled(create_block_mask) if starts.is_cuda else create_block_mask
        rows, seq_len = starts.shape
        return make(attends, rows, None, seq_len, seq_len, device=starts.device)


@cache
def _compiled(function: Any) -> Any:
    """Without compilation flex attention would be slower than a mask in memory."""
    return torch.compile(function, dynamic=False)


AttentionInterface.register(CAUSAL, causal_attention)
