"""The records of a run: training writes them; the report, the search and benchmarks read them.

``docs/metrics.md`` is rendered from this file: a field's docstring is its definition there.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)

from glray.errors import UserError
from glray.files import AnyPath, read_json
from glray.plan import Plan
from glray.record import Counts, Number, Numbers, Record, measure


class Step(Record):
    """A line of ``metrics.jsonl``: one optimizer step. Values cover all workers unless the
    definition says otherwise. A flush happens every ``compute.log_every_steps`` and before each
    checkpoint and evaluation."""

    step: int = measure("steps", le=2**63 - 1)
    """Steps trained, this one included."""
    stage: int = measure("")
    """Its stage, from 0."""
    seq_len: int = measure("tokens")
    """Length of its windows."""
    tokens: int = measure("tokens", le=2**63 - 1)
    """Targets trained so far, this step included."""
    lr: float = measure("")
    """Learning rate that the step used."""
    calibrated_seconds: float | None = measure("s", "calibrated")
    """After this step."""
    measured_seconds: float = measure("s", "measured")
    """When the host was done with the step, on rank 0; a GPU may still be working until the
    flush."""
    data_wait_seconds: float = measure("s", "measured")
    """Rank 0's wait for the step's batch."""
    loss: Number = measure("nats per token")
    """Mean cross-entropy of the step's targets, before its update."""
    grad_norm: Number = measure("")
    """L2 norm of the gradient before clipping."""
    update_norm: Number | None = measure("", default=None)
    """L2 norm of the optimizer's update without weight decay; only in the 32 steps before and
    after a stage boundary."""
    checksum: str = measure("hexadecimal")
    """Sum modulo 2^64 of a hash of each input and each target with its place, as they went through
    the model."""
    tokens_per_second: float = measure("tokens/s", "measured")
    """Targets of the steps since the last flush / their seconds, including the wait for the
    device."""
    mfu: float = measure("share", "measured")
    """Model FLOPs of the steps since the last flush / (their seconds × peak × workers)."""
    memory_bytes: int | None = measure("bytes")
    """Rank 0's. CUDA: peak bytes of tensors since the last flush, evaluations and checkpoints
    included. CPU: the process's resident set at the flush, `null` where there is no `/proc`."""

    @property
    def is_finite(self) -> bool:
        """Whether its loss and its gradient are."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @classmethod
    def of_line(cls, line: str | bytes, where: str) -> "Step":
        """The step of a line of ``metrics.jsonl``. Raises UserError, which says ``where``."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise UserError(
                f"{where} is not a step ({error.errors()[0]['msg']}), so the run can neither be "
                "resumed nor reported; remove the line"
            ) from None


class TrainingProgress(Record):
    """How training stands; ``glray run`` shows it as one line."""

    last_step: Step = measure("")
    """The last step that is written, as in `metrics.jsonl`."""
    num_stages: int = measure("stages")
    """Stages of the run."""
    num_steps: int = measure("steps")
    """Steps of the whole run."""
    seconds_left: float = measure("s", "measured")
    """Measured so far × what is left / what is done, both in calibrated seconds or, without a
    calibration, in model FLOPs: later stages are slower either way."""


class Progress(Record):
    """``progress.json``: what the pipeline's worker group is doing, replaced at most once a second.
    With several groups the second writes ``progress-1.json``, and so on."""

    may_be_empty = True  # what is shown depends on it, and nothing else

    run: str | None = measure("", default=None)
    """The run's name."""
    phase: str = measure("")
    """`training`, or what is done instead."""
    share: float | None = measure("share", default=None)
    """What of that is done, from 0 to 1; `null` if nobody knows, and in training."""
    seconds_left: float | None = measure("s", "wall", default=None)
    """Seconds of it so far × what is left / what is done; `null` if nobody knows, and in
    training."""
    training: TrainingProgress | None = measure("", default=None)
    """How training stands, see below; `null` in other phases."""


