"""Verdicts on claims, computed from the runs' records: paired by seed and by document.

A claim about losses has two. Its own, *efficiency*: the arm's loss is lower than the other's on the
budget they share, or the same. And *long context*: the arm has learnt to use context beyond the
short one, and no worse than an arm trained at the longest length throughout. A model can have the
one without the other.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from glray.plan import MICROSECONDS
from glray.report.arms import Arm, by_arm
from glray.report.calibration_spread import calibration_part
from glray.report.comparison import share_targets
from glray.report.far_context import (
    FarGain,
    far_contexts,
    finished_contexts,
    gain_of,
    sees_short_alone,
)
from glray.report.formats import counted, seconds_text
from glray.report.long_losses import LongLosses, long_far_contexts, share_long_targets
from glray.report.measured import Losses, difference, measured
from glray.report.outcome import (
    Outcome,
    Verdict,
    adjusted,
    inconclusive,
    judge_difference,
    judge_gain,
    judge_seconds,
)
from glray.run.records import FarContext
from glray.run.run import Run
from glray.run.statistics import ENOUGH_DOCUMENTS, SEEDS_FOR_A_VERDICT, Estimate, crossed
from glray.spec.comparison import ClaimSpec, Measure


@dataclass(frozen=True)
class LongContext:
    """Whether an arm has learnt to use long context."""

    arm: str
    """Its label."""
    measure: Measure
    """``loss``: on held-out documents; ``long_loss``: on the comparison's long ones."""
    outcome: Outcome
    gains: Mapping[str, FarGain]
    """Far-context gain of the arm and, where there is one, of the arm trained long throughout."""
    difference: Estimate | None
    """The first gain less the second."""

    @property
    def name(self) -> str:
        """The same for all claims that ask for the same."""
        on = " on long documents" if self.measure == "long_loss" else ""
        beside = [f" as well as {label}" for label in self.gains if label != self.arm]
        return f"{self.arm} has learnt to use long context{on}{''.join(beside)}"

    @property
    def sentence(self) -> str:
        """The verdict and the numbers."""
        p = f" ({self.outcome.p_text})" if self.outcome.p_text else ""
        return f"{self.name}: {self.outcome.text}.{self.numbers}{p}{'.' if self.numbers else ''}"

    @property
    def numbers(self) -> str:
        """The gains; empty where they were not scored."""
        if not self.gains:
            return ""
        short = next(iter(self.gains.values())).short
        gains = ", ".join(f"{label} {gain}" for label, gain in self.gains.items())
        text = f" Gain from context beyond {short:,} tokens: {gains} nats"
        if self.difference is None or not self.difference.parts:
            return text
        return f"{text}, difference {self.difference.mean:+z.3f} ± {self.difference.half:.3f}"

    def record(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            **self.outcome.record(),
            "gains": {label: _interval(gain.estimate) for label, gain in self.gains.items()},
            "difference": None if self.difference is None else _interval(self.difference),
            "numbers": self.numbers.strip(),
        }


