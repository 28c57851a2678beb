"""What the numbers say, in a few plain sentences: the result, its noise, and what it rests on."""

import json
import math
import operator
from collections.abc import Sequence
from statistics import fmean, median_low

import numpy as np

from glray.report.arms import Arm, by_arm, named
from glray.report.comparison import (
    ArmScore,
    compare,
    longest_fixed,
    paired_difference,
    paired_error,
    share_targets,
)
from glray.report.formats import documents_text, plus_minus, seconds_text, tokens_text
from glray.report.stage_settings import own_settings_sentences
from glray.run.records import Evaluation
from glray.run.run import Run
from glray.run.statistics import SEEDS_FOR_A_VERDICT, mean_interval
from glray.spec.identity import differences
from glray.spec.training import rate_text

DRIFT_LIMIT = 0.05
"""Runs whose measured over calibrated seconds is further than this share from the median of all are
mentioned in the headline. What slows all alike does not matter: each trains the steps that the
calibration gave it."""
NOISE_ERRORS = 2
"""A paired difference of no more than this many standard errors is called noise."""
MOST_LISTED = 6
"""Arms that one sentence names before it says how many more there are."""


def headline(runs: Sequence[Run]) -> list[str]:
    """Sentences to be read before any table, computed from the records alone."""
    scores = compare(runs)
    compared = [run for score in scores for run in score.runs]
    base = longest_fixed(scores)
    sentences = []
    if scores:
        sentences += _result(scores, compared)
        if base is not None and _one_model(compared):
            sentences += _tokens(scores, base)
            sentences += _times_to_loss(scores, base) if share_targets(compared) else []
        sentences += [_seeds(scores), _drift(compared), _predictions(compared)]
        sentences += [_forks(compared), *_parents(compared)]
    elif any(run.is_finished for run in runs):
        yet = "" if all(run.has_ended for run in runs) else " yet"
        sentences.append(f"No seed is finished and scored in every arm: nothing compares{yet}.")
    return [sentence for sentence in (*sentences, _diverged(runs), _unfinished(runs)) if sentence]


def seconds_to_loss(run: Run, seq_len: int, loss: float) -> float | None:
    """Training seconds until the held-out loss at ``seq_len`` first is ``loss`` or less, between
    two evaluations on the straight line between them; None if it never is.

    The seconds are calibrated ones where the run has them, else measured. A loss that the first
    evaluation is already below was reached by then. Evaluations on other targets than the last's do
    not count.
    """
    seconds, losses = np.array(
        [
            (_clock(evaluation), score.loss)
            for evaluation in run.comparable_evaluations
            if (score := evaluation.at(seq_len))
        ]
    ).T
    reached = np.flatnonzero(losses <= loss)
    if not len(reached):
        return None
    line = slice(max(reached[0] - 1, 0), reached[0] + 1)
    return float(np.interp(-loss, -losses[line], seconds[line]))


def _result(scores: Sequence[ArmScore], runs: Sequence[Run]) -> list[str]:
    """The losses, which is lowest and by how much; or why they do not compare."""
    decimals = _decimals(scores)
    is_at = f"held-out loss at {scores[0].seq_len} tokens is"
    if len(scores) == 1 and not share_targets(runs):
        losses = ", ".join(f"{loss:.{decimals}f}" for loss in scores[0].seed_losses)
        return [
            f"{scores[0].label}: {is_at} {losses} under its {len(runs)} seeds, but not on the same "
            "held-out targets: these losses have no common mean."
        ]
    if len(scores) == 1:
        return [_single(scores[0], decimals)]
    if not share_targets(runs):
        return [
            f"{is_at.capitalize()} {_losses(scores, decimals)}, but not on the same held-out "
            "targets: these losses do not compare."
        ]
    finite = [score for score in scores if math.isfinite(score.loss)]
    ordered = sorted(finite, key=lambda score: score.loss)
    diverged = [score.label for score in scores if score not in finite]
    shown = ordered if len(scores) > MOST_LISTED else scores
    sentence = f"{equal_budget(runs)}, {is_at} {_losses(shown, decimals)}"
    sentence += f": {_lead(ordered, decimals)}." if len(ordered) > 1 else "."
    if diverged:
        sentence += f" {', '.join(diverged)} diverged: the loss is not a number."
    return [sentence, *_other_differences(runs)]


