"""Parents: the runs of another pipeline whose states the runs of this one go on from.

The stages of its parent come first in such a run's plan, and what the parent recorded of them is
the run's own (``glray.run.forks`` copies it): its tokens, clocks and plots tell the whole path.
Only what comes after the parent's step is trained, and only that is the declared budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from glray.errors import UserError
from glray.files import AnyPath, as_path
from glray.plan import StagePlan
from glray.run.checkpoint import checkpoint_path, committed_checkpoints, step_of
from glray.run.records import ParentRecord
from glray.run.run import METRICS, Run, pipeline_directory
from glray.spec.fork import Fork, StageEnd
from glray.spec.pipeline import PipelineSpec
from glray.storage import storage_path
from glray.tree import run_name


@dataclass(frozen=True)
class Parent:
    """A run, and the number of its steps after which another run goes on."""

    run: Run
    step: int

    @property
    def record(self) -> ParentRecord:
        """What ``run.json`` of its children says about it."""
        manifest = self.run.manifest
        return ParentRecord(
            pipeline=manifest.pipeline,
            run=run_name(manifest.arm, manifest.seed),
            fingerprint=manifest.fingerprint,
            step=self.step,
            tokens=self.run.plan.tokens_after(self.step),
            parent=manifest.parent,
        )

    @property
    def identity(self) -> dict[str, object]:
        """The part of its identity that decides its children's weights."""
        return {"fingerprint": self.run.manifest.fingerprint, "step": self.step}

    @property
    def stages(self) -> tuple[StagePlan, ...]:
        """Its stages up to the step, with all of their weights. The end of the last is marked, as
        that of any run."""
        usual = tuple(source.weight for source in self.run.spec.sources)
        return tuple(
            stage.model_copy(
                update={
                    "num_steps": stage.steps_before(self.step),
                    "weights": stage.weights or usual,
                    "mark_end": stage.mark_end or stage.end_step >= self.step,
                }
            )
            for stage in self.run.plan.stages
            if stage.first_step < self.step
        )

    @property
    def rope_parameters(self) -> tuple[dict[str, Any], ...]:
        """Rotary positions of these stages."""
        return self.run.manifest.rope_parameters[: len(self.stages)]

    @property
    def checkpoint(self) -> AnyPath:
        """Its state. Raises UserError if there is none, or if it may be deleted while the run
        trains on."""
        run, where = self.run, f"start: {self.run.directory}"
        steps = [step_of(path) for path in committed_checkpoints(run.checkpoints)]
        keep = 'train the parent with compute.keep_checkpoints="stages" or "all"'
        if self.step not in steps or not (run.directory / METRICS).exists():
            there = f"only of {', '.join(f'{step:,}' for step in steps)}" if steps else "of no step"
            raise UserError(
                f"{where}: has a checkpoint {there}, not of step {self.step:,}: there is no state "
                f"to go on from; set start.at to a step that it has, or {keep}"
            )
        if not run.has_ended and self.step not in run.kept_steps:
            raise UserError(
                f"{where}: its checkpoint of step {self.step:,} is deleted as it trains on to step "
                f"{run.plan.num_steps:,}, perhaps before every run has gone on from it; let it "
                f"end, or {keep}"
            )
        return checkpoint_path(run.checkpoints, self.step)


@dataclass(frozen=True)
class Parents:
    """What the runs of a pipeline with a ``start`` go on from: one under each seed."""

    by_seed: Mapping[int, Parent]

    @classmethod
    def of(cls, spec: PipelineSpec) -> "Parents":
        """The parents that the spec's ``start`` names. Raises UserError, also if its runs could not
        go on from them."""
        assert spec.start is not None
        parents = cls({seed: _parent(spec, spec.start, seed) for seed in spec.seeds})
        for parent in parents.by_seed.values():
            _check_goes_on(spec, parent)
            if parent.run.manifest.architecture != parents.architecture:
                raise UserError(
                    f"start: {parent.run.directory} and {parents.first.run.directory} are not the "
                    "same model: the seeds would not compare; go on from runs of one pipeline, or "
                    "set seeds to one of them"
                )
        return parents

    @property
    def first(self) -> Parent:
        """That of the first seed."""
        return next(iter(self.by_seed.values()))

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """The model's configuration in ``transformers``' words."""
        return self.first.run.manifest.architecture


