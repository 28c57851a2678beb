"""The Ray Tune boundary: trials of a search, each through the same Ray Train path as ``glray
run``."""

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path

import ray
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import write_text
from glray.model.config import starting_model
from glray.ray.cluster import Say
from glray.ray.train import calibrate_in_group, fit, groups_at_once
from glray.report.formats import number
from glray.report.sheets import Sheet
from glray.run.records import Calibration, Divergence, Evaluation
from glray.run.run import Run, pipeline_directory
from glray.search.space import check_search, ranking_seq_len, trial_spec
from glray.spec.loading import to_yaml
from glray.spec.pipeline import PipelineSpec
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
            stages = "  ".join(f"{s.seq_len}×{s.ratio:g}" for s in trial.spec.arms[0].stages)
            error = number(trial.standard_error, ".4f")
            loss = f"{trial.loss:.4f}" if isfinite(trial.loss) else "diverged"
            rows.append([str(trial.number), stages, loss, error])
        columns = ("trial", "stages: seq_len × ratio", "loss", "± over documents")
        title = f"Held-out loss at {self.seq_len:,} tokens, best first"
        notes = [f"Trial {t.number} {t.divergence.sentence}." for t in self.trials if t.divergence]
        return Sheet(title, columns, rows, notes, left=(1,))


def search(spec: PipelineSpec, corpus: PreparedCorpus, say: Say) -> SearchResult:
    """Train every trial of the spec's search and write ``best.yaml``. Ray is connected.

    All lengths are calibrated once; then each trial trains its whole schedule at the same
    calibrated seconds. A trial that has ended is not trained again, so the same call resumes.
    Raises UserError if the spec declares no search or no budget in seconds, and if all trials
    diverge.
    """
    check_search(spec)
    assert spec.search is not None
    seq_len = ranking_seq_len(spec)
    directory = pipeline_directory(spec) / "tune"
    searched = _calibrated(_stored_in(spec, directory), corpus)
    say(f"tune: {spec.search.num_trials} trials of {spec.budget.seconds:g} calibrated seconds each")
    start = starting_model(spec)
    trials = Trials([trial_spec(searched, n) for n in range(spec.search.num_trials)], corpus)
    for trial in trials.specs:
        validate_pipeline(trial, corpus, start)  # before any is trained
    trials.train(directory / ".ray-tune")
    scored = ranked(map(trials.scored, range(spec.search.num_trials)))
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


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """By loss; those that diverged come last."""
    return sorted(trials, key=lambda trial: trial.loss if isfinite(trial.loss) else inf)


def _stored_in(spec: PipelineSpec, storage: Path) -> PipelineSpec:
    return spec.derive(compute={"storage": str(storage)})


def _calibrated(spec: PipelineSpec, corpus: PreparedCorpus) -> PipelineSpec:
    """The spec with a calibration of every length of the search: its own, or one that an earlier
    trial of this search has started with, or one measured now."""
    if spec.calibration is not None:
        return spec
    recorded = pipeline_directory(spec) / "calibration.json"
    if not (recorded.exists() and any(Path(spec.compute.storage).glob("*/*/run.json"))):
        calibrate_in_group(spec, corpus)
    calibration = Calibration.read(recorded)
    assert calibration is not None, "it was written or found"
    return spec.derive(calibration={"step_microseconds": calibration.step_microseconds})


@dataclass(frozen=True)
class Trials:
    """The pipelines of a search: one arm and one seed each, with their calibration."""

    specs: list[PipelineSpec]
    corpus: PreparedCorpus

    def train(self, storage: Path) -> None:
        """Train what is unfinished, as many at once as there is room for. Raises what the first
        trial raised that failed."""
        at_once = groups_at_once(self.specs[0], len(self.specs))
        trial = ray.tune.with_parameters(_train_trial, trials=self)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trial, TRIAL_RESOURCES),
            param_space={"trial": ray.tune.grid_search(list(range(len(self.specs))))},
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=ray.tune.RunConfig(name="trials", storage_path=str(storage), verbose=0),
        )
        with contextlib.redirect_stdout(io.StringIO()):  # Tune prints boxes even when silent
            results = tuner.fit()
        if results.errors:
            raise results.errors[0]

    def run(self, number: int) -> Run:
        """The one run of a trial."""
        spec = self.specs[number]
        runs = plan_runs(spec, self.corpus, starting_model(spec))
        assert runs is not None, "a trial's spec has its calibration"
        return runs[0]

    def scored(self, number: int) -> Trial:
        """A trained trial and its held-out loss at the longest trained length of the search."""
        run, seq_len = self.run(number), ranking_seq_len(self.specs[number])
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


def _train_trial(config: dict[str, int], trials: Trials) -> None:
    """One trial: a Ray Train group of its own, then its held-out loss to Tune."""
    number = config["trial"]
    if not trials.run(number).has_ended:
        fit(trials.specs[number], trials.corpus, callbacks=[TuneReportCallback()])
    loss = trials.scored(number).loss
    ray.tune.report({"loss": loss if isfinite(loss) else None})  # JSON has no NaN
