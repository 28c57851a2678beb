"""What ``glray tune`` varies."""

from typing import Annotated, Any, Literal

from pydantic import Field

from glray.spec.base import Count, Integer, Name, Spec


class SearchSpec(Spec):
    """A random search over one arm's stages, every trial at the pipeline's budget of seconds."""

    arm: Name
    """The arm whose stages are varied."""
    vary: Literal["ratios", "boundaries"] = "ratios"
    """``ratios``: each stage's ratio, log-uniform in ``ratio_range``. ``boundaries``: the points
    of the budget at which the length grows, uniform and sorted."""
    ratio_range: tuple[float, float] = (0.1, 1.0)
    """Smallest and largest ratio of a stage (``vary: ratios``)."""
    ladders: tuple[Annotated[tuple[Count, ...], Field(min_length=1)], ...] = ()
    """Lists of sequence lengths to choose from, ``((128, 512), (128, 256, 512))``. Empty: the arm's
    own."""
    num_trials: Count = 8
    """Number of schedules to try."""
    seed: Integer = 0
    """Seed of the sampling."""

    def model_post_init(self, context: Any) -> None:
        low, high = self.ratio_range
        if not 0.001 <= low <= high:
            raise ValueError(
                f"search.ratio_range {low} to {high} must rise from 0.001 or more: ratios are "
                "rounded to three digits"
            )