class LengthLoss(Record):
    """Held-out loss at one window length."""

    seq_len: int = measure("tokens")
    """Length of the windows that the targets were cut into."""
    loss: Number = measure("nats per token")
    """Mean over all targets."""
    standard_error: Number | None = measure("nats per token")
    """Standard error of `loss` over documents; `null` for one document."""
    document_losses: Numbers = measure("nats per token")
    """Mean loss of each document, in the order of `document_tokens`."""
    bits_per_byte: Number = measure("bits")
    """Loss per byte of the targets' UTF-8 text."""
    loss_by_position: Numbers = measure("nats per token")
    """Mean loss at each position of the window."""


def _check_documents(tokens: np.ndarray, losses: Iterable[Any]) -> None:
    """Raises ValueError unless each of ``losses`` has one of each document, which has tokens."""
    if not len(tokens) or (tokens < 1).any():
        raise ValueError("a document without tokens")
    for loss in losses:
        if len(loss.document_losses) != len(tokens):
            raise ValueError(
                f"{len(loss.document_losses)} document_losses of {len(tokens)} documents at "
                f"{loss.seq_len} tokens"
            )


class FarLoss(Record):
    """The far targets' loss in sliding windows of one length."""

    seq_len: int = measure("tokens")
    """Length of the windows, which move by half of it: a target sees at least that half."""
    loss: Number = measure("nats per token")
    """Mean over the far targets."""
    document_losses: Numbers = measure("nats per token")
    """Mean loss of each document's, in the order of `document_tokens`."""


class FarContext(Record):
    """What the model makes of context further back: the same targets, each with at least
    `tokens_before` tokens of its own document before it, with more and more of these in sight."""

    tokens_before: int = measure("tokens")
    """Tokens of its own document that each far target has before it, at least."""
    document_tokens: Counts = measure("tokens")
    """Far targets of each document."""
    losses: tuple[FarLoss, ...] = measure("", min_length=1)
    """A record for each window length, ascending, up to the longest trained; see below."""

    def model_post_init(self, context: Any) -> None:
        _check_documents(self.document_tokens, self.losses)
        lengths = [loss.seq_len for loss in self.losses]
        if lengths != sorted(set(lengths)):
            raise ValueError(f"windows of {lengths} tokens, which do not ascend")


class Evaluation(Record):
    """``evaluations/step-*.json``: the held-out targets scored once, at the end of each stage and
    every ``evaluation.every_tokens``."""

    step: int = measure("steps")
    """Steps trained so far."""
    tokens: int = measure("tokens", ge=1)
    """Targets trained so far."""
    calibrated_seconds: float | None = measure("s", "calibrated")
    """So far."""
    measured_seconds: float = measure("s", "measured")
    """So far."""
    trained_seq_len: int = measure("tokens")
    """Window length of the last step's stage."""
    eval_seconds: float = measure("s", "evaluation")
    """Seconds of this evaluation, on rank 0."""
    targets_sha256: str = measure("hexadecimal")
    """SHA-256 of the targets: losses compare only on the same ones."""
    num_documents: int = measure("documents")
    """Documents that the targets come from."""
    document_tokens: Counts = measure("tokens")
    """Targets of each document."""
    num_target_tokens: int = measure("tokens")
    """All targets."""
    lengths: tuple[LengthLoss, ...] = measure("")
    """A record for each of `evaluation.seq_lens`, ascending; see below."""
    far_context: FarContext | None = measure("", default=None)
    """What context further back is worth, see below; only at the end of the run."""

    def model_post_init(self, context: Any) -> None:
        _check_documents(self.document_tokens, self.lengths)
        for length in self.lengths:
            if not 1 <= length.seq_len == len(length.loss_by_position):
                raise ValueError(
                    f"{len(length.loss_by_position)} losses by position at {length.seq_len} tokens"
                )

    def at(self, seq_len: int) -> LengthLoss | None:
        """The loss at that window length, None if it was not scored."""
        return next((length for length in self.lengths if length.seq_len == seq_len), None)


class BoundaryLoss(Record):
    """Held-out loss at one window length near a stage boundary."""

    seq_len: int
    loss: Number
    """Nats per token."""
    document_losses: Numbers
    """float64[documents]."""


def _by_length(losses: Any) -> Any:
    if not isinstance(losses, list | tuple):
        return losses or {}
    if not all(isinstance(loss, dict) and isinstance(loss.get("seq_len"), int) for loss in losses):
        raise ValueError("not a list of losses with their seq_len")
    return {loss["seq_len"]: loss for loss in losses}


