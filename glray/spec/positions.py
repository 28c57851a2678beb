"""RoPE scaling at each stage: a pure function of the stages, so that no resume can drift."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from glray.spec.base import Count, Spec

Reference = Literal["first", "previous"] | Count
"""The length that a stage's positions are scaled to: that of the first stage, that of the stage
before (where a run goes on from another one, the other's stages count too), or a number of tokens
(the length that a folder of ``init`` was trained at)."""


class Extrapolation(Spec):
    """No scaling: positions are 0, 1, 2 …, of which those beyond the lengths so far are new to the
    model. The paper's choice (section 3.1)."""

    kind: Literal["extrapolation"] = "extrapolation"


class Interpolation(Spec):
    """Positions divided by length / reference (Chen et al. 2023, arXiv:2306.15595)."""

    kind: Literal["interpolation"] = "interpolation"
    relative_to: Reference = "first"
    """The reference length."""


class NtkAware(Spec):
    """The base θ becomes θ·s^(d/(d − 2)), where s = length / reference and d is the number of
    rotary dimensions: the lowest frequency is interpolated, the highest is kept (section 3.1 of
    YaRN, arXiv:2309.00071)."""

    kind: Literal["ntk"] = "ntk"
    relative_to: Reference = "first"
    """The reference length."""


class BaseFrequencies(Spec):
    """A base θ for each stage."""

    kind: Literal["theta"] = "theta"
    thetas: tuple[Annotated[float, Field(gt=1)], ...] = Field(min_length=1)
    """θ of each stage, in the order of training."""


class Yarn(Spec):
    """Low frequencies interpolated, high ones kept, a ramp between them, and sharper attention
    (Peng et al. 2023, arXiv:2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    relative_to: Reference = "first"
    """The reference length."""


PositionsSpec = Annotated[
    Extrapolation | Interpolation | NtkAware | BaseFrequencies | Yarn, Field(discriminator="kind")
]
"""A RoPE scaling."""

SCALINGS: dict[str, PositionsSpec] = {
    scaling.kind: scaling for scaling in (Extrapolation(), Interpolation(), NtkAware(), Yarn())
}
"""Choices that a model can be scored under beyond the length that it was trained at."""


@dataclass(frozen=True)
class StageScaling:
    """RoPE of one stage, as a change to what the model's configuration declares."""

    kind: Literal["interpolation", "ntk", "theta", "yarn"]
    value: float
    """For ``theta`` the base θ; for the other kinds length / reference."""
    reference: int | None = None
    """The length that positions are scaled to; None for ``theta``."""


def stage_scaling(
    positions: PositionsSpec, seq_lens: Sequence[int], stage: int
) -> StageScaling | None:
    """What ``positions`` do at a stage of a run whose stages have ``seq_lens`` tokens, those of its
    parent first; None where RoPE is as declared: in extrapolation, and up to the reference length.

    It depends on nothing else, so a resumed run cannot scale positions differently, and arms with
    equal scalings have equal RoPE.
    """
    if isinstance(positions, Extrapolation):
        return None
    if isinstance(positions, BaseFrequencies):
        return StageScaling("theta", positions.thetas[stage - len(seq_lens)])
    reference = _reference_len(positions.relative_to, seq_lens, stage)
    scale = seq_lens[stage] / reference
    return StageScaling(positions.kind, scale, reference) if scale > 1 else None


def _reference_len(relative_to: Reference, seq_lens: Sequence[int], stage: int) -> int:
    if isinstance(relative_to, int):
        return relative_to
    return seq_lens[0] if relative_to == "first" else seq_lens[max(stage - 1, 0)]
