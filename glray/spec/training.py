"""Optimizer, learning rate and evaluation."""

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from glray.spec.base import Count, Integer, Spec

_Decay = Annotated[float, Field(ge=0, lt=1)]

PeakRate = Annotated[float, Field(gt=0)]
"""A peak learning rate."""

RewarmSteps = Annotated[Integer, Field(ge=0)]
"""Steps after each stage boundary over which the learning rate rises to the schedule again."""


def rate_text(lr: float) -> str:
    """``6e-3``, ``1.2e-2``: a learning rate with all its digits, as it also names arms."""
    return f"{Decimal(repr(lr)).normalize():e}".replace("+", "")


class _Schedule(Spec):
    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Share of the budget over which the rate rises linearly from 0 to the peak."""
    final: float = Field(default=0.1, ge=0, le=1)
    """The rate at the end, as a share of the peak."""


class CosineSchedule(_Schedule):
    """Warm-up, then half a cosine down to ``final``."""

    kind: Literal["cosine"] = "cosine"


class LinearSchedule(_Schedule):
    """Warm-up, then a straight line down to ``final``."""

    kind: Literal["linear"] = "linear"


class StableDecaySchedule(_Schedule):
    """Warm-up, the peak held, then a straight line down to ``final`` (WSD)."""

    kind: Literal["wsd"] = "wsd"
    decay: float = Field(default=0.2, gt=0, le=1)
    """Share of the budget that the decay at the end takes."""

    def model_post_init(self, context: Any) -> None:
        if self.warmup + self.decay > 1:
            raise ValueError(
                f"schedule.warmup {self.warmup} + decay {self.decay} is more than the whole "
                "budget; lower one of them"
            )


ScheduleSpec = Annotated[
    CosineSchedule | LinearSchedule | StableDecaySchedule, Field(discriminator="kind")
]


class OptimizerSpec(Spec):
    """AdamW with gradient clipping (Loshchilov & Hutter 2019)."""

    lr: PeakRate
    """Peak learning rate, where an arm has none of its own."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.95)
    """Decay of the first and second moments (Pythia's)."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of the update."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices and embeddings; norms and biases are not decayed."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger global L2 norm are scaled down to it."""
    schedule: ScheduleSpec = CosineSchedule()
    """The learning rate over the budget, in calibrated seconds or tokens as the budget is."""
    rewarm_steps: RewarmSteps = 0
    """Steps after each stage boundary over which the learning rate rises to the schedule again,
    unless an arm has its own."""


class EvaluationSpec(Spec):
    """Held-out loss of one fixed set of target tokens, by window length."""

    seq_lens: tuple[Integer, ...] = Field(min_length=1)
    """Window lengths in tokens; the longest may exceed the trained lengths. Each must divide it."""
    num_tokens: Count
    """Target tokens scored at every length; fewer if the held-out documents, which give two
    sequences of the longest length each, have fewer."""
    every_tokens: Count | None = None
    """Tokens between evaluations, to whole steps. None: only at stage boundaries and the end."""
    stage_ends: bool = True
    """Score each stage boundary: before it, on it and some steps later. Without, a run is scored at
    its end and every ``every_tokens`` alone, as the trials of a search are."""
    max_rise: float | None = Field(default=None, ge=0)
    """Nats per token by which the loss at the length before a stage boundary may rise in the 16
    steps after it. A run that exceeds it stops with a checkpoint. None: no limit."""

    def model_post_init(self, context: Any) -> None:
        check_scorable("evaluation", self.seq_lens, self.num_tokens)
        if len(set(self.seq_lens)) != len(self.seq_lens):
            raise ValueError(f"evaluation.seq_lens {self.seq_lens} has a length twice; remove one")
        if self.max_rise is not None and not self.stage_ends:
            raise ValueError(
                f"evaluation.max_rise {self.max_rise:g} limits what the loss does at stage "
                "boundaries, but evaluation.stage_ends is false, so none would be scored and "
                "nothing would stop a run; set stage_ends=true, or max_rise=null"
            )


def check_scorable(field: str, seq_lens: tuple[int, ...], num_tokens: int) -> None:
    """Raises ValueError if the same targets cannot be scored at all of a field's lengths."""
    longest = max(seq_lens)
    for seq_len in seq_lens:
        if seq_len < 1 or longest % seq_len:
            raise ValueError(
                f"{field}.seq_lens has {seq_len}, which does not divide the longest, "
                f"{longest}: the same targets could not be scored at both; use powers of two"
            )
    if num_tokens < longest:
        raise ValueError(
            f"{field}.num_tokens {num_tokens} is less than one window of {longest}: raise it"
        )
