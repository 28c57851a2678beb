"""Verdicts on claims, computed from the runs' records: paired by seed and by document.

A claim about losses has two. Its own, *efficiency*: the arm's loss is lower than the other's on the
budget they share, or the same. And *long context*: the arm has learnt to use context beyond the
short one, and no worse than an arm trained at the longest length throughout. A model can have the
one without the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from glray.report.arms import Arm, by_arm
from glray.report.far_context import FarGain, far_contexts, gain_of
from glray.report.formats import seconds_text
from glray.report.long_losses import LongLosses, long_far_contexts
from glray.report.measured import clock_part, measured
from glray.report.outcome import (
    Outcome,
    inconclusive,
    of_difference,
    of_gain,
    of_seconds,
)
from glray.run.records import FarContext
from glray.run.run import Run
from glray.run.statistics import SEEDS_FOR_A_VERDICT, Estimate, crossed, holm
from glray.spec.comparison import ClaimSpec


@dataclass(frozen=True)
class LongContext:
    """Whether a claim's arm has learnt to use long context."""

    outcome: Outcome
    gains: Mapping[str, FarGain]
    """Far-context gain of the arm and, where there is one, of the arm trained long throughout."""
    less: Estimate | None
    """The first gain less the second."""

    @property
    def sentence(self) -> str:
        """The verdict and the numbers."""
        numbers = ", ".join(f"{label} {gain}" for label, gain in self.gains.items())
        if numbers:
            short = next(iter(self.gains.values())).short
            numbers = f" Gain from context beyond {short:,} tokens: {numbers} nats"
            if self.less is not None:
                numbers += f", {self.less.mean:+.3f} ± {self.less.half:.3f}"
            numbers += f" ({self.outcome.odds})." if self.outcome.odds else "."
        return f"Long context: {self.outcome.text}.{numbers}"

    def record(self) -> dict[str, object]:
        """Plain values for JSON."""
        gains = {label: _interval(gain.estimate) for label, gain in self.gains.items()}
        less = None if self.less is None else _interval(self.less)
        return {**self.outcome.record(), "gains": gains, "less": less}


@dataclass(frozen=True)
class Judgement:
    """A claim, its verdicts and the numbers behind them."""

    claim: ClaimSpec
    outcome: Outcome
    means: tuple[float, float]
    """Of the arm and of what it is measured against, over seeds: nats, or seconds; NaN where a
    run lacks it."""
    estimate: Estimate | None
    """The arm's less the other's, in nats per token; None where a run lacks it, and of seconds."""
    shares: tuple[float, ...]
    """Of seconds: each repetition's difference as a share of the other's."""
    num_seeds: int
    long_context: LongContext | None
    """None where the claim is not about losses, or its arm is trained on short windows alone."""

    @property
    def sentence(self) -> str:
        """The claim, its verdicts and the numbers."""
        parts = [f"{self.claim.says}: {self.outcome.text}."]
        parts += [self._numbers()] if self.estimate or self.shares else []
        parts += [self.long_context.sentence] if self.long_context else []
        return " ".join(parts)

    def record(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            **self.claim.model_dump(mode="json"),
            **self.outcome.record(),
            "means": self.means,
            "difference": None if self.estimate is None else _interval(self.estimate),
            "shares": self.shares,
            "num_seeds": self.num_seeds,
            "long_context": self.long_context and self.long_context.record(),
            "sentence": self.sentence,
        }

    def _numbers(self) -> str:
        claim = self.claim
        if self.shares:
            ours, theirs = (f"{seconds_text(seconds)} s" for seconds in self.means)
            spread = f"{min(self.shares):+.1%} to {max(self.shares):+.1%}"
            return (
                f"{claim.arm} {ours}, {claim.against} {theirs} measured: "
                f"{fmean(self.shares):+.1%} ({spread} in {len(self.shares)} repetitions)."
            )
        assert self.estimate is not None
        if claim.measure == "jump":
            unit = "nats at a stage boundary"
            ours, theirs = (f"{jump:+.3f}" for jump in self.means)
        else:
            at = "each at its own length" if claim.at is None else f"at {claim.at:,} tokens"
            unit = f"nats {at}"
            ours, theirs = (f"{loss:.3f}" for loss in self.means)
        text = f"{claim.arm} {ours}, {claim.against} {theirs} {unit}: {self.estimate.mean:+.3f}"
        if not self.estimate.parts:
            return f"{text}."
        varied = ", ".join(
            f"{part.count} {name} ± {part.half:.3f}" for name, part in self.estimate.parts.items()
        )
        odds = f"; {self.outcome.odds}" if self.outcome.odds else ""
        interval = f"{self.estimate.low:+.3f} to {self.estimate.high:+.3f}"
        return f"{text} (95%: {interval}; {varied}{odds})."


