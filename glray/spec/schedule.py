"""Stages, arms, budgets, and what a step of each length costs."""

import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, groupby, pairwise
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
    mark_end: bool | None = None
    """Whether the stage ends with a checkpoint and an evaluation, the boundary behind it is scored,
    and update norms are logged around it. Many short stages without cost no more than a few long
    ones, but runs cannot fork there, and ``evaluation.max_rise`` does not look there. None: it
    does, as does the end of the last stage always."""

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


def two_phase(
    short: int,
    long: int,
    *,
    share: float = 0.9,
    name: str | None = None,
    positions: PositionsSpec = EXTRAPOLATION,
    lr: float | None = None,
) -> ArmSpec:
    """An arm that trains at ``short`` for a ``share`` of the budget and at ``long`` for the rest,
    ``two-phase-90``: BERT's schedule (https://arxiv.org/abs/1810.04805, appendix A.2), with 0.64
    the share that SkyLadder found best (https://arxiv.org/abs/2503.15450, table 24).

    Raises ValueError unless ``share`` lies between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"two_phase: share is {share:g}, which leaves one of the two phases without a step; "
            "give a number between 0 and 1, or use fixed"
        )
    first = Fraction(str(share))
    stages = (
        StageSpec(seq_len=short, ratio=float(first)),
        StageSpec(seq_len=long, ratio=float(1 - first)),
    )
    name = name or f"two-phase-{float(100 * first):g}"
    return ArmSpec(name=name, stages=stages, positions=positions, lr=lr)


def reverse(arm: ArmSpec, *, final_share: float = 0.0, name: str | None = None) -> ArmSpec:
    """The stages of ``arm`` in the opposite order, ``growlength-reversed``.

    An arm that ends at its shortest length is hard to judge at its longest. ``final_share`` of the
    budget is therefore spent at the arm's last length once more, after the others, which keep their
    proportions. Raises ValueError for a share below 0 or not below 1, and for ``BaseFrequencies``,
    which are given stage by stage.
    """
    _check_no_thetas("reverse", arm)
    if not 0 <= final_share < 1:
        raise ValueError(
            f"reverse: final_share is {final_share:g}, but the reversed stages need some of the "
            "budget; give a number from 0 to below 1"
        )
    final = Fraction(str(final_share))
    ratios = [Fraction(str(stage.ratio)) for stage in arm.stages]
    parts = [(stage, ratio * (1 - final)) for stage, ratio in zip(arm.stages, ratios, strict=True)]
    parts = [*reversed(parts), (arm.stages[-1], sum(ratios) * final)]
    stages = [stage.derive(ratio=float(ratio)) for stage, ratio in parts if ratio]
    return arm.derive(name=name or f"{arm.name}-reversed", stages=stages)


def shuffle(arm: ArmSpec, *, segments: int = 60, seed: int = 0, name: str | None = None) -> ArmSpec:
    """The stages of ``arm`` cut into ``segments`` pieces, in a random order: the same lengths with
    the same shares of the budget, ``growlength-shuffled``.

    Each stage is cut into equal pieces, as many as its share of the budget comes to. The order is
    drawn from ``seed``, a number of its own, so it is the same under every seed of the runs. Pieces
    of one stage that follow one another become one stage, and no end but the last is marked.
    Raises ValueError if a stage would get no piece, and for ``BaseFrequencies``, which are given
    stage by stage.
    """
    _check_no_thetas("shuffle", arm)
    ratios = [Fraction(str(stage.ratio)) for stage in arm.stages]
    ends = [round(segments * end / sum(ratios)) for end in accumulate(ratios)]
    counts = [end - start for start, end in pairwise((0, *ends))]
    if min(counts) < 1:
        stage = arm.stages[counts.index(min(counts))]
        raise ValueError(
            f"shuffle: of {segments} segments the stage of {stage.seq_len} tokens gets none, so "
            f"{arm.name!r} would lose that length; give more segments"
        )
    pieces = [index for index, count in enumerate(counts) for _ in range(count)]
    draw = random.Random(seed)
    shuffled = sorted(pieces, key=lambda _: draw.random())
    sizes = _whole_numbers([ratio / count for ratio, count in zip(ratios, counts, strict=True)])
    stages = [
        arm.stages[index].derive(ratio=sizes[index] * len(list(run)), mark_end=False)
        for index, run in groupby(shuffled)
    ]
    return arm.derive(name=name or f"{arm.name}-shuffled", stages=stages)


def _whole_numbers(ratios: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers with the same ratios: a sum of them is exact."""
    unit = math.lcm(*(ratio.denominator for ratio in ratios))
    scaled = [int(ratio * unit) for ratio in ratios]
    return [ratio // math.gcd(*scaled) for ratio in scaled]


def _check_no_thetas(function: str, arm: ArmSpec) -> None:
    """Raises ValueError for an arm whose RoPE bases belong to the places of its stages."""
    if isinstance(arm.positions, BaseFrequencies):
        raise ValueError(
            f"{function}: positions.thetas of the arm {arm.name!r} are given stage by stage, and "
            "in another order they would meet other lengths; use another RoPE scaling, or list "
            "the stages and their thetas yourself"
        )


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
