"""Held-out loss by window length, on one fixed set of target tokens."""

from typing import Any

import numpy as np
import torch

from glray.data.order import row_range
from glray.data.targets import HeldoutTargets
from glray.model.loss import NextTokenLoss
from glray.spec.pipeline import PipelineSpec
from glray.training.context import WorkerContext, sum_over_ranks
from glray.training.execution import Execution


def evaluate(
    model: NextTokenLoss,
    targets: HeldoutTargets,
    seq_lens: tuple[int, ...],
    spec: PipelineSpec,
    ctx: WorkerContext,
    execution: Execution,
) -> list[dict[str, Any]]:
    """One record a length: loss in nats per token, its standard error over documents, the mean loss
    of each document and at each position of the window, bits per byte. The same on every rank."""
    was_training = model.training
    model.eval()
    results = []
    for seq_len in sorted(seq_lens):
        rows = execution.rows_at_once(seq_len)
        by_stretch, by_position = _losses(model, targets, seq_len, rows, spec, ctx)
        results.append(_summary(seq_len, by_stretch, by_position, targets))
    model.train(was_training)
    return results


def _losses(
    model: NextTokenLoss,
    targets: HeldoutTargets,
    seq_len: int,
    rows: int,
    spec: PipelineSpec,
    ctx: WorkerContext,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses of each stretch, float64[stretches], and at each position, float64[seq_len].

    ``rows`` windows go through the model at once. Every rank makes as many passes as the one with
    most windows, as a sharded model needs all of them; what is left over is padding.
    """
    longest = targets.tokens.shape[1] - 1
    windows = longest // seq_len  # of one stretch
    num_stretches = len(targets.tokens)
    first, last = row_range(num_stretches, ctx.rank, ctx.world_size)
    mine = torch.from_numpy(targets.tokens[first:last])
    inputs = mine[:, :-1].reshape(-1, seq_len)
    labels = mine[:, 1:].reshape(-1, seq_len)
    padding = inputs.new_zeros((1, seq_len))
    by_stretch = torch.zeros(num_stretches, dtype=torch.float64)
    by_position = torch.zeros(seq_len, dtype=torch.float64)
    with (
        torch.no_grad(),
        torch.autocast(ctx.device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"),
    ):
        for start in range(0, -(-num_stretches // ctx.world_size) * windows, rows):
            batch = slice(start, start + rows)
            if start >= len(inputs):
                model(padding.to(ctx.device), padding.to(ctx.device))
                continue
            losses = model(inputs[batch].to(ctx.device), labels[batch].to(ctx.device))
            losses = losses.double().cpu()
            stretch = first + torch.arange(start, start + len(losses)) // windows
            by_stretch.index_add_(0, stretch, losses.sum(dim=1))
            by_position += losses.sum(dim=0)
    both = sum_over_ranks(ctx, torch.cat([by_stretch, by_position]).to(ctx.device)).cpu().numpy()
    return both[: len(by_stretch)], both[len(by_stretch) :]


def _summary(
    seq_len: int, by_stretch: np.ndarray, by_position: np.ndarray, targets: HeldoutTargets
) -> dict[str, Any]:
    longest = targets.tokens.shape[1] - 1
    losses = np.bincount(targets.documents, weights=by_stretch)
    counts = np.bincount(targets.documents) * longest
    mean = losses.sum() / counts.sum()
    # By document, so that two runs compare on the same documents: a paired difference is far
    # surer than two losses that share the documents' difficulty.
    return {
        "seq_len": seq_len,
        "loss": float(mean),
        "standard_error": _standard_error(losses, counts, mean),
        "document_losses": (losses / counts).tolist(),
        "bits_per_byte": float(losses.sum() / np.log(2) / targets.num_bytes),
        "loss_by_position": (by_position / (targets.num_targets / seq_len)).tolist(),
    }


def _standard_error(losses: np.ndarray, counts: np.ndarray, mean: float) -> float | None:
    """Of a ratio of sums over documents (Cochran 1977, section 6.4); None for one document."""
    n = len(losses)
    if n < 2:
        return None
    residuals = losses - mean * counts
    return float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / counts.sum())
