"""What a pipeline's runs go on from instead of fresh weights or a folder: another one's runs."""

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field

from glray.spec.base import Count, Integer, Spec


class StageEnd(Spec):
    """The end of a stage."""

    stage: Annotated[Integer, Field(ge=0)]
    """Number of the stage, from 0."""


class Fork(Spec):
    """A state of another pipeline's runs."""

    run: str = Field(min_length=1)
    """``<pipeline's directory>/<arm>``, such as ``runs/quickstart/growlength``, or its URL: a run
    goes on from that arm's run under its own seed."""
    at: Literal["end"] | Count | StageEnd = "end"
    """After which of its steps: its end, a number of steps, or ``StageEnd(stage=0)``. It must have
    a checkpoint there: see ``compute.keep_checkpoints``."""

    def model_post_init(self, context: Any) -> None:
        if not PurePath(self.run).name:
            raise ValueError(
                f"start.run {self.run!r} names no arm; give <pipeline's directory>/<arm>, such as "
                "runs/quickstart/growlength"
            )
