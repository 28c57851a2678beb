"""The network and its next-token loss, in nats: what a worker trains and scores.

The logits of a batch are its largest tensor (16,384 tokens of a 50,304-entry vocabulary: 3.3 GB in
float32), and nothing needs them all at once. So the loss goes through the targets in chunks, and
takes the gradient of each chunk's logits while it has them, as "Cut your losses" and the Liger
kernels do (https://arxiv.org/abs/2410.10989, section 3.2): three matrix products, as the plain way.

Op by op, what lies between the products reads and writes a chunk's logits a dozen times in float32.
On a GPU that takes longer than the products, so there ``compile_losses`` fuses it: the logits are
then only ever in memory in the precision of the products, and chunks can be larger.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from glray.model.attention import DocumentPlaces
from glray.spec.model import Attention

CHUNK_TARGETS = 1024
"""Targets whose logits are in memory at once. Fewer would add more often to the whole gradient of
the output weight; more would leave a processor's cache, and on a CPU be slower."""
COMPILED_CHUNK_TARGETS = 8192
"""The same on a GPU where the losses are compiled: the whole gradient of the output weight is read
and written once a chunk, and a product of few rows would be split along the vocabulary."""


class NextTokenLoss(torch.nn.Module):
    """A causal language model of ``transformers`` that returns losses instead of logits.

    All its work is in ``forward``: under FSDP2 the output layer's weight is whole only there.
    """

    compile_losses = False
    """Whether to compile the losses between the matrix products where the inputs are on a GPU."""

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
        flat, labels = hidden.flatten(0, 1), targets.flatten()
        compiled = self.compile_losses and inputs.is_cuda
        if self.training:
            return _SummedLoss.apply(flat, weight, labels, compiled)  # type: ignore[no-untyped-call]
        return _each_loss(flat, weight, labels, compiled=compiled).view_as(targets)

    def _documents_apart(self, inputs: torch.Tensor) -> dict[str, Any]:
        if self._attention == "window":
            return {}
        places = DocumentPlaces(inputs, self.network.config.eos_token_id)
        mask = places.block_mask() if inputs.is_cuda else places.mask()
        return {"attention_mask": mask, "position_ids": places.positions}


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, compiled: bool
    ) -> torch.Tensor:
        losses_of = _compiled(_losses) if compiled else _losses
        with torch.autocast(hidden.device.type, enabled=False):
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            hidden_grad = torch.empty_like(hidden)
            weight_grad = torch.zeros_like(weight, dtype=torch.float32)
            for chunk in _chunks(len(targets), compiled):
                losses, logits_grad = losses_of(hidden[chunk], weight, targets[chunk])
                total += losses.sum()
                hidden_grad[chunk] = logits_grad @ weight
                _add_product(weight_grad, logits_grad.T, hidden[chunk])
                del logits_grad  # before the next chunk's are made
        ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, total_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * total_grad, weight_grad * total_grad, None, None


def _losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each target, float32[n], and its gradient by the logits, [n, vocabulary]."""
    logits = (hidden @ weight.T).float()
    log_total = logits.logsumexp(dim=-1)
    losses = log_total - logits.gather(1, targets[:, None]).squeeze(1)
    logits_grad = logits.sub_(log_total[:, None]).exp_().to(hidden.dtype)
    # The targets' own columns: an assignment, as no kernel sums in an order of its own then, and
    # after the cast, or a compiler would keep the float32 shares in memory for it.
    rows = torch.arange(len(targets), device=targets.device)
    logits_grad[rows, targets] = ((-losses).exp() - 1).to(hidden.dtype)
    return losses, logits_grad


def _each_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, compiled: bool
) -> torch.Tensor:
    """Loss of each target, float32[n]."""
    losses_of = _compiled(_losses_by_logits) if compiled else _losses_by_logits
    losses = [
        losses_of(_product(hidden[chunk], weight.T), targets[chunk])
        for chunk in _chunks(len(targets), compiled)
    ]
    return torch.cat(losses)


def _losses_by_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none")


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """In float32 where the device can write what it has summed up as such: CUDA alone."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add ``left @ right`` to ``total``, float32. On CUDA the product itself adds, so that it is
    neither rounded to bfloat16 in between nor written by itself."""
    if left.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled, the same one for every model; on first use, as the compiler takes
    seconds to import. Each number of targets has its own graph, as each size of a micro-batch has
    its own of a block: a shorter last chunk is not padded."""
    return torch.compile(function, dynamic=False)


def _chunks(num_targets: int, compiled: bool) -> Iterator[slice]:
    size = COMPILED_CHUNK_TARGETS if compiled else CHUNK_TARGETS
    for start in range(0, num_targets, size):
        yield slice(start, start + size)