def _single(score: ArmScore, decimals: int) -> str:
    known = [run.calibrated_seconds for run in score.runs if run.calibrated_seconds is not None]
    clock = f"{seconds_text(fmean(known))} s calibrated and " if known else ""
    bits_per_byte = fmean(length.bits_per_byte for length in score.scores)
    return (
        f"{score.label}: held-out loss at {score.seq_len} tokens is "
        f"{plus_minus(score.loss, score.standard_error, decimals)} nats "
        f"({bits_per_byte:.3f} bits per byte) after {tokens_text(score.tokens)} "
        f"tokens, {clock}{seconds_text(score.measured_seconds)} s measured training time."
    )


def _lead(ordered: list[ArmScore], decimals: int) -> str:
    """How far the lowest arm is below the next: with an interval over seeds and documents where
    there are enough seeds, else with the standard error over documents."""
    best, following = ordered[:2]
    following_label = f"{following.label}{', the next' if len(ordered) > 2 else ''}"
    difference = following.loss - best.loss
    num_seeds = len(best.seed_losses)
    noise = ""
    if num_seeds >= SEEDS_FOR_A_VERDICT:
        apart = paired_difference(following, best)
        low, high = (f"{end:.{decimals}f}" for end in (apart.low, apart.high))
        shown = f"{difference:.{decimals}f}"
        varied = " and ".join(f"{part.count} {name}" for name, part in apart.parts.items())
        paired = f" (95% interval over {varied}, paired: {low} to {high})"
        if apart.low <= 0:
            noise = ", so within noise"
    else:
        error = paired_error(best, following)
        shown = plus_minus(difference, error, decimals)
        paired = "" if error is None else " (paired by document)"
        if error is not None and difference <= NOISE_ERRORS * error:
            noise = f": less than {NOISE_ERRORS} standard errors, so within noise"
        elif not all(map(operator.lt, best.seed_losses, following.seed_losses)):
            noise = ", but not under every seed, so within noise"
    return f"{best.label} is lowest, {shown} nats below {following_label}{paired}{noise}"


def _losses(scores: Sequence[ArmScore], decimals: int) -> str:
    parts = []
    for score in scores:
        longest = max(score.seq_lens)
        unseen = f" (trained up to {longest})" if longest < score.seq_len else ""
        loss = plus_minus(score.loss, score.standard_error, decimals)
        parts.append(f"{score.label} {loss}{unseen}")
    return _listed(parts)


def equal_budget(runs: Sequence[Run]) -> str:
    """``At equal calibrated training time (160 s each)``: what the runs have in common."""
    seconds = {run.plan.budget_seconds for run in runs}
    tokens = {run.tokens for run in runs}
    if len(seconds) == 1 and None not in seconds:
        return f"At equal calibrated training time ({seconds.pop():,.10g} s each)"
    if len(tokens) == 1:
        return f"At equal training tokens ({tokens_text(tokens.pop())} each)"
    return "At unequal budgets"


def _tokens(scores: Sequence[ArmScore], base: ArmScore) -> list[str]:
    """What each growing arm processed, or took, against the longest fixed arm."""
    growing = [score for score in scores if score.seq_lens[0] < score.seq_lens[-1]]
    if len(growing) > MOST_LISTED:
        return []
    sentences = []
    for score in growing:
        if score.tokens != base.tokens:
            sentences.append(
                f"{score.label} processed {score.tokens / base.tokens:.0%} of {base.label}'s "
                f"tokens ({tokens_text(score.tokens)} against "
                f"{tokens_text(base.tokens)})."
            )
        elif base.measured_seconds > 0:
            sentences.append(
                f"{score.label} took {score.measured_seconds / base.measured_seconds:.0%} of "
                f"{base.label}'s measured training time ({seconds_text(score.measured_seconds)} "
                f"against {seconds_text(base.measured_seconds)} s)."
            )
    return sentences


def _times_to_loss(scores: Sequence[ArmScore], base: ArmScore) -> list[str]:
    """A sentence for each arm, against the arm fixed at the longest length: where runs were scored
    between their stage boundaries (``evaluation.every_tokens``), as boundaries alone say too
    little."""
    return [
        _time_to_loss(score, base)
        for score in scores
        if score is not base and all(run.is_scored_between for run in score.runs)
    ]


