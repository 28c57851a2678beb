"""Trains the study of ``pipelines/study.py``, keeps its records and renders its page.

    python benchmarks/study.py --pilot       # peak rates, and whether full length uses its context
    python benchmarks/study.py --register    # the plan of the study, before its first seed trains
    python benchmarks/study.py               # train: the next seeds, each with all of its arms
    python benchmarks/study.py --status      # what is done, and what is left in hours
    python benchmarks/study.py --render      # docs/study.md, from the committed records alone

``--seeds 0,1`` and ``--only core,starts`` train a part. ``glray compare`` does the work, so the
same command goes on after any stop. When a seed is finished, its losses are kept as
``results/study/PART-seedN.json``: commit it, and another machine can go on with the next seed. The
page shows no result before the last seed is there, so that nobody stops where it looks good.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.contrasts import BudgetCurve, Contrast, Costs, Worth, contrasts
from benchmarks.record import RESULTS, keep
from glray.errors import UserError
from glray.files import read_json, write_text
from glray.plan import make_plan
from glray.report.compared import labelled_runs
from glray.report.formats import mean_text
from glray.report.render import markdown
from glray.report.sheets import Sheet
from glray.run.records import FarContext
from glray.run.run import Run, run_directory
from glray.run.statistics import crossed, mean_interval
from glray.spec import ComparisonSpec, PipelineSpec, load_comparison, load_pipeline
from glray.spec.identity import differences, training_identity
from glray.tree import Trajectory, tree
from pipelines import study as studies

PIPELINES = Path(__file__).parents[1] / "pipelines" / "study.py"
STUDIES = {"small": studies.small, "toy": studies.toy}
PAGE = Path(__file__).parents[1] / "docs" / "study.md"
MARGIN = 0.02
"""Nats per token within which two arms count as the same."""
COST_RATIOS = (1.0, 1.22, 1.43)
"""A token's cost at full length over that at the shortest: equal, as the paper measured on an A100
(its Table 1), and the highest that was measured in float32 on CPUs."""
DIVERGED = 3
"""Exit status of ``glray run`` and ``glray compare`` where a run has diverged: its record says so.
"""
PARTS = {
    "core": 8,
    "full-shares": 3,
    "starts": 3,
    "leaps": 3,
    "rewarming": 3,
    "documents-apart": 3,
    "half-budget": 3,
    "half-width": 3,
    "llama": 3,
}
"""Comparisons of the study, in the order of training, and their seeds."""
TEXT = {
    "question": "Does growing the training length from 128 to 1,024 tokens lower the loss at full "
    "length against training at 1,024 throughout, on equal training tokens, and is it the growing "
    "that does it?",
    "endpoint": "Mean held-out loss in nats per token, of the trained weights, on targets with at "
    "least 512 tokens of their own document before them. Each arm is scored at the longest length "
    "that it is trained on, in windows that slide by half of it. The targets are the same for all "
    "arms and seeds.",
    "analysis": "Each contrast is tested two-sided by a paired t test over seeds, of the mean over "
    "documents, documents weighted by their targets. The four p values are adjusted by Holm at 5%. "
    "Sensitivity: an exact sign-flip test, and the 95% interval in which documents are a sample "
    "too. Two arms are the same if two one-sided tests at 5% place the difference within ± 0.02 "
    "nats. The worth of an arm is the budget at which training at full length throughout reaches "
    "its loss, read from the curve of the same seed (straight over the logarithm of tokens, and "
    "beyond its ends as between the nearest two points), over the time that the arm takes. A "
    "token's cost rises in a straight line with the length, to the cost ratio at full length. "
    "Intervals of the worth and of the break-even ratio are over seeds. Everything else only "
    "describes.",
    "rules": "No arm, length, document or seed is left out. A run that diverges is not repeated, "
    "and its contrasts are inconclusive. Runs are repeated only after a failure of the machine. "
    "The number of seeds is fixed. Rates are those with the lowest primary endpoint of a pilot "
    "under a seed of its own, scored on the same documents.",
    "outcomes": [
        "growing − fixed full length < 0: growing is better on equal tokens. If also growing − "
        "fixed shortest length < 0, the paper's claim is supported: training long was worth it.",
        "growing − shuffled < 0 as well: the order matters, so it is the growing. If the two are "
        "the same, it is short windows, in whatever order.",
        "growing − two phases < 0: the lengths between matter. If the two are the same, two phases "
        "are enough.",
        "growing the same as the fixed full length: what is saved is time alone, as the cost ratio "
        "says.",
    ],
    "prediction": "growing − fixed full length: −0.02; − shuffled: −0.01; − two phases: 0.00; − "
    "fixed shortest length: −0.15.",
}
"""What is registered in words."""


@dataclass(frozen=True)
class Work:
    """A study, where its runs are and where its records are kept."""

    name: str
    storage: Path
    results: Path
    overrides: tuple[str, ...] = ()

    @property
    def study(self) -> studies.Study:
        """Its pipelines and comparisons."""
        return STUDIES[self.name]

    @property
    def settings(self) -> list[str]:
        """What applies to every pipeline."""
        return [f"compute.storage={self.storage}", *self.overrides]

    @property
    def registration(self) -> Path:
        """The plan of the study."""
        return self.results / "registration.json"

    def record(self, part: str, seed: int) -> Path:
        """What is kept of one finished seed."""
        return self.results / f"{part}-seed{seed}.json"

    def records(self, part: str) -> dict[int, dict[str, Any]]:
        """By seed, ascending: those that are finished."""
        seeds = self.study.base.seeds
        return {n: read_json(path) for n in seeds if (path := self.record(part, n)).exists()}

    def reference(self, part: str) -> str:
        """The comparison, as ``glray compare`` takes it."""
        return f"{PIPELINES}:{self.name}.{part.replace('-', '_')}"

    def comparison(self, part: str, seed: int) -> ComparisonSpec:
        """The comparison under one seed."""
        return load_comparison(self.reference(part), [*self.settings, f"seeds=[{seed}]"])

    def seeds(self, part: str) -> tuple[int, ...]:
        """The seeds that are declared for a part."""
        return self.study.base.seeds[: PARTS[part]]


# ---- the pilot, and the plan of the study


def pilot(work: Work) -> int:
    """Train the pilot and keep its losses. Returns the exit status."""
    reference = f"{PIPELINES}:{work.name}.pilot"
    status = _glray("run", reference, work.settings)
    if status not in (0, DIVERGED):
        return status
    spec = load_pipeline(reference, work.settings)
    (seed,) = spec.seeds
    runs = [Run.open(run_directory(spec, arm.name, seed)) for arm in spec.arms]
    keep("pilot", {"seed": seed, "arms": {run.arm: _arm(run) for run in runs}}, work.results)
    return 0


def register(work: Work) -> None:
    """Write the plan of the study. Raises UserError if there is one, or the pilot has not settled
    what it says."""
    path, found = work.registration, work.results / "pilot.json"
    if path.exists():
        raise UserError(
            f"{path}: the study is registered, and a plan that changes is none; declare another "
            "study under another name"
        )
    if not found.exists():
        raise UserError(f"{found}: there is no pilot, so no rate is chosen; run with --pilot first")
    arms = read_json(found)["arms"]
    chosen = _check_rates(work.study, arms)
    gain = gain_of(arms[f"{work.study.long}-lr{_rate_of(arms, work.study.long, chosen)}"])
    if not gain["low"] > work.study.gate:
        raise UserError(
            f"{found}: {work.study.long} gains {gain['mean']:+.3f} ± {gain['half']:.3f} nats from "
            f"context, not surely more than {work.study.gate:g}: where it learns no long context, "
            "nothing can be said of growing; raise TOKENS and repeat the pilot"
        )
    figures = {
        **TEXT,
        "parts": PARTS,
        "contrasts": [[claim.arm, claim.against] for claim in work.study.contrasts],
        "margin": MARGIN,
        "cost_ratios": COST_RATIOS,
        "rates": chosen,
        "gain": gain,
        "design": {part: design(work, part) for part in PARTS},
    }
    keep("registration", figures, work.results)


def design(work: Work, part: str) -> dict[str, Any]:
    """What decides the losses of a comparison's arms, but for the seeds and the text itself."""
    spec = load_comparison(work.reference(part))
    declared = {arm.label: _declared(arm.pipeline, arm.arm) for arm in spec.arms}
    return dict(json.loads(json.dumps(declared)))


