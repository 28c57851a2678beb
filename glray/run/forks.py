"""Forks: a run begins with steps that another run has trained: one of its own pipeline or, as its
parent, one of another pipeline.

What the trunk has recorded up to the fork becomes the run's own, as if it had trained these steps
itself, and the trunk's checkpoint becomes its first. ``glray.tree`` says who forks from whom within
a pipeline, and ``glray.run.parent`` what the runs of a pipeline go on from.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from glray.errors import UserError
from glray.files import AnyPath, copy_tree, read_log, remove_tree, write_log, write_text
from glray.plan import WATCHED_STEPS, Event, Plan, make_plan
from glray.run.checkpoint import (
    COMMITTED,
    adopt,
    checkpoint_path,
    committed_checkpoints,
    prune,
    state_of,
    step_of,
)
from glray.run.parent import Parent
from glray.run.records import BoundaryRecord, ForkRecord, ParentRecord, Step, TrainState
from glray.run.run import ENDS, METRICS, Run, pipeline_directory
from glray.spec.loading import to_yaml
from glray.spec.pipeline import PipelineSpec
from glray.tree import Branch, Trajectory, run_name, tree

OWN = ("stages", "positions", "ratios_in", "step_microseconds", "optimizer")
"""Parts of a run's identity that its trajectory covers; runs that share steps have the rest in
common."""


class RunTree:
    """The runs of a call in the order of training, and the other runs that their pipeline declares:
    a later call may train these, and they may fork from a run of this call."""

    branches: tuple[Branch, ...]
    """Of the runs of the call, in order."""

    def __init__(self, spec: PipelineSpec, runs: Sequence[Run]) -> None:
        self._directory = pipeline_directory(spec)
        self._runs = {run.name: run for run in runs}
        called, others = [_trajectory(run) for run in runs], list(_not_called(spec, runs))
        self._declared = [*called, *others]
        self.branches = tuple(tree(called))
        self._branch = {branch.trajectory.name: branch for branch in self.branches}
        self.may_grow = False
        """Whether runs may join that are not declared yet, so that any end of a stage may be a
        fork."""
        self._children: dict[str, dict[str, int]] = {}
        """For each trunk: who forks from it, and at which step."""
        for branch in (*self.branches, *(tree(self._declared) if others else ())):
            if branch.trunk is not None:
                children = self._children.setdefault(branch.trunk.name, {})
                children[branch.trajectory.name] = branch.fork_step

    @property
    def runs(self) -> list[Run]:
        """The runs of the call, in order."""
        return [self._runs[branch.trajectory.name] for branch in self.branches]

    def trunk(self, run: Run) -> str | None:
        """Name of the run of the call that trains what this one shares; None if none does."""
        trunk = self._branch[run.name].trunk
        return None if trunk is None else trunk.name

    def is_ready(self, run: Run) -> bool:
        """Whether the run need not wait: its trunk has come to the fork, or has ended."""
        branch = self._branch[run.name]
        if branch.trunk is None or has_begun(run.directory):
            return True
        return has_begun(self._directory / branch.trunk.name, branch.fork_step)

    def needed(self, name: str) -> dict[int, list[str]]:
        """The steps whose checkpoints of the run ``name`` others are still to fork from, and
        which."""
        steps: dict[int, list[str]] = {}
        if self.may_grow and name in self._runs:
            steps = {step: ["a later trial"] for step in self._runs[name].plan.marked_ends[:-1]}
        for child, step in self._children.get(name, {}).items():
            if not has_begun(self._directory / child):
                steps.setdefault(step, []).append(child)
        return steps

    def fork(self, run: Run) -> ForkRecord | None:
        """Let a run that has not begun begin with what another run of its pipeline has trained of
        the same trajectory; None if there is nothing. Checkpoints of the trunk that no
        other run needs are deleted. Raises UserError for a damaged record."""
        if has_begun(run.directory) or (record := self._forked(run)) is None:
            return None
        for trunk, children in self._children.items():
            if run.name in children:
                self._prune(trunk)
        return record

    def _forked(self, run: Run) -> ForkRecord | None:
        while (source := self._source(run)) is not None:
            try:
                return _fork(run, *source)
            except FileNotFoundError:
                trunk, step = source  # which may train on, and then delete older checkpoints
                if (checkpoint_path(trunk.checkpoints, step) / COMMITTED).exists():
                    raise
        return None

    def _prune(self, trunk: str) -> None:
        directory = self._directory / trunk
        if (directory / "run.json").exists():
            run = Run.open(directory)
            if not run.has_ended:  # one that has keeps what it was trained to keep
                run = self._runs.get(trunk, run)
            prune(run.checkpoints, {*self.needed(trunk), *run.kept_steps})

    def _source(self, run: Run) -> tuple[Run, int] | None:
        """The run whose checkpoint to fork from, and the step: the latest that is shared."""
        trajectory, places = self._branch[run.name].trajectory, []
        for other in self._declared:
            if other.name != run.name and (shared := trajectory.usable_steps(other)):
                committed = committed_checkpoints(self._directory / other.name / "checkpoints")
                steps = map(step_of, committed)
                places += [(n, other) for n in steps if run.plan.first_step < n <= shared]
        for step, other in sorted(places, key=lambda place: -place[0]):
            trunk = Run.open(self._directory / other.name)
            is_it = trajectory.usable_steps(_trajectory(trunk)) >= step
            if is_it and _root(trunk) == _root(run) and _has_recorded(trunk, step, run):
                return trunk, step
        return None


def _trajectory(run: Run) -> Trajectory:
    return Trajectory.of(run.spec, run.spec.arms[0], run.seed, run.plan)


def _not_called(spec: PipelineSpec, runs: Sequence[Run]) -> Iterator[Trajectory]:
    """The pipeline's other runs under the seeds of the call."""
    called = {run.name for run in runs}
    before = {run.seed: run.plan.inherited for run in runs}
    for arm, seed in product(spec.arms, spec.seeds):
        if run_name(arm.name, seed) in called:
            continue
        try:
            plan = make_plan(spec, arm, before[seed])
        except UserError:  # it is raised when the arm is trained
            continue
        if plan is not None:
            yield Trajectory.of(spec, arm, seed, plan)


