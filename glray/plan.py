"""The plan: what a spec comes to, in steps and tokens. Pure, and made before any work.

A plan is a function of the spec and, where seconds decide, of the calibration in it. From step 0 on
no clock is read to decide anything: stage boundaries, the end and the learning rate follow from the
plan, so that a resumed run is the same run.

Who calls it: ``glray plan`` prints it, the training loop follows it, the report shows it.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any

from pydantic import Field

from glray.errors import UserError
from glray.record import Record
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec
from glray.spec.training import CosineSchedule, LinearSchedule, OptimizerSpec, ScheduleSpec

MICROSECONDS = 1_000_000
RESCORE_STEPS = 16
"""Steps after a stage boundary until it is scored again."""
WATCHED_STEPS = 32
"""Steps before and after a stage boundary of which more is logged."""


class Event(StrEnum):
    """What is done after a step, in the order of this list."""

    LOG = "log"
    """Metrics are brought from the device and written."""
    RESCORE = "rescore"
    """The boundary behind the state is scored again: before the checkpoint, so that no resumed run
    can miss it."""
    CHECKPOINT = "checkpoint"
    EVALUATE = "evaluate"
    """The held-out targets are scored: after the checkpoint, since a resumed run repeats it."""


class StagePlan(Record):
    """One stage: steps ``first_step`` to ``first_step + num_steps`` at ``seq_len``."""

    seq_len: int = Field(ge=1)
    windows_per_batch: int
    """Windows of one step over all workers."""
    first_step: int
    num_steps: int = Field(ge=0)
    step_microseconds: int | None
    """Calibrated cost of a step; None where seconds decide nothing and none were measured."""
    lr_factor: float = 1.0
    """What the scheduled learning rate is multiplied by."""
    weights: tuple[int, ...] | None = None
    """Weights of the sources, in their order; None: the pipeline's."""
    mark_end: bool = True
    """Whether it ends with a checkpoint, an evaluation and a boundary that is scored."""

    @property
    def tokens_per_batch(self) -> int:
        """Tokens of one step over all workers."""
        return self.windows_per_batch * self.seq_len

    @property
    def end_step(self) -> int:
        """The step after the stage's last."""
        return self.first_step + self.num_steps

    def steps_before(self, step: int) -> int:
        """How many of the stage's steps lie before ``step`` (from 0)."""
        return min(max(step - self.first_step, 0), self.num_steps)


class StageBoundary(Record):
    """Where one stage ends and the next begins."""

    step: int
    """First step of the next stage, from 0: the number of steps trained before it."""
    from_seq_len: int
    to_seq_len: int
    rescore_step: int
    """When it is scored again: ``RESCORE_STEPS`` later, or at the end of a shorter stage."""


