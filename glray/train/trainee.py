"""What a worker trains: a model and its optimizer, step by step.

A run, its warm-up, the calibration, the probe for micro-batches and a profile all build and step a
model in this one way.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from glray.data.checksum import token_checksum
from glray.data.order import row_range
from glray.data.windows import Batch
from glray.errors import UserError
from glray.model.decoder import meta_model
from glray.model.loss import NextTokenLoss
from glray.model.weights import Weights, drawn
from glray.progress import advance
from glray.run.records import Execution
from glray.spec.pipeline import PipelineSpec
from glray.train.context import WorkerContext, device_clock
from glray.train.optimizer import build_optimizer
from glray.train.parallel import computing_in, prepare_model, replicated, summing_over_ranks, whole
from glray.train.probe.memory import is_out_of_memory


@dataclass(frozen=True)
class StepSums:
    """What a step leaves on the device: scalars that no host has waited for."""

    loss: torch.Tensor
    """Σ losses of this rank's targets / the batch's tokens, float64: a step's is the sum over
    ranks."""
    checksum: torch.Tensor
    """Token checksum of this rank's tensors that went through forward, int64, summed likewise."""
    grad_norm: torch.Tensor
    """L2 norm of the whole gradient before clipping, the same on every rank."""


class Trainee:
    """A model and its optimizer as one worker of its group trains them."""

    model: NextTokenLoss
    """To score and save; sharded under FSDP2."""
    replicas: torch.nn.Module
    """To train: the model, under DDP wrapped."""
    optimizer: torch.optim.AdamW

    def __init__(
        self,
        network: PreTrainedModel,
        weights: Weights | None,
        spec: PipelineSpec,
        ctx: WorkerContext,
        execution: Execution,
    ) -> None:
        """Of a ``network`` on ``meta``, as ``meta_model`` makes it; without ``weights``, a
        checkpoint's are to be loaded into it."""
        self.spec, self.ctx, self.execution = spec, ctx, execution
        self.model = NextTokenLoss(network, spec.attention)
        prepare_model(self.model, spec.compute, spec.precision, ctx)
        if weights is not None:
            weights(network)
        self.optimizer = build_optimizer(network, spec.optimizer)
        self.replicas = replicated(self.model, ctx)

    @classmethod
    def scratch(
        cls, config: PreTrainedConfig, spec: PipelineSpec, ctx: WorkerContext, execution: Execution
    ) -> "Trainee":
        """One with fresh weights that is trained for nothing, to see what that takes."""
        return cls(meta_model(config), drawn(seed=0), spec, ctx, execution)

    def step(self, batch: Batch, lr: float) -> StepSums:
        """One optimizer step on this rank's windows of a batch."""
        loss, checksum = self.gradients(batch)
        return StepSums(loss, checksum, self.update(lr))

    def gradients(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward over this rank's windows: loss and checksum, as ``StepSums`` has
        them.

        Every rank runs the same number of micro-batches, as many as the one with most rows needs,
        all of the same size but for the last; a short rank runs rows of zero weight. Losses are
        summed and divided by the batch's tokens, so the gradient after the mean over ranks (undone
        by × world size) is that of one worker. Ranks sum their gradients once, in the last
        micro-batch.
        """
        ctx, seq_len, batch_tokens = self.ctx, batch.seq_len, batch.tokens_per_batch
        most_rows = -(-(batch_tokens // seq_len) // ctx.world_size)
        num_micro = -(-most_rows // self.execution.rows_at_once(seq_len))
        rows_per_micro = -(-most_rows // num_micro)
        tokens = _to_device(batch.tokens, ctx.device)
        offsets = _to_device(batch.offsets, ctx.device)
        loss = torch.zeros((), dtype=torch.float64, device=ctx.device)
        checksum = torch.zeros((), dtype=torch.int64, device=ctx.device)
        for micro in range(num_micro):
            rows = slice(micro * rows_per_micro, (micro + 1) * rows_per_micro)
            inputs, targets = tokens[rows, :-1], tokens[rows, 1:]
            weight = ctx.world_size / batch_tokens
            if len(inputs) == 0:
                inputs = targets = tokens.new_zeros((1, seq_len))
                weight = 0.0
            total = self.micro_batch(inputs, targets, weight, is_last=micro == num_micro - 1)
            if weight:
                loss += total.double() / batch_tokens
                checksum += token_checksum(inputs, targets, offsets[rows])
        return loss, checksum

    def micro_batch(
        self, inputs: torch.Tensor, targets: torch.Tensor, weight: float, *, is_last: bool
    ) -> torch.Tensor:
        """Add ``weight`` times the gradient of the targets' summed loss, which is returned; only
        the last micro-batch of a step sums gradients over ranks. Both are int64[rows, seq_len]."""
        with summing_over_ranks(self.replicas, now=is_last):
            total = self.forward(inputs, targets)
            (total * weight).backward()
        return total.detach()

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The targets' summed loss, float32, in the spec's precision."""
        with computing_in(self.spec.precision, self.model, self.ctx.device):
            return self.replicas(inputs, targets)

    def update(self, lr: float) -> torch.Tensor:
        """Clip, update, clear. Returns the gradient's L2 norm before clipping, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        max_norm = self.spec.optimizer.max_grad_norm
        grad_norm = torch.nn.utils.clip_grad_norm_(self.replicas.parameters(), max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return whole(grad_norm).detach()

    @property
    def has_to_warm_up(self) -> bool:
        """Whether there is anything to find out in a warm-up: not on a CPU without compilation."""
        return self.ctx.device.type != "cpu" or self.spec.compute.compile

    def warm_up(self, batches: Iterable[Batch]) -> None:
        """Compile for every batch and try its memory, before a clock starts; no weight changes.

        What a stage first needs at its boundary, hours into a run, is found before step 0: a
        kernel that has to be compiled, or a device that is too small. All ranks do it together, so
        that none races ahead of one that still compiles. Raises UserError if the device's memory
        does not hold a length.
        """
        size = attrgetter("seq_len", "tokens_per_batch")
        for batch in sorted(batches, key=size, reverse=True):  # what needs most memory first
            try:
                self.gradients(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                seq_len = batch.seq_len
                tokens = self.execution.rows_at_once(seq_len) * seq_len
                raise UserError(
                    f"compute.micro_batch_tokens: {tokens:,} tokens at seq_len {seq_len} do not "
                    f"fit in the memory of {self.execution.device}: training would end at that "
                    f"length; set a lower one ({str(error).splitlines()[0]})"
                ) from None
            self.optimizer.zero_grad(set_to_none=True)
            advance(1)
        device_clock(self.ctx.device)  # a clock starts when the device is done

    def step_seconds(self, batch: Batch) -> float:
        """Seconds of a step, from and to where the device has done all that it was given."""
        start = device_clock(self.ctx.device)
        self.step(batch, self.spec.optimizer.lr)
        return device_clock(self.ctx.device) - start

    def random_batch(self, seq_len: int, tokens_per_batch: int | None = None) -> Batch:
        """This rank's share of a batch of random tokens, by default as many as the pipeline's."""
        batch_tokens = tokens_per_batch or self.spec.tokens_per_batch
        rows = batch_tokens // seq_len
        first, last = row_range(rows, self.ctx.rank, self.ctx.world_size)
        vocab_size = self.model.network.config.vocab_size
        shape = (last - first, seq_len + 1)
        tokens = np.random.default_rng(0).integers(vocab_size, size=shape, dtype=np.int64)
        return Batch(0, seq_len, batch_tokens, offsets=np.arange(first, last), tokens=tokens)


def _to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """As int64. From pinned memory, else the host would wait until the device comes to it."""
    tensor = torch.from_numpy(values.astype("int64"))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