def stages_before(spec: PipelineSpec) -> tuple[StagePlan, ...]:
    """The stages that the pipeline's runs go on after, under its first seed; none unless it has a
    ``start``. Raises UserError."""
    return Parents.of(spec).first.stages if spec.start is not None else ()


def _parent(spec: PipelineSpec, start: Fork, seed: int) -> Parent:
    directory = _directory(spec, start, seed)
    if directory.resolve().parent == pipeline_directory(spec):
        raise UserError(
            f"start.run: {start.run} is a run of the pipeline {spec.name} itself: its directory "
            "would mix parents and children; give this pipeline another name (--set name=…)"
        )
    run = Run.open(directory)
    if run.seed != seed:
        raise UserError(
            f"start.run: {start.run} is a run of seed {run.seed}, which read the tokens in another "
            f"order than seed {seed} does: set seeds to {run.seed} alone, or name the arm, "
            f"{directory.parent / run.arm}, so that each seed goes on from its own run"
        )
    return Parent(run, _step(run, start))


def _directory(spec: PipelineSpec, start: Fork, seed: int) -> AnyPath:
    """The parent's directory: where the spec says or, as in a storage that was moved, in its
    pipeline's directory of this storage. Raises UserError."""
    named = as_path(start.run)
    places = (named, storage_path(spec.compute).joinpath(*named.parts[-2:]))
    for place in places:
        for directory in (place, place.with_name(run_name(place.name, seed))):
            if (directory / "run.json").is_file():
                return directory
    raise UserError(
        f"start.run: no run under seed {seed} in {run_name(str(named), seed)}: there is nothing to "
        "go on from; train it first, or name <pipeline's directory>/<arm>, such as "
        "runs/quickstart/growlength"
    )


def _step(run: Run, start: Fork) -> int:
    where, plan = f"start: {run.directory}", run.plan
    if start.at == "end":
        if not run.is_finished:
            raise UserError(
                f"{where}: trained {run.steps_done:,} of {plan.num_steps:,} steps, so it has no "
                "end to go on from; let it finish, or set start.at to a step that it keeps"
            )
        return plan.num_steps
    if isinstance(start.at, StageEnd):
        if start.at.stage >= len(plan.stages):
            raise UserError(
                f"{where}: has {len(plan.stages)} stages, start.at names stage {start.at.stage}, "
                f"which it never trains; give 0 to {len(plan.stages) - 1}"
            )
        end = plan.stage_ends[start.at.stage]
        if end not in plan.marked_ends:
            raise UserError(
                f"{where}: its stage {start.at.stage} is declared with mark_end=False, so it has "
                f"no checkpoint of its end, step {end:,}: there is no state to go on from; set "
                "start.at to a number of steps that it keeps, or train the parent without that"
            )
        return end
    if start.at > plan.num_steps:
        raise UserError(
            f"{where}: ends at step {plan.num_steps:,}, start.at is {start.at:,}, which it never "
            f"reaches; give 1 to {plan.num_steps:,}"
        )
    return start.at


def _check_goes_on(spec: PipelineSpec, parent: Parent) -> None:
    """Raises UserError if what the spec declares does not fit the parent's path."""
    where, chunk_len = f"start: {parent.run.directory}", parent.run.plan.chunk_len
    if spec.chunk_tokens != chunk_len:
        longest, remedy = max(spec.all_seq_lens), f"set chunk_len={chunk_len}"
        if longest > chunk_len:
            remedy = (
                f"lengths up to {chunk_len:,} can be added, longer ones only to a run that was "
                f"trained with chunk_len={longest} from its start"
            )
        raise UserError(
            f"{where}: its tokens were read in chunks of {chunk_len:,} tokens, this pipeline's are "
            f"{spec.chunk_tokens:,}: some would be read twice and others never; {remedy}"
        )
    if spec.needs_calibration and parent.run.plan.calibrated_seconds(parent.step) is None:
        raise UserError(
            f"{where}: was trained without a calibration, and seconds decide here: the path's "
            "seconds would be unknown; set budget.tokens (budget.seconds=null) and "
            "ratios_in=tokens"
        )