def _declared(spec: PipelineSpec, arm: str) -> dict[str, Any]:
    start = spec.start and {"run": Path(spec.start.run).name, "at": spec.start.model_dump()["at"]}
    corpus = spec.corpus.model_dump(mode="json")
    if corpus.get("paths"):
        corpus["paths"] = [Path(path).name for path in corpus["paths"]]
    return {
        **training_identity(spec, spec.arm(arm), 0, [], parent=start),
        "corpus": corpus,
        "heldout_fraction": spec.heldout_fraction,
        "tokenizer": spec.tokenizer.model_dump(mode="json"),
        "evaluation": {name: getattr(spec.evaluation, name) for name in ("seq_lens", "num_tokens")},
    }


def _check_rates(study: studies.Study, arms: dict[str, Any]) -> dict[str, float]:
    """The rate of each arm that has one of its own. Raises UserError unless these are declared."""
    chosen = {}
    for name, declared in study.rates.items():
        losses = {
            arm["lr"]: endpoint(arm)
            for label, arm in arms.items()
            if label.rpartition("-lr")[0] == name and arm["diverged"] is None
        }
        if not losses:
            raise UserError(f"pilot: {name} diverged at every rate; add lower ones to pilot_lrs")
        best = min(losses, key=lambda lr: losses[lr])
        if best in (min(study.pilot_lrs), max(study.pilot_lrs)):
            raise UserError(
                f"pilot: {name} is best at {best:g}, an end of the rates that were tried, so the "
                "best may lie beyond; add one to pilot_lrs and run --pilot again"
            )
        if best != declared:
            raise UserError(
                f"pilot: {name} is best at {best:g}, pipelines/study.py trains it at {declared:g}; "
                "set its rate there"
            )
        chosen[name] = best
    return chosen


