"""Next-token loss, in nats."""

import torch
import torch.nn.functional as F


def token_losses(
    model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of each target in nats: float32[rows, seq_len].

    ``inputs`` and ``targets`` are int64[rows, seq_len]; row by row, each window is its own context.
    """
    logits = model(input_ids=inputs).logits.float()  # [rows, seq_len, vocab]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets)
