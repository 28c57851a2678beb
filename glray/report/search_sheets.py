"""The tables of a search: trials by loss, the best on fresh seeds, effects, cost."""

from collections.abc import Sequence

from glray.report.confirmation import Confirmation
from glray.report.effects import LEAST_TRIALS, Effects
from glray.report.formats import counted, documents_text, number, plus_minus, seconds_text
from glray.report.sheets import Sheet
from glray.report.trials import Cost, Trial, Trials


def ranking(trials: Trials) -> Sheet:
    """Trials by loss; a terminal shows the first five columns."""
    short = trials.short_seq_len
    columns = ["", "schedule: length x share", "loss", "above the best", "within noise"]
    columns += [f"loss at {short:,}"] if short else []
    columns += ["s to fixed's loss"] if trials.seconds_to_target else []
    columns += ["calibrated s", "measured s", "shared s"]
    rows = [_row(trials, place, trial) for place, trial in enumerate(trials.ranked, 1)]
    notes = []
    if trials.best is not None:
        documents = documents_text(len(trials.best.run.evaluations[-1].document_tokens))
        notes.append(
            f"loss ± its standard error over {documents}. Above the best: paired by document, ± "
            "half of its 95% interval. Within noise: cannot be told apart from the best, adjusted "
            "for the number of trials (Holm); nothing is known about other seeds."
        )
    if trials.front:
        notes.append("* on the front: no trial is lower at both lengths.")
    notes.append("Shared: measured seconds of steps that another trial trained.")
    notes += [f"{t.name} {d.sentence}." for t in trials.unranked if (d := t.run.divergence)]
    notes += [
        f"{t.name} was stopped: it {s.reason}." for t in trials.unranked if (s := t.run.stopped)
    ]
    title = f"Trials by held-out loss at {trials.seq_len:,} tokens"
    return Sheet(title, columns, rows, notes, left=(1,))


def _row(trials: Trials, place: int, trial: Trial) -> list[str]:
    short, name, run = trials.short_seq_len, trial.name, trial.run
    fork = run.manifest.fork
    shared = fork.measured_seconds if fork else None
    clocks = (run.calibrated_seconds, run.measured_seconds, shared)
    seconds = [seconds_text(clock) for clock in clocks]
    further = [number(None)] * (bool(short) + bool(trials.seconds_to_target))
    if trial.scored is None:
        return ["-", name, trial.unranked, "-", "-", *further, *seconds]
    gap = trials.gaps[name]
    above = plus_minus(gap.mean, gap.half if gap.parts else None)
    is_near = name in trials.within_noise
    cells = [
        str(place),
        name,
        plus_minus(trial.loss, trial.scored.standard_error),
        *(("best", "") if trial is trials.best else (above, "yes" if is_near else "no")),
    ]
    if short:
        cells.append(f"{number(trial.loss_at(short))}{' *' if trial in trials.front else ''}")
    if trials.seconds_to_target:
        cells.append(seconds_text(trials.seconds_to_target.get(name)))
    return [*cells, *seconds]


def confirmed(confirmation: Confirmation) -> Sheet:
    """What was trained again, by its loss on fresh seeds."""
    rows = []
    for each in confirmation.schedules:
        apart = each.against_fixed
        losses = each.score.seed_losses
        half = apart.half if apart and apart.parts else None
        sign = "+" if apart and apart.mean >= 0 else ""
        rows.append(
            [
                each.name,
                "baseline" if each.name in confirmation.baselines else "chosen",
                number(each.trial.loss),
                number(each.score.loss),
                f"{min(losses):.3f} to {max(losses):.3f}",
                f"{each.lost:+z.3f}",
                "-" if apart is None else f"{sign}{plus_minus(apart.mean, half)}",
            ]
        )
    columns = ["schedule", "", "in the search", "confirmed", "over seeds", "change"]
    note = (
        f"Confirmed: mean of {counted(confirmation.num_seeds, 'fresh seed')}. From fixed: minus "
        "the loss of the longest length throughout, paired by seed and document, ± half of its 95% "
        "interval."
    )
    title = "The best, trained again on fresh seeds"
    return Sheet(title, [*columns, "from fixed"], rows, [note], left=(0, 1))


def effects(found: Sequence[Effects]) -> Sheet:
    """What each boundary and the rate do, by list of lengths."""
    rows, notes = [], []
    for its in found:
        if not its.is_fitted:
            few = f"{its.label} has {counted(len(its.trials), 'trial')}"
            notes.append(f"{few}: fewer than {LEAST_TRIALS}, or nothing varies, so not fitted.")
            continue
        explained = f"{max(its.surface.explained, 0):.0%}"
        for index, factor in enumerate(its.factors):
            slope, bend = its.effects(index)
            tried = f"{factor.text(factor.tried[0])} to {factor.text(factor.tried[-1])}"
            lowest = factor.text(its.optimum.values[index]) if its.surface.explains else "-"
            row = [its.label, explained, factor.name, tried, str(slope), str(bend), lowest]
            rows.append(row if index == 0 else ["", "", *row[2:]])
    columns = ["lengths", "explained", "factor", "tried", "first to last", "ends over middle"]
    about = (
        "A quadratic surface is fitted to the losses of each list of lengths with at least "
        f"{LEAST_TRIALS} trials. Explained: share of the variance of trials left out of the fit. "
        "First to last: from the factor's lowest value to its highest, on average over the others. "
        "Ends over middle: above 0 where a value between is best. ± is half of a 95% interval. "
        "Lowest at: where the surface is lowest; a dash if it explains nothing."
    )
    title = "What the boundaries and the rate do (nats per token)"
    return Sheet(
        title, [*columns, "lowest at"], rows, [about, *notes] if rows else notes, (0, 2, 3)
    )


def cost(spent: Cost) -> Sheet:
    """Seconds trained, shared, and spent on everything else."""
    whole = None if spent.wall_seconds is None else spent.wall_seconds * spent.at_once
    parts = [("trained", spent.trained_seconds), ("everything else", spent.other_seconds)]
    rows = [
        [
            what,
            seconds_text(seconds),
            "-" if not whole or seconds is None else f"{seconds / whole:.0%}",
        ]
        for what, seconds in parts
    ]
    rows.append(["shared, not trained again", seconds_text(spent.shared_seconds), ""])
    note = (
        "Measured training seconds of the search, without fresh seeds. Everything else: start-up, "
        "calibration, evaluation, checkpoints and waiting, from the command to the end of the "
        "search."
    )
    if spent.at_once > 1:
        note += f" The wall clock counts {spent.at_once} times, once for each trial at once."
    return Sheet("Cost", ["", "seconds", "of the wall clock"], rows, [note])
