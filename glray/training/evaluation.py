"""Held-out loss by window length, on one fixed set of target tokens."""

from dataclasses import dataclass
from itertools import pairwise
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
    *,
    stride: int | None = None,
) -> list[dict[str, Any]]:
    """One record a length: loss in nats per token, its standard error over documents, the mean loss
    of each document and at each position of the window, bits per byte. The same on every rank.

    Without a ``stride`` each stretch is cut into windows, so that a target's context is what its
    window has before it. With one, windows begin ``stride`` tokens apart and score what the one
    before has not (Press et al. 2021, arXiv:2108.12409, appendix B; YaRN, arXiv:2309.00071, section
    4.3.1): all but the first window's targets have ``seq_len`` - ``stride`` tokens or more.
    """
    was_training = model.training
    model.eval()
    results = []
    for seq_len in sorted(seq_lens):
        rows = execution.rows_at_once(seq_len)
        windows = Windows.over(targets.longest, seq_len, stride or seq_len)
        by_stretch, by_position = _losses(model, targets, windows, rows, spec, ctx)
        results.append(_summary(windows, by_stretch, by_position, targets))
    model.train(was_training)
    return results


@dataclass(frozen=True)
class Windows:
    """The windows of ``seq_len`` tokens that score each target of a stretch once."""

    seq_len: int
    starts: np.ndarray
    """int64[windows]: where each begins in the stretch."""
    num_new: np.ndarray
    """int64[windows]: how many targets at the end of each the one before has not scored."""

    @classmethod
    def over(cls, longest: int, seq_len: int, stride: int) -> "Windows":
        """Over a stretch of ``longest`` targets; the last window is whole, it starts earlier."""
        starts = [0]
        while starts[-1] + seq_len < longest:
            starts.append(min(starts[-1] + min(stride, seq_len), longest - seq_len))
        new = [seq_len, *(later - earlier for earlier, later in pairwise(starts))]
        return cls(seq_len, np.array(starts), np.array(new))

    @property
    def scored_at(self) -> np.ndarray:
        """int64[seq_len]: targets of a stretch that are scored at each position of a window."""
        positions = np.arange(self.seq_len)
        return (positions >= self.seq_len - self.num_new[:, None]).sum(axis=0)


def _losses(
    model: NextTokenLoss,
    targets: HeldoutTargets,
    windows: Windows,
    rows: int,
    spec: PipelineSpec,
    ctx: WorkerContext,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses of each stretch, float64[stretches], and at each position, float64[seq_len].

    ``rows`` windows go through the model at once. Every rank makes as many passes as the one with
    most windows, as a sharded model needs all of them; what is left over is padding.
    """
    seq_len, per_stretch = windows.seq_len, len(windows.starts)
    num_stretches = len(targets.tokens)
    first, last = row_range(num_stretches, ctx.rank, ctx.world_size)
    mine = torch.from_numpy(targets.tokens[first:last])
    starts, num_new = torch.from_numpy(windows.starts), torch.from_numpy(windows.num_new)
    places = torch.arange(seq_len + 1)
    num_windows = len(mine) * per_stretch
    padding = mine.new_zeros((1, seq_len))
    by_stretch = torch.zeros(num_stretches, dtype=torch.float64)
    by_position = torch.zeros(seq_len, dtype=torch.float64)
    with (
        torch.no_grad(),
        torch.autocast(ctx.device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"),
    ):
        for start in range(0, -(-num_stretches // ctx.world_size) * per_stretch, rows):
            if start >= num_windows:
                model(padding.to(ctx.device), padding.to(ctx.device))
                continue
            window = torch.arange(start, min(start + rows, num_windows))
            stretch, place = window // per_stretch, window % per_stretch
            tokens = mine[stretch[:, None], starts[place, None] + places]
            losses = model(tokens[:, :-1].to(ctx.device), tokens[:, 1:].to(ctx.device))
            is_new = places[:-1] >= seq_len - num_new[place, None]
            losses = losses.double().cpu() * is_new
            by_stretch.index_add_(0, first + stretch, losses.sum(dim=1))
            by_position += losses.sum(dim=0)
    both = sum_over_ranks(ctx, torch.cat([by_stretch, by_position]).to(ctx.device)).cpu().numpy()
    return both[: len(by_stretch)], both[len(by_stretch) :]


def _summary(
    windows: Windows, by_stretch: np.ndarray, by_position: np.ndarray, targets: HeldoutTargets
) -> dict[str, Any]:
    losses = np.bincount(targets.documents, weights=by_stretch)
    counts = np.bincount(targets.documents) * targets.longest
    mean = losses.sum() / counts.sum()
    # By document, so that two runs compare on the same documents: a paired difference is far
    # surer than two losses that share the documents' difficulty.
    return {
        "seq_len": windows.seq_len,
        "loss": float(mean),
        "standard_error": _standard_error(losses, counts, mean),
        "document_losses": (losses / counts).tolist(),
        "bits_per_byte": float(losses.sum() / np.log(2) / targets.num_bytes),
        "loss_by_position": (by_position / (windows.scored_at * len(targets.tokens))).tolist(),
    }


def _standard_error(losses: np.ndarray, counts: np.ndarray, mean: float) -> float | None:
    """Of a ratio of sums over documents (Cochran 1977, section 6.4); None for one document."""
    n = len(losses)
    if n < 2:
        return None
    residuals = losses - mean * counts
    return float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / counts.sum())
