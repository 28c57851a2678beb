"""A run: one arm under one seed. What was declared and planned of it, and what its directory has.

``<storage>/<pipeline>/`` holds ``spec.yaml``, ``calibration.json``, ``events.log``, a progress file
of each worker group (``progress.json``, …) and one directory a run: ``run.json``, ``spec.yaml``,
``metrics.jsonl``, ``tensorboard/``, ``evaluations/``, ``boundaries/``, ``checkpoints/``, ``model/``
and, written last, ``result.json``, or ``diverged.json`` if it diverged.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import yaml

from glray.errors import UserError
from glray.files import AnyPath, as_path, matching, read_log, remove
from glray.plan import MICROSECONDS, WATCHED_STEPS, Plan, StagePlan
from glray.record import Record
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.records import (
    BoundaryRecord,
    Calibration,
    Divergence,
    Evaluation,
    Manifest,
    Result,
    Step,
    Stopped,
)
from glray.spec.identity import differences
from glray.spec.loading import load_pipeline
from glray.spec.pipeline import PipelineSpec
from glray.spec.positions import PositionsSpec
from glray.spec.training import OptimizerSpec
from glray.storage import storage_path
from glray.tree import run_name

AnyRecord = TypeVar("AnyRecord", bound=Record)

METRICS = "metrics.jsonl"
EVENTS = "events.log"
CALIBRATION = "calibration.json"
ENDS = (RESULT, DIVERGED) = ("result.json", "diverged.json")
"""What is written last: of a run that is finished, and of one that diverged."""
STOPPED = "stopped.json"
"""Of a run that a search has stopped."""


@dataclass(frozen=True)
class Run:
    """One arm under one seed, planned: nothing about it is decided later.

    Its records are read from the directory once; open the run again to see what came since.
    """

    directory: AnyPath
    spec: PipelineSpec
    """Of this run alone: one arm, one seed."""
    manifest: Manifest
    label: str | None = None
    """What a comparison calls its arm; None: as its pipeline does."""

    @classmethod
    def open(cls, directory: AnyPath) -> "Run":
        """The run of a directory, as it was started. Raises UserError."""
        path = directory / "run.json"
        if not path.is_file():
            raise UserError(
                f"{directory}: has no run.json, so it is not a run; give a run's directory, such "
                "as runs/quickstart/growlength-seed0"
            )
        manifest = Manifest.read(path)
        assert manifest is not None, "the file is there"
        return cls(directory, load_pipeline(directory / "spec.yaml"), manifest)

    # ---- what it is

    @property
    def name(self) -> str:
        """``growlength-seed0``, with the comparison's label where it has one."""
        return self.directory.name if self.label is None else f"{self.label}-seed{self.seed}"

    @property
    def arm(self) -> str:
        """Name of its arm in the pipeline."""
        return self.manifest.arm

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.manifest.seed

    @property
    def plan(self) -> Plan:
        """Its stages in steps."""
        return self.manifest.plan

    @property
    def positions(self) -> PositionsSpec:
        """How RoPE is scaled when the length grows."""
        return self.spec.arms[0].positions

    @cached_property
    def optimizer(self) -> OptimizerSpec:
        """Its optimizer, with its arm's peak rate."""
        return self.spec.optimizer_of(self.spec.arms[0])

    @property
    def seq_lens(self) -> tuple[int, ...]:
        """Length of each stage in tokens."""
        return tuple(stage.seq_len for stage in self.plan.stages)

    @property
    def longest_seq_len(self) -> int:
        """The longest length of the plan."""
        return max(self.seq_lens)

    def model_flops(self, num_steps: int) -> int:
        """Model FLOPs of the first ``num_steps`` steps, each token's at its stage's length."""
        return sum(
            stage.steps_before(num_steps) * stage.tokens_per_batch * flops
            for stage, flops in zip(self.plan.stages, self.manifest.flops_per_token, strict=True)
        )

    # ---- where its files are

    @property
    def checkpoints(self) -> AnyPath:
        """Folder of its checkpoints."""
        return self.directory / "checkpoints"

    def evaluation_path(self, step: int) -> AnyPath:
        """Where the evaluation after ``step`` steps is recorded."""
        return self.directory / "evaluations" / f"step-{step:08d}.json"

    def boundary_path(self, step: int) -> AnyPath:
        """Where the stage boundary after ``step`` steps is recorded."""
        return self.directory / "boundaries" / f"step-{step:08d}.json"

    @property
    def folder_len(self) -> int:
        """The length in tokens that the folder at the start of its path was trained at; 0 if the
        path began with drawn weights."""
        if self.manifest.folder_len is not None:
            return self.manifest.folder_len
        declared = int(self.manifest.architecture["max_position_embeddings"])
        return declared if declared > self.longest_seq_len else 0

    @property
    def kept_steps(self) -> Collection[int]:
        """Steps whose checkpoints stay, as ``compute.keep_checkpoints`` says, beside the latest."""
        match self.spec.compute.keep_checkpoints:
            case None:
                return ()
            case "stages":
                return self.plan.marked_ends
            case "all":
                return [step_of(path) for path in committed_checkpoints(self.checkpoints)]

    @property
    def tokens_directories(self) -> tuple[AnyPath, ...]:
        """Where the token blocks of each source lie: where ``run.json`` says, as seen from the
        run's directory, else in the folder ``tokens`` of the nearest folder above it. Raises
        UserError if they are in neither."""
        return tuple(map(self._tokens_directory, self.manifest.tokens_directories))

    def _tokens_directory(self, recorded: str) -> AnyPath:
        is_whole = "://" in recorded or recorded.startswith("/")
        place = as_path(recorded) if is_whole else (self.directory / recorded).resolve()
        above = [folder / "tokens" / place.name for folder in self.directory.resolve().parents]
        found = next((path for path in (place, *above) if path.is_dir()), None)
        if found is None:
            raise UserError(
                f"{self.directory}: its token blocks are not in {place}: without them it can "
                f"neither be scored nor exported nor resumed; copy tokens/{place.name} and "
                "tokens/heldout of the storage in which it was trained to "
                f"{self.directory.resolve().parent / 'tokens'}"
            )
        return found

    # ---- what it has done

    @property
    def is_finished(self) -> bool:
        """Whether the run has left its result and its last evaluation."""
        last = self.evaluation_path(self.plan.num_steps)
        return (self.directory / RESULT).is_file() and last.is_file()

    @property
    def divergence(self) -> Divergence | None:
        """Where it diverged, which ended it; None if it did not."""
        return Divergence.read(self.directory / DIVERGED)

    @property
    def stopped(self) -> Stopped | None:
        """Why a search has stopped it; None if none has."""
        return Stopped.read(self.directory / STOPPED)

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is left to train: it is finished, or has diverged."""
        return self.is_finished or (self.directory / DIVERGED).is_file()

    @property
    def result(self) -> Result | None:
        """What it took; None unless it is finished."""
        return Result.read(self.directory / RESULT)

    @cached_property
    def log(self) -> "StepLog":
        """Its steps."""
        return StepLog.read(self.directory / METRICS)

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Ascending in ``step``."""
        return _all_in(self.directory / "evaluations", Evaluation)

    @property
    def comparable_evaluations(self) -> tuple[Evaluation, ...]:
        """Those on the same held-out targets as the last one: a run that was stopped may go on with
        others."""
        targets = {evaluation.targets_sha256 for evaluation in self.evaluations[-1:]}
        return tuple(each for each in self.evaluations if each.targets_sha256 in targets)

    @property
    def is_scored_between(self) -> bool:
        """Whether it was also scored where no stage ends."""
        plan = self.plan
        ends = plan.marked_ends if plan.evaluate_stage_ends else (plan.num_steps,)
        return len(self.evaluations) > len(ends)

    @cached_property
    def boundaries(self) -> tuple[BoundaryRecord, ...]:
        """The stage boundaries that were reached, ascending in ``step``."""
        return _all_in(self.directory / "boundaries", BoundaryRecord)

    def forget_after(self, step: int) -> None:
        """Remove what was scored after ``step``, from which the run goes on: those weights are
        lost, and on a GPU others take their place."""
        for folder in ("evaluations", "boundaries"):
            for path in (self.directory / folder).glob("step-*.json"):
                if step_of(path) > step:
                    remove(path)
        for boundary in self.plan.boundaries:
            if boundary.step <= step < boundary.rescore_step:
                path = self.boundary_path(boundary.step)
                if (record := BoundaryRecord.read(path)) and record.after:
                    record.model_copy(update={"after": {}}).write(path)

    @cached_property
    def calibration(self) -> Calibration | None:
        """What gave its stages their steps; None where nothing was calibrated."""
        return Calibration.read(self.directory.parent / CALIBRATION)

    @cached_property
    def stages(self) -> "tuple[RunStage, ...]":
        """Its stages, each with what became of it."""
        return tuple(RunStage(self, index) for index in range(len(self.plan.stages)))

    @property
    def latest(self) -> Evaluation | None:
        """The last evaluation so far; that of the trained model once the run is finished."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def steps_done(self) -> int:
        """Steps trained so far."""
        if self.is_finished:
            return self.plan.num_steps
        return int(self.log.step[-1]) if len(self.log.step) else 0

    @property
    def tokens(self) -> int:
        """Tokens trained so far."""
        return self.plan.tokens_after(self.steps_done)

    @property
    def calibrated_seconds(self) -> float | None:
        """Calibrated seconds so far; None without a calibration."""
        return self.plan.calibrated_seconds(self.steps_done)

    @property
    def measured_seconds(self) -> float:
        """Training seconds measured so far."""
        if (result := self.result) is not None:
            return result.measured_seconds
        return float(self.log.measured_seconds[-1]) if len(self.log.step) else 0.0

    def gradient_rise(self, boundary: BoundaryRecord) -> float | None:
        """The largest gradient norm between a boundary and its ``rescore_step`` over the median of
        the ``WATCHED_STEPS`` before; None until a step is logged there."""
        before = self.log.grad_norm[max(boundary.step - WATCHED_STEPS, 0) : boundary.step]
        after = self.log.grad_norm[boundary.step : boundary.rescore_step]
        return float(after.max() / np.median(before)) if len(before) and len(after) else None


@dataclass(frozen=True)
class RunStage:
    """One stage of a run: planned, trained, timed and scored."""

    run: Run
    index: int

    @property
    def planned(self) -> StagePlan:
        """Its steps and their calibrated cost."""
        return self.run.plan.stages[self.index]

    @property
    def seq_len(self) -> int:
        """Length of its windows in tokens."""
        return self.planned.seq_len

    @property
    def steps_trained(self) -> int:
        """Steps trained so far."""
        return self.planned.steps_before(self.run.steps_done)

    @property
    def tokens_trained(self) -> int:
        """Targets trained so far."""
        return self.steps_trained * self.planned.tokens_per_batch

    @property
    def calibrated_seconds(self) -> float | None:
        """Calibrated seconds so far; None without a calibration."""
        cost = self.planned.step_microseconds
        return None if cost is None else self.steps_trained * cost / MICROSECONDS

    @property
    def measured_seconds(self) -> float | None:
        """Measured seconds of the whole stage, by the clocks of the evaluations at its ends, where
        the host has waited for the device; None until its end is evaluated."""
        clocks = {0: 0.0} | {e.step: e.measured_seconds for e in self.run.evaluations}
        first, end = (clocks.get(n) for n in (self.planned.first_step, self.planned.end_step))
        return None if first is None or end is None else end - first

    @property
    def evaluation(self) -> Evaluation | None:
        """The held-out losses at its end; None until it is evaluated."""
        end = self.planned.end_step
        return next((scored for scored in self.run.evaluations if scored.step == end), None)


@dataclass(frozen=True)
class StepLog:
    """``metrics.jsonl`` as columns, one entry for each step that was trained."""

    step: np.ndarray
    """int64[steps]: steps completed."""
    tokens: np.ndarray
    """int64[steps]: tokens trained so far."""
    loss: np.ndarray
    """float64[steps]: training loss, nats per token; NaN where the run diverged."""
    grad_norm: np.ndarray
    """float64[steps]: before clipping."""
    update_norm: np.ndarray
    """float64[steps]: NaN away from stage boundaries."""
    lr: np.ndarray
    """float64[steps]."""
    calibrated_seconds: np.ndarray | None
    """float64[steps], cumulated; None without a calibration."""
    measured_seconds: np.ndarray
    """float64[steps], cumulated, training alone."""
    data_wait_seconds: np.ndarray
    """float64[steps]: how long the step waited for its batch."""

    @classmethod
    def read(cls, path: AnyPath) -> "StepLog":
        """The whole lines of a file, as one may be being written. Raises UserError."""
        lines = read_log(path).split(b"\n")[:-1]
        steps = [Step.of_line(line, f"{path}: line {n}") for n, line in enumerate(lines, 1)]
        columns: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            dtype = np.int64 if Step.model_fields[name].annotation is int else np.float64
            columns[name] = np.array([getattr(step, name) for step in steps], dtype)  # None is NaN
        if np.isnan(columns["calibrated_seconds"]).any():
            columns["calibrated_seconds"] = None
        return cls(**columns)


def open_runs(paths: Sequence[AnyPath]) -> list[Run]:
    """The runs of each path, a run's directory or a pipeline's that holds runs.

    In the order of the paths; within a pipeline's directory arm by arm as its ``spec.yaml`` lists
    them, else by name, then by seed. A run given twice is read once. Raises UserError if a path
    holds no run.
    """
    directories: dict[AnyPath, None] = {}
    for path in paths:
        is_run = (path / "run.json").is_file()
        inside = [] if is_run else matching(path, "*/run.json")
        found = [file.parent for file in inside] or [path]
        directories |= {directory.absolute(): None for directory in found}
    runs = [Run.open(directory) for directory in directories]
    parents = list(dict.fromkeys(run.directory.parent for run in runs))
    arms = {parent: _arm_order(parent) for parent in parents}

    def place(run: Run) -> tuple[Any, ...]:
        parent = run.directory.parent
        known = arms[parent]
        index = known.index(run.arm) if run.arm in known else len(known)
        return parents.index(parent), index, _natural(run.arm), run.seed

    return sorted(runs, key=place)


def pipeline_directory(spec: PipelineSpec) -> AnyPath:
    """``<storage>/<name>``, absolute."""
    return storage_path(spec.compute) / spec.name


def run_directory(spec: PipelineSpec, arm: str, seed: int) -> AnyPath:
    """Where the run of an arm under a seed lies."""
    return pipeline_directory(spec) / run_name(arm, seed)


def is_calibration_missing(spec: PipelineSpec) -> bool:
    """Whether a calibration is still to be measured, one that decides the steps or one on
    request."""
    if spec.needs_calibration:
        return with_calibration(spec).calibration is None
    recorded = Calibration.read(pipeline_directory(spec) / CALIBRATION)
    known = recorded.step_microseconds if recorded else {}
    return spec.compute.calibrate and not known.keys() >= set(spec.all_seq_lens)


def calibrated_conditions(spec: PipelineSpec) -> dict[str, Any]:
    """What a step's cost depends on, beside its length and the machine."""
    fields = ("model", "tokens_per_batch", "precision", "attention")
    return spec.model_dump(mode="json", include={*fields})


