"""What the numbers say, in a few plain sentences: the result, its noise, and what it rests on."""

from collections.abc import Sequence
from statistics import fmean

from glray.report.comparison import (
    ArmScore,
    Comparison,
    clock_drift,
    compare,
    paired_error,
    share_targets,
)
from glray.report.formats import plus_minus, seconds_text, tokens_text
from glray.report.time_to_loss import time_to_loss
from glray.report.verdict import Verdict, verdict_of
from glray.run.run import Run
from glray.run.statistics import SEEDS_FOR_A_VERDICT, mean_interval
from glray.spec.identity import differences

DRIFT_LIMIT = 0.05
"""Measured and calibrated seconds further apart than this share are mentioned in the headline."""
NOISE_ERRORS = 2
"""A paired difference of no more than this many standard errors is called noise."""
MOST_LISTED = 6
"""Arms that one sentence names before it says how many more there are."""


def headline(runs: Sequence[Run]) -> list[str]:
    """Sentences to be read before any table, computed from the records alone."""
    comparison = compare(runs)
    sentences = []
    if comparison is not None:
        sentences = [
            *_result(comparison),
            *([*_tokens(comparison), *time_to_loss(comparison)] if _one_model(comparison) else []),
            _seeds(comparison),
            *_drift(comparison),
            *_predictions(comparison),
        ]
    elif any(run.is_finished for run in runs):
        sentences.append("No seed is finished and scored in every arm: nothing compares yet.")
    return sentences + _unfinished(runs)


def _result(comparison: Comparison) -> list[str]:
    """The losses, which is lowest and by how much; or why they do not compare."""
    scores, seq_len = comparison.scores, comparison.seq_len
    decimals = _decimals(scores)
    if len(scores) == 1:
        return [_single(scores[0], seq_len, decimals)]
    if not share_targets(comparison.runs):
        losses = _losses(scores, seq_len, decimals)
        return [
            f"Held-out loss at {seq_len} tokens is {losses}, but not on the same held-out "
            "targets: these losses do not compare."
        ]
    ordered = comparison.ranked
    diverged = [score.label for score in scores if score not in ordered]
    shown = ordered if len(scores) > MOST_LISTED else scores
    sentence = (
        f"{_equal_budget(comparison.runs)}, held-out loss at {seq_len} tokens is "
        f"{_losses(shown, seq_len, decimals)}"
    )
    sentence += f": {_lead(ordered, decimals)}." if len(ordered) > 1 else "."
    if diverged:
        sentence += f" {', '.join(diverged)} diverged: the loss is not a number."
    return [sentence, *_other_differences(comparison.runs)]


def _single(score: ArmScore, seq_len: int, decimals: int) -> str:
    known = [run.calibrated_seconds for run in score.runs if run.calibrated_seconds is not None]
    clock = f"{seconds_text(fmean(known))} s calibrated and " if known else ""
    return (
        f"{score.label}: held-out loss at {seq_len} tokens is "
        f"{plus_minus(score.loss, score.standard_error, decimals)} nats "
        f"({score.bits_per_byte:.3f} bits per byte) after {tokens_text(round(score.tokens))} "
        f"tokens, {clock}{seconds_text(score.measured_seconds)} s measured training time."
    )


def _lead(ordered: list[ArmScore], decimals: int) -> str:
    """How far the lowest arm is below the next: over seeds where there are enough of them for an
    interval, else over documents."""
    best, following = ordered[0], ordered[1]
    next_label = f"{following.label}{', the next' if len(ordered) > 2 else ''}"
    pairs = zip(following.seed_losses, best.seed_losses, strict=True)
    difference, half = mean_interval([theirs - ours for theirs, ours in pairs])
    num_seeds = len(best.seed_losses)
    if num_seeds >= SEEDS_FOR_A_VERDICT and half is not None:
        low, high = difference - half, difference + half
        lead = (
            f"{best.label} is lowest, {difference:.{decimals}f} nats below {next_label} (95% "
            f"interval over {num_seeds} seeds, paired: {low:.{decimals}f} to {high:.{decimals}f})"
        )
        is_noise = verdict_of(-difference, half) is Verdict.WITHIN_NOISE
        return f"{lead}, so within noise" if is_noise else lead
    error = paired_error(best, following)
    shown = plus_minus(difference, error, decimals)
    lead = f"{best.label} is lowest, {shown} nats below {next_label}"
    if error is not None:
        lead += " (paired by document)"
        if verdict_of(-difference, NOISE_ERRORS * error) is Verdict.WITHIN_NOISE:
            return f"{lead}: less than {NOISE_ERRORS} standard errors, so within noise"
    if max(best.seed_losses) >= min(following.seed_losses):
        return f"{lead}: less than the spread over seeds, so within noise"
    return lead


def _losses(scores: Sequence[ArmScore], seq_len: int, decimals: int) -> str:
    parts = []
    for score in scores:
        text = f"{score.label} {plus_minus(score.loss, score.standard_error, decimals)}"
        longest = score.runs[0].longest_seq_len
        parts.append(text + (f" (trained up to {longest})" if longest < seq_len else ""))
    return _listed(parts)