LossesByLength = Annotated[
    dict[int, BoundaryLoss],
    BeforeValidator(_by_length),
    PlainSerializer(lambda losses: list(losses.values()), return_type=list[BoundaryLoss]),
]
"""By window length; a list in JSON."""


class Jump(Record):
    """The change of the held-out loss from the length before a boundary to the length after it with
    the same weights. The last three parts sum to the first. "Sliding" windows have the length and
    the positions of the stage before and move by half of that length."""

    jump: Number = measure("nats per token")
    """`switched` at `to_seq_len` − `before` at `from_seq_len`."""
    rescaled_positions: Number = measure("nats per token")
    """The part of targets at positions that the window before has too: their context is the same,
    so it is 0 unless RoPE is scaled."""
    longer_context: Number = measure("nats per token")
    """The part of the targets beyond: what at least half an old window of context gives them at
    trained positions, sliding − `before`."""
    unseen_positions: Number = measure("nats per token")
    """The part of the same targets at positions that were not trained and with still more context,
    `switched` − sliding."""


class BoundaryRecord(Record):
    """``boundaries/step-*.json``: a boundary between two stages, on the targets of the evaluations.
    It is written when the stage before has ended; ``after`` is filled in 16 steps later, or at the
    end of a shorter stage."""

    step: int = measure("steps")
    """Steps trained before the boundary."""
    from_seq_len: int = measure("tokens")
    """Length of the stage before."""
    to_seq_len: int = measure("tokens")
    """Length of the stage after."""
    rescore_step: int = measure("steps")
    """When `after` is scored."""
    before: LossesByLength = measure("")
    """`seq_len`, `loss` and `document_losses` at both lengths, with the stage before's RoPE."""
    switched: LossesByLength = measure("")
    """The same weights with the stage after's RoPE; equal to `before` where RoPE is not scaled."""
    after: LossesByLength = measure("", default_factory=dict)
    """As `switched`, scored at `rescore_step`; empty until then."""
    jump: Jump | None = measure("")
    """See below; `null` where the length does not grow, or one of the two does not divide the
    longest evaluated length."""
    targets_sha256: str = measure("hexadecimal")
    """As in the evaluations; `after` stays empty where it has changed since."""
    document_tokens: Counts = measure("tokens")
    """Targets of each document."""

    def model_post_init(self, context: Any) -> None:
        for losses in (self.before, self.switched, self.after):
            _check_documents(self.document_tokens, losses.values())


class Result(Record):
    """``result.json``, written last: the run is finished."""

    steps: int = measure("steps")
    """Steps trained."""
    tokens: int = measure("tokens")
    """Targets trained."""
    calibrated_seconds: float | None = measure("s", "calibrated")
    """Of the whole run."""
    measured_seconds: float = measure("s", "measured", gt=0, lt=1e12)
    """Of the whole run, on rank 0."""
    warm_up_seconds: float = measure("s", "before the clock")
    """Compiling every length and trying its memory, at each start; 0 on a CPU without
    compilation."""
    eval_seconds: float = measure("s", "evaluation")
    """Of all evaluations."""
    checkpoint_seconds: float = measure("s", "checkpoint")
    """Of all checkpoints: what training waited for them."""
    wall_seconds: float = measure("s", "wall")
    """Of all starts."""
    checksum: str = measure("hexadecimal")
    """Sum of the steps' checksums modulo 2^64: equal checksums, equal tokens."""
    tokens_by_seq_len: dict[str, int] = measure("tokens")
    """Targets trained at each length."""


NotFinite = Literal["loss", "gradient", "weights", "held-out loss"]


class Divergence(Record):
    """``diverged.json``, written last: the run has ended because one of its numbers was not finite.
    It is the same however often the run was killed on the way. The checkpoint before it is kept;
    ``metrics.jsonl`` ends with its step."""

    step: int = measure("steps")
    """Steps trained, this one included."""
    seq_len: int = measure("tokens")
    """Length of its windows."""
    what: NotFinite = measure("")
    """What was not finite: the step's loss, its gradient, or, where its loss and gradient were, the
    weights at a checkpoint or the held-out loss at a length up to that of its stage."""
    loss: Number = measure("nats per token")
    """The step's; `null` if it was not finite."""
    grad_norm: Number = measure("")
    """The step's, before clipping; `null` if it was not finite."""

    @property
    def sentence(self) -> str:
        """What happened, after the run's name."""
        is_or_are = "are" if self.what == "weights" else "is"
        return (
            f"diverged at step {self.step:,} (seq_len {self.seq_len}): its {self.what} "
            f"{is_or_are} not finite"
        )