def has_begun(directory: AnyPath, num_steps: int = 1) -> bool:
    """Whether a run has ended, or has saved a checkpoint of so many steps."""
    committed = committed_checkpoints(directory / "checkpoints")
    reached = bool(committed) and step_of(committed[-1]) >= num_steps
    return reached or any((directory / end).is_file() for end in ENDS)


def _root(run: Run) -> dict[str, object]:
    """The part of the identity that runs must have in common, beside their trajectories, to share
    steps."""
    return {name: value for name, value in run.manifest.identity.items() if name not in OWN}


def _has_recorded(trunk: Run, num_steps: int, run: Run) -> bool:
    """Whether the trunk's first ``num_steps`` were logged, and scored before the last of them, as
    the run would have done."""
    has_logged = all(
        trunk.plan.is_watched(step)
        for boundary in run.plan.boundaries
        for step in range(max(boundary.step - WATCHED_STEPS, 0), min(boundary.step, num_steps))
    )
    if not has_logged or not _scores_alike(trunk, run) or _scores_as_often(trunk, run):
        return has_logged
    scored = {evaluation.step for evaluation in trunk.evaluations}
    between = range(run.plan.first_step + 1, num_steps)
    return all(n in scored for n in between if Event.EVALUATE in run.plan.events_after(n))


def _scores_as_often(trunk: Run, run: Run) -> bool:
    its, own = trunk.plan, run.plan
    return (its.evaluate_every_tokens, its.evaluate_stage_ends) == (
        own.evaluate_every_tokens,
        own.evaluate_stage_ends,
    )


