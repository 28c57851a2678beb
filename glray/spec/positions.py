"""How positions are placed at each stage: a pure function of the stages, so no resume can drift."""

from typing import Annotated, Literal

from pydantic import Field

from glray.spec.base import Integer, Spec

Reference = Literal["first", "previous"] | Annotated[Integer, Field(ge=1)]
"""The length that a stage's positions are squeezed into: the arm's first stage's, the stage's
before it, or so many tokens (those that a folder of ``init`` was trained at)."""


class Extrapolation(Spec):
    """As they are, 0, 1, 2 …: those beyond the lengths so far are new to the model. The paper's
    choice (section 3.1)."""

    kind: Literal["extrapolation"] = "extrapolation"


class Interpolation(Spec):
    """Divided by what the length is over the reference (Chen et al. 2023, arXiv:2306.15595)."""

    kind: Literal["interpolation"] = "interpolation"
    relative_to: Reference = "first"
    """Which length's positions are kept to."""


class NtkAware(Spec):
    """The base θ raised to θ·s^(d/(d − 2)) for s times the reference and d rotary dimensions: the
    slowest turn is interpolated, the fastest stays (section 3.1 of YaRN, arXiv:2309.00071)."""

    kind: Literal["ntk"] = "ntk"
    relative_to: Reference = "first"
    """Which length's slowest turn is kept to."""


class BaseFrequencies(Spec):
    """A base θ of its own for every stage."""

    kind: Literal["theta"] = "theta"
    thetas: tuple[Annotated[float, Field(gt=1)], ...] = Field(min_length=1)
    """θ of each stage, in their order."""


class Yarn(Spec):
    """Slow turns interpolated, fast ones kept, a ramp between, and attention made sharper
    (Peng et al. 2023, arXiv:2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    relative_to: Reference = "first"
    """Which length's positions are kept to."""


PositionsSpec = Annotated[
    Extrapolation | Interpolation | NtkAware | BaseFrequencies | Yarn, Field(discriminator="kind")
]
"""A choice of positions."""