@dataclass(frozen=True)
class Judgement:
    """A claim, its verdicts and the numbers behind them."""

    claim: ClaimSpec
    outcome: Outcome
    num_seeds: int
    means: tuple[float, float] = (math.nan, math.nan)
    """Of the arm and of what it is measured against, over seeds: nats, or seconds; NaN where a
    run lacks it."""
    estimate: Estimate | None = None
    """The arm's less the other's, in nats per token; None where a run lacks it, and of seconds."""
    shares: tuple[float, ...] = ()
    """Of seconds: each repetition's difference as a share of the other's."""
    clock: str = "measured"
    """Which seconds those are."""
    remark: str = ""
    """What the numbers leave out."""
    long_context: LongContext | None = None
    """None where the claim is not about losses, or its arm is trained on short windows alone."""

    @property
    def sentence(self) -> str:
        """The claim, its verdict and the numbers."""
        p = f" {self.outcome.p_text}." if self.outcome.p_text else ""
        numbers = f" {self.numbers}" if self.numbers else ""
        return f"{self.claim.says}: {self.outcome.text}.{numbers}{p}"

    @property
    def numbers(self) -> str:
        """Both means, the difference and its interval; empty where there are none."""
        claim, unit = self.claim, "nats at a stage boundary"
        if self.shares:
            ours, theirs = (f"{seconds_text(seconds)} s" for seconds in self.means)
            spread = f"{min(self.shares):+.1%} to {max(self.shares):+.1%}"
            return (
                f"{claim.arm} {ours}, {claim.against} {theirs} {self.clock}: "
                f"{fmean(self.shares):+z.1%} ({spread} in "
                f"{counted(len(self.shares), 'repetition')})."
            )
        if self.estimate is None:
            return ""
        ours, theirs = (f"{loss:+z.3f}" for loss in self.means)
        if claim.measure != "jump":
            at = "each at its own length" if claim.at is None else f"at {claim.at:,} tokens"
            unit = f"nats {at}"
            ours, theirs = (f"{loss:.3f}" for loss in self.means)
        text = f"{claim.arm} {ours}, {claim.against} {theirs} {unit}: {self.estimate.mean:+z.3f}"
        if not self.estimate.parts:
            return f"{text}."
        varied = ", ".join(
            f"{'only ' if name == 'documents' and part.count < ENOUGH_DOCUMENTS else ''}"
            f"{part.count} {name} ± {part.half:.3f}"
            for name, part in self.estimate.parts.items()
        )
        interval = f"{self.estimate.low:+.3f} to {self.estimate.high:+.3f}"
        remark = f"; {self.remark}" if self.remark else ""
        return f"{text} (95%: {interval}; {varied}{remark})."

    def record(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            **self.claim.model_dump(mode="json"),
            **self.outcome.record(),
            "num_seeds": self.num_seeds,
            "means": self.means,
            "difference": None if self.estimate is None else _interval(self.estimate),
            "shares": self.shares,
            "numbers": self.numbers,
            "long_context": self.long_context and self.long_context.record(),
        }


def judge(
    claims: Sequence[ClaimSpec], runs: Sequence[Run], long_losses: LongLosses
) -> list[Judgement]:
    """A judgement of each claim; each arm's runs are in the order of the seeds."""
    arms = {arm.label: arm for arm in by_arm(runs)}
    found = [_judged(claim, arms, long_losses) for claim in claims]
    tests = [
        test for index, judgement in enumerate(found) for test in _primary_tests(index, judgement)
    ]
    outcomes = adjusted(tests)
    return [_with_outcomes(judgement, index, outcomes) for index, judgement in enumerate(found)]


def sentences(judgements: Sequence[Judgement]) -> list[str]:
    """Every verdict once: claims of one arm share that on its long context."""
    said = []
    for judgement in judgements:
        said.append(judgement.sentence)
        said += [judgement.long_context.sentence] if judgement.long_context else []
    return list(dict.fromkeys(said))


def _primary_tests(index: int, judgement: Judgement) -> Iterator[tuple[Hashable, Outcome]]:
    if judgement.claim.primary:
        yield index, judgement.outcome
        if judgement.long_context:
            yield judgement.long_context.name, judgement.long_context.outcome


def _with_outcomes(
    judgement: Judgement, index: int, outcomes: Mapping[Hashable, Outcome]
) -> Judgement:
    """With what Holm made of them; a claim that is not primary shares an arm's long context with
    one that is."""
    long_context = judgement.long_context
    if long_context is not None:
        known = outcomes.get(long_context.name, long_context.outcome)
        long_context = replace(long_context, outcome=known)
    outcome = outcomes.get(index, judgement.outcome)
    return replace(judgement, outcome=outcome, long_context=long_context)