def begin(run: Run, parent: Parent) -> ParentRecord | None:
    """Let a run that has not begun begin with its parent's state and records; None if it has.
    Raises UserError if the parent has no such state."""
    if has_begun(run.directory):
        return None
    _take_over(run, parent.run, parent.step, parent.checkpoint)
    return parent.record


def _fork(run: Run, trunk: Run, step: int) -> ForkRecord:
    source = checkpoint_path(trunk.checkpoints, step)
    record = ForkRecord(
        run=trunk.name,
        step=step,
        calibrated_seconds=run.plan.own_seconds(step),
        measured_seconds=_measured_seconds(trunk, run.plan.first_step, state_of(source)),
    )
    _take_over(run, trunk, step, source, record)
    return record


def _measured_seconds(trunk: Run, first_step: int, state: TrainState) -> float:
    """Measured seconds up to a state, without those of the parent's steps."""
    before = trunk.log.measured_seconds[first_step - 1] if first_step else 0.0
    return state.measured_seconds - float(before)


def _take_over(
    run: Run, trunk: Run, step: int, source: AnyPath, fork: ForkRecord | None = None
) -> None:
    """Copy the trunk's records up to ``step``, and commit its checkpoint last: a fork that is
    killed is done again. Evaluations on other targets than the run's, or without a length that it
    scores, are left out."""
    for folder in ("evaluations", "boundaries", "tensorboard"):
        remove_tree(run.directory / folder)
    write_log(run.directory / METRICS, [line.encode() for line in _lines(run, trunk, step)])
    is_same = _scores_alike(trunk, run)
    for evaluation in trunk.evaluations if is_same else ():
        planned = Event.EVALUATE in run.plan.events_after(evaluation.step)
        if planned and evaluation.step < step:
            own = {"calibrated_seconds": run.plan.calibrated_seconds(evaluation.step)}
            evaluation.model_copy(update=own).write(run.evaluation_path(evaluation.step))
    for boundary in trunk.boundaries if is_same else ():
        if boundary.step < step and any(b.step == boundary.step for b in run.plan.boundaries):
            _as_planned(boundary, run.plan).write(run.boundary_path(boundary.step))
    copy_tree(trunk.directory / "tensorboard", run.directory / "tensorboard")
    executions = tuple(e for e in trunk.manifest.executions if e.first_step < step)
    fields = {"fork": fork, "executions": executions}
    write_text(run.directory / "spec.yaml", to_yaml(run.spec))
    run.manifest.model_copy(update=fields).write(run.directory / "run.json")
    adopt(source, checkpoint_path(run.checkpoints, step))


def _scores_alike(trunk: Run, run: Run) -> bool:
    """Whether the trunk scores the run's held-out targets, at all of its lengths. Given the corpus,
    targets depend on their number and the longest length."""
    its, own = trunk.spec.evaluation, run.spec.evaluation
    same_targets = (max(its.seq_lens), its.num_tokens) == (max(own.seq_lens), own.num_tokens)
    return same_targets and {*own.seq_lens} <= {*its.seq_lens}


def _lines(run: Run, trunk: Run, num_steps: int) -> Iterator[str]:
    """The trunk's metrics up to a step. What is logged only around stage boundaries is left out
    where the run has none."""
    path = trunk.directory / METRICS
    for number, line in enumerate(read_log(path).splitlines(), 1):
        step = Step.of_line(line, f"{path}: line {number}")
        if step.step > num_steps:
            return
        own: dict[str, object] = {"calibrated_seconds": run.plan.calibrated_seconds(step.step)}
        if not run.plan.is_watched(step.step - 1):
            own["update_norm"] = None
        yield step.model_copy(update=own).model_dump_json() + "\n"


def _as_planned(record: BoundaryRecord, plan: Plan) -> BoundaryRecord:
    """A boundary's record for another run, without the later scores if that run plans them at
    another step."""
    (boundary,) = (its for its in plan.boundaries if its.step == record.step)
    if boundary.rescore_step == record.rescore_step:
        return record
    return record.model_copy(update={"rescore_step": boundary.rescore_step, "after": {}})
