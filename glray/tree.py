"""The tree of runs: which steps runs share, so that they are trained once. Pure.

The state of a run after step *s* follows from its seed, its optimizer, its stages up to *s*, and
what all runs of a pipeline have in common: the tokens, the model and the budget. Runs whose seed,
optimizer and stages agree up to *s* share that state bit for bit::

    128 ────────┬────────┬─────────────────▶ llm128
                │        └─ 512 ── 1024 ───▶ 128-512-1024
                └─ 256 ── 512 ── 1024 ─────▶ growlength

The steps up to *s* are trained by one of them, the trunk, and the others fork from its checkpoint.
Two runs part where a stage of at least one of them ends, and a stage ends with a checkpoint, unless
it is declared without. So the run whose stage ends first is trained first, and no run writes a
checkpoint, or does without an evaluation, that its own plan has otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from glray.plan import Plan, StagePlan
from glray.spec.pipeline import PipelineSpec
from glray.spec.positions import StageScaling, stage_scaling
from glray.spec.schedule import ArmSpec
from glray.spec.training import OptimizerSpec


@dataclass(frozen=True)
class Trajectory:
    """What a run computes, step by step, where the runs of a pipeline can differ."""

    arm: str
    seed: int
    optimizer: OptimizerSpec
    plan: Plan
    scalings: tuple[StageScaling | None, ...]
    """RoPE of each stage; None for stages of the parent, which all runs of the pipeline have."""

    @classmethod
    def of(cls, spec: PipelineSpec, arm: ArmSpec, seed: int, plan: Plan) -> "Trajectory":
        """The trajectory of an arm's run under a seed."""
        seq_lens, parents = [stage.seq_len for stage in plan.stages], len(plan.inherited)
        own = (stage_scaling(arm.positions, seq_lens, n) for n in range(parents, len(seq_lens)))
        return cls(arm.name, seed, spec.optimizer_of(arm), plan, (*[None] * parents, *own))

    @property
    def name(self) -> str:
        """The run's name."""
        return run_name(self.arm, self.seed)

    def shared_steps(self, trunk: "Trajectory") -> int:
        """How many first steps of this run ``trunk`` can train for it: up to the last end of a
        stage that the trunk marks with a checkpoint; 0 if there is none."""
        most, first = self.usable_steps(trunk), self.plan.first_step
        return max((end for end in trunk.plan.marked_ends if first < end <= most), default=0)

    def usable_steps(self, trunk: "Trajectory") -> int:
        """The most steps of ``trunk`` after which this run could go on: both share them, and what
        this run is to record of them, the trunk records."""
        marked = trunk.plan.marked_ends
        missed = next((end for end in self.plan.marked_ends if end not in marked), None)
        common = self.common_steps(trunk)
        return common if missed is None else min(common, missed)

    def common_steps(self, other: "Trajectory") -> int:
        """How many first steps both runs share; 0 if these are all the parent's."""
        if self._common != other._common:
            return 0
        same_rewarming = self.optimizer.rewarm_steps == other.optimizer.rewarm_steps
        shared = 0
        stages, its = (zip(t._kinds, t.plan.stages, strict=True) for t in (self, other))
        for (kind, one), (its_kind, two) in zip(stages, its, strict=False):
            if kind != its_kind:
                break
            shared += min(one.num_steps, two.num_steps)
            if one.num_steps != two.num_steps or not same_rewarming:
                break
        return shared if shared > self.plan.first_step else 0

    @cached_property
    def _common(self) -> tuple[int, OptimizerSpec]:
        """What runs that share a step agree in throughout; re-warming begins at a boundary."""
        return self.seed, self.optimizer.derive(rewarm_steps=0)

    @cached_property
    def _kinds(self) -> list[tuple[StagePlan, StageScaling | None]]:
        """What a step of each stage is, including its share of the budget, wherever it lies and
        whatever is done at its end."""
        place = {"first_step": 0, "num_steps": 0, "mark_end": True}
        stages = [stage.model_copy(update=place) for stage in self.plan.stages]
        return list(zip(stages, self.scalings, strict=True))


@dataclass(frozen=True)
class Branch:
    """A run in the tree: the steps that it shares, and who trains them."""

    trajectory: Trajectory
    trunk: Trajectory | None
    """The run whose checkpoint it forks from; None if it starts where the pipeline does."""
    fork_step: int
    """The first step that it trains itself."""

    @property
    def shared_steps(self) -> int:
        """Steps that its trunk trains for it."""
        return self.fork_step - self.trajectory.plan.first_step

    @property
    def saved_seconds(self) -> float | None:
        """Calibrated seconds of these steps; None without a calibration."""
        return self.trajectory.plan.own_seconds(self.fork_step)

    @property
    def own_steps(self) -> int:
        """Steps that it trains itself."""
        return self.trajectory.plan.num_steps - self.fork_step


def tree(trajectories: Sequence[Trajectory]) -> list[Branch]:
    """The runs in the order of training, each with the trunk that it forks from, which comes before
    it. Subtrees keep the order of their first runs."""
    ordered: list[Trajectory] = []
    for trajectory in trajectories:
        ordered.insert(_place(trajectory, ordered), trajectory)
    branches: list[Branch] = []
    for index, trajectory in enumerate(ordered):
        before = ordered[:index]
        shared = [trajectory.shared_steps(other) for other in before]
        most = max(shared, default=0)
        trunk = before[shared.index(most)] if most else None
        branches.append(Branch(trajectory, trunk, most or trajectory.plan.first_step))
    return branches


def run_name(arm: str, seed: int) -> str:
    """Name of the run of an arm under a seed: ``growlength-seed0``."""
    return f"{arm}-seed{seed}"


def _place(trajectory: Trajectory, ordered: Sequence[Trajectory]) -> int:
    """Where a run belongs among others in their order: next to those that share most with it, and
    before those that can fork from it and not it from them: they go on at the length that it
    leaves, or mark fewer ends."""
    taken = [trajectory.shared_steps(other) for other in ordered]
    given = [other.shared_steps(trajectory) for other in ordered]
    most = max([*taken, *given], default=0)
    if most == 0:
        return len(ordered)
    both = list(zip(taken, given, strict=True))
    beside = [index for index, shared in enumerate(both) if most in shared]
    staying = [index for index in beside if taken[index] < most]
    return staying[0] if staying else beside[-1] + 1
