"""The network and its next-token loss, in nats: what a worker trains and scores.

The logits of a batch are its largest tensor (16,384 tokens of a 50,304-entry vocabulary: 3.3 GB in
float32), and nothing needs them all at once. So the loss goes through the targets in chunks, and
takes the gradient of each chunk's logits while it has them, as "Cut your losses" and the Liger
kernels do (https://arxiv.org/abs/2410.10989, section 3.2): three matrix products, as the plain way.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from glray.model.attention import DocumentPlaces
from glray.spec.model import Attention

CHUNK_TARGETS = 1024
"""Targets whose logits are in memory at once. Fewer would add more often to the whole gradient of
the output weight; more would leave a processor's cache, and on a CPU be slower."""


class NextTokenLoss(torch.nn.Module):
    """A causal language model of ``transformers`` that returns losses instead of logits.

    All its work is in ``forward``: under FSDP2 the output layer's weight is whole only there.
    """

    def __init__(self, network: PreTrainedModel, attention: Attention = "window") -> None:
        super().__init__()
        self.network = network
        self._attention = attention

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Training: the sum of the losses, a float32 scalar. Evaluation (``eval()``): the loss of
        each target, float32[rows, seq_len], without a gradient.

        ``inputs`` and ``targets`` are int64[rows, seq_len]; each window is its own context, in
        training under ``attention="document"`` what it has of each document. (Held-out windows have
        one document each.)
        """
        apart = self._documents_apart(inputs) if self.training else {}
        hidden = self.network.base_model(inputs, use_cache=False, **apart).last_hidden_state
        weight = self.network.get_output_embeddings().weight
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        if self.training:
            flat = hidden.flatten(0, 1)
            return _SummedLoss.apply(flat, weight, targets.flatten())  # type: ignore[no-untyped-call]
        flat, labels = hidden.flatten(0, 1), targets.flatten()
        losses = [
            F.cross_entropy((flat[chunk] @ weight.T).float(), labels[chunk], reduction="none")
            for chunk in _chunks(len(labels))
        ]
        return torch.cat(losses).view_as(targets)

    def _documents_apart(self, inputs: torch.Tensor) -> dict[str, Any]:
        if self._attention == "window":
            return {}
        places = DocumentPlaces(inputs, self.network.config.eos_token_id)
        mask = places.block_mask() if inputs.is_cuda else places.mask()
        return {"attention_mask": mask, "position_ids": places.positions}


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            hidden_grad = torch.empty_like(hidden)
            weight_grad = torch.zeros_like(weight, dtype=torch.float32)
            for chunk in _chunks(len(targets)):
                losses, logits_grad = _losses(hidden[chunk], weight, targets[chunk])
                total += losses.sum()
                hidden_grad[chunk] = logits_grad @ weight
                weight_grad += logits_grad.T @ hidden[chunk]
                del logits_grad  # before the next chunk's are made
        ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, total_grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * total_grad, weight_grad * total_grad, None


def _losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each target, float32[n], and its gradient by the logits, [n, vocabulary]."""
    logits = (hidden @ weight.T).float()
    log_total = logits.logsumexp(dim=-1)
    losses = log_total - logits.gather(1, targets[:, None]).squeeze(1)
    shares = logits.sub_(log_total[:, None]).exp_()
    shares.scatter_add_(1, targets[:, None], -torch.ones_like(losses)[:, None])
    return losses, shares.to(hidden.dtype)


def _chunks(num_targets: int) -> Iterator[slice]:
    for start in range(0, num_targets, CHUNK_TARGETS):
        yield slice(start, start + CHUNK_TARGETS)
