"""Renders ``docs/results.md`` from ``benchmarks/results/*.json``: never edited by hand.

    python benchmarks/results.py

``tests/test_results.py`` holds the page to it.
"""

import sys
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from glray.report.interval import mean_interval

from glray.files import read_json, write_text
from glray.report.formats import plus_minus, seconds_text, tokens_text
from glray.run.profile import SettingCosts, setting_costs

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
PLOTS = PAGE.parent / "results"

FIGURES = ("figure1", "figure2", "figure3", "figure4", "figure5", "long4096", "long8192")
SCALES = {
    "mini": "Mini: two CPU cores, Python's standard library",
    "full": "Full: the paper's sizes on one GPU",
}
PAGES = {
    "documents": ("keeping documents apart", "positions.md"),
    "boundaries": ("stage boundaries under each choice of positions", "positions.md"),
    "gpu": ("a GPU run killed and resumed, MFU by length", "training.md"),
    "kill": ("random kills of worker groups", "training.md"),
    "loop": ("the loop beside others", "training.md"),
    "prepare": ("tokenizing", "data.md"),
    "smollm2": ("SmolLM2 beyond its trained length", "smollm2.md"),
    "stream": ("the stream beside other loaders", "data.md"),
    "stream-glray": ("the stream alone, again", "data.md"),
}


def render() -> None:
    """Write the page."""
    write_text(PAGE, page())


def page() -> str:
    """The whole page."""
    found = {path.stem: read_json(path) for path in sorted(RESULTS.glob("*.json"))}
    parts = [
        "# Results",
        "Rendered by `python benchmarks/results.py` from `benchmarks/results/*.json`; do not edit. "
        "What is not supported, or inconclusive, stands beside what is supported. Losses are nats "
        "per token on held-out text, lower is better.",
        *_verdicts(found),
    ]
    for scale, title in SCALES.items():
        parts += _scale(scale, title, found)
    parts += [*_not_yet_run(found), *_others(found)]
    return "\n\n".join(parts) + "\n"


def _verdicts(found: dict[str, Any]) -> list[str]:
    """Every claim of the paper that was put to the test, in one table."""
    rows = [
        (scale, claim["says"], claim["verdict"], str(claim["num_seeds"]), _difference(claim))
        for scale in SCALES
        for figure in FIGURES
        for claim in found.get(f"paper-{scale}-{figure}", {}).get("claims", [])
    ]
    if not rows:
        return []
    return [
        "## The paper's claims",
        "A difference is the first arm's less the second's, with its 95% interval over seeds, "
        "paired by seed. A verdict takes three seeds and a baseline that uses its context "
        "([comparisons.md](comparisons.md)). Margins (±) and what is marked as beyond the figures "
        "are ours, not the paper's.",
        _table(("scale", "claim", "verdict", "seeds", "difference"), rows),
    ]


def _difference(claim: dict[str, Any]) -> str:
    """``growlength − llm1024: -0.144 (-0.210 to -0.078) nats``."""
    mean, half = claim["difference"], claim["half_of_95_percent_interval"]
    if mean is None:
        return "-"
    shown, unit = ("{:+.1%}", "") if claim["measure"] == "seconds" else ("{:+.3f}", " nats")
    interval = f" ({shown} to {shown})".format(mean - half, mean + half) if half is not None else ""
    return f"{claim['arm']} − {claim['against']}: {shown.format(mean)}{interval}{unit}"


def _scale(scale: str, title: str, found: dict[str, Any]) -> list[str]:
    sections = []
    tables = found.get(f"paper-{scale}-tables")
    if tables is not None:
        sections += _tables(scale, tables)
    for figure in FIGURES:
        result = found.get(f"paper-{scale}-{figure}")
        if result is not None:
            sections += _comparison(f"paper-{scale}-{figure}", result)
    cost = found.get(f"paper-{scale}-cost")
    if cost is not None:
        sections.append(
            f"All of it, with {_seeds_of(cost)}, took {cost['wall_seconds'] / 60:.0f} minutes and "
            f"at most {cost['peak_gib']:.1f} GiB ({_provenance(cost)})."
        )
    return [f"## {title}", *sections] if sections else []