class Stopped(Record):
    """``stopped.json``: a search has stopped the run, which is not trained further."""

    step: int
    """Steps trained at the evaluation that stopped it."""
    reason: str
    """Why, as a phrase that follows the run's name."""


class TrainState(BaseModel):
    """``state.json`` of a checkpoint: where a run stands. The data position is ``step`` alone:
    the plan says how many tokens lie before it. Unlike a record it changes while the run trains."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    step: int = 0
    checksum: int = 0
    """Token checksum of all steps so far, modulo 2^64."""
    measured_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    eval_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    wall_seconds: float = 0.0
    """Over all attempts, everything included once the checkpoint is loaded."""
    tokens_by_seq_len: dict[str, int] = Field(default_factory=dict)
    """Tokens trained at each length."""


class Execution(Record):
    """What float sums depend on beyond a run's identity."""

    num_workers: int
    threads_per_worker: int
    parallelism: str
    activation_checkpointing: bool
    compile: bool
    device: str
    """Name of the GPU, else of the CPU: rank 0's."""
    deterministic: bool = True
    """Whether the device's kernels give the same bits each time; older records are of CPUs, whose
    do."""
    torch: str
    transformers: str
    micro_batch_tokens: dict[str, int]
    """Tokens of a worker's batch that go through the model at once, by sequence length."""

    def rows_at_once(self, seq_len: int) -> int:
        """Windows of a micro-batch at ``seq_len``; a length never trained takes the fewest
        tokens."""
        tokens = self.micro_batch_tokens.get(str(seq_len), min(self.micro_batch_tokens.values()))
        return max(1, tokens // seq_len)

    def at(self, seq_lens: tuple[int, ...]) -> "Execution":
        """Only with the micro-batches of ``seq_lens``: what a run of these lengths depends on."""
        known = {str(n): self.micro_batch_tokens[str(n)] for n in seq_lens}
        return self.model_copy(update={"micro_batch_tokens": known})

    def differences(self, before: "Execution") -> list[str]:
        """``name before → now`` of what differs from an earlier execution; of the micro-batches
        only at lengths that both have."""
        own, earlier = self._at_lengths_of(before), before._at_lengths_of(self)
        return [
            f"{name} {getattr(earlier, name)} → {getattr(own, name)}"
            for name in Execution.model_fields
            if getattr(earlier, name) != getattr(own, name)
        ]

    def _at_lengths_of(self, other: "Execution") -> "Execution":
        """Only with the micro-batches of lengths that the other has too."""
        known = self.micro_batch_tokens.items()
        common = {n: tokens for n, tokens in known if n in other.micro_batch_tokens}
        return self.model_copy(update={"micro_batch_tokens": common})


class StartedExecution(Execution):
    """An execution and where it began."""

    first_step: int


class ForkRecord(Record):
    """Where a run began: after steps that it shares with another run, which trained them. Its
    records and clocks count these steps as its own."""

    run: str
    """Name of that run, the trunk; of the same pipeline."""
    step: int
    """Steps trained by then."""
    calibrated_seconds: float | None
    """Of these steps."""
    measured_seconds: float
    """Of these steps, as the trunk trained them: seconds that were not spent again."""

    @property
    def sentence(self) -> str:
        """What was done, as a phrase that follows the run's name."""
        return f"begins with the {self.step:,} steps that it shares with {self.run}"


class ParentRecord(Record):
    """What a run goes on from: a run of another pipeline, whose first steps come first in the plan,
    the records and the clocks of this one."""

    pipeline: str
    """Name of the parent's pipeline."""
    run: str
    """The parent's name."""
    fingerprint: str
    """Of the parent's identity."""
    step: int
    """Steps that it had trained."""
    tokens: int
    """Targets trained in these steps."""
    parent: "ParentRecord | None" = None
    """What the parent itself went on from."""

    @property
    def sentence(self) -> str:
        """What the run does, as a phrase that follows its name, back to the first run of the
        path."""
        before = f", which {self.parent.sentence}" if self.parent else ""
        return (
            f"goes on from {self.run} of {self.pipeline} after {self.step:,} steps "
            f"({self.tokens:,} tokens){before}"
        )


class Manifest(Record):
    """``run.json``: what a run is, and how it was executed."""

    format: Literal[3] = 3
    pipeline: str
    arm: str
    seed: int
    fingerprint: str
    identity: dict[str, Any]
    """What decides the run's weights."""
    plan: Plan
    architecture: dict[str, Any]
    """The model's configuration in ``transformers``' words."""
    rope_parameters: tuple[dict[str, Any], ...]
    """Rotary positions of each stage in ``transformers``' words."""
    flops_per_token: tuple[int, ...]
    """Model FLOPs of one target at each stage's length, forward and backward."""
    tokens_directories: tuple[str, ...]
    """Where the token blocks of each source lie, as seen from the run's directory; absolute if they
    are not in its storage."""
    environment: dict[str, Any] = Field(default_factory=dict)
    """Machine and versions; empty before the run has started."""
    executions: tuple[StartedExecution, ...] = ()
    """Each change of the execution, with the step that it began at."""
    predicted_seconds: float | None = None
    """Seconds of the whole plan by a profile of the machine; None without one."""
    fork: ForkRecord | None = None
    """The steps that it did not train itself but shares with another run of its pipeline; None if
    there are none."""
    parent: ParentRecord | None = None
    """The run of another pipeline that it goes on from; None if it starts from step 0."""
    folder_len: int | None = None
    """The length in tokens that the folder at the start of its path was trained at; 0 if the path
    began with drawn weights, None if an earlier version did not say."""

    @classmethod
    def read(cls, path: AnyPath) -> "Manifest | None":
        """See Record. Raises UserError for a run of glray 0.1, too."""
        found = read_json(path)
        if isinstance(found, dict) and found and found.get("format") is None:
            raise UserError(
                f"{path}: written by glray 0.1 (format 2), this version reads format 3: its "
                "records have other names; read it with glray 0.1, or train under another name "
                "(--set name=…)"
            )
        return super().read(path)


Cost = Annotated[int, Field(ge=1)]
Repetitions = list[dict[int, Cost]]
"""What a step costs at each length, in microseconds; of each repetition of the calibration."""


def mean_costs(repetitions: Sequence[dict[int, int]]) -> dict[int, int]:
    """The mean by length, to whole microseconds."""
    return {n: round(fmean(costs[n] for costs in repetitions)) for n in repetitions[0]}


class Calibration(Record):
    """``calibration.json``: what a step of each length costs, and on what machine."""

    step_microseconds: dict[int, Cost]
    """The mean of the repetitions."""
    repetitions: Repetitions = Field(default_factory=list)
    """The same, each measured on its own with a new model."""
    conditions: dict[str, Any] = Field(default_factory=dict)
    """What the steps were of; empty if an earlier version measured them."""
    environment: dict[str, Any] = Field(default_factory=dict)


class ProbedMicroBatches(Record):
    """What fits in memory at once under some conditions."""

    conditions: dict[str, Any]
    micro_batch_tokens: dict[str, int]
    """By length."""


class MicroBatches(Record):
    """``micro_batches.json``: what was probed, once under each conditions (a group that grows and
    shrinks comes back to those of before)."""

    remedy = "delete it: what fits in memory is probed again"

    probed: tuple[ProbedMicroBatches, ...] = ()

    def under(self, conditions: dict[str, Any]) -> dict[str, int] | None:
        """Tokens of a micro-batch by length; None if these conditions were not probed. What fits
        beside more worker groups fits beside fewer, so that a run that goes on when others have
        ended keeps its bits."""
        count = conditions["worker_groups"]
        fitting = [
            each
            for each in self.probed
            if {**each.conditions, "worker_groups": count} == conditions
            and each.conditions["worker_groups"] >= count
        ]
        nearest = min(fitting, key=lambda each: each.conditions["worker_groups"], default=None)
        return nearest.micro_batch_tokens if nearest is not None else None
