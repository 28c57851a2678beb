"""Renders ``docs/results.md`` from ``benchmarks/results/*.json``: never edited by hand.

python benchmarks/results.py
"""

import re
import sys
from collections.abc import Hashable, Sequence
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.pages import template
from benchmarks.study_headline import sentences
from benchmarks.study_records import KEPT
from benchmarks.study_results import Results
from benchmarks.surface_page import kept_answers, methods_sheet
from glray.files import read_json, write_text
from glray.report.formats import mean_text, seconds_text, tokens_text
from glray.report.outcome import Outcome, Verdict, adjusted
from glray.report.profile_sheets import costs_sheet
from glray.report.sheets import Sheet
from glray.run.profile import SettingCosts
from glray.run.statistics import mean_interval

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
PLOTS = PAGE.parent / "results"

FIGURES = ("figure1", "figure2", "figure3", "figure4", "figure5", "long4096", "long8192")
SCALES = {
    "mini": "Mini: two CPU cores, documentation",
    "tiny": "Tiny: three minutes a run, where no arm uses context beyond 128 tokens",
    "full": "Full: the paper's sizes on one GPU",
}
PARTS = {
    "mini": ("tables", "figure1", "figure2"),
    "tiny": ("tables", *FIGURES[2:]),
    "full": ("tables", *FIGURES),
}
"""What ``benchmarks/paper.py`` runs at each scale. Figures 1 and 2, which the method stands on,
need one at which long context is learnt."""


def render() -> None:
    """Write the page."""
    write_text(PAGE, page())


