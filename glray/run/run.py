"""A run: one arm under one seed, its identity, and its directory of records.

``<storage>/<pipeline>/`` holds ``spec.yaml``, ``calibration.json``, ``events.log``, a progress file
of each worker group (``progress.json``, …) and one directory a run: ``run.json``, ``spec.yaml``,
``metrics.jsonl``, ``tensorboard/``, ``evaluations/``, ``boundaries/``, ``checkpoints/``,
``model/`` and, written last, ``result.json``.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from glray.data.corpus import PreparedCorpus, open_corpus
from glray.data.order import ChunkOrder
from glray.data.targets import heldout_targets
from glray.errors import UserError
from glray.files import read_record, write_json, write_text
from glray.model.config import embedding_rows, model_config, starting_model
from glray.model.flops import training_flops_per_token
from glray.model.positions import rope_parameters
from glray.model.pretrained import PretrainedFolder
from glray.plan import MICROSECONDS, Plan, make_plan
from glray.run.profile import prices_of, profile_path, read_profile
from glray.run.records import Execution
from glray.spec.compute import ComputeSpec
from glray.spec.identity import differences, fingerprint, training_identity
from glray.spec.loading import load_pipeline, to_yaml
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec, CalibrationSpec
from glray.storage import storage_path


@dataclass(frozen=True)
class Run:
    """One arm under one seed, settled: nothing about it is decided later."""

    directory: Path
    spec: PipelineSpec
    arm: ArmSpec
    seed: int
    plan: Plan
    corpus: PreparedCorpus
    model_config: PreTrainedConfig
    init_sha256: str | None
    """Of the folder that the run starts from; None of a declared model."""

    @property
    def identity(self) -> dict[str, object]:
        """What decides the run's weights."""
        return training_identity(
            self.spec, self.arm, self.seed, self.corpus.identity, self.init_sha256
        )

    @property
    def order(self) -> ChunkOrder:
        """The order of its tokens: the same for all arms of the seed."""
        return self.corpus.order(self.plan.chunk_len, self.seed)

    @cached_property
    def stage_flops_per_token(self) -> tuple[int, ...]:
        """Model FLOPs of one target token at each stage's length, forward and backward."""
        config = self.model_config
        return tuple(training_flops_per_token(config, stage.seq_len) for stage in self.plan.stages)

    def rope_parameters(self, stage: int) -> dict[str, Any]:
        """Where a stage places rotary positions, in ``transformers``' words."""
        return rope_parameters(self.arm.positions, self.model_config, self.arm.seq_lens, stage)

    def model_flops(self, num_steps: int) -> int:
        """Model FLOPs of the first ``num_steps`` steps, each token's at its stage's length."""
        total = 0
        for stage, flops_per_token in zip(
            self.plan.stages, self.stage_flops_per_token, strict=True
        ):
            inside = min(max(num_steps - stage.first_step, 0), stage.num_steps)
            total += inside * self.plan.tokens_per_batch * flops_per_token
        return total

    @property
    def name(self) -> str:
        """``growlength-seed0``."""
        return self.directory.name

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.directory / "checkpoints"

    @property
    def is_finished(self) -> bool:
        """Whether the run has left its result and its last evaluation."""
        last = self.evaluation_path(self.plan.num_steps)
        return (self.directory / "result.json").exists() and last.exists()

    def evaluation_path(self, step: int) -> Path:
        """Where the evaluation after ``step`` steps is recorded."""
        return self.directory / "evaluations" / f"step-{step:08d}.json"

    def boundary_path(self, step: int) -> Path:
        """Where the stage boundary after ``step`` steps is recorded."""
        return self.directory / "boundaries" / f"step-{step:08d}.json"


def pipeline_directory(spec: PipelineSpec) -> Path:
    """``<storage>/<name>``, absolute."""
    return storage_path(spec.compute) / spec.name


