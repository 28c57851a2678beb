"""Trains the study of ``pipelines/study.py``, keeps its records and renders its page.

    python benchmarks/study.py --pilot       # peak rates, and whether full length uses its context
    python benchmarks/study.py --register    # the plan of the study, before its first seed trains
    python benchmarks/study.py               # train: the next seeds, each with all of its arms
    python benchmarks/study.py --status      # what is done, and what is left in hours
    python benchmarks/study.py --render      # docs/study.md, from the committed records alone

``--seeds 0,1`` and ``--only core,starts`` train a part. ``glray compare`` does the work, so the
same command goes on after any stop. When a seed is finished, its losses are kept as
``results/study/PART-seedN.json``: commit it, and another machine can go on with the next seed. The
page shows no result before the last seed is there, so that nobody stops where it looks good; then
what ``glray recommend`` knows is written as well, ``glray/report/study.json``, and
``benchmarks/results.py`` shows the study first.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.processes import trained
from benchmarks.record import keep
from benchmarks.study_findings import findings
from benchmarks.study_headline import picture
from benchmarks.study_page import PAGE, page
from benchmarks.study_records import (
    COST_RATIOS,
    KEPT,
    MARGIN,
    PARTS,
    PIPELINES,
    STUDIES,
    Work,
    endpoint,
    gain_of,
    plan_text,
)
from benchmarks.study_results import Results
from glray.errors import UserError
from glray.files import AnyPath, read_json, write_text
from glray.plan import make_plan
from glray.report.compared import labelled_runs
from glray.report.look import save
from glray.report.recommend import FINDINGS
from glray.run.records import FarContext
from glray.run.run import Run, run_directory
from glray.spec import PipelineSpec, load_comparison, load_pipeline
from glray.spec.identity import differences, training_identity
from glray.tree import Trajectory, tree
from pipelines.study import Study

# ---- the pilot, and the plan of the study


def pilot(work: Work) -> int:
    """Train the pilot and keep its losses. Returns the exit status."""
    reference = f"{PIPELINES}:{work.name}.pilot"
    status = trained("run", reference, work.settings)
    if status:
        return status
    spec = load_pipeline(reference, work.settings)
    (seed,) = spec.seeds
    runs = [Run.open(run_directory(spec, arm.name, seed)) for arm in spec.arms]
    keep("pilot", {"seed": seed, "arms": {run.arm: _arm(run) for run in runs}}, folder=work.results)
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
    gain = gain_of(_by_rate(arms, work.study.long)[chosen[work.study.long]])
    assert gain is not None, "the full length is beyond the short context"
    if not gain.low > work.study.gate:
        raise UserError(
            f"{found}: {work.study.long} gains {gain.mean:+z.3f} ± {gain.half:.3f} nats from "
            f"context, not surely more than {work.study.gate:g}: where it learns no long context, "
            "nothing can be said of growing; raise the budget and repeat the pilot"
        )
    figures = {
        **plan_text(work.study),
        "parts": PARTS,
        "contrasts": [[claim.arm, claim.against] for claim in work.study.contrasts],
        "margin": MARGIN,
        "cost_ratios": COST_RATIOS,
        "rates": chosen,
        "gain": {"mean": gain.mean, "half": gain.half, "low": gain.low},
        "design": {part: design(work, part) for part in PARTS},
    }
    keep("registration", figures, folder=work.results)


def design(work: Work, part: str) -> dict[str, Any]:
    """What decides the losses of a comparison's arms, but for the seeds and the text itself."""
    spec = load_comparison(work.reference(part))
    declared = {arm.label: _declared(arm.pipeline, arm.arm) for arm in spec.arms}
    return dict(json.loads(json.dumps(declared)))


def _declared(spec: PipelineSpec, arm: str) -> dict[str, Any]:
    start: dict[str, object] | None = None
    if spec.start is not None:
        start = {"run": Path(spec.start.run).name, "at": spec.start.model_dump()["at"]}
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


def _check_rates(study: Study, arms: dict[str, Any]) -> dict[str, float]:
    """The rate of each arm that has one of its own. Raises UserError unless these are declared."""
    chosen = {}
    for name, declared in study.rates.items():
        tried = _by_rate(arms, name)
        losses = {lr: endpoint(arm) for lr, arm in tried.items() if arm["diverged"] is None}
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


def _by_rate(arms: dict[str, Any], name: str) -> dict[float, dict[str, Any]]:
    """The pilot's runs of an arm, by their peak rates."""
    return {arm["lr"]: arm for label, arm in arms.items() if label.rpartition("-lr")[0] == name}


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
            status = trained("compare", work.reference(part), settings)
            if status:
                return status
            keep(f"{part}-seed{seed}", _figures(work, part, seed, registered), folder=work.results)
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
    """One run: the losses of the analysis, to 5 decimals, and what they come from. Raises UserError
    if it went on from a run of another storage."""
    result, divergence = run.result, run.divergence
    if parent := run.manifest.parent:
        directory = run.directory.parent.parent / parent.pipeline / parent.run
        own = _opened(directory)
        if own is None or own.manifest.fingerprint != parent.fingerprint:
            raise UserError(
                f"{run.directory}: went on from a run of fingerprint {parent.fingerprint}, which "
                f"{directory} is not: the curve would mix two trainings; delete it, and call this "
                "where no other runs/ lies"
            )
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
                        trained += result.tokens
                        seconds += result.measured_seconds + result.eval_seconds
                        seconds += result.checkpoint_seconds + result.warm_up_seconds
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


def _opened(directory: AnyPath) -> Run | None:
    return Run.open(directory) if (directory / "run.json").is_file() else None


def render(work: Work, path: Path, findings_path: Path) -> None:
    """Write the page; once the core is whole, also its picture and what ``glray recommend``
    knows."""
    write_text(path, page(work))
    if (results := Results.of(work)) is None:
        return
    if (drawn := picture(results)) is not None:
        save(drawn, path.parent / "results" / "study.png")
    if (found := findings(work)) is not None:
        found.write(findings_path)


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
    parser.add_argument("--results", type=Path, default=KEPT.results)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--findings", type=Path, default=FINDINGS)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    overrides = tuple(options.overrides)
    work = Work(options.study, options.storage.absolute(), options.results, overrides)
    parts = options.only.split(",")
    try:
        if unknown := [part for part in parts if part not in PARTS]:
            raise UserError(f"--only {unknown[0]}: no part of the study; known: {', '.join(PARTS)}")
        seeds = None if options.seeds is None else [int(seed) for seed in options.seeds.split(",")]
        if options.study == "toy" and (options.page == PAGE or options.findings == FINDINGS):
            raise UserError(
                "--study toy would write over the pages of the study; give --results, --page and "
                "--findings"
            )
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
            render(work, options.page, options.findings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        done = 2
    sys.exit(done)


if __name__ == "__main__":
    main()
