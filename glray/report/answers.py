"""What a search says, in sentences: the schedule, how sure that is, what matters, what it cost."""

from collections.abc import Sequence

from glray.report.confirmation import Confirmation
from glray.report.effects import LEAST_TRIALS, Effects
from glray.report.formats import counted, plus_minus, seconds_text
from glray.report.headline import MOST_LISTED, equal_budget
from glray.report.trials import UNRANKED, Cost, Trial, Trials
from glray.run.statistics import Estimate
from glray.spec.training import rate_text


def answer(trials: Trials) -> str:
    """The schedule with the lowest loss, beside the baselines."""
    best = trials.best
    if best is None:
        return f"No schedule has a loss yet: {counted(len(trials.ranked), 'trial')} begun."
    assert best.scored is not None
    budget = equal_budget([trial.run for trial in trials.scored])
    others = [_baseline(trials, trial) for trial in (trials.fixed, trials.equal) if trial]
    rivals = [text for text in others if text]
    text = (
        f"Of the {counted(len(trials.ranked), 'schedule')} tried {budget[0].lower()}{budget[1:]}, "
        f"{best.name} has the lowest held-out loss at {trials.seq_len:,} tokens: "
        f"{plus_minus(best.loss, best.scored.standard_error)}"
    )
    if best is trials.fixed:
        text += ", and is itself the longest length throughout"
    elif best is trials.equal:
        text += ", and has equal shares"
    return f"{text}{'; ' if rivals else ''}{'; '.join(rivals)}."


def _baseline(trials: Trials, trial: Trial) -> str:
    """``fixed 1,024 at its best rate, 3e-3, has 3.498`` or ``equal shares have 3.482``, and how far
    that is above the best."""
    if trial is trials.best:
        return ""
    alike = [each for each in trials.ranked if each.seq_lens == trial.seq_lens]
    alike = [each for each in alike if each.shares == trial.shares]
    several = len({each.lr for each in alike}) > 1
    what, its, has = f"fixed {trial.seq_lens[0]:,}", "its", "has"
    if len(trial.seq_lens) > 1:
        what, its, has = "equal shares", "their", "have"
    rate = f" at {its} best rate, {rate_text(trial.lr)}," if several else ""
    return f"{what}{rate} {has} {trial.loss:.3f}, {gap_text(trials.gaps[trial.name])} more"


def gap_text(gap: Estimate) -> str:
    """``0.086 (95% 0.071 to 0.101)``."""
    if not gap.parts:
        return f"{gap.mean:.3f}"
    return f"{gap.mean:.3f} (95% {gap.low:.3f} to {gap.high:.3f})"


def noise(trials: Trials) -> str:
    """How many cannot be told apart from the best."""
    others, best = len(trials.scored) - 1, trials.best
    if best is None or best.scored is None or others < 1:
        return ""
    documents = counted(len(best.scored.document_losses), "held-out document")
    return (
        f"{apart(trials)} {best.name} in the search, judged by {documents} (paired, adjusted for "
        "the number of trials). That is one seed: another one may rank them otherwise."
    )


def apart(trials: Trials) -> str:
    """``5 of the other 17 cannot be told apart from``, before the best."""
    near, others = len(trials.within_noise), len(trials.scored) - 1
    if near not in (0, others):
        return f"{near} of the other {others} cannot be told apart from"
    if others == 1:
        return f"The other one {'cannot be told apart from' if near else 'is worse than'}"
    if near:
        return f"None of the other {others} can be told apart from"
    return f"All other {others} are worse than"


def rate_at_end(trials: Trials) -> str:
    """Whether the best has the lowest or the highest rate that was tried."""
    rates = sorted({trial.lr for trial in trials.ranked})
    if trials.best is None or len(rates) < 2 or trials.best.lr not in (rates[0], rates[-1]):
        return ""
    end = "lowest" if trials.best.lr == rates[0] else "highest"
    return (
        f"The peak rate of {trials.best.name}, {rate_text(trials.best.lr)}, is the {end} that was "
        "tried, so a better one may lie beyond it."
    )


