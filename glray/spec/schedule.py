"""Stages, arms, budgets, and what a step of each length costs."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from glray.spec.base import Count, Integer, Name, Spec
from glray.spec.positions import BaseFrequencies, Extrapolation, PositionsSpec
from glray.spec.training import PeakRate, RewarmSteps, rate_text

EXTRAPOLATION = Extrapolation()

Weight = Annotated[Integer, Field(ge=0, le=1000)]
"""Chunks of a source in a cycle of a stage's order."""


class StageSpec(Spec):
    """A part of training at one sequence length."""

    seq_len: Count
    """Length of a window in tokens; must divide ``chunk_len``."""
    ratio: float = Field(default=1.0, gt=0)
    """Share of the budget, relative to the other stages of the arm."""
    tokens_per_batch: Count | None = None
    """Tokens of one optimizer step in this stage, a multiple of ``chunk_len``. None: the
    pipeline's. Where seconds decide, a step costs in proportion to its tokens."""
    lr_factor: float | None = Field(default=None, gt=0)
    """What the scheduled learning rate is multiplied by in this stage. None: 1."""
    weights: dict[Name, Weight] | None = None
    """Weights of the corpus's sources in this stage, by name; 0 leaves a source out. Sources that
    are not named keep their own weight. None: all keep theirs."""

    @model_validator(mode="before")
    @classmethod
    def _from_a_length(cls, declared: Any) -> Any:
        return {"seq_len": declared} if isinstance(declared, int | float | str) else declared


def _stages_of_ratios(declared: object) -> object:
    """The stages of ``{128: 3, 1024: 1}``, ratios by length."""
    if isinstance(declared, Mapping):
        return [{"seq_len": length, "ratio": ratio} for length, ratio in declared.items()]
    return declared


Stages = Annotated[tuple[StageSpec, ...], BeforeValidator(_stages_of_ratios)]
"""Stages in the order of training: ``(128, 256, 512)``, ``{128: 3, 1024: 1}`` or specs."""


class ArmSpec(Spec):
    """One run of the pipeline for each seed, under its own list of stages."""

    name: Name
    """The arm's name, as shown in tables: ``growlength``, ``llm1024``."""
    stages: Stages = Field(min_length=1)
    """Stages in the order of training: lengths that share the budget equally,
    ``(128, 256, 512)``, ratios by length, ``{128: 3, 1024: 1}``, or stages."""
    positions: PositionsSpec = EXTRAPOLATION
    """RoPE scaling when the length grows."""
    lr: PeakRate | None = None
    """Peak learning rate. None: the pipeline's ``optimizer.lr``."""
    rewarm_steps: RewarmSteps | None = None
    """Steps after each stage boundary over which the learning rate rises to the schedule again.
    None: the pipeline's ``optimizer.rewarm_steps``."""

    @property
    def seq_lens(self) -> tuple[int, ...]:
        """Length of each stage in tokens."""
        return tuple(stage.seq_len for stage in self.stages)

    def at_rate(self, lr: float) -> "ArmSpec":
        """The same at a peak rate of its own, as another arm: ``growlength-lr6e-3``."""
        return self.derive(name=f"{self.name}-lr{rate_text(lr)}", lr=lr)

    def model_post_init(self, context: Any) -> None:
        if isinstance(self.positions, BaseFrequencies):
            given, stages = len(self.positions.thetas), len(self.stages)
            if given != stages:
                raise ValueError(
                    f"positions.thetas has {given} values, but the arm {self.name!r} has {stages} "
                    "stages; give one for each stage"
                )


def fixed(seq_len: int, *, name: str | None = None, lr: float | None = None) -> ArmSpec:
    """An arm of one length throughout, ``llm1024``."""
    return ArmSpec(name=name or f"llm{seq_len}", stages=(StageSpec(seq_len=seq_len),), lr=lr)


def grow(
    *seq_lens: int,
    name: str = "growlength",
    positions: PositionsSpec = EXTRAPOLATION,
    lr: float | None = None,
) -> ArmSpec:
    """An arm that grows through ``seq_lens`` in equal shares of the budget."""
    stages = tuple(StageSpec(seq_len=seq_len) for seq_len in seq_lens)
    return ArmSpec(name=name, stages=stages, positions=positions, lr=lr)


class BudgetSpec(Spec):
    """How much one arm trains: tokens, or calibrated training seconds."""

    tokens: Count | None = None
    """Training tokens of each arm; rounded down to whole batches."""
    seconds: float | None = Field(default=None, gt=0)
    """Calibrated training seconds of each arm: steps times their calibrated cost. Evaluation,
    checkpoints and start-up do not count."""

    def model_post_init(self, context: Any) -> None:
        if (self.tokens is None) == (self.seconds is None):
            raise ValueError(
                f"budget.tokens is {self.tokens} and budget.seconds is {self.seconds}: "
                "set exactly one (null unsets the other)"
            )


class CalibrationSpec(Spec):
    """What one optimizer step costs at each length, measured once before step 0."""

    step_microseconds: dict[Count, Count] = Field(min_length=1)
    """Microseconds of one step (``tokens_per_batch`` tokens), by sequence length."""


Unit = Literal["tokens", "seconds"]