def _time_to_loss(score: ArmScore, base: ArmScore) -> str:
    """The mean over seeds of how long the arm takes, as a share of the base's whole time."""
    taken = [
        (seconds_to_loss(run, score.seq_len, theirs), _clock(against.evaluations[-1]))
        for run, against, theirs in zip(score.runs, base.runs, base.seed_losses, strict=True)
    ]
    reached = [(own, whole) for own, whole in taken if own is not None]
    goal = f"{base.label}'s final loss at {score.seq_len:,} tokens"
    if len(reached) < len(taken):
        of_seeds = f" under {len(taken) - len(reached)} of {len(taken)} seeds"
        return f"{score.label} does not reach {goal}{of_seeds if len(taken) > 1 else ''}."
    shares = [own / whole for own, whole in reached]
    share, half = mean_interval(shares)
    over_seeds = f" ± {half:.0%}, 95% over {len(shares)} seeds" if half is not None else ""
    seconds, whole = map(fmean, zip(*reached, strict=True))
    return (
        f"{score.label} reaches {goal} in {share:.0%} of {base.label}'s training time{over_seeds} "
        f"({seconds_text(seconds)} of {seconds_text(whole)} s){_floor(score, whole)}."
    )


def _floor(score: ArmScore, whole: float) -> str:
    """Where a growing arm's stage of the judged length begins, as a share of ``whole`` seconds:
    hardly sooner can its loss there be low."""
    run = score.runs[0]
    stage = next((stage for stage in run.stages if stage.seq_len == score.seq_len), None)
    if stage is None or stage.index == 0:
        return ""
    before = run.stages[stage.index - 1].evaluation
    begins = "" if before is None else f" at {_clock(before) / whole:.0%}"
    return f"; its stage of {score.seq_len:,} tokens begins{begins}" if begins else ""


def _one_model(runs: Sequence[Run]) -> bool:
    """Whether one arm's time and tokens say anything about another's."""
    first = runs[0].manifest.identity.get("model")
    return all(run.manifest.identity.get("model") == first for run in runs)


def _seeds(scores: Sequence[ArmScore]) -> str:
    if not share_targets([run for score in scores for run in score.runs]):
        return ""
    num_documents = len(scores[0].scores[0].document_losses)
    error = f"± is the standard error over {documents_text(num_documents)}, not over seeds"
    if num_documents == 1:
        error = "1 held-out document is scored, so no error over documents is known"
    num_seeds = len(scores[0].runs)
    if num_seeds == 1:
        return f"This is 1 seed: {error}."
    decimals = _decimals(scores)
    spans = ", ".join(
        f"{score.label} {min(score.seed_losses):.{decimals}f} to "
        f"{max(score.seed_losses):.{decimals}f}"
        for score in scores[:MOST_LISTED]
    )
    return f"These are means of {num_seeds} seeds: {error}; over seeds the loss spans {spans}."


def _drift(runs: Sequence[Run]) -> str:
    timed = [(run, run.measured_seconds, run.calibrated_seconds) for run in runs]
    pace = [(run, measured, known) for run, measured, known in timed if known]
    if not pace:
        return ""
    usual = median_low(measured / known for _, measured, known in pace)
    if usual == 0:
        return ""
    others = "the others" if len(pace) > 2 else "the other"
    odd = [
        f"{run.name} took {seconds_text(measured)} s for {seconds_text(known)} calibrated s, "
        f"{abs(drift):.0%} {'more' if drift > 0 else 'less'} than {others}"
        for run, measured, known in pace
        if abs(drift := measured / known / usual - 1) > DRIFT_LIMIT
    ]
    if not odd:
        return ""
    if len(pace) == 2:
        return f"{odd[0]}."
    longer = f"{abs(usual - 1):.0%} {'more' if usual >= 1 else 'less'} than calibrated"
    return (
        f"Most runs took {longer}, which is the same for all. These differ from that by more than "
        f"{DRIFT_LIMIT:.0%}: {_listed(odd)}."
    )


def _forks(runs: Sequence[Run]) -> str:
    """What was trained once for several runs, in calibrated seconds if all have them."""
    forks = [run.manifest.fork for run in runs if run.manifest.fork]
    if not forks:
        return ""
    calibrated = [fork.calibrated_seconds for fork in forks]
    known = [seconds for seconds in calibrated if seconds is not None]
    seconds = sum(known) if len(known) == len(forks) else sum(f.measured_seconds for f in forks)
    clock = "calibrated" if len(known) == len(forks) else "measured"
    share = "forks from another one, with which it shares its"
    if len(forks) > 1:
        share = "fork from another one, with which they share their"
    return (
        f"{len(forks)} of {len(runs)} runs {share} first steps: {seconds_text(seconds)} {clock} s "
        "that were not trained again. Every number counts a run's whole path."
    )