def target(trials: Trials) -> str:
    """Who reached the loss of the longest length throughout, and when."""
    reached = {name: s for name, s in trials.seconds_to_target.items() if s is not None}
    if trials.fixed is None or not trials.seconds_to_target:
        return ""
    fixed = trials.fixed
    goal = f"the final loss of {fixed.name}, {fixed.loss:.3f}"
    others = len(trials.seconds_to_target)
    if not reached:
        whoever = f"None of the other {others} reached" if others > 1 else "The other did not reach"
        return f"{whoever} {goal}."
    soonest = min(reached, key=lambda name: (reached[name], name))
    run = fixed.run
    whole = run.measured_seconds if run.calibrated_seconds is None else run.calibrated_seconds
    after = f"after {seconds_text(reached[soonest])} of {seconds_text(whole)} s"
    if others == 1:
        return f"{soonest} reached {goal}, {after}."
    return f"{len(reached)} of the other {others} reached {goal}, {soonest} the soonest: {after}."


def front(trials: Trials) -> str:
    """Whether the loss in short windows and that in long ones ask for different schedules."""
    if not trials.front:
        return ""
    short, long = f"{trials.short_seq_len:,}", f"{trials.seq_len:,} tokens"
    if len(trials.front) == 1:
        return f"{trials.front[0].name} has the lowest loss at {short} and at {long} alike."
    first, last = trials.front[0], trials.front[-1]
    assert trials.short_seq_len is not None
    losses = [f"{t.loss_at(trials.short_seq_len):.3f} and {t.loss:.3f}" for t in (first, last)]
    return (
        f"{len(trials.front)} schedules are on the front of loss at {short} against loss at {long}:"
        f" from {first.name} ({losses[0]}) to {last.name} ({losses[1]})."
    )


def effects(found: Sequence[Effects]) -> list[str]:
    """What each fitted surface says."""
    fitted = [its.sentence for its in found if its.is_fitted]
    if fitted or not found:
        return fitted
    return [
        f"No list of lengths has {LEAST_TRIALS} finished trials that differ, so no surface is "
        "fitted: what a boundary or the rate does is not known."
    ]


def unranked(trials: Trials) -> str:
    """Those without a loss, by name."""
    parts = []
    for why in UNRANKED:
        names = [trial.name for trial in trials.unranked if trial.unranked == why]
        more = f", and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
        if names:
            parts.append(f"{len(names)} {why}: {', '.join(names[:MOST_LISTED])}{more}")
    return f"Ranked last: {'; '.join(parts)}." if parts else ""


def cost(spent: Cost) -> str:
    """Seconds trained, shared and otherwise."""
    text = f"Training the trials took {seconds_text(spent.trained_seconds)} s"
    if spent.shared_seconds > 0:
        text += (
            f": the trials' {seconds_text(spent.path_seconds)} s less the "
            f"{seconds_text(spent.shared_seconds)} s that they share, which were not trained again"
        )
    if spent.wall_seconds and spent.other_seconds is not None:
        whole = spent.wall_seconds * spent.at_once
        times, at_once = "", ""
        if spent.at_once > 1:
            times = f"{spent.at_once} times "
            at_once = f", as {spent.at_once} trials were trained at once"
        text += (
            f". Everything else took {seconds_text(spent.other_seconds)} s, "
            f"{spent.other_seconds / whole:.0%} of {times}the {seconds_text(spent.wall_seconds)} s "
            f"from the command to the end of the search{at_once}"
        )
    return f"{text}."


def sentences(
    trials: Trials,
    found: Sequence[Effects],
    confirmation: Confirmation | None,
    verdicts: Sequence[str],
    spent: Cost,
) -> list[str]:
    """All of it, the answer first."""
    confirmed = [confirmation.sentence, *verdicts, confirmation.curse] if confirmation else verdicts
    said = [answer(trials), *confirmed, noise(trials), rate_at_end(trials), target(trials)]
    said += [front(trials), *effects(found), unranked(trials), cost(spent)]
    return [sentence for sentence in said if sentence]
