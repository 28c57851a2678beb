"""One run's records as frozen values, and the figures that follow from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glray.plan import MICROSECONDS, WATCHED_STEPS, StagePlan


@dataclass(frozen=True)
class StepLog:
    """``metrics.jsonl`` as columns, one entry a step that was trained."""

    step: np.ndarray
    """int64[steps]: steps completed."""
    tokens: np.ndarray
    """int64[steps]: tokens trained so far."""
    loss: np.ndarray
    """float64[steps]: training loss, nats per token."""
    grad_norm: np.ndarray
    """float64[steps]: before clipping."""
    update_norm: np.ndarray
    """float64[steps]: NaN away from the boundaries between stages."""
    lr: np.ndarray
    """float64[steps]."""
    calibrated_seconds: np.ndarray | None
    """float64[steps], cumulated; None without a calibration."""
    measured_seconds: np.ndarray
    """float64[steps], cumulated, training alone."""
    data_wait_seconds: np.ndarray
    """float64[steps]: how long the step waited for its batch."""


@dataclass(frozen=True)
class LengthLoss:
    """Held-out loss at one window length."""

    seq_len: int
    loss: float
    """Nats per token."""
    standard_error: float | None
    """Of ``loss``, over documents; None for one document."""
    document_losses: np.ndarray
    """float64[documents]: mean loss of each document's targets."""
    bits_per_byte: float
    loss_by_position: np.ndarray
    """float64[seq_len]: mean loss of the targets at each position in the window."""


@dataclass(frozen=True)
class Evaluation:
    """One scoring of the held-out targets."""

    step: int
    tokens: int
    calibrated_seconds: float | None
    measured_seconds: float
    trained_seq_len: int
    targets_sha256: str
    """Names the set of targets: only losses on the same one compare."""
    num_documents: int
    document_tokens: np.ndarray
    """int64[documents]: target tokens of each."""
    num_target_tokens: int
    lengths: tuple[LengthLoss, ...]
    """Ascending in ``seq_len``."""

    def at(self, seq_len: int) -> LengthLoss | None:
        """The loss at that window length, None if it was not scored."""
        return next((length for length in self.lengths if length.seq_len == seq_len), None)


@dataclass(frozen=True)
class BoundaryLoss:
    """Held-out loss at one window length near a boundary between two stages."""

    loss: float
    """Nats per token."""
    document_losses: np.ndarray
    """float64[documents]."""


@dataclass(frozen=True)
class Jump:
    """What the held-out loss does from the length before a boundary to that after it with the same
    weights, and its three parts; nats per token. ``docs/metrics.md`` defines them."""

    jump: float
    rescaled_positions: float
    longer_context: float
    unseen_positions: float


@dataclass(frozen=True)
class BoundaryRecord:
    """``boundaries/step-*.json``: a boundary between two stages."""

    step: int
    from_seq_len: int
    to_seq_len: int
    rescore_step: int
    document_tokens: np.ndarray
    """int64[documents]: target tokens of each."""
    before: dict[int, BoundaryLoss]
    """By window length, as are those below."""
    switched: dict[int, BoundaryLoss]
    """With the positions of the stage after it."""
    after: dict[int, BoundaryLoss]
    """At ``rescore_step``; empty until then."""
    jump: Jump | None
    """None where the length does not grow, or was not scored."""


@dataclass(frozen=True)
class Result:
    """``result.json``: what a finished run took."""

    measured_seconds: float
    warm_up_seconds: float
    eval_seconds: float
    checkpoint_seconds: float
    wall_seconds: float
    checksum: str


@dataclass(frozen=True)
class RunRecord:
    """One run's records."""

    directory: Path
    pipeline: str
    arm: str
    seed: int
    fingerprint: str
    identity: dict[str, Any]
    environment: dict[str, Any]
    tokens_per_batch: int
    budget_seconds: float | None
    budget_tokens: int | None
    stages: tuple[StagePlan, ...]
    predicted_seconds: float | None
    """Of the whole plan, by a profile of the machine; None without one."""
    log: StepLog
    evaluations: tuple[Evaluation, ...]
    """Ascending in ``step``."""
    boundaries: tuple[BoundaryRecord, ...]
    """Those between two stages that were reached, ascending in ``step``."""
    result: Result | None
    """None while the run is unfinished."""
    spec_yaml: str
    label: str | None = None
    """What a comparison calls its arm; None: as its pipeline does."""

    @property
    def name(self) -> str:
        """``growlength-seed0``, by the comparison's label where it has one."""
        return self.directory.name if self.label is None else f"{self.label}-seed{self.seed}"

    @property
    def is_finished(self) -> bool:
        """Whether the run left its result."""
        return self.result is not None

    @property
    def num_steps(self) -> int:
        """Steps of the whole plan."""
        return self.stages[-1].end_step

    @property
    def steps_done(self) -> int:
        """Steps trained so far."""
        if self.is_finished:
            return self.num_steps
        return int(self.log.step[-1]) if len(self.log.step) else 0

    @property
    def tokens(self) -> int:
        """Tokens trained so far."""
        return self.steps_done * self.tokens_per_batch

    @property
    def longest_seq_len(self) -> int:
        """The longest length of the plan."""
        return max(stage.seq_len for stage in self.stages)

    @property
    def calibrated_seconds(self) -> float | None:
        """Calibrated so far; None without a calibration."""
        total = 0
        for stage in self.stages:
            if stage.step_microseconds is None:
                return None
            total += self.steps_in(stage) * stage.step_microseconds
        return total / MICROSECONDS

    @property
    def measured_seconds(self) -> float:
        """Training seconds measured so far."""
        if self.result is not None:
            return self.result.measured_seconds
        return float(self.log.measured_seconds[-1]) if len(self.log.step) else 0.0

    @property
    def latest(self) -> Evaluation | None:
        """The last evaluation so far; that of the trained model once the run is finished."""
        return self.evaluations[-1] if self.evaluations else None

    def gradient_rise(self, boundary: BoundaryRecord) -> float | None:
        """The largest gradient norm between a boundary and its ``rescore_step`` over the median
        of the ``WATCHED_STEPS`` before; None until a step is logged there."""
        before = self.log.grad_norm[max(boundary.step - WATCHED_STEPS, 0) : boundary.step]
        after = self.log.grad_norm[boundary.step : boundary.rescore_step]
        return float(after.max() / np.median(before)) if len(before) and len(after) else None

    def steps_in(self, stage: StagePlan) -> int:
        """Steps of that stage trained so far."""
        return min(max(self.steps_done - stage.first_step, 0), stage.num_steps)