def _parents(runs: Sequence[Run]) -> list[str]:
    """What runs go on from, a sentence for each parent with the arms that do."""
    going_on: dict[str, list[str]] = {}
    for arm in by_arm(runs):
        if (parent := arm.runs[0].manifest.parent) is not None:
            others = "; each other seed from its own run" if len(arm.runs) > 1 else ""
            going_on.setdefault(f"{parent.sentence}{others}", []).append(arm.label)
    return [
        f"{'Each of ' if len(arms) > 1 else ''}{_listed(arms)} {sentence}. These steps count in "
        "every number of a run; the declared budget covers only what comes after."
        for sentence, arms in going_on.items()
    ]


def _predictions(runs: Sequence[Run]) -> str:
    """How well a profile predicted the training time, where there was one."""
    parts = [
        f"{run.name} {seconds_text(run.manifest.predicted_seconds)} s, measured "
        f"{seconds_text(run.measured_seconds)} "
        f"({run.measured_seconds / run.manifest.predicted_seconds - 1:+z.0%})"
        for run in runs
        if run.manifest.predicted_seconds
    ]
    return f"The profile had predicted {_listed(parts, '; ')}." if parts else ""


def _other_differences(runs: Sequence[Run]) -> list[str]:
    """What besides the stages, the seed and the budget sets the runs apart."""
    expected = ["stages", "seed", "step_microseconds", "budget", "parent"]
    if any(run.manifest.parent for run in runs) and len(set(map(_model, runs))) == 1:
        expected += ["model", "init"]  # a run that goes on has its parent's
    first = runs[0].manifest.identity
    fields = {
        change.partition(":")[0]
        for run in runs[1:]
        for change in differences(first, run.manifest.identity)
    }
    sentences = own_settings_sentences(by_arm(runs))
    if "optimizer.lr" in fields:
        rates = [f"{arm.label} {_peak_rates(arm)}" for arm in by_arm(runs)]
        sentences.append(f"The arms have peak learning rates of their own: {_listed(rates)}.")
        fields.remove("optimizer.lr")
    others = sorted(field for field in fields if field.partition(".")[0] not in expected)
    if others:
        sentences.append(f"Besides their stages, the runs differ in {', '.join(others)}.")
    return sentences


def _model(run: Run) -> str:
    """A run's architecture without the lengths that it was trained at."""
    longest = {"max_position_embeddings": None}
    return json.dumps(run.manifest.architecture | longest, sort_keys=True)


def _peak_rates(arm: Arm) -> str:
    """``6e-3``; all of them if its runs have several."""
    rates = sorted({run.optimizer.lr for run in arm.runs})
    return " and ".join(map(rate_text, rates))


def _diverged(runs: Sequence[Run]) -> str:
    parts = [
        f"{name} (at step {divergence.step:,} of {run.plan.num_steps:,}, where its "
        f"{divergence.what} became non-finite)"
        for name, run in named(runs)
        if (divergence := run.divergence)
    ]
    return f"Diverged and not compared: {_listed(parts)}." if parts else ""


def _unfinished(runs: Sequence[Run]) -> str:
    parts = [
        f"{name} ({run.steps_done:,} of {run.plan.num_steps:,} steps)"
        for name, run in named(runs)
        if not run.has_ended
    ]
    return f"Unfinished and not compared: {_listed(parts)}." if parts else ""


def _listed(parts: Sequence[str], separator: str = ", ") -> str:
    """The first of the parts, and how many more there are."""
    more = f", and {len(parts) - MOST_LISTED} more" if len(parts) > MOST_LISTED else ""
    return separator.join(parts[:MOST_LISTED]) + more


def _decimals(scores: Sequence[ArmScore]) -> int:
    """Two decimals where every standard error is 0.01 or more, else three."""
    errors = [score.standard_error for score in scores]
    return 2 if all(error is not None and error >= 0.01 for error in errors) else 3


def _clock(evaluation: Evaluation) -> float:
    calibrated = evaluation.calibrated_seconds
    return evaluation.measured_seconds if calibrated is None else calibrated
