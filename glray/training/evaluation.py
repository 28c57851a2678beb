"""Held-out loss by window length, on one fixed set of target tokens.

The set is made of stretches of ``longest`` tokens from documents that are long enough, dealt round
after round (each document's first stretch, then each one's second …) until ``num_tokens`` are
reached. At a shorter length every stretch is cut into windows, each its own context: the targets
stay the same, and no window crosses a document.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glray.data.corpus import PreparedCorpus
from glray.data.order import row_range
from glray.errors import UserError
from glray.model.loss import NextTokenLoss
from glray.spec.pipeline import PipelineSpec
from glray.spec.training import EvaluationSpec
from glray.training.context import WorkerContext, sum_over_ranks
from glray.training.execution import Execution


@dataclass(frozen=True)
class HeldoutTargets:
    """Stretches of held-out text: inputs ``[:, :-1]``, targets ``[:, 1:]``."""

    tokens: np.ndarray
    """int64[stretches, longest + 1]."""
    documents: np.ndarray
    """int64[stretches]: which document each comes from, numbered from 0 without gaps."""
    num_bytes: int
    """UTF-8 bytes that the targets stand for."""

    @property
    def num_documents(self) -> int:
        """Documents that the stretches come from."""
        return int(self.documents.max()) + 1

    @property
    def document_tokens(self) -> list[int]:
        """Target tokens of each document."""
        longest = self.tokens.shape[1] - 1
        return [int(count) * longest for count in np.bincount(self.documents)]

    @property
    def sha256(self) -> str:
        """Names the set: losses of two runs compare only on the same one."""
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()

    @property
    def num_targets(self) -> int:
        """Target tokens."""
        return self.tokens.shape[0] * (self.tokens.shape[1] - 1)


def heldout_targets(corpus: PreparedCorpus, evaluation: EvaluationSpec) -> HeldoutTargets:
    """The fixed set of targets. Raises UserError if no held-out document is long enough."""
    longest = max(evaluation.seq_lens)
    documents = [document.tokens for document in corpus.heldout()]
    usable = [tokens for tokens in documents if len(tokens) > longest]
    if not usable:
        most = max((len(tokens) for tokens in documents), default=0)
        raise UserError(
            f"evaluation.seq_lens: {longest} needs a held-out document of {longest + 1:,} tokens, "
            f"the longest of {len(documents)} has {most:,}: nothing could be scored at that "
            "length; lower the longest length or raise heldout_fraction"
        )
    wanted = evaluation.num_tokens // longest
    stretches: list[np.ndarray] = []
    sources: list[int] = []
    start = 0
    while len(stretches) < wanted and any(len(tokens) > start + longest for tokens in usable):
        for index, tokens in enumerate(usable):
            if len(tokens) > start + longest and len(stretches) < wanted:
                stretches.append(tokens[start : start + longest + 1])
                sources.append(index)
        start += longest
    tokens = np.stack(stretches).astype(np.int64)
    num_bytes = int(corpus.token_num_bytes()[tokens[:, 1:]].sum())
    return HeldoutTargets(tokens, np.array(sources, dtype=np.int64), num_bytes)


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