class Plan(Record):
    """One arm's stages in steps, and when what happens around them. The plan of a run that
    goes on from another one covers the whole path: the parent's stages up to there, then its
    own."""

    stages: tuple[StagePlan, ...] = Field(min_length=1)
    tokens_per_batch: int = Field(ge=1)
    """The pipeline's; stages may have others, see ``tokens_after``."""
    chunk_len: int
    budget_tokens: int | None
    budget_microseconds: int | None
    first_step: int = 0
    """The first step of its own: the parent's come before it, and the budget, the warm-up and the
    decay cover what follows. 0 without a parent."""
    log_every_steps: int
    checkpoint_every_tokens: int | None
    evaluate_every_tokens: int | None
    evaluate_stage_ends: bool = True
    """Whether stage boundaries are scored; the end always is."""

    def model_post_init(self, context: Any) -> None:
        ends = (0, *(stage.end_step for stage in self.stages))
        for stage, end in zip(self.stages, ends, strict=False):
            if stage.first_step != end:
                raise ValueError(
                    f"stages: one begins at step {stage.first_step}, the one before ends at {end}"
                )

    @property
    def inherited(self) -> tuple[StagePlan, ...]:
        """The parent's stages."""
        return tuple(stage for stage in self.stages if stage.first_step < self.first_step)

    @property
    def own_stages(self) -> tuple[StagePlan, ...]:
        """Those that come after them."""
        return self.stages[len(self.inherited) :]

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return self.stages[-1].end_step

    @property
    def num_own_steps(self) -> int:
        """Steps that the parent has not trained."""
        return self.num_steps - self.first_step

    @property
    def num_tokens(self) -> int:
        """Tokens trained, as targets."""
        return self.tokens_after(self.num_steps)

    def tokens_after(self, num_steps: int) -> int:
        """Tokens that the first ``num_steps`` steps train, which is also the position in the order
        of the tokens."""
        return sum(stage.steps_before(num_steps) * stage.tokens_per_batch for stage in self.stages)

    @property
    def budget_seconds(self) -> float | None:
        """The declared seconds plus the calibrated seconds of the parent's steps; None if the
        budget is in tokens."""
        if self.budget_microseconds is None:
            return None
        before = self.calibrated_microseconds(self.first_step) or 0
        return (before + self.budget_microseconds) / MICROSECONDS

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Steps trained when each stage is complete; the last is the end of the plan."""
        return tuple(stage.end_step for stage in self.stages)

    @cached_property
    def marked_ends(self) -> tuple[int, ...]:
        """Those that a checkpoint marks, and an evaluation if stage boundaries are scored; the last
        always is."""
        inner = (stage.end_step for stage in self.stages[:-1] if stage.mark_end)
        return (*inner, self.num_steps)

    @cached_property
    def boundaries(self) -> tuple[StageBoundary, ...]:
        """The boundaries between the stages that are scored: where the end of the first of two is
        marked."""
        return tuple(
            StageBoundary(
                step=after.first_step,
                from_seq_len=before.seq_len,
                to_seq_len=after.seq_len,
                rescore_step=after.first_step + min(RESCORE_STEPS, after.num_steps),
            )
            for before, after in pairwise(self.stages)
            if before.mark_end and self.evaluate_stage_ends
        )

    def events_after(self, num_steps: int) -> list[Event]:
        """What is done when so many steps are trained, in this order. A marked stage ends with
        a checkpoint and, where it is scored, an evaluation; whatever is done, the metrics are
        written first."""
        ends = num_steps in self.marked_ends
        scored = ends and (self.evaluate_stage_ends or num_steps == self.num_steps)
        due = {
            Event.RESCORE: any(num_steps == b.rescore_step for b in self.boundaries),
            Event.CHECKPOINT: ends or self._is_due(num_steps, self.checkpoint_every_tokens),
            Event.EVALUATE: scored or self._is_due(num_steps, self.evaluate_every_tokens),
        }
        events = [event for event in Event if due.get(event)]
        return [Event.LOG, *events] if events or num_steps % self.log_every_steps == 0 else []

    def _is_due(self, num_steps: int, every_tokens: int | None) -> bool:
        """Whether what is done every so many tokens, to whole batches of the pipeline, is done
        now: after the step that reaches a multiple of them."""
        if every_tokens is None:
            return False
        period = max(1, every_tokens // self.tokens_per_batch) * self.tokens_per_batch
        before, after = (self.tokens_after(n) // period for n in (num_steps - 1, num_steps))
        return before < after

    def is_watched(self, step: int) -> bool:
        """Whether step ``step`` (from 0) is one of ``WATCHED_STEPS`` before or after an inner
        boundary."""
        return any(
            -WATCHED_STEPS <= step - boundary.step < WATCHED_STEPS for boundary in self.boundaries
        )

    def stage_index(self, step: int) -> int:
        """The stage that step ``step`` (from 0) belongs to."""
        for index, stage in enumerate(self.stages):
            if step < stage.end_step:
                return index
        raise IndexError(f"step {step} of a plan of {self.num_steps} steps")

    def calibrated_microseconds(self, num_steps: int) -> int | None:
        """What the first ``num_steps`` steps cost on the calibrated clock; None without one."""
        total = 0
        for stage in self.stages:
            if stage.step_microseconds is None:
                return None
            total += stage.steps_before(num_steps) * stage.step_microseconds
        return total

    def calibrated_seconds(self, num_steps: int) -> float | None:
        """``calibrated_microseconds`` in seconds."""
        microseconds = self.calibrated_microseconds(num_steps)
        return None if microseconds is None else microseconds / MICROSECONDS

    def own_seconds(self, num_steps: int) -> float | None:
        """Calibrated seconds of the first ``num_steps`` steps without the parent's."""
        before, after = map(self.calibrated_seconds, (self.first_step, num_steps))
        return None if before is None or after is None else after - before

    def progress(self, step: int) -> Fraction:
        """Share of the declared budget behind the middle of ``step`` (from 0): of its seconds, on
        the calibrated clock, or of its tokens. So schedules that agree up to a step have the same
        learning rates up to there, whatever follows. (At a step's start the first one of a warm-up
        would have rate 0, at its end the last one of a decay to 0.)"""
        if self.budget_microseconds is None:
            assert self.budget_tokens is not None, "a budget is in seconds or in tokens"
            start, before, after = map(self.tokens_after, (self.first_step, step, step + 1))
            return Fraction(before + after - 2 * start, 2 * self.budget_tokens)
        steps = (self.first_step, step, step + 1)
        start, before, after = (self.calibrated_microseconds(n) or 0 for n in steps)
        return Fraction(before + after - 2 * start, 2 * self.budget_microseconds)

    def total_cost(self, step_costs: Mapping[int, float]) -> float:
        """Cost of all steps without the parent's, given the cost of a step with the pipeline's
        batch at each length; a step with another batch costs in proportion to its tokens."""
        return sum(
            stage.num_steps
            * stage.tokens_per_batch
            / self.tokens_per_batch
            * step_costs[stage.seq_len]
            for stage in self.own_stages
        )


