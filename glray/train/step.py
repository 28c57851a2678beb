"""One optimizer step: micro-batches counted in tokens, the gradient that of one worker."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from glray.data.checksum import token_checksum
from glray.data.windows import Batch
from glray.run.records import Execution
from glray.spec.pipeline import PipelineSpec
from glray.train.context import WorkerContext
from glray.train.parallel import summing_over_ranks


@dataclass(frozen=True)
class StepSums:
    """This rank's part of a step; the global values are the sums over ranks."""

    loss: torch.Tensor
    """Σ losses of the rank's targets / ``tokens_per_batch``, float64 scalar on the device."""
    checksum: torch.Tensor
    """Token checksum of the tensors that went through forward, int64 scalar on the device."""


def accumulate_gradients(
    model: torch.nn.Module,
    batch: Batch,
    spec: PipelineSpec,
    ctx: WorkerContext,
    execution: Execution,
) -> StepSums:
    """Forward and backward over this rank's windows. ``model`` is as ``replicated`` returns it.

    Every rank runs the same number of micro-batches, as many as the one with most rows needs, all
    of the same size but for the last; a short rank runs rows of zero weight. Losses are summed and
    divided by ``tokens_per_batch``, so the gradient after the mean over ranks (undone by × world
    size) is that of one worker. Ranks sum their gradients once, in the last micro-batch.
    """
    seq_len = batch.seq_len
    most_rows = -(-(spec.tokens_per_batch // seq_len) // ctx.world_size)
    num_micro = -(-most_rows // execution.rows_at_once(seq_len))
    rows_per_micro = -(-most_rows // num_micro)
    tokens = _to_device(batch.tokens, ctx.device)
    offsets = _to_device(batch.offsets, ctx.device)
    loss = torch.zeros((), dtype=torch.float64, device=ctx.device)
    checksum = torch.zeros((), dtype=torch.int64, device=ctx.device)
    for micro in range(num_micro):
        rows = slice(micro * rows_per_micro, (micro + 1) * rows_per_micro)
        inputs, targets = tokens[rows, :-1], tokens[rows, 1:]
        weight = ctx.world_size / spec.tokens_per_batch
        if len(inputs) == 0:
            inputs = targets = tokens.new_zeros((1, seq_len))
            weight = 0.0
        with summing_over_ranks(model, now=micro == num_micro - 1):
            with torch.autocast(
                ctx.device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"
            ):
                total = model(inputs, targets)
            (total * weight).backward()
        if weight:
            loss += total.detach().double() / spec.tokens_per_batch
            checksum += token_checksum(inputs, targets, offsets[rows])
    return StepSums(loss=loss, checksum=checksum)


def _to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """As int64. From pinned memory, else the host would wait until the device comes to it."""
    tensor = torch.from_numpy(values.astype("int64"))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def apply_gradients(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> torch.Tensor:
    """Clip, update, clear. Returns the gradient's L2 norm before clipping, on the device."""
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return (grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm).detach()
