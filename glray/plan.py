"""The plan: what a spec comes to, in steps and tokens. Pure, and made before any work.

A plan is a function of the spec and, where seconds decide, of the calibration in it. From step 0 on
no clock is read to decide anything: stage boundaries, the end and the learning rate follow from the
plan, so that a resumed run is the same run.

Who calls it: ``glray plan`` prints it, the training loop follows it, the report shows it.
"""

import math
from collections.abc import Sequence
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
    """One arm's stages in steps, and when what happens around them."""

    stages: tuple[StagePlan, ...] = Field(min_length=1)
    tokens_per_batch: int = Field(ge=1)
    chunk_len: int
    budget_tokens: int | None
    budget_microseconds: int | None
    log_every_steps: int
    checkpoint_every_tokens: int
    evaluate_every_tokens: int | None

    def model_post_init(self, context: Any) -> None:
        ends = (0, *(stage.end_step for stage in self.stages))
        for stage, end in zip(self.stages, ends, strict=False):
            if stage.first_step != end:
                raise ValueError(
                    f"stages: one begins at step {stage.first_step}, the one before ends at {end}"
                )

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return self.stages[-1].end_step

    @property
    def num_tokens(self) -> int:
        """Tokens trained, as targets."""
        return self.num_steps * self.tokens_per_batch

    @property
    def budget_seconds(self) -> float | None:
        """The declared seconds; None if the budget is in tokens."""
        microseconds = self.budget_microseconds
        return None if microseconds is None else microseconds / MICROSECONDS

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Steps trained when each stage is complete; the last is the end of the plan."""
        return tuple(stage.end_step for stage in self.stages)

    @cached_property
    def boundaries(self) -> tuple[StageBoundary, ...]:
        """The boundaries between the stages."""
        return tuple(
            StageBoundary(
                step=after.first_step,
                from_seq_len=before.seq_len,
                to_seq_len=after.seq_len,
                rescore_step=after.first_step + min(RESCORE_STEPS, after.num_steps),
            )
            for before, after in pairwise(self.stages)
        )

    def events_after(self, num_steps: int) -> list[Event]:
        """What is done when so many steps are trained, in this order. A stage ends with a
        checkpoint and an evaluation, and whatever is done, the metrics are written first."""
        ends = num_steps in self.stage_ends
        due = {
            Event.RESCORE: any(num_steps == b.rescore_step for b in self.boundaries),
            Event.CHECKPOINT: ends or self._is_due(num_steps, self.checkpoint_every_tokens),
            Event.EVALUATE: ends or self._is_due(num_steps, self.evaluate_every_tokens),
        }
        events = [event for event in Event if due.get(event)]
        return [Event.LOG, *events] if events or num_steps % self.log_every_steps == 0 else []

    def _is_due(self, num_steps: int, every_tokens: int | None) -> bool:
        """Whether what is done every so many tokens, to whole steps, is done now."""
        return every_tokens is not None and (
            num_steps % max(1, every_tokens // self.tokens_per_batch) == 0
        )

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

    def progress(self, step: int) -> Fraction:
        """Share of the declared budget behind the middle of ``step`` (from 0): of its seconds, on
        the calibrated clock, or of its tokens. So schedules that agree up to a step have the same
        learning rates up to there, whatever follows. (At a step's start the first one of a warm-up
        would have rate 0, at its end the last one of a decay to 0.)"""
        if self.budget_microseconds is None:
            assert self.budget_tokens is not None, "a budget is in seconds or in tokens"
            return Fraction((2 * step + 1) * self.tokens_per_batch, 2 * self.budget_tokens)
        before, after = (self.calibrated_microseconds(n) or 0 for n in (step, step + 1))
        return Fraction(before + after, 2 * self.budget_microseconds)


def make_plan(spec: PipelineSpec, arm: ArmSpec) -> Plan | None:
    """The plan of one arm; None where seconds decide and the spec has no calibration yet.

    Steps are shared out by cumulated ratios rounded down, so that a stage is off by less than one
    step and the last stage ends with the budget. Raises UserError for a budget smaller than a
    batch, a stage left without a step, or a calibration that lacks a length.
    """
    if spec.needs_calibration and spec.calibration is None:
        return None
    costs = _costs(spec, arm)
    ratios = [Fraction(str(stage.ratio)) for stage in arm.stages]
    seconds = spec.budget.seconds
    budget_microseconds = None if seconds is None else round(Fraction(str(seconds)) * MICROSECONDS)
    if budget_microseconds is None:
        assert spec.budget.tokens is not None
        num_steps = spec.budget.tokens // spec.tokens_per_batch
        if spec.ratios_in == "seconds":
            ratios = [ratio / cost for ratio, cost in zip(ratios, costs, strict=True)]
        steps = split(num_steps, ratios)
    elif spec.ratios_in == "seconds":
        steps = _fill_time(budget_microseconds, ratios, costs)
    else:
        steps = _steps_within(budget_microseconds, ratios, costs)
    step_costs: Sequence[int | None] = costs or [None] * len(steps)
    stages: list[StagePlan] = []
    for stage, num_steps, cost in zip(arm.stages, steps, step_costs, strict=True):
        if num_steps < 1:
            raise UserError(
                f"arm {arm.name}: stage {len(stages)} (seq_len {stage.seq_len}, ratio "
                f"{stage.ratio:g}) gets 0 of {sum(steps)} steps of {spec.tokens_per_batch:,} "
                "tokens: the length would never be trained; raise the budget or the ratio, or "
                "remove the stage"
            )
        stages.append(
            StagePlan(
                seq_len=stage.seq_len,
                windows_per_batch=spec.tokens_per_batch // stage.seq_len,
                first_step=stages[-1].end_step if stages else 0,
                num_steps=num_steps,
                step_microseconds=cost,
            )
        )
    return Plan(
        stages=tuple(stages),
        tokens_per_batch=spec.tokens_per_batch,
        chunk_len=spec.chunk_tokens,
        budget_tokens=spec.budget.tokens,
        budget_microseconds=budget_microseconds,
        log_every_steps=spec.compute.log_every_steps,
        checkpoint_every_tokens=spec.compute.checkpoint_every_tokens,
        evaluate_every_tokens=spec.evaluation.every_tokens,
    )


def split(total: int, weights: list[Fraction]) -> list[int]:
    """``total`` shared out by ``weights``: the boundaries are the cumulated shares rounded down.

    The parts sum to ``total`` and each is less than 1 away from its exact share.
    """
    whole = sum(weights)
    boundaries = [0]
    cumulated = Fraction(0)
    for weight in weights:
        cumulated += weight
        boundaries.append(math.floor(total * cumulated / whole))
    return [end - start for start, end in pairwise(boundaries)]


def learning_rate(optimizer: OptimizerSpec, plan: Plan, step: int) -> float:
    """The rate of step ``step`` (from 0): the schedule's, and over the ``rewarm_steps`` after a
    stage boundary n/(rewarm_steps + 1) of it for n = 1, 2, …"""
    rate = scheduled_rate(optimizer.schedule, optimizer.lr, plan.progress(step))
    stage = plan.stages[plan.stage_index(step)]
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
    """Microseconds of a step of each stage; empty where seconds decide nothing."""
    if spec.calibration is None or not spec.needs_calibration:
        return []
    known = spec.calibration.step_microseconds
    for stage in arm.stages:
        if stage.seq_len not in known:
            raise UserError(
                f"arm {arm.name}: seq_len {stage.seq_len} is not in the calibration, which has "
                f"{', '.join(map(str, sorted(known)))}: its seconds are unknown; run it under "
                "another name, or remove the calibration"
            )
    return [known[stage.seq_len] for stage in arm.stages]


def _fill_time(budget: int, ratios: list[Fraction], costs: list[int]) -> list[int]:
    """Steps of each stage, each taking the whole steps that fit before its boundary in time; what
    is left over before a boundary passes to the next stage."""
    steps, clock, boundary = [], 0, Fraction(0)
    for ratio, cost in zip(ratios, costs, strict=True):
        boundary += ratio
        fit = max(math.floor(budget * boundary / sum(ratios)) - clock, 0) // cost
        steps.append(fit)
        clock += fit * cost
    return steps


def _steps_within(budget: int, ratios: list[Fraction], costs: list[int]) -> list[int]:
    """The most steps, shared out by ``ratios``, whose cost is within ``budget`` microseconds."""

    def cost_of(num_steps: int) -> int:
        parts = split(num_steps, ratios)
        return sum(part * cost for part, cost in zip(parts, costs, strict=True))

    mean_cost = sum(r * c for r, c in zip(ratios, costs, strict=True)) / sum(ratios)
    num_steps = math.floor(budget / mean_cost)
    # Rounding moves each stage by less than one step, so the answer is within a few of this.
    num_steps += len(costs) * math.ceil(max(costs) / mean_cost)
    while cost_of(num_steps) > budget:
        num_steps -= 1
    return split(num_steps, ratios)