def page() -> str:
    """The whole page."""
    found = {path.stem: read_json(path) for path in sorted(RESULTS.glob("*.json"))}

    def results_of(scale: str) -> dict[str, Any]:
        names = {name: f"paper-{scale}-{name}" for name in ("tables", *FIGURES, "cost")}
        return {name: found[stem] for name, stem in names.items() if stem in found}

    study, replayed = Results.of(KEPT), found.get("regret")
    text = template("results.md.j2").render(
        study=sentences(study) if study else [],
        schedules=kept_answers().sentences(replayed) if replayed else [],
        methods=methods_sheet(replayed) if replayed else None,
        scales=SCALES,
        results_of=results_of,
        claims=claims_sheet({scale: results_of(scale) for scale in SCALES}),
        costs_of=_costs_sheets,
        arms=arms_sheet,
        long=long_sheet,
        found=found,
        parts=PARTS,
        plots={path.stem for path in PLOTS.glob("*.png")},
        provenance=provenance,
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _costs_sheets(tables: dict[str, Any]) -> list[Sheet]:
    settings = TypeAdapter(tuple[SettingCosts, ...]).validate_python(tables["settings"])
    return [costs_sheet(costs, tables["tokens_per_batch"]) for costs in settings]


def claims_sheet(results: dict[str, dict[str, Any]]) -> Sheet:
    """Every claim of the paper that was put to the test; the chance of a false verdict is held down
    for all primary claims of the page together."""
    claims = [
        (scale, found[name], claim)
        for scale, found in results.items()
        for name in FIGURES
        if name in found
        for claim in found[name]["claims"]
    ]
    tests = {
        (index, kind): (_test_name(index, comparison, test), _outcome(test), claim["primary"])
        for index, (_, comparison, claim) in enumerate(claims)
        for kind, test in (("claim", claim), ("long context", claim["long_context"]))
        if test is not None
    }
    outcomes = adjusted([(name, outcome) for name, outcome, primary in tests.values() if primary])

    def verdict(index: int, kind: str) -> str:
        if (index, kind) not in tests:
            return "-"
        name, outcome, _ = tests[index, kind]
        return outcomes.get(name, outcome).verdict

    rows = [
        (
            scale,
            claim["says"],
            verdict(index, "claim"),
            verdict(index, "long context"),
            str(claim["num_seeds"]),
            _difference(claim),
        )
        for index, (scale, _, claim) in enumerate(claims)
    ]
    columns = ("scale", "claim", "verdict", "long context", "seeds", "difference")
    return Sheet("", columns, rows)


def _test_name(index: int, comparison: dict[str, Any], test: dict[str, Any]) -> Hashable:
    """An arm's long context is one test, whichever comparisons and claims ask for it."""
    if "name" not in test:
        return index
    fingerprints = {
        arm["label"]: tuple(run["fingerprint"] for run in arm["runs"]) for arm in comparison["arms"]
    }
    of_arms = tuple(fingerprints[label] for label in test["gains"])
    return ("long documents" in test["name"], of_arms or index)


def _outcome(test: dict[str, Any]) -> Outcome:
    leaning, otherwise = Verdict(test["leaning"]), Verdict(test["otherwise"])
    return Outcome(leaning, test["p"], otherwise)


def _difference(claim: dict[str, Any]) -> str:
    """``growlength − llm1024: -0.144 (-0.210 to -0.078) nats``."""
    pair = f"{claim['arm']} − {claim['against']}: "
    if shares := claim["shares"]:
        return f"{pair}{fmean(shares):+z.1%} ({min(shares):+.1%} to {max(shares):+.1%}, range)"
    if (found := claim["difference"]) is None:
        return "-"
    mean, half = found["mean"], found["half"]
    interval = "" if half is None else f" ({mean - half:+.3f} to {mean + half:+.3f})"
    return f"{pair}{mean:+z.3f}{interval} nats"


def arms_sheet(arms: Sequence[dict[str, Any]]) -> Sheet:
    """One row an arm: means over its seeds; the losses with half of their 95% interval."""
    clocks = ("calibrated", "measured", "warm_up", "evaluation", "checkpoints")
    heldout = [run["heldout"] for arm in arms for run in arm["runs"] if run["heldout"]]
    lengths = list(heldout[0]["loss"]) if heldout else []
    rows = []
    for arm in arms:
        runs = arm["runs"]
        seconds = [[run["seconds"][clock] for run in runs] for clock in clocks]
        scored = [run["heldout"]["loss"] if run["heldout"] else {} for run in runs]
        losses = [
            [nan if loss is None else loss for loss in (s.get(n) for s in scored)] for n in lengths
        ]
        jumps = [[boundary["jump"] for boundary in run["boundaries"]] for run in runs]
        has_jumps = all(jumps) and all(jump is not None for run in jumps for jump in run)
        rows.append(
            (
                arm["label"],
                "-".join(map(str, arm["stages"])),
                tokens_text(fmean(run["tokens"] for run in runs)),
                *(seconds_text(None if None in each else fmean(each)) for each in seconds),
                *(mean_text(*mean_interval(each)) for each in losses),
                f"{fmean(map(max, jumps)):+z.3f}" if has_jumps else "-",
            )
        )
    columns = ("arm", "stages", "tokens", "calibrated s", "measured s", "warm-up s", "eval s")
    losses_at = [f"loss at {length}" for length in lengths]
    return Sheet("", (*columns, "saving s", *losses_at, "highest jump"), rows)


def long_sheet(records: Sequence[dict[str, Any]]) -> Sheet:
    """Loss on long documents: one row an arm, protocol and scaling; means over seeds."""
    losses: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for record in records:
        for scaling, lengths in record["positions"].items():
            row = losses.setdefault((record["label"], record["protocol"], scaling), {})
            for length in lengths:
                row.setdefault(length["seq_len"], []).append(length["loss"])
    columns = ("arm", "windows", "positions", *(f"at {n:,}" for n in next(iter(losses.values()))))
    rows = [
        (*key, *(mean_text(*mean_interval(values)) for values in row.values()))
        for key, row in losses.items()
    ]
    return Sheet("", columns, rows)


def provenance(result: dict[str, Any]) -> str:
    """Command, commit, machine, versions, seeds."""
    runs = result.get("environments") or [result["environment"]]
    commits = ", ".join(dict.fromkeys(f"`{run['commit']}`" for run in runs))
    machines = ", ".join(
        dict.fromkeys(
            f"{run['gpu'] or run['processor']}, {run['num_cpus']} cores, {run['memory_gib']} GiB"
            for run in runs
        )
    )
    first, seeds = runs[0], result.get("seeds")
    of_seeds = f"; seeds {', '.join(map(str, seeds))}" if isinstance(seeds, list) else ""
    return (
        f"`{result['command']}`, {result['date']}; trained at {commits}; {machines}; "
        f"Python {first['python']}, torch {first['torch']}, Ray {first['ray']}, "
        f"transformers {first['transformers']}{of_seeds}"
    )


if __name__ == "__main__":
    render()