def _seeds_of(cost: dict[str, Any]) -> str:
    seeds = cost["seeds"]
    return "3 seeds of Figure 1 and 1 of the others" if seeds is None else f"{seeds} seeds"


def _comparison(name: str, result: dict[str, Any]) -> list[str]:
    plot = PLOTS / f"{name}.png"
    arms = result["arms"]
    parts = [
        f"### {result['name']}: {result['title']}",
        "\n".join(f"- {claim['sentence']}" for claim in result["claims"]),
        _arms_table(arms),
    ]
    if result["long_documents"]:
        parts.append(_long_table(result["long_documents"]))
    if plot.exists():
        parts.append(f"![{result['title']}](results/{plot.name})")
    parts.append("\n".join(f"- {sentence}" for sentence in result["headline"]))
    parts.append(_provenance(result))
    return parts


def _arms_table(arms: Sequence[dict[str, Any]]) -> str:
    """One row an arm: means over its seeds; the losses with half of their 95% interval."""
    lengths = list(arms[0]["runs"][0]["heldout"]["loss"])
    rows = []
    for arm in arms:
        runs = arm["runs"]
        clocks = [
            _mean([run["seconds"][clock] for run in runs])
            for clock in ("calibrated", "measured", "warm_up", "evaluation", "checkpoints")
        ]
        losses = [
            mean_interval([run["heldout"]["loss"].get(length, nan) for run in runs])
            for length in lengths
        ]
        rows.append(
            (
                arm["label"],
                "-".join(map(str, arm["stages"])),
                tokens_text(round(_mean([run["tokens"] for run in runs]) or 0)),
                *(seconds_text(clock) for clock in clocks),
                *(_plus_minus(*loss) for loss in losses),
                _highest_jump(runs),
            )
        )
    columns = ("arm", "stages", "tokens", "calibrated s", "measured s", "warm-up s", "eval s")
    return _table(
        (*columns, "saving s", *(f"loss at {length}" for length in lengths), "highest jump"), rows
    )


def _highest_jump(runs: Sequence[dict[str, Any]]) -> str:
    """Mean over seeds of the highest jump of the held-out loss at a stage boundary."""
    jumps = [[boundary["jump"] for boundary in run["boundaries"]] for run in runs]
    if not all(jumps) or any(jump is None for of_run in jumps for jump in of_run):
        return "-"
    return f"{fmean(map(max, jumps)):+.3f}"


def _long_table(records: Sequence[dict[str, Any]]) -> str:
    """Loss on long documents: one row an arm, protocol and scaling; means over seeds."""
    rows: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for record in records:
        for scaling, lengths in record["positions"].items():
            row = rows.setdefault((record["label"], record["protocol"], scaling), {})
            for length in lengths:
                row.setdefault(length["seq_len"], []).append(length["loss"])
    lengths = list(next(iter(rows.values())))
    columns = ("arm", "windows", "positions", *(f"at {length:,}" for length in lengths))
    tokens, documents = records[0]["num_target_tokens"], records[0]["num_documents"]
    cells = [
        (*key, *(_plus_minus(*mean_interval(row[length])) for length in lengths))
        for key, row in rows.items()
    ]
    head = f"Loss on {tokens:,} tokens of {documents} long documents:"
    return f"{head}\n\n{_table(columns, cells)}"