def _judged(claim: ClaimSpec, arms: Mapping[str, Arm], long_losses: LongLosses) -> Judgement:
    compared = arms[claim.arm], arms[claim.against]
    num_seeds = len(compared[0].runs)
    few = f"a verdict takes {SEEDS_FOR_A_VERDICT} seeds, here {num_seeds}"
    reason = few if num_seeds < SEEDS_FOR_A_VERDICT else ""
    if claim.measure == "seconds":
        return _judged_by_clock(claim, compared, reason)
    ours, theirs = (measured(claim, arm, long_losses) for arm in compared)
    missing = [found for found in (ours, theirs) if isinstance(found, str)]
    if isinstance(ours, str) or isinstance(theirs, str):
        judgement = Judgement(claim, inconclusive("; ".join(missing)), num_seeds)
    elif ours.targets != theirs.targets:
        why = inconclusive("they are not scored on the same targets")
        judgement = Judgement(claim, why, num_seeds, (ours.mean, theirs.mean))
    else:
        judgement = _compared(claim, compared, (ours, theirs), list(arms.values()), reason)
    if claim.measure == "jump":
        return judgement
    long_context = _long_context(claim, arms, long_losses, reason)
    if claim.measure == "long_loss" and judgement.outcome.p is not None:
        unused = _unused_context(compared, long_losses)
        outcome = inconclusive(unused) if unused else judgement.outcome
        judgement = replace(judgement, outcome=outcome)
    return replace(judgement, long_context=long_context)


def _compared(
    claim: ClaimSpec,
    compared: tuple[Arm, Arm],
    losses: tuple[Losses, Losses],
    arms: Sequence[Arm],
    reason: str,
) -> Judgement:
    """By their losses on the same targets."""
    ours, theirs = losses
    estimate, remarks = difference(ours, theirs), []
    if claim.measure != "jump":
        if len(ours.document_tokens) == 1:
            reason = reason or "only one document is scored"
        budgets = {run.plan.budget_seconds or run.tokens for arm in compared for run in arm.runs}
        if len(budgets) > 1:
            remarks.append("unequal budgets")
        if any(arm.runs[0].plan.budget_seconds is not None for arm in compared):
            if part := calibration_part(*compared, [*reversed(compared), *arms]):
                estimate = replace(estimate, parts={**estimate.parts, "calibrations": part})
            else:
                remarks.append("without the calibration's error")
    outcome = _untested(claim, reason) if reason else judge_difference(estimate, claim.within)
    means, num_seeds = (ours.mean, theirs.mean), len(compared[0].runs)
    return Judgement(claim, outcome, num_seeds, means, estimate, remark=", ".join(remarks))


def _judged_by_clock(claim: ClaimSpec, compared: tuple[Arm, Arm], reason: str) -> Judgement:
    ours, theirs = compared
    unfinished = [arm.unfinished for arm in compared if arm.unfinished]
    if unfinished:
        return Judgement(claim, inconclusive("; ".join(unfinished)), len(ours.runs))
    seconds, clock = _clocks(ours, theirs)
    shares = tuple(own / other - 1 for own, other in seconds)
    outcome = inconclusive(reason) if reason else judge_seconds(shares, claim.within)
    if not claim.primary:
        outcome = Outcome(Verdict.DESCRIPTIVE)
    own, other = zip(*seconds, strict=True)
    means = (fmean(own), fmean(other))
    return Judgement(claim, outcome, len(ours.runs), means, shares=shares, clock=clock)


def _clocks(ours: Arm, theirs: Arm) -> tuple[list[tuple[float, float]], str]:
    """Both arms' seconds in each repetition, and which seconds they are. Calibrated ones where one
    calibration timed both, step beside step, and did not decide the steps itself; else those
    that were measured, run after run."""
    runs = (ours.runs[0], theirs.runs[0])
    alone = len({run.directory.parent for run in runs}) == 1
    decides = any(run.calibrated_seconds is not None for run in runs)
    repetitions = runs[0].calibration.repetitions if runs[0].calibration else ()
    lengths = {stage.seq_len for run in runs for stage in run.plan.own_stages}
    has_all = bool(repetitions) and all(costs.keys() >= lengths for costs in repetitions)
    if alone and not decides and has_all:
        costs_of = [[run.plan.total_cost(costs) for run in runs] for costs in repetitions]
        seconds = [(own / MICROSECONDS, other / MICROSECONDS) for own, other in costs_of]
        return seconds, "calibrated"
    pairs = zip(ours.runs, theirs.runs, strict=True)
    return [(own.measured_seconds, other.measured_seconds) for own, other in pairs], "measured"