def judge(
    claims: Sequence[ClaimSpec], runs: Sequence[Run], long_losses: LongLosses
) -> list[Judgement]:
    """A judgement of each claim; each arm's runs are in the order of the seeds."""
    arms = {arm.label: arm for arm in by_arm(runs)}
    return _adjusted([_judged(claim, arms, long_losses) for claim in claims])


def _adjusted(judgements: Sequence[Judgement]) -> list[Judgement]:
    """With the p values of all primary claims adjusted for one another. An arm's long context on
    the same documents is one test, however many claims ask for it."""

    def key(judgement: Judgement) -> tuple[object, ...]:
        found = judgement.long_context
        return ("", *(found.gains if found else ()), judgement.claim.measure)

    family: dict[tuple[object, ...], float] = {}
    for index, judgement in enumerate(judgements):
        found = judgement.long_context
        if judgement.claim.primary:
            if judgement.outcome.p is not None:
                family[index,] = judgement.outcome.p
            if found is not None and found.outcome.p is not None:
                family[key(judgement)] = found.outcome.p
    adjusted = dict(zip(family, holm(list(family.values())), strict=True))

    def known(outcome: Outcome, at: tuple[object, ...]) -> Outcome:
        return replace(outcome, p_adjusted=adjusted.get(at), family=len(family) * (at in adjusted))

    return [
        replace(
            judgement,
            outcome=known(judgement.outcome, (index,)),
            long_context=(found := judgement.long_context)
            and replace(found, outcome=known(found.outcome, key(judgement))),
        )
        for index, judgement in enumerate(judgements)
    ]


def _judged(claim: ClaimSpec, arms: Mapping[str, Arm], long_losses: LongLosses) -> Judgement:
    if claim.measure == "seconds":
        return _judged_by_clock(claim, arms)
    compared = arms[claim.arm], arms[claim.against]
    ours, theirs = (measured(claim, arm, long_losses) for arm in compared)
    if ours is None or theirs is None:
        pairs = zip(compared, (ours, theirs), strict=True)
        reason = _missing([arm.label for arm, losses in pairs if losses is None])
        means, estimate = (math.nan, math.nan), None
    else:
        reason, means, estimate = _too_few(compared[0]), (ours.mean, theirs.mean), None
        if ours.targets != theirs.targets:
            reason = "they are not scored on the same targets"
        else:
            estimate = crossed(ours.values - theirs.values, ours.document_tokens)
            if claim.measure != "jump" and (part := clock_part(*compared)):
                estimate = replace(estimate, parts={**estimate.parts, "calibrations": part})
    long_context = None
    if claim.measure != "jump":
        long_context = _long_context(claim, arms, long_losses, reason)
    if claim.measure == "long_loss":
        reason = reason or _unused_context(claim, compared, long_losses)
    if reason or estimate is None:
        outcome = inconclusive(reason)
    else:
        outcome = of_difference(estimate, claim.within)
    num_seeds = len(compared[0].runs)
    return Judgement(claim, outcome, means, estimate, (), num_seeds, long_context)