def _equal_budget(runs: Sequence[Run]) -> str:
    seconds = {run.plan.budget_seconds for run in runs}
    tokens = {run.tokens for run in runs}
    if len(seconds) == 1 and None not in seconds:
        return f"At equal calibrated training time ({seconds.pop():g} s each)"
    if len(tokens) == 1:
        return f"At equal training tokens ({tokens_text(tokens.pop())} each)"
    return "At unequal budgets"


def _tokens(comparison: Comparison) -> list[str]:
    """What each growing arm processed, or took, against the longest fixed arm."""
    growing = [score for score in comparison.scores if score.seq_lens[0] < score.seq_lens[-1]]
    base = comparison.longest_fixed
    if base is None or len(growing) > MOST_LISTED:
        return []
    sentences = []
    for score in growing:
        if score.tokens != base.tokens:
            sentences.append(
                f"{score.label} processed {score.tokens / base.tokens:.0%} of {base.label}'s "
                f"tokens ({tokens_text(round(score.tokens))} against "
                f"{tokens_text(round(base.tokens))})."
            )
        elif base.measured_seconds > 0:
            sentences.append(
                f"{score.label} took {score.measured_seconds / base.measured_seconds:.0%} of "
                f"{base.label}'s measured training time ({seconds_text(score.measured_seconds)} "
                f"against {seconds_text(base.measured_seconds)} s)."
            )
    return sentences


def _one_model(comparison: Comparison) -> bool:
    """Whether one arm's time and tokens say anything about another's."""
    first = comparison.runs[0].identity.get("model")
    return all(run.identity.get("model") == first for run in comparison.runs)


def _seeds(comparison: Comparison) -> str:
    documents = f"{comparison.num_documents} held-out documents"
    if len(comparison.seeds) == 1:
        return f"This is 1 seed: ± is the standard error over {documents}, not over seeds."
    decimals = _decimals(comparison.scores)
    spans = ", ".join(
        f"{score.label} {min(score.seed_losses):.{decimals}f} to "
        f"{max(score.seed_losses):.{decimals}f}"
        for score in comparison.scores[:MOST_LISTED]
    )
    return (
        f"These are means of {len(comparison.seeds)} seeds: ± is the standard error over "
        f"{documents}, not over seeds; over seeds the loss spans {spans}."
    )


def _drift(comparison: Comparison) -> list[str]:
    drifting = [
        f"{run.name} {seconds_text(run.measured_seconds)} s measured for "
        f"{seconds_text(run.calibrated_seconds)} s calibrated ({clock_drift(run):+.0%})"
        for run in comparison.runs
        if abs(clock_drift(run)) > DRIFT_LIMIT
    ]
    if not drifting:
        return []
    by_time = any(run.plan.budget_seconds is not None for run in comparison.runs)
    concerned = "the equal-time comparison is" if by_time else "calibrated seconds are"
    return [
        f"Measured and calibrated training time are more than {DRIFT_LIMIT:.0%} apart: "
        f"{_listed(drifting)}; {concerned} off by that much."
    ]


def _predictions(comparison: Comparison) -> list[str]:
    """How well a profile predicted the training time, where there was one."""
    parts = [
        f"{run.name} {seconds_text(run.manifest.predicted_seconds)} s, measured "
        f"{seconds_text(run.measured_seconds)} "
        f"({run.measured_seconds / run.manifest.predicted_seconds - 1:+.0%})"
        for run in comparison.runs
        if run.manifest.predicted_seconds
    ]
    return [f"The profile had predicted {_listed(parts, '; ')}."] if parts else []


def _other_differences(runs: Sequence[Run]) -> list[str]:
    """What besides the stages, the seed and the budget sets the runs apart."""
    expected = ("stages", "seed", "step_microseconds", "budget")
    first = runs[0].identity
    fields = {
        change.partition(":")[0] for run in runs[1:] for change in differences(first, run.identity)
    }
    others = sorted(field for field in fields if field.partition(".")[0] not in expected)
    return [f"Besides their stages, the runs differ in {', '.join(others)}."] if others else []


def _unfinished(runs: Sequence[Run]) -> list[str]:
    parts = [
        f"{run.name} ({run.steps_done:,} of {run.plan.num_steps:,} steps)"
        for run in runs
        if not run.is_finished
    ]
    return [f"Unfinished and not compared: {_listed(parts)}."] if parts else []


def _listed(parts: Sequence[str], separator: str = ", ") -> str:
    """The first of the parts, and how many more there are."""
    more = f", and {len(parts) - MOST_LISTED} more" if len(parts) > MOST_LISTED else ""
    return separator.join(parts[:MOST_LISTED]) + more


def _decimals(scores: Sequence[ArmScore]) -> int:
    """Two decimals where every standard error is 0.01 or more, else three."""
    errors = [score.standard_error for score in scores]
    return 2 if all(error is not None and error >= 0.01 for error in errors) else 3