def with_calibration(spec: PipelineSpec) -> PipelineSpec:
    """The spec with the calibration of its pipeline's directory, if it needs one and has none.

    A calibration counts once a run has started with it: before that it is measured again. Raises
    UserError for one of other steps, whose costs are not those of this pipeline's.
    """
    directory = pipeline_directory(spec)
    if not spec.needs_calibration or spec.calibration is not None:
        return spec
    recorded = Calibration.read(directory / CALIBRATION)
    if recorded is None or not any(directory.glob("*/run.json")):
        return spec
    if recorded.conditions and (
        changes := differences(recorded.conditions, calibrated_conditions(spec))
    ):
        raise UserError(
            f"{directory / CALIBRATION}: was measured for other steps than the pipeline's "
            f"({'; '.join(changes)}), so runs planned by it would not take the declared time; give "
            "the pipeline another name (--set name=…)"
        )
    return spec.derive(calibration={"step_microseconds": recorded.step_microseconds})


def _arm_order(directory: AnyPath) -> list[str]:
    """The arms' names as a pipeline's ``spec.yaml`` lists them; empty if it cannot be read."""
    try:
        spec = yaml.safe_load((directory / "spec.yaml").read_text(encoding="utf-8"))
        return [arm["name"] for arm in spec["arms"]]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        return []


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``llm128`` before ``llm1024``."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def _all_in(folder: AnyPath, kind: type[AnyRecord]) -> tuple[AnyRecord, ...]:
    """The records of a folder in the order of their steps."""
    records = [kind.read(path) for path in matching(folder, "step-*.json")]
    return tuple(record for record in records if record is not None)
