"""The Ray Tune boundary: trials of a search, each through the same Ray Train path as ``glray
run``."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import write_text
from glray.model.config import starting_model
from glray.progress import advance, working
from glray.ray.cluster import Say, free_cpus, joined_address
from glray.ray.train import calibrate_in_group, fit, groups_at_once
from glray.report.formats import number
from glray.report.sheets import Sheet
from glray.run.guard import excessive_rise
from glray.run.records import Calibration, Divergence, Evaluation, Progress
from glray.run.run import Run, pipeline_directory
from glray.search.space import (
    Candidate,
    Space,
    candidates,
    check_search,
    ranking_seq_len,
    search_pipeline,
)
from glray.spec.loading import to_yaml
from glray.spec.pipeline import PipelineSpec
from glray.spec.search import lengths_text
from glray.spec.training import rate_text
from glray.train.runs import plan_runs, validate_pipeline

TRIAL_RESOURCES = {"CPU": 0, "memory": 1}
"""What a trial's own process asks for: a byte, as Tune rejects an empty request and a share of a
CPU would be missing when its workers ask for all of them."""


@dataclass(frozen=True)
class Trial:
    """One schedule that was trained, and its held-out loss."""

    number: int
    spec: PipelineSpec
    loss: float
    """NaN if it diverged."""
    standard_error: float | None
    divergence: Divergence | None = None

    @property
    def schedule(self) -> str:
        """``128x30-512x70``."""
        return self.spec.arms[0].name

    @property
    def result(self) -> str:
        """Its loss, in words."""
        return f"{self.loss:.4f}" if isfinite(self.loss) else "diverged"


@dataclass(frozen=True)
class SearchResult:
    """All trials, best first and those that diverged last, and where the winner was written."""

    trials: tuple[Trial, ...]
    seq_len: int
    best_yaml: Path

    def sheet(self) -> Sheet:
        """Trials by held-out loss."""
        rows = []
        for trial in self.trials:
            error = number(trial.standard_error, ".4f")
            rows.append([str(trial.number), trial.schedule, trial.result, error])
        columns = ("trial", "schedule: seq_len x share", "loss", "± over documents")
        title = f"Held-out loss at {self.seq_len:,} tokens, best first"
        notes = [f"Trial {t.number} {t.divergence.sentence}." for t in self.trials if t.divergence]
        return Sheet(title, columns, rows, notes, left=(1,))


def search(
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    say: Say,
    watch: Callable[[Path], AbstractContextManager[None]],
) -> SearchResult:
    """Train every trial of the spec's search and write ``best.yaml``. Ray is connected.

    All lengths are calibrated once; then each trial trains its whole schedule at the same
    budget. A trial that has ended is not trained again, so the same call resumes. ``say`` is told
    how the search stands; ``watch`` shows what is written to a pipeline's directory. Raises
    UserError if the spec declares no search, or one that is not supported, and if all trials
    diverge.
    """
    check_search(spec)
    assert spec.search is not None
    _check_supported(spec)
    seq_len = ranking_seq_len(spec)
    directory = pipeline_directory(spec) / "tune"
    tried = candidates(spec)
    say(f"tune: {len(tried)} trials of {_budget(spec)} each, the baselines first")
    say(f"tune: {_space(spec)}")
    searched = _calibrated(_stored_in(spec, directory), corpus, watch)
    start = starting_model(spec)
    specs = [trial_pipeline(searched, candidate, n) for n, candidate in enumerate(tried)]
    trials = Trials(specs, corpus, seq_len)
    with working("validating the trials", len(trials.specs)):
        for trial in trials.specs:
            validate_pipeline(trial, corpus, start)  # before any is trained
            advance(1)
    trials.train(directory / ".ray-tune", say)
    scored = ranked(map(trials.scored, range(len(tried))))
    if not isfinite(scored[0].loss):
        lr = spec.optimizer_of(spec.arm(spec.search.arm)).lr
        raise UserError(
            f"{directory}: all {len(scored)} trials diverged, so none can be chosen; set an "
            f"optimizer.lr below {rate_text(lr)} under another name (--set name=…)"
        )
    best_yaml = pipeline_directory(spec) / "best.yaml"
    winner = _stored_in(scored[0].spec, Path(spec.compute.storage))
    write_text(best_yaml, to_yaml(winner.derive(name=f"{spec.name}-best")))
    return SearchResult(tuple(scored), seq_len, best_yaml)


def _check_supported(spec: PipelineSpec) -> None:
    """Raises UserError for what can be declared and is not built yet."""
    assert spec.search is not None
    if spec.search.method == "optuna":
        raise UserError(
            f"{spec.name}: search.method is optuna, which glray tune does not support yet; "
            "--set search.method=tree"
        )
    if spec.search.max_behind is not None:
        raise UserError(
            f"{spec.name}: search.max_behind is {spec.search.max_behind:g}, but glray tune does "
            "not stop trials yet; --set search.max_behind=null"
        )


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """By loss; those that diverged come last."""
    return sorted(trials, key=lambda trial: trial.loss if isfinite(trial.loss) else inf)


def _stored_in(spec: PipelineSpec, storage: Path) -> PipelineSpec:
    return spec.derive(compute={"storage": str(storage)})


def _space(spec: PipelineSpec) -> str:
    """What the trials are chosen from, in words."""
    assert spec.search is not None
    space = Space.of(spec)
    lengths = " or ".join(lengths_text(family.seq_lens) for family in space.families)
    return (
        f"by {spec.search.method} out of {space.num_candidates:,} schedules over {lengths} "
        f"(arm {spec.search.arm}, seed {spec.search.seed})"
    )


def _budget(spec: PipelineSpec) -> str:
    if spec.budget.seconds is None:
        return f"{spec.budget.tokens:,} tokens"
    return f"{spec.budget.seconds:g} calibrated seconds"


def trial_pipeline(spec: PipelineSpec, candidate: Candidate, number: int) -> PipelineSpec:
    """The pipeline that trains one candidate."""
    return search_pipeline(spec, [candidate]).derive(name=f"{spec.name}-trial{number:03d}")


def _calibrated(
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    watch: Callable[[Path], AbstractContextManager[None]],
) -> PipelineSpec:
    """The spec with a calibration of every length of the search: its own, or one that an earlier
    trial of this search has started with, or one measured now."""
    if spec.calibration is not None or not spec.needs_calibration:
        return spec
    recorded = pipeline_directory(spec) / "calibration.json"
    if not (recorded.exists() and any(Path(spec.compute.storage).glob("*/*/run.json"))):
        with watch(pipeline_directory(spec)):
            calibrate_in_group(spec, corpus)
    calibration = Calibration.read(recorded)
    assert calibration is not None, "it was written or found"
    return spec.derive(calibration={"step_microseconds": calibration.step_microseconds})


@dataclass(frozen=True)
class Trials:
    """The pipelines of a search: one arm and one seed each, with their calibration."""

    specs: list[PipelineSpec]
    corpus: PreparedCorpus
    seq_len: int
    """The length whose held-out loss ranks them."""

    def train(self, storage: Path, say: Say) -> None:
        """Train what is unfinished, as many at once as there is room for, and ``say`` how each
        ends. Raises what the first trial raised that failed, and KeyboardInterrupt if that ended
        the search."""
        at_once = groups_at_once(self.specs[0], len(self.specs))
        following = _Following(self, say)
        trial = ray.tune.with_parameters(_train_trial, trials=self)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trial, TRIAL_RESOURCES),
            param_space={"trial": ray.tune.grid_search(list(range(len(self.specs))))},
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=ray.tune.RunConfig(
                name="trials", storage_path=str(storage), verbose=0, callbacks=[following]
            ),
        )
        with working(f"tune: {len(self.specs)} trials, {at_once} at once", following.num_missing):
            results = tuner.fit()
        if results.errors:
            raise results.errors[0]
        unended = [n for n in range(len(self.specs)) if not self.run(n).has_ended]
        for trial_number in unended:
            if rise := excessive_rise(self.run(trial_number)):
                raise UserError(
                    f"trial {trial_number}: {rise}, more than evaluation.max_rise allows, so the "
                    "trials do not compare; raise it or set it to null, and the same command "
                    "resumes"
                )
        if unended:
            raise KeyboardInterrupt  # Tune takes the first one for itself

    def run(self, number: int) -> Run:
        """The one run of a trial."""
        spec = self.specs[number]
        runs = plan_runs(spec, self.corpus, starting_model(spec))
        assert runs is not None, "a trial's spec has its calibration"
        return runs[0]

    def scored(self, number: int) -> Trial:
        """A trained trial and its held-out loss."""
        run, seq_len = self.run(number), self.seq_len
        if divergence := run.divergence:
            return Trial(number, self.specs[number], nan, None, divergence)
        path = run.evaluation_path(run.plan.num_steps)
        evaluation = Evaluation.read(path)
        assert evaluation is not None, "a finished run has been evaluated"
        score = evaluation.at(seq_len)
        if score is None:
            lengths = ", ".join(str(length.seq_len) for length in evaluation.lengths)
            raise UserError(
                f"{path}: scored at {lengths}, not at {seq_len}: the trials do not compare; "
                "delete it, and the same command scores again"
            )
        return Trial(number, self.specs[number], score.loss, score.standard_error)


class _Following(ray.tune.Callback):
    """Follows the trials in the driver: says how each ends, and how far all are by what their
    workers write."""

    def __init__(self, trials: Trials, say: Say) -> None:
        self._trials, self._say = trials, say
        numbers = range(len(trials.specs))
        missing = [n for n in numbers if not trials.run(n).has_ended]
        self.num_missing, self._num_done = len(missing), 0
        self._shares = dict.fromkeys(missing, 0.0)
        """What of each trial is trained, as long as it is not done."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, and no search is restored from that."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """See ray.tune.Callback: in every turn of Tune's loop."""
        running = [trial.config["trial"] for trial in trials if trial.status == "RUNNING"]
        before = sum(self._shares.values())
        for trial in set(running) & self._shares.keys():
            share = _trained_share(pipeline_directory(self._trials.specs[trial]))
            self._shares[trial] = max(share, self._shares[trial])
        note = f"now {', '.join(map(str, sorted(running)))}" if running else "starting one"
        if joined_address() is not None and not running:
            note = free_cpus()
        advance(sum(self._shares.values()) - before, note=note)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """See ray.tune.Callback."""
        scored = self._trials.scored(trial.config["trial"])
        self._num_done += 1
        when = ", trained before"
        if scored.number in self._shares:
            when = f" after {trial.last_result['time_total_s']:.0f} s"
            advance(1 - self._shares.pop(scored.number))
        self._say(
            f"trial {scored.number}: {scored.schedule}: loss {scored.result}{when} "
            f"({self._num_done} of {len(self._trials.specs)} trials done)"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """See ray.tune.Callback."""
        self._say(f"trial {trial.config['trial']} has failed, the others go on")


def _trained_share(directory: Path) -> float:
    """How much of the one run of a pipeline is trained, by what its worker has written."""
    progress = Progress.read(directory / "progress.json")
    if progress is None or progress.training is None:
        return 0.0
    done, left = progress.training.last_step.measured_seconds, progress.training.seconds_left
    return done / (done + left)


def _train_trial(config: dict[str, int], trials: Trials) -> None:
    """One trial: a Ray Train group of its own, then its held-out loss to Tune."""
    number = config["trial"]
    if not trials.run(number).has_ended:
        fit(trials.specs[number], trials.corpus, callbacks=[TuneReportCallback()])
    loss = trials.scored(number).loss
    ray.tune.report({"loss": loss if isfinite(loss) else None})  # JSON has no NaN