def settle(spec: PipelineSpec, corpus: PreparedCorpus) -> list[Run] | None:
    """Every run of the pipeline, seed by seed; None while a calibration is needed and missing.

    Raises UserError for a plan that cannot be, a corpus smaller than a batch, a folder that no run
    can start from, a vocabulary larger than the model's, held-out documents shorter than a window,
    a run's directory that holds another identity, positions that the
    model cannot be given, or a tracker that is not installed.
    """
    check_tracker(spec.compute)
    check_corpus_size(spec, corpus)
    start = starting_model(spec)
    embedding_rows(start, corpus.vocab_size)
    init_sha256 = start.sha256 if isinstance(start, PretrainedFolder) else None
    heldout_targets(corpus, spec.evaluation)
    spec = with_calibration(spec)
    directory = pipeline_directory(spec)
    runs = []
    for seed in spec.seeds:
        for arm in spec.trained_arms:
            plan = make_plan(spec, arm)
            if plan is None:
                return None
            config = model_config(
                start,
                vocab_size=corpus.vocab_size,
                eos_id=corpus.eos_id,
                max_seq_len=max(arm.seq_lens),
            )
            own = directory / f"{arm.name}-seed{seed}"
            run = Run(own, spec, arm, seed, plan, corpus, config, init_sha256)
            for stage in range(len(arm.stages)):
                run.rope_parameters(stage)
            check_identity(run)
            runs.append(run)
    return runs


def with_calibration(spec: PipelineSpec) -> PipelineSpec:
    """The spec with the calibration of its pipeline's directory, if it needs one and has none.

    A calibration counts once a run has started with it: before that it is measured anew.
    """
    if not spec.needs_calibration or spec.calibration is not None:
        return spec
    directory = pipeline_directory(spec)
    costs = recorded_calibration(directory / "calibration.json")
    if costs is None or not any(directory.glob("*/run.json")):
        return spec
    return spec.derive(calibration=CalibrationSpec(step_microseconds=costs))


def recorded_calibration(path: Path) -> dict[int, int] | None:
    """Microseconds of a step by sequence length, as ``path`` records them; None if it is not there.

    Raises UserError if it is damaged.
    """
    recorded = read_record(path, "step_microseconds")
    if recorded is None:
        return None
    return {int(length): cost for length, cost in recorded["step_microseconds"].items()}


def check_corpus_size(spec: PipelineSpec, corpus: PreparedCorpus) -> None:
    """Raises UserError if an epoch of a source has no chunk, or all have less than one batch."""
    order = corpus.order(spec.chunk_tokens, seed=0)
    remedy = "give more text, or lower tokens_per_batch or chunk_len"
    available = 0
    for index, source in enumerate(corpus.sources):
        available += order.num_chunks(index) * spec.chunk_tokens
        if order.num_chunks(index) == 0:
            raise UserError(
                f"corpus: {source.name}: {source.blocks.num_tokens:,} training tokens are less "
                f"than a chunk of {spec.chunk_tokens:,} and a token: it would never be read; "
                f"{remedy}"
            )
    if available < spec.tokens_per_batch:
        raise UserError(
            f"corpus: its training tokens make {available:,} in whole chunks of "
            f"{spec.chunk_tokens:,}, less than one batch of {spec.tokens_per_batch:,}: no step "
            f"could be filled; {remedy}"
        )


def check_identity(run: Run) -> None:
    """Raises UserError if the run's directory was started by another identity."""
    recorded = read_record(run.directory / "run.json", "fingerprint", "identity")
    if recorded is None or recorded["fingerprint"] == fingerprint(run.identity):
        return
    changes = differences(recorded["identity"], run.identity)
    shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    raise UserError(
        f"{run.directory}: holds run {recorded['fingerprint']}, this spec is "
        f"{fingerprint(run.identity)} ({shown}): its records would mix two runs; use another name "
        f"(--set name={run.spec.name}-2), for a comparison another --set compute.storage=…, or "
        "delete the directory"
    )