def _rate_of(arms: dict[str, Any], name: str, chosen: dict[str, float]) -> str:
    (label,) = [
        label
        for label, arm in arms.items()
        if label.rpartition("-lr")[0] == name and arm["lr"] == chosen[name]
    ]
    return label.rpartition("-lr")[2]


def _registered(work: Work, part: str) -> dict[str, str]:
    """Commit and hash of the registered plan. Raises UserError if there is none, it is not
    committed, or the pipelines are no longer what it says."""
    path = work.registration
    if not path.exists():
        raise UserError(
            f"{path}: the study is not registered, so nothing is trained: its results would not "
            "count; run --pilot, then --register, and commit both"
        )
    changes = differences(read_json(path)["design"][part], design(work, part))
    if changes:
        raise UserError(
            f"{path}: {part} is registered otherwise than pipelines/study.py declares it "
            f"({'; '.join(changes[:3])}); undo the change, or declare another study"
        )
    commit = _git(path, "log", "-1", "--format=%h", "--", path.name)
    if not commit or _git(path, "status", "--porcelain", "--", path.name):
        raise UserError(
            f"{path}: is not committed, so nobody could see that it came before its results; "
            "commit it first"
        )
    return {"commit": commit, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _git(path: Path, *arguments: str) -> str:
    command = ["git", "-C", str(path.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


# ---- training


def train(work: Work, parts: Sequence[str], seeds: Sequence[int] | None) -> int:
    """Train what is missing, part by part and seed by seed; keep each seed that is finished.
    Returns the exit status."""
    for part in parts:
        registered = _registered(work, part)
        for seed in work.seeds(part) if seeds is None else seeds:
            if work.record(part, seed).exists():
                continue
            settings = [*work.settings, f"seeds=[{seed}]"]
            status = _glray("compare", work.reference(part), settings)
            if status not in (0, DIVERGED):
                return status
            keep(f"{part}-seed{seed}", _figures(work, part, seed, registered), work.results)
    return 0


def _figures(work: Work, part: str, seed: int, registered: dict[str, str]) -> dict[str, Any]:
    """What is kept of a finished seed."""
    runs = labelled_runs(work.comparison(part, seed))
    last = next(run.evaluations[-1] for run in runs if run.divergence is None)
    far = last.far_context
    assert far is not None, "the last evaluation scores it"
    return {
        "part": part,
        "seed": seed,
        "registered": registered,
        "targets_sha256": last.targets_sha256,
        "tokens_before": far.tokens_before,
        "document_tokens": far.document_tokens.tolist(),
        "arms": {run.label: _arm(run) for run in runs},
    }


def _arm(run: Run) -> dict[str, Any]:
    """One run: the losses of the analysis, to 5 decimals, and what they come from."""
    result, divergence = run.result, run.divergence
    last = None if divergence else run.evaluations[-1]
    return {
        "lr": run.optimizer.lr,
        "tokens_by_seq_len": result and result.tokens_by_seq_len,
        "measured_seconds": run.measured_seconds,
        "fingerprint": run.manifest.fingerprint,
        "checksum": result and result.checksum,
        "commit": run.manifest.environment.get("commit"),
        "processor": run.manifest.environment.get("processor"),
        "diverged": divergence and divergence.sentence,
        "heldout": last and {str(n.seq_len): round(n.loss, 5) for n in last.lengths},
        "far": last and last.far_context and _far(last.far_context),
    }


def _far(context: FarContext) -> dict[str, list[float]]:
    """Document losses by window length: in the short context, and in the arm's longest."""
    kept = {loss.seq_len: loss.document_losses for loss in (context.losses[0], context.losses[-1])}
    return {
        "document_tokens": context.document_tokens.tolist(),
        **{str(n): [round(loss, 5) for loss in losses.tolist()] for n, losses in kept.items()},
    }


def _glray(command: str, reference: str, settings: Sequence[str]) -> int:
    own = [argument for setting in settings for argument in ("--set", setting)]
    arguments = [sys.executable, "-m", "glray", command, reference, *own]
    return subprocess.run(arguments, check=False).returncode


# ---- what is done, and what is left


def status(work: Work, parts: Sequence[str]) -> list[str]:
    """A line for each part and seed, and what is left in hours at this machine's own pace."""
    lines, left, trained, seconds = [], 0, 0, 0.0
    for part in parts:
        records = work.records(part)
        for seed in work.seeds(part):
            spec = work.comparison(part, seed)
            ended, tokens = 0, 0
            for pipeline in spec.pipelines:
                for arm, own in _tokens_left(pipeline, seed).items():
                    run = _opened(run_directory(pipeline, arm, seed))
                    ended += run is not None and run.has_ended
                    tokens += own
                    if run is not None and (result := run.result) is not None:
                        clocks = (result.measured_seconds, result.eval_seconds)
                        clocks += (result.checkpoint_seconds, result.warm_up_seconds)
                        trained, seconds = trained + result.tokens, seconds + sum(clocks)
            if seed in records:
                processors = {arm["processor"] for arm in records[seed]["arms"].values()}
                lines.append(f"{part} seed {seed}: done, on {', '.join(map(str, processors))}")
                continue
            left += tokens
            lines.append(
                f"{part} seed {seed}: {ended} of {len(spec.arms)} runs done, {tokens:,} tokens left"
            )
    if not seconds:
        return [*lines, f"{left:,} tokens left; no run has finished here, so the pace is unknown"]
    pace = trained / seconds
    hours = left / pace / 3600
    return [*lines, f"{left:,} tokens left: {hours:.1f} h at the {pace:,.0f} tokens/s seen here"]


def _tokens_left(pipeline: PipelineSpec, seed: int) -> dict[str, int]:
    """Tokens that each arm is still to train itself, what runs share counted once."""
    if pipeline.start is not None:
        budget = pipeline.budget.tokens or 0
        own = {arm.name: budget for arm in pipeline.trained_arms}
    else:
        plans = [(arm, make_plan(pipeline, arm)) for arm in pipeline.trained_arms]
        branches = tree([Trajectory.of(pipeline, arm, seed, plan) for arm, plan in plans if plan])
        own = {
            b.trajectory.arm: b.trajectory.plan.num_tokens
            - b.trajectory.plan.tokens_after(b.fork_step)
            for b in branches
        }
    left = {}
    for arm, tokens in own.items():
        run = _opened(run_directory(pipeline, arm, seed))
        if run is not None:
            tokens = 0 if run.has_ended else min(tokens, run.plan.num_tokens - run.tokens)
        left[arm] = tokens
    return left


def _opened(directory: Path) -> Run | None:
    return Run.open(directory) if (directory / "run.json").is_file() else None


# ---- the page


def endpoint(arm: dict[str, Any]) -> float:
    """The primary endpoint of one run: loss on the far targets at its own length."""
    tokens = np.array(arm["far"]["document_tokens"])
    return float(own_losses(arm) @ tokens / tokens.sum())


def own_losses(arm: dict[str, Any]) -> np.ndarray:
    """float64[documents]: in windows of the arm's longest length."""
    lengths = [int(name) for name in arm["far"] if name != "document_tokens"]
    return np.array(arm["far"][str(max(lengths))])


def gain_of(arm: dict[str, Any]) -> dict[str, float]:
    """Far-context gain of one run, with half of its 95% interval over documents."""
    lengths = sorted(int(name) for name in arm["far"] if name != "document_tokens")
    short, own = (np.array(arm["far"][str(lengths[n])]) for n in (0, -1))
    found = crossed((short - own)[None], np.array(arm["far"]["document_tokens"]))
    return {"mean": found.mean, "half": found.half, "low": found.low}


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
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["markdown"] = markdown
    plan = read_json(path) if path.exists() else None
    records = work.records("core")
    all_seeds = {part: len(work.seeds(part)) for part in PARTS}
    results = Results(work.study, records) if len(records) == all_seeds["core"] else None
    registered = {record["registered"]["commit"] for record in records.values()}
    return environment.get_template("study.md.j2").render(
        text=plan or TEXT,
        plan=plan,
        study=work.study,
        seeds=list(records),
        num_seeds=all_seeds["core"],
        pilot=pilot_sheet(work),
        commits=sorted(registered),
        processors=sorted(
            {str(arm["processor"]) for r in records.values() for arm in r["arms"].values()}
        ),
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
    columns = ("contrast", "nats per token (95% over seeds)", "p", "p by Holm", "p of sign flips")
    columns += ("95% over seeds and documents", "p of the same", "that it is lower")
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


def main() -> None:
    """Do what is asked; what a person can fix is one line and exit status 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    for option in ("--pilot", "--register", "--status", "--render"):
        what.add_argument(option, action="store_true")
    parser.add_argument("--study", choices=tuple(STUDIES), default="small")
    parser.add_argument("--seeds", help="default: those that are declared")
    parser.add_argument("--only", default=",".join(PARTS), help="default: every part, in order")
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS / "study")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    overrides = tuple(options.overrides)
    work = Work(options.study, options.storage.absolute(), options.results, overrides)
    parts = options.only.split(",")
    try:
        if unknown := [part for part in parts if part not in PARTS]:
            raise UserError(f"--only {unknown[0]}: no part of the study; known: {', '.join(PARTS)}")
        seeds = None if options.seeds is None else [int(seed) for seed in options.seeds.split(",")]
        done = 0
        if options.pilot:
            done = pilot(work)
        elif options.register:
            register(work)
        elif options.status:
            print("\n".join(status(work, parts)))
        elif not options.render:
            done = train(work, parts, seeds)
        if not options.status:
            write_text(options.page, page(work))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        done = 2
    sys.exit(done)


if __name__ == "__main__":
    main()
