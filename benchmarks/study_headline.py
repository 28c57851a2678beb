"""What the study found, in five sentences and a picture."""

from matplotlib.figure import Figure

from benchmarks.contrasts import Contrast, Costs, over_seeds
from benchmarks.study_records import COST_RATIOS, MARGIN
from benchmarks.study_results import Results
from glray.report.look import GREY, styled
from glray.report.outcome import Verdict
from pipelines.study import CURVE


def sentences(results: Results) -> list[str]:
    """The four primary contrasts and the worth of growing, for somebody who reads no table."""
    study = results.study
    short, full = f"{study.lengths[0]:,}", f"{study.lengths[-1]:,}"
    found = {each.against: each for each in results.contrasts(MARGIN)}
    questions = {
        study.long: ("On equal tokens:", f"{full} tokens throughout"),
        study.shuffled: ("Is it the growing?", "the same lengths in a shuffled order"),
        "two-phase-90": (
            "Are the lengths between needed?",
            f"{short} for 90% of the tokens and {full} for the rest",
        ),
        study.short: (
            "Was it worth training long?",
            f"{short} throughout, each with as much context as it was trained on",
        ),
    }
    growing = f"Growing from {short} to {full}"
    said = []
    for against, (question, control) in questions.items():
        answer = f"Not tested against {control}, as a run diverged."
        if against in found:
            answer = f"{growing} {_compared(found[against], control)}."
        said.append(f"**{question}** {answer}")
    return [*said, f"**In terms of time:** {_worth(results)}"]


def _compared(contrast: Contrast, control: str) -> str:
    estimate = contrast.over_seeds
    low, high = (f"{end:+.3f}" for end in (estimate.low, estimate.high))
    numbers = f"{estimate.mean:+z.3f} nats ({low} to {high})"
    same = f"; any difference is below {MARGIN:g}" if contrast.is_same else ""
    match contrast.verdict:
        case Verdict.SUPPORTED:
            return f"reaches a lower loss than {control}: {numbers}{same}"
        case Verdict.NOT_SUPPORTED:
            return f"reaches a higher loss than {control}: {numbers}{same}"
    excludes_zero = estimate.low > 0 or estimate.high < 0
    adjusted = ", once adjusted for all four contrasts" if excludes_zero else ""
    return f"cannot be told from {control}{adjusted}: {numbers}{same}"


def _worth(results: Results) -> str:
    study = results.study
    worth = next((each for each in results.worths if each.arm == study.growing), None)
    full = f"{study.lengths[-1]:,}"
    if worth is None:
        return "What growing is worth cannot be read, as a run diverged or a loss did not fall."
    mean, low, high = worth.multiplier(Costs(study.lengths[0], study.lengths[-1], 1.0))
    if worth.is_extended:
        read = "It was not trained so long: its loss curve is extended in a straight line."
    else:
        read = f"This is read off its losses on {CURVE[0]:.0%} to 100% of the tokens."
    ratio, short = COST_RATIOS[-1], f"{study.lengths[0]:,}"
    at_equal_time = ""
    if (differences := results.against_short(ratio)) is not None:
        against = over_seeds(differences)
        at_equal_time = (
            f" But on equal time, where a token of {full} costs {ratio:g} times one of {short}, "
            f"growing differs from {short} throughout by {against.mean:+z.3f} nats "
            f"({against.low:+.3f} to {against.high:+.3f})."
        )
    return (
        f"To reach growing's loss, {full} throughout would need {mean:.2f} ({low:.2f} to "
        f"{high:.2f}) times as long, if a token cost the same at every length. {read} Where tokens "
        f"cost more in longer windows, growing is worth more.{at_equal_time}"
    )


@styled
def picture(results: Results) -> Figure | None:
    """Growing less each other arm: its seeds, their mean and its 95% interval. None if growing
    diverged."""
    study, growing = results.study, results.by_seed(results.study.growing)
    if growing is None:
        return None
    labels = {
        study.long: f"{study.lengths[-1]:,} throughout",
        study.short: f"{study.lengths[0]:,} throughout",
        study.shuffled: "same lengths, shuffled",
        f"{study.growing}-reversed": "same lengths, reversed",
        "two-phase-90": "two phases, 90 / 10%",
        "two-phase-64": "two phases, 64 / 36%",
    }
    compared = [label for label in labels if label in results.labels]
    known = {label: its for label in compared if (its := results.by_seed(label)) is not None}
    figure = Figure(figsize=(7, 0.5 * len(known) + 1.3))
    axes = figure.add_subplot()
    axes.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.12, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=1)
    for row, losses in enumerate(known.values()):
        differences = growing - losses
        found = over_seeds(differences)
        axes.plot(differences, [row] * len(differences), "o", color=GREY, alpha=0.35, markersize=4)
        axes.errorbar(
            found.mean, row, xerr=found.half, fmt="o", color="#0072B2", capsize=4, markersize=7
        )
        axes.annotate(
            f"{found.mean:+z.3f}".replace("-", "−"),
            (found.mean, row),
            (0, 8),
            textcoords="offset points",
            ha="center",
        )
    axes.set_yticks(range(len(known)), [labels[label] for label in known])
    axes.set_ylim(len(known) - 0.4, -0.7)
    axes.set_xlabel("loss of growing less the other's, in nats per token (left: growing is better)")
    lengths = f"{study.lengths[0]:,} → {study.lengths[-1]:,}"
    title = f"Growing {lengths} against its controls, on equal tokens"
    axes.set_title(f"{title}, {len(growing)} seeds")
    axes.text(0, len(known) - 0.47, "the same", ha="center", color=GREY, fontsize="small")
    axes.grid(axis="y", visible=False)
    return figure