def check_tracker(compute: ComputeSpec) -> None:
    """Raises UserError if a Weights & Biases project is named and its package is missing."""
    if compute.wandb_project is not None and find_spec("wandb") is None:
        raise UserError(
            f"compute.wandb_project {compute.wandb_project}: the package wandb is not installed, "
            "nothing would be tracked there; pip install 'glray[wandb]', or set it to null"
        )


def write_run(run: Run, environment: dict[str, Any], executed: Execution, step: int) -> list[str]:
    """Write ``run.json`` and the run's own resolved ``spec.yaml`` as it goes on from ``step``.

    ``run.json`` lists every execution with the step that it began at. Returns what of this one
    differs from the one before, ``num_workers 2 → 3``: from here on bits may differ too.
    """
    plan = run.plan
    executed = executed.at(tuple(stage.seq_len for stage in plan.stages))
    recorded = read_record(run.directory / "run.json", "executions", "plan") if step else None
    predicted = (
        recorded["plan"].get("predicted_seconds") if recorded else _predicted_seconds(run, executed)
    )
    executions = recorded["executions"] if recorded else []
    executions = [entry for entry in executions if entry["first_step"] < step]
    changes = executed.differences(executions[-1]) if executions else []
    if changes or not executions:
        executions.append({"first_step": step} | asdict(executed))
    stages = [
        {
            "seq_len": stage.seq_len,
            "rows": stage.rows,
            "first_step": stage.first_step,
            "num_steps": stage.num_steps,
            "step_microseconds": stage.step_microseconds,
        }
        for stage in plan.stages
    ]
    own = run.spec.derive(
        arms=[run.arm], only=None, seeds=[run.seed], search=None, chunk_len=plan.chunk_len
    )
    write_text(run.directory / "spec.yaml", to_yaml(own))
    write_json(
        run.directory / "run.json",
        {
            "pipeline": run.spec.name,
            "arm": run.arm.name,
            "seed": run.seed,
            "fingerprint": fingerprint(run.identity),
            "identity": run.identity,
            "model_config": run.model_config.to_dict(),
            "tokens_directories": run.corpus.directories,
            "environment": environment,
            "executions": executions,
            "plan": {
                "tokens_per_batch": plan.tokens_per_batch,
                "num_steps": plan.num_steps,
                "budget_seconds": run.spec.budget.seconds,
                "budget_tokens": run.spec.budget.tokens,
                "predicted_seconds": predicted,
                "stages": stages,
            },
        },
    )
    return changes


def _predicted_seconds(run: Run, executed: Execution) -> float | None:
    """Of all steps, by a profile of the pipeline, which is of one worker; None without one."""
    if executed.num_workers > 1:
        return None
    try:
        profile = read_profile(profile_path(run.spec))
    except UserError:  # glray plan and glray run have said it
        return None
    costs = prices_of(profile, run.spec, {stage.seq_len for stage in run.plan.stages})
    if costs is None:
        return None
    microseconds = costs.step_microseconds
    total = sum(stage.num_steps * microseconds[stage.seq_len] for stage in run.plan.stages)
    return total / MICROSECONDS


def find_run(directory: Path) -> Run:
    """The run of a run's directory, as it was started: a folder that it started from is not needed
    any more. Raises UserError."""
    recorded = read_record(
        directory / "run.json", "identity", "model_config", "tokens_directories", "seed"
    )
    if recorded is None:
        raise UserError(
            f"{directory}: not a run's directory, it has no run.json; give one such as "
            "runs/quickstart/growlength-seed0"
        )
    spec = load_pipeline(directory / "spec.yaml")
    arm = spec.arms[0]
    plan = make_plan(spec, arm)
    assert plan is not None, "a run's spec has its calibration"
    try:
        corpus = open_corpus(spec, recorded["tokens_directories"])
        config = AutoConfig.for_model(**recorded["model_config"])
        init_sha256 = recorded["identity"].get("init")
        seed = int(recorded["seed"])
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"{directory / 'run.json'}: damaged, it is not as glray wrote it ({error}); restore it"
        ) from None
    return Run(directory, spec, arm, seed, plan, corpus, config, init_sha256)