def _tables(scale: str, result: dict[str, Any]) -> list[str]:
    """The paper's Tables 1 to 3, one a setting."""
    parts = [
        f"### {scale}: Tables 1 to 3, what a step costs by length",
        f"Batches of {result['tokens_per_batch']:,} tokens; percentages are of the longest length "
        "that fits. The largest batch is what goes through the model at once within "
        f"{result['budget_bytes'] / 2**30:.1f} GiB.",
    ]
    for costs in setting_costs(result):
        saved = "nothing" if costs.most_saved is None else f"{costs.most_saved:.0%}"
        parts += [
            f"{costs.setting.name}: growing saves {saved} of the longest length's time at most.",
            _costs_table(costs),
        ]
    plot = PLOTS / f"paper-{scale}-tables.png"
    if plot.exists():
        parts.append(f"![What a step costs by length](results/{plot.name})")
    return [*parts, _provenance(result)]


def _costs_table(costs: SettingCosts) -> str:
    """Each value with its share of the longest fitting length's."""
    longest = (costs.fitting or costs.lengths)[-1]
    rows = []
    for cost in costs.lengths:
        seconds, gib, batch = "does not fit", "-", "-"
        if cost.fits:
            seconds = f"{cost.seconds:.3f} ({cost.seconds / longest.seconds:.0%})"
        if cost.peak_bytes and longest.peak_bytes:
            gib = f"{cost.peak_bytes / 2**30:.2f} ({cost.peak_bytes / longest.peak_bytes:.0%})"
        if cost.largest_batch_tokens is not None and longest.largest_batch_tokens:
            share = cost.largest_batch_tokens / longest.largest_batch_tokens
            batch = f"{cost.largest_batch_tokens:,} ({share:.0%})"
        rows.append((f"{cost.seq_len:,}", seconds, gib, batch))
    return _table(("length", "seconds a step", "GiB", "largest batch in tokens"), rows)


def _not_yet_run(found: dict[str, Any]) -> list[str]:
    """What is ready and has no result, each with its command."""
    missing = []
    corpus = " --set corpus.paths=[…] --set tokenizer.path=…"
    for scale in SCALES:
        names = [name for name in ("tables", *FIGURES) if f"paper-{scale}-{name}" not in found]
        if names:
            missing.append(
                f"- {scale}: {', '.join(names)}: `python benchmarks/paper.py --scale {scale} "
                f"--only {','.join(names)}{corpus if scale == 'full' else ''}`"
            )
    if "gpu" not in found:
        missing.append(
            "- MFU by length, the largest batches, a killed and resumed GPU run: "
            "`python benchmarks/gpu.py`"
        )
    return ["## Not yet run", "\n".join(missing)] if missing else []


def _others(found: dict[str, Any]) -> list[str]:
    """All other results, with the page that shows them."""
    rows = [
        (
            f"[{what}]({where})",
            f"`{found[name]['command']}`",
            found[name]["date"],
            str(found[name]["environment"]["commit"]),
            str(found[name]["environment"]["gpu"] or found[name]["environment"]["processor"]),
        )
        for name, (what, where) in PAGES.items()
        if name in found
    ]
    return ["## Other measurements", _table(("what", "command", "date", "commit", "on"), rows)]


def _provenance(result: dict[str, Any]) -> str:
    """Command, commit, machine, versions, seeds."""
    runs = result.get("environments") or [result["environment"]]
    commits = ", ".join(dict.fromkeys(f"`{run['commit']}`" for run in runs))
    machines = ", ".join(
        dict.fromkeys(
            f"{run['gpu'] or run['processor']}, {run['num_cpus']} cores, {run['memory_gib']} GiB"
            for run in runs
        )
    )
    first = runs[0]
    seeds = result.get("seeds")
    of_seeds = f"; seeds {', '.join(map(str, seeds))}" if isinstance(seeds, list) else ""
    return (
        f"`{result['command']}`, {result['date']}; trained at {commits}; {machines}; "
        f"Python {first['python']}, torch {first['torch']}, Ray {first['ray']}, "
        f"transformers {first['transformers']}{of_seeds}"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _plus_minus(mean: float, half: float | None) -> str:
    if not isfinite(mean):
        return "-"
    return plus_minus(mean, half)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; figures to the right."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    render()