def _judged_by_clock(claim: ClaimSpec, arms: Mapping[str, Arm]) -> Judgement:
    ours, theirs = arms[claim.arm], arms[claim.against]
    missing = [arm.label for arm in (ours, theirs) if not all(run.is_finished for run in arm.runs)]
    reason = _missing(missing) or _too_few(ours)
    means = (math.nan, math.nan) if missing else (ours.measured_seconds, theirs.measured_seconds)
    pairs = [] if missing else zip(ours.runs, theirs.runs, strict=True)
    shares = tuple(own.measured_seconds / other.measured_seconds - 1 for own, other in pairs)
    outcome = inconclusive(reason) if reason else of_seconds(shares, claim.within)
    return Judgement(claim, outcome, means, None, shares, len(ours.runs), None)


def _missing(labels: Sequence[str]) -> str:
    return f"unfinished, not scored or diverged: {' and '.join(labels)}" if labels else ""


def _too_few(arm: Arm) -> str:
    seeds = len(arm.runs)
    few = f"a verdict takes {SEEDS_FOR_A_VERDICT} seeds, here {seeds}"
    return few if seeds < SEEDS_FOR_A_VERDICT else ""


# ---- long context


def _long_context(
    claim: ClaimSpec, arms: Mapping[str, Arm], long_losses: LongLosses, reason: str
) -> LongContext | None:
    """On the claim's own documents; None if its arm is trained on the short context alone."""
    arm, throughout = arms[claim.arm], _throughout(claim, arms)
    contexts = _contexts(claim, arm, long_losses)
    if contexts and len(contexts[0].losses) == 1:
        return None
    gain = gain_of(contexts)
    if gain is None:
        why = reason or f"far context is not scored: {arm.label}"
        return LongContext(inconclusive(why), {}, None)
    gains, less = {arm.label: gain}, None
    if throughout is not None:
        other = gain_of(_contexts(claim, throughout, long_losses))
        if other is None or other.values.shape != gain.values.shape:
            reason = reason or f"far context is not scored: {throughout.label}"
        else:
            gains[throughout.label] = other
            less = crossed(gain.values - other.values, gain.document_tokens)
            if not other.is_positive:
                reason = reason or (
                    f"at this scale {throughout.label} gains nothing from context beyond "
                    f"{other.short:,} tokens, so there is nothing to learn"
                )
    outcome = inconclusive(reason) if reason else of_gain(gain.estimate, less)
    return LongContext(outcome, gains, less)


def _throughout(claim: ClaimSpec, arms: Mapping[str, Arm]) -> Arm | None:
    """The arm that is trained at the claim's arm's longest length throughout, among the compared
    arms of the same pipeline; None if there is none, or it is the claim's own."""
    arm = arms[claim.arm]
    fixed = [
        other
        for other in arms.values()
        if other.runs[0].directory.parent == arm.runs[0].directory.parent
        and other.seq_lens == (max(arm.seq_lens),)
    ]
    return next((other for other in fixed if other is not arm), None)


def _contexts(claim: ClaimSpec, arm: Arm, long_losses: LongLosses) -> list[FarContext]:
    """How the arm's runs score far targets of the claim's documents."""
    if claim.measure == "long_loss":
        return long_far_contexts(long_losses, arm)
    return far_contexts(arm)


def _unused_context(claim: ClaimSpec, compared: Sequence[Arm], long_losses: LongLosses) -> str:
    """Why nothing can be said of windows beyond training: an arm that is trained beyond the short
    context and gains nothing from it on these documents. Empty if every such arm does."""
    for arm in compared:
        contexts = _contexts(claim, arm, long_losses)
        if not contexts:
            return f"far context is not scored: {arm.label}"
        gain = gain_of(contexts)
        if gain is not None and not gain.is_positive:
            return (
                f"at this scale {arm.label} gains nothing from context beyond {gain.short:,} "
                f"tokens: {gain} nats"
            )
    return ""


def _interval(estimate: Estimate) -> dict[str, object]:
    """Plain values for JSON, from which the interval can be made again."""
    return {
        "mean": estimate.mean,
        "half": estimate.half if estimate.parts else None,
        "degrees": estimate.degrees,
        "parts": {
            name: {"standard_error": part.standard_error, "count": part.count}
            for name, part in estimate.parts.items()
        },
    }
