"""The study's page, from its registered plan and the records of its seeds: ``docs/study.md``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contrasts import Contrast, Costs
from benchmarks.pages import template
from benchmarks.study_headline import sentences
from benchmarks.study_records import (
    COST_RATIOS,
    MARGIN,
    PARTS,
    Work,
    endpoint,
    gain_of,
    plan_text,
)
from benchmarks.study_results import Results
from glray.files import read_json
from glray.report.formats import mean_text
from glray.report.outcome import SIGNIFICANT
from glray.report.sheets import Sheet
from glray.run.statistics import Estimate, crossed, mean_interval
from pipelines import study as studies

PAGE = Path(__file__).parents[1] / "docs" / "study.md"


def page(work: Work) -> str:
    """The page of a study, from its kept records."""
    path = work.registration
    plan = read_json(path) if path.exists() else None
    records = work.records("core")
    all_seeds = {part: len(work.seeds(part)) for part in PARTS}
    results = Results.of(work)
    registered = {record["registered"]["commit"] for record in records.values()}
    return template("study.md.j2").render(
        text=plan or plan_text(work.study),
        plan=plan,
        study=work.study,
        seeds=list(records),
        num_seeds=all_seeds["core"],
        pilot=pilot_sheet(work),
        commits=sorted(registered),
        processors=sorted(set().union(*map(_processors, records.values()))),
        mixed=[n for n, r in records.items() if len(_processors(r)) > 1],
        diverged=results.diverged if results else [],
        sentences=sentences(results) if results else [],
        contrasts=contrasts_sheet(results.contrasts(MARGIN)) if results else None,
        losses=losses_sheet(results) if results else None,
        worths=worths_sheet(results) if results else None,
        equal_time=equal_time_sheet(results) if results else None,
        further=[
            further_sheet(work.study, part, found)
            for part in PARTS
            if part != "core" and len(found := work.records(part)) == all_seeds[part]
        ],
        longer=studies.LONGER,
        margin=MARGIN,
    )


def _processors(record: dict[str, Any]) -> set[str]:
    return {str(arm["processor"]) for arm in record["arms"].values()}


def pilot_sheet(work: Work) -> Sheet | None:
    """One row a run of the pilot, from its record."""
    if not (path := work.results / "pilot.json").exists():
        return None
    rows = []
    for label, arm in read_json(path)["arms"].items():
        if arm["diverged"]:
            rows.append((label, "diverged", "-"))
            continue
        gain = gain_of(arm)
        gained = f"{gain.mean:+z.3f} ± {gain.half:.3f}" if gain else "-"
        rows.append((label, f"{endpoint(arm):.3f}", gained))
    return Sheet("", ("arm", "loss", "gain from far context"), rows)


def contrasts_sheet(found: Sequence[Contrast]) -> Sheet:
    """One row a primary contrast."""
    rows = [
        (
            f"{each.arm} − {each.against}",
            _interval(each.over_seeds.mean, each.over_seeds.low, each.over_seeds.high),
            _p(each.outcome.p),
            _p(each.outcome.p_adjusted),
            _p(each.p_flips),
            f"{each.over_documents.low:+.3f} to {each.over_documents.high:+.3f}",
            _p(each.p_same),
            f"{each.verdict}{', the same' if each.is_same else ''}",
        )
        for each in found
    ]
    columns = ["contrast", "nats per token (95% over seeds)", "p", "p by Holm", "p of sign flips"]
    columns += ["95% over seeds and documents", "p of the same", "that it is lower"]
    return Sheet("", columns, rows)


def losses_sheet(results: Results) -> Sheet:
    """One row an arm: the primary endpoint, and its gain from context."""
    rows = []
    for label in results.labels:
        losses, arms = results.by_seed(label), [r["arms"][label] for r in results.records.values()]
        if losses is None:
            rows.append((label, "-", "-", "-"))
            continue
        gains = [gain.mean for arm in arms if (gain := gain_of(arm))]
        tokens = sum(results.tokens(label).values())
        rows.append(
            (
                label,
                f"{tokens / 1e6:.2f}M" if tokens >= 1e6 else f"{tokens:,}",
                mean_text(*mean_interval(losses.tolist())),
                mean_text(*mean_interval(gains)) if gains else "-",
            )
        )
    return Sheet("", ("arm", "tokens", "loss", "gain from far context"), rows)


def worths_sheet(results: Results) -> Sheet | None:
    """One row an arm: its worth at each cost ratio, and the ratio from which on it pays."""
    short, full = results.study.lengths[0], results.study.lengths[-1]
    rows = []
    for worth in results.worths:
        at = [worth.multiplier(Costs(short, full, ratio)) for ratio in COST_RATIOS]
        even = worth.break_even(short, full)
        rows.append((worth.arm, *(_times(*each) for each in at), _times(*even)))
    columns = ("arm", *(f"worth at {ratio:g}" for ratio in COST_RATIOS), "break-even ratio")
    return Sheet("", columns, rows) if rows else None


def equal_time_sheet(results: Results) -> Sheet | None:
    """Growing less the shortest length on as much time."""
    rows = []
    for ratio in COST_RATIOS:
        if (found := results.against_short(ratio)) is not None:
            mean, half = mean_interval(found.tolist())
            rows.append((f"{ratio:g}", _interval(mean, mean - (half or 0), mean + (half or 0))))
    pair = f"{results.study.growing} − {results.study.short}"
    return Sheet("", ("cost ratio", pair), rows) if rows else None


def further_sheet(study: studies.Study, part: str, records: dict[int, dict[str, Any]]) -> Sheet:
    """One row an arm of a further question, less growing: over seeds and documents, unadjusted."""
    results = Results(study, records)
    growing, tokens = results.losses(study.growing), results.document_tokens
    rows = []
    for label in results.labels:
        losses = results.losses(label)
        if label == study.growing:
            continue
        if losses is None or growing is None:
            rows.append((label, str(len(records)), "-", "a run diverged"))
            continue
        found = crossed(losses - growing, tokens)
        interval = _interval(found.mean, found.low, found.high)
        rows.append((label, str(len(records)), interval, _described(found)))
    columns = ("arm", "seeds", f"less {study.growing}", "so its loss is")
    return Sheet(f"{part}: {study.title(part)}", columns, rows)


def _described(found: Estimate) -> str:
    """Where a difference lies, by its interval and the margin."""
    is_same = max(found.p_below(MARGIN), found.p_above(-MARGIN)) < SIGNIFICANT
    same = ", by less than the margin" if is_same else ""
    if found.low > 0 or found.high < 0:
        return f"{'higher' if found.mean > 0 else 'lower'}{same}"
    if is_same:
        return "the same"
    return "not known: too few seeds" if found.half > MARGIN else "within noise"


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:+z.3f} ({low:+.3f} to {high:+.3f})"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def _times(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"