# ---- long context


def _long_context(
    claim: ClaimSpec, arms: Mapping[str, Arm], long_losses: LongLosses, reason: str
) -> LongContext | None:
    """On the claim's own documents; None if its arm is trained on the short context alone."""
    arm = arms[claim.arm]
    contexts = _contexts(claim.measure, arm, long_losses)
    if sees_short_alone(contexts or finished_contexts(arm)):
        return None

    def found(
        outcome: Outcome, gains: Mapping[str, FarGain], difference: Estimate | None = None
    ) -> LongContext:
        return LongContext(arm.label, claim.measure, outcome, gains, difference)

    gain = gain_of(contexts)
    if gain is None:
        return found(inconclusive(f"no far-context gain is known: {arm.label}"), {})
    gains = {arm.label: gain}
    if len(gain.document_tokens) == 1:
        reason = reason or "only one document is scored"
    if (throughout := _throughout(claim, arms)) is None:
        outcome = _untested(claim, reason) if reason else judge_gain(gain.estimate, None)
        return found(outcome, gains)
    other = gain_of(_contexts(claim.measure, throughout, long_losses))
    if other is None:
        return found(inconclusive(f"no far-context gain is known: {throughout.label}"), gains)
    runs = [*arm.runs, *throughout.runs]
    same = (
        share_long_targets(runs, long_losses)
        if claim.measure == "long_loss"
        else share_targets(runs)
    )
    alike = other.short == gain.short and np.array_equal(
        other.document_tokens, gain.document_tokens
    )
    if not same or not alike:
        return found(inconclusive("they are not scored on the same targets"), gains)
    gains[throughout.label] = other
    apart = crossed(gain.values - other.values, gain.document_tokens)
    if not other.is_positive:
        reason = reason or (
            f"{throughout.label}'s own gain is not clear of 0, so this cannot show whether long "
            "context was learnt"
        )
    outcome = _untested(claim, reason) if reason else judge_gain(gain.estimate, apart)
    return found(outcome, gains, apart)


def _untested(claim: ClaimSpec, reason: str) -> Outcome:
    """Where there are numbers but no test is possible: a primary claim asks for one."""
    return inconclusive(reason) if claim.primary else Outcome(Verdict.DESCRIPTIVE)


def _throughout(claim: ClaimSpec, arms: Mapping[str, Arm]) -> Arm | None:
    """The arm that is trained at the longest length of the claim's arm throughout, among the
    compared arms of the same pipeline: the one that it is compared with, if it can be. None if
    there is none, or the claim's arm is such a one itself."""
    arm = arms[claim.arm]
    longest = (max(arm.seq_lens),)
    fixed = [
        other
        for other in (arms[claim.against], *arms.values())
        if other.runs[0].directory.parent == arm.runs[0].directory.parent
        and other.seq_lens == longest != arm.seq_lens
    ]
    return fixed[0] if fixed else None


def _contexts(measure: Measure, arm: Arm, long_losses: LongLosses) -> list[FarContext]:
    """How the arm's runs score far targets of the documents that are compared."""
    return long_far_contexts(long_losses, arm) if measure == "long_loss" else far_contexts(arm)


def _unused_context(compared: Sequence[Arm], long_losses: LongLosses) -> str:
    """Why nothing can be said of windows beyond training: an arm that is trained beyond the short
    context and is not seen to gain from it on these documents. Empty if every such arm is."""
    for arm in compared:
        contexts = long_far_contexts(long_losses, arm)
        if not contexts:
            return f"far context is not scored: {arm.label}"
        gain = gain_of(contexts)
        if gain is not None and not gain.is_positive:
            return (
                f"{arm.label}'s gain from context beyond {gain.short:,} tokens is not clear of 0: "
                f"{gain} nats"
            )
    return ""


def _interval(estimate: Estimate) -> dict[str, object]:
    """Plain values for JSON, from which the interval can be made again."""
    return {
        "mean": estimate.mean,
        "half": estimate.half if estimate.parts else None,
        "parts": {name: vars(part) for name, part in estimate.parts.items()},
    }