def make_plan(spec: PipelineSpec, arm: ArmSpec, before: Sequence[StagePlan] = ()) -> Plan | None:
    """The plan of one arm, after the stages ``before`` that its parent has trained; None where
    seconds decide and the spec has no calibration yet.

    Each stage takes the whole steps that fit before its boundary, which lies at the cumulated
    ratios' share of the budget. So it is off by less than one step, and the last stage ends with
    the budget.
    Raises UserError for a budget smaller than a batch, a stage left without a step, or a
    calibration that lacks a length.
    """
    if spec.needs_calibration and spec.calibration is None:
        return None
    costs = _costs(spec, arm)
    batches = [spec.tokens_per_batch_of(stage) for stage in arm.stages]
    ratios = [Fraction(str(stage.ratio)) for stage in arm.stages]
    seconds = spec.budget.seconds
    budget_microseconds = None if seconds is None else round(Fraction(str(seconds)) * MICROSECONDS)
    if budget_microseconds is None:
        assert spec.budget.tokens is not None
        if spec.ratios_in == "seconds":
            ratios = [
                r * tokens / cost for r, tokens, cost in zip(ratios, batches, costs, strict=True)
            ]
        unit = math.gcd(*batches)
        steps = split(spec.budget.tokens // unit * unit, ratios, batches)
    elif spec.ratios_in == "seconds":
        steps = split(budget_microseconds, ratios, costs)
    else:
        steps = _steps_within(budget_microseconds, ratios, batches, costs)
    step_costs: Sequence[int | None] = costs or [None] * len(steps)
    usual = tuple(source.weight for source in spec.sources)
    stages = [_under(usual, stage) for stage in before]
    for stage, num_steps, tokens, cost in zip(arm.stages, steps, batches, step_costs, strict=True):
        if num_steps < 1:
            index = len(stages) - len(before)
            raise UserError(
                f"arm {arm.name}: stage {index} (seq_len {stage.seq_len}, ratio "
                f"{stage.ratio:g}) gets 0 of {sum(steps)} steps of {tokens:,} "
                "tokens: the length would never be trained; raise the budget or the ratio, or "
                "remove the stage"
            )
        weights = spec.weights_of(stage)
        stages.append(
            StagePlan(
                seq_len=stage.seq_len,
                windows_per_batch=tokens // stage.seq_len,
                first_step=stages[-1].end_step if stages else 0,
                num_steps=num_steps,
                step_microseconds=cost,
                lr_factor=stage.lr_factor or 1.0,
                weights=None if weights == usual else weights,
                mark_end=stage.mark_end is not False,
            )
        )
    return Plan(
        stages=tuple(stages),
        tokens_per_batch=spec.tokens_per_batch,
        chunk_len=spec.chunk_tokens,
        budget_tokens=spec.budget.tokens,
        budget_microseconds=budget_microseconds,
        first_step=before[-1].end_step if before else 0,
        log_every_steps=spec.compute.log_every_steps,
        checkpoint_every_tokens=spec.compute.checkpoint_every_tokens,
        evaluate_every_tokens=spec.evaluation.every_tokens,
        evaluate_stage_ends=spec.evaluation.stage_ends,
    )


def _under(usual: tuple[int, ...], stage: StagePlan) -> StagePlan:
    """A parent's stage, which names its weights, in a pipeline whose usual weights may differ."""
    return stage.model_copy(update={"weights": None}) if stage.weights == usual else stage


def split(total: int, weights: Sequence[Fraction], sizes: Sequence[int] | None = None) -> list[int]:
    """Number of pieces of each part of ``total``, shared out by ``weights``; a piece of the n-th
    part has size ``sizes[n]``, by default 1.

    Each part takes the whole pieces that fit before its boundary, which lies at the cumulated
    shares; what is left over passes to the next part. So each is off by less than a piece of its
    own or of the part before, and pieces of size 1 sum to ``total``.
    """
    whole = sum(weights)
    pieces, done, cumulated = [], 0, Fraction(0)
    for weight, size in zip(weights, sizes or [1] * len(weights), strict=True):
        cumulated += weight
        fit = (math.floor(total * cumulated / whole) - done) // size
        pieces.append(fit)
        done += fit * size
    return pieces


def learning_rate(optimizer: OptimizerSpec, plan: Plan, step: int) -> float:
    """The rate of step ``step`` (from 0): the schedule's times the stage's factor, and over the
    ``rewarm_steps`` after a stage boundary n/(rewarm_steps + 1) of it for n = 1, 2, …"""
    stage = plan.stages[plan.stage_index(step)]
    rate = scheduled_rate(optimizer.schedule, optimizer.lr, plan.progress(step)) * stage.lr_factor
    inside = step - stage.first_step + 1
    if stage.first_step and inside <= optimizer.rewarm_steps:
        rate *= inside / (optimizer.rewarm_steps + 1)
    return rate


def scheduled_rate(schedule: ScheduleSpec, peak: float, progress: Fraction) -> float:
    """The rate at ``progress`` (share of the budget behind us, 0 to 1).

    The warm-up rises from 0 to ``peak``; what follows ends at ``schedule.final`` × peak.
    """
    done = float(progress)
    if done < schedule.warmup:
        return peak * done / schedule.warmup
    if isinstance(schedule, CosineSchedule | LinearSchedule):
        start = schedule.warmup
    else:
        start = 1.0 - schedule.decay
    if done <= start:
        return peak
    decayed = (done - start) / (1.0 - start)
    if isinstance(schedule, CosineSchedule):
        decayed = (1.0 - math.cos(math.pi * decayed)) / 2.0
    return peak * (1.0 - (1.0 - schedule.final) * decayed)


def _costs(spec: PipelineSpec, arm: ArmSpec) -> list[int]:
    """Microseconds of a step of each stage; empty where seconds decide nothing. A step with another
    batch than the calibrated one costs in proportion to its tokens."""
    if spec.calibration is None or not spec.needs_calibration:
        return []
    known = spec.calibration.step_microseconds
    costs = []
    for stage in arm.stages:
        if stage.seq_len not in known:
            raise UserError(
                f"arm {arm.name}: seq_len {stage.seq_len} is not in the calibration, which has "
                f"{', '.join(map(str, sorted(known)))}: its seconds are unknown; run it under "
                "another name, or remove the calibration"
            )
        batches = Fraction(spec.tokens_per_batch_of(stage), spec.tokens_per_batch)
        costs.append(max(1, round(known[stage.seq_len] * batches)))
    return costs


def _steps_within(
    budget: int, ratios: Sequence[Fraction], batches: Sequence[int], costs: Sequence[int]
) -> list[int]:
    """Steps of each stage for the most tokens, shared out by ``ratios``, whose cost is within
    ``budget`` microseconds."""
    unit = math.gcd(*batches)

    def steps_of(num_units: int) -> list[int]:
        return split(num_units * unit, ratios, batches)

    def cost_of(num_units: int) -> int:
        return sum(n * cost for n, cost in zip(steps_of(num_units), costs, strict=True))

    stages = zip(ratios, batches, costs, strict=True)
    unit_cost = unit * sum(ratio * cost / tokens for ratio, tokens, cost in stages) / sum(ratios)
    # Each stage lacks less than a step of its exact share, so no more than these can fit.
    num_units = math.floor((budget + sum(costs)) / unit_cost)
    while cost_of(num_units) > budget:
        num_units -= 1
    return steps_of(num_units)
