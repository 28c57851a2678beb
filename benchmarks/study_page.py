"""The study's page, from its registered plan and the records of its seeds: ``docs/study.md``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contrasts import BudgetCurve, Contrast, Costs, Worth, contrasts
from benchmarks.results import template
from benchmarks.study_records import (
    COST_RATIOS,
    MARGIN,
    PARTS,
    Work,
    endpoint,
    gain_of,
    own_losses,
    plan_text,
)
from glray.files import read_json
from glray.report.formats import mean_text
from glray.report.sheets import Sheet
from glray.run.statistics import crossed, mean_interval
from pipelines import study as studies

PAGE = Path(__file__).parents[1] / "docs" / "study.md"


@dataclass(frozen=True)
class Results:
    """What the finished seeds of the core say."""

    study: studies.Study
    records: dict[int, dict[str, Any]]

    @property
    def labels(self) -> list[str]:
        """The arms."""
        return list(next(iter(self.records.values()))["arms"])

    @property
    def document_tokens(self) -> np.ndarray:
        """int64[documents]."""
        return np.array(next(iter(self.records.values()))["document_tokens"])

    @property
    def diverged(self) -> list[str]:
        """The runs that count as they are: none of their contrasts can be tested."""
        return [
            f"{label} under seed {seed} ({arm['diverged']})"
            for seed, record in self.records.items()
            for label, arm in record["arms"].items()
            if arm["diverged"]
        ]

    def losses(self, label: str) -> np.ndarray | None:
        """float64[seeds, documents] at the arm's own length; None if a seed diverged."""
        arms = [record["arms"][label] for record in self.records.values()]
        return (
            None if any(arm["diverged"] for arm in arms) else np.array(list(map(own_losses, arms)))
        )

    def by_seed(self, label: str) -> np.ndarray | None:
        """float64[seeds]: the primary endpoint."""
        losses, tokens = self.losses(label), self.document_tokens
        return None if losses is None else losses @ tokens / tokens.sum()

    def contrasts(self, margin: float) -> list[Contrast]:
        """The primary contrasts; without those of an arm that diverged."""
        known = {n: found for n in self.labels if (found := self.losses(n)) is not None}
        pairs = [(c.arm, c.against) for c in self.study.contrasts]
        pairs = [pair for pair in pairs if set(pair) <= known.keys()]
        return contrasts(known, self.document_tokens, pairs, margin) if pairs else []

    def curves(self, ends: Sequence[str]) -> list[BudgetCurve] | None:
        """A curve for each seed through the arms of these labels, ascending in tokens."""
        losses = [self.by_seed(label) for label in ends]
        if any(found is None for found in losses):
            return None
        tokens = [sum(self.tokens(label).values()) for label in ends]
        return [BudgetCurve(tokens, each) for each in np.array(losses).T.tolist()]

    def tokens(self, label: str) -> dict[int, float]:
        """Tokens of an arm by length, the same under all seeds."""
        found = next(iter(self.records.values()))["arms"][label]["tokens_by_seq_len"]
        return {int(seq_len): tokens for seq_len, tokens in found.items()}

    @property
    def worths(self) -> list[Worth]:
        """What each arm is worth, where the full length's curve can be read."""
        long = self.study.long
        ends = [f"{long}-{100 * share:.0f}" for share in studies.CURVE]
        curves = self.curves([*ends, long])
        found = []
        for label in self.labels if curves else ():
            losses = self.by_seed(label)
            if losses is None or label in ends or label == long or label.endswith("-longer"):
                continue
            pairs = zip(curves or (), losses, strict=True)
            budgets = np.array([curve.tokens_to(loss) for curve, loss in pairs])
            if np.isfinite(budgets).all():
                whole = sum(self.tokens(long).values())
                found.append(Worth(label, self.tokens(label), whole, budgets))
        return found

    def against_short(self, ratio: float) -> np.ndarray | None:
        """float64[seeds]: growing less the shortest length on the tokens that take as long."""
        study = self.study
        curves = self.curves([study.short, f"{study.short}-longer"])
        growing = self.by_seed(study.growing)
        if curves is None or growing is None:
            return None
        costs = Costs(study.lengths[0], study.lengths[-1], ratio)
        tokens = costs.time(self.tokens(study.growing))
        return growing - np.array([curve.loss_at(tokens) for curve in curves])


def page(work: Work) -> str:
    """The page of a study, from its kept records."""
    path = work.registration
    plan = read_json(path) if path.exists() else None
    records = work.records("core")
    all_seeds = {part: len(work.seeds(part)) for part in PARTS}
    results = Results(work.study, records) if len(records) == all_seeds["core"] else None
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
        contrasts=contrasts_sheet(results.contrasts(MARGIN)) if results else None,
        losses=losses_sheet(results) if results else None,
        worths=worths_sheet(results) if results else None,
        equal_time=equal_time_sheet(results) if results else None,
        parts={
            part: further_sheet(work.study, found)
            for part in PARTS
            if part != "core" and len(found := work.records(part)) == all_seeds[part]
        },
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
        gained = f"{gain['mean']:+.3f} ± {gain['half']:.3f}"
        rows.append((label, f"{endpoint(arm):.3f}", gained))
    return Sheet("", ("arm", "loss", "gain from far context"), rows)


def contrasts_sheet(found: Sequence[Contrast]) -> Sheet:
    """One row a primary contrast."""
    rows = [
        (
            f"{each.arm} − {each.against}",
            _interval(each.over_seeds.mean, each.over_seeds.low, each.over_seeds.high),
            f"{each.outcome.p:.4f}",
            f"{each.outcome.p_adjusted:.4f}",
            f"{each.p_flips:.4f}",
            f"{each.over_documents.low:+.3f} to {each.over_documents.high:+.3f}",
            f"{each.p_same:.4f}",
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
        gains = [gain_of(arm)["mean"] for arm in arms]
        tokens = sum(results.tokens(label).values())
        rows.append(
            (
                label,
                f"{tokens / 1e6:.2f}M" if tokens >= 1e6 else f"{tokens:,}",
                mean_text(*mean_interval(losses.tolist())),
                mean_text(*mean_interval(gains)),
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


def further_sheet(study: studies.Study, records: dict[int, dict[str, Any]]) -> Sheet:
    """One row an arm of a further question, less growing; over seeds and documents."""
    results = Results(study, records)
    growing, tokens = results.losses(study.growing), results.document_tokens
    rows = []
    for label in results.labels:
        losses = results.losses(label)
        if label == study.growing or losses is None or growing is None:
            continue
        found = crossed(losses - growing, tokens)
        rows.append((label, str(len(records)), _interval(found.mean, found.low, found.high)))
    return Sheet("", ("arm", "seeds", f"less {study.growing}"), rows)


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _times(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"
