"""Held-out loss by window length, on one fixed set of target tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from glray.data.order import row_range
from glray.data.targets import HeldoutTargets
from glray.model.loss import NextTokenLoss
from glray.progress import advance
from glray.run.records import FarContext, FarLoss, LengthLoss
from glray.run.statistics import standard_error
from glray.spec.model import Precision
from glray.train.context import WorkerContext, sum_over_ranks
from glray.train.parallel import computing_in, evaluating

FAR_TOKENS = 512
"""Tokens of its own document that a far target has before it, or half of a sequence if that is
less. A quarter of it is the short context."""


def score(
    model: NextTokenLoss,
    targets: HeldoutTargets,
    windows: "Windows",
    ctx: WorkerContext,
    *,
    rows: int,
    precision: Precision,
    first_place: int = 0,
    begin_with: Sequence[int] = (),
) -> "Scored":
    """The losses of the targets in ``windows``, ``rows`` of them through the model at once. The
    same on every rank. Targets before ``first_place`` in their sequence count as 0. Each window's
    inputs begin with ``begin_with`` in place of their own tokens; its targets stay. It advances the
    work that it is done in by the tokens that go through the model.

    Every rank makes as many passes as the one with most windows, as a sharded model needs all of
    them; what is left over is padding.
    """
    seq_len, per_sequence = windows.seq_len, len(windows.starts)
    num_sequences = len(targets.tokens)
    first, last = row_range(num_sequences, ctx.rank, ctx.world_size)
    mine = torch.from_numpy(targets.tokens[first:last])
    starts, num_new = torch.from_numpy(windows.starts), torch.from_numpy(windows.num_new)
    positions = torch.arange(seq_len + 1)
    num_windows = len(mine) * per_sequence
    padding = mine.new_zeros((1, seq_len))
    by_sequence = torch.zeros(num_sequences, dtype=torch.float64)
    by_place = torch.zeros(targets.longest, dtype=torch.float64)
    with evaluating(model), torch.no_grad(), computing_in(precision, model, ctx.device):
        for start in range(0, -(-num_sequences // ctx.world_size) * per_sequence, rows):
            if start >= num_windows:
                model(padding.to(ctx.device), padding.to(ctx.device))
                continue
            window = torch.arange(start, min(start + rows, num_windows))
            sequence, index = window // per_sequence, window % per_sequence
            places = starts[index, None] + positions
            tokens = mine[sequence[:, None], places]
            inputs, labels = tokens[:, :-1].clone(), tokens[:, 1:]
            inputs[:, : len(begin_with)] = torch.tensor(begin_with, dtype=inputs.dtype)
            losses = model(inputs.to(ctx.device), labels.to(ctx.device))
            is_new = positions[:-1] >= seq_len - num_new[index, None]
            losses = losses.double().cpu() * (is_new & (places[:, :-1] >= first_place))
            by_sequence.index_add_(0, first + sequence, losses.sum(dim=1))
            by_place.index_add_(0, places[:, :-1].flatten(), losses.flatten())
            advance(losses.numel() * ctx.world_size)
    both = sum_over_ranks(ctx, torch.cat([by_sequence, by_place]).to(ctx.device)).cpu().numpy()
    return Scored(targets, windows, both[:num_sequences], both[num_sequences:])


def far_windows(longest: int, trained: int) -> tuple[int, list[int]]:
    """From which place of a sequence of ``longest`` targets they are far, and the window lengths
    to score these in: the short context, doubled up to the longest length ``trained``."""
    far = min(FAR_TOKENS, longest // 2)
    own = min(trained, longest)
    shorter, seq_len = [], max(1, far // 4)
    while seq_len < own:
        shorter.append(seq_len)
        seq_len *= 2
    return far, [*shorter, own]


def score_far(
    targets: HeldoutTargets, trained: int, score_windows: Callable[["Windows", int], "Scored"]
) -> FarContext:
    """What context further back is worth to a model trained up to ``trained`` tokens.

    ``score_windows(windows, first_place)`` is ``score`` of the model on the ``targets``.
    """
    far, seq_lens = far_windows(targets.longest, trained)
    tokens = np.bincount(targets.documents) * (targets.longest - far)
    losses = []
    for seq_len in seq_lens:
        windows = Windows.by_half(targets.longest, seq_len)
        sums = score_windows(windows, far).by_sequence
        by_document = np.bincount(targets.documents, weights=sums)
        losses.append(
            FarLoss(
                seq_len=seq_len,
                loss=float(by_document.sum() / tokens.sum()),
                document_losses=by_document / tokens,
            )
        )
    return FarContext(tokens_before=far, document_tokens=tokens, losses=tuple(losses))


@dataclass(frozen=True)
class Windows:
    """The windows of ``seq_len`` tokens that score each target of a sequence once.

    Without a ``stride`` each sequence is cut into windows, so that a target's context is what its
    window has before it. With one, windows begin ``stride`` tokens apart and score what the one
    before has not (Press et al. 2021, arXiv:2108.12409, appendix B; YaRN, arXiv:2309.00071, section
    4.3.1): all but the first window's targets have ``seq_len`` - ``stride`` tokens or more.
    """

    seq_len: int
    starts: np.ndarray
    """int64[windows]: where each begins in the sequence."""
    num_new: np.ndarray
    """int64[windows]: how many targets at the end of each the one before has not scored."""

    @classmethod
    def over(cls, longest: int, seq_len: int, stride: int | None = None) -> "Windows":
        """Over a sequence of ``longest`` targets; the last window is whole, it starts earlier."""
        starts, move = [0], min(stride or seq_len, seq_len)
        while starts[-1] + seq_len < longest:
            starts.append(min(starts[-1] + move, longest - seq_len))
        new = [seq_len, *(later - earlier for earlier, later in pairwise(starts))]
        return cls(seq_len, np.array(starts), np.array(new))

    @classmethod
    def by_half(cls, longest: int, seq_len: int) -> "Windows":
        """Over a sequence of ``longest`` targets, half of ``seq_len`` apart."""
        return cls.over(longest, seq_len, max(1, seq_len // 2))

    @property
    def num_tokens(self) -> int:
        """Tokens of a sequence that go through the model, more often than once where windows
        overlap."""
        return self.seq_len * len(self.starts)

    @property
    def positions(self) -> np.ndarray:
        """int64[longest]: at which position of its window each target of a sequence is scored."""
        return np.arange(self.num_new.sum()) - np.repeat(self.starts, self.num_new)


@dataclass(frozen=True)
class Scored:
    """The targets' losses in windows of one length, over all ranks."""

    targets: HeldoutTargets
    windows: Windows
    by_sequence: np.ndarray
    """float64[sequences]: summed, in nats."""
    by_place: np.ndarray
    """float64[longest]: at each place of a sequence, summed over the sequences."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.by_sequence.sum() / self.targets.num_targets)

    @property
    def document_losses(self) -> np.ndarray:
        """float64[documents]: nats per token of each."""
        losses = np.bincount(self.targets.documents, weights=self.by_sequence)
        return losses / np.array(self.targets.document_tokens)

    def record(self) -> LengthLoss:
        """Loss in nats per token, its standard error over documents, the mean loss of each document
        and at each position of the window, bits per byte."""
        positions = self.windows.positions
        scored_at = np.bincount(positions) * len(self.targets.tokens)
        by_position = np.bincount(positions, weights=self.by_place) / scored_at
        counts = np.array(self.targets.document_tokens)
        # By document, so that two runs compare on the same documents: a paired difference is far
        # surer than two losses that share the documents' difficulty.
        return LengthLoss(
            seq_len=self.windows.seq_len,
            loss=self.loss,
            standard_error=standard_error(counts, self.document_losses),
            document_losses=self.document_losses,
            bits_per_byte=float(self.by_sequence.sum() / np.log(2) / self.targets.num_bytes),
            loss_by_position=by_position,
        )
