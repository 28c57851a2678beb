"""What one worker holds of a run while it trains: restored, saved, evaluated, finished."""

import time
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from glray.data.checksum import as_hex
from glray.data.targets import HeldoutTargets, heldout_targets
from glray.errors import UserError
from glray.files import write_json
from glray.model.decoder import build_model, load_pretrained, place_positions
from glray.model.pretrained import check_unchanged, read_pretrained
from glray.plan import MICROSECONDS
from glray.run.records import Execution
from glray.run.run import Run
from glray.train.announcer import Announcer
from glray.train.checkpoint import (
    TrainState,
    committed_checkpoints,
    load_checkpoint,
    save_checkpoint,
    step_of,
)
from glray.train.context import WorkerContext, from_rank_zero
from glray.train.evaluation import Scored, score
from glray.train.export import export_model
from glray.train.parallel import whole_weights
from glray.train.trackers import Tracker, open_trackers
from glray.train.trainee import Trainee


@dataclass
class RunSession:
    """One worker's trainee and state of a run."""

    run: Run
    ctx: WorkerContext
    trainee: Trainee
    state: TrainState
    targets: HeldoutTargets
    announcer: Announcer
    trackers: list[Tracker]
    _resumed_at: float = field(default_factory=time.perf_counter)
    _preempted: bool = False
    _stage: int | None = None

    def save(self) -> None:
        """Commit a checkpoint and report it to the controller; all ranks call it.

        Raises UserError if the storage is full: the checkpoint before it stays the latest.
        """
        start = time.perf_counter()
        self._count_wall_seconds()
        self.state.calibrated_seconds = self.calibrated_seconds
        directory, trainee = self.run.checkpoints, self.trainee
        try:
            save_checkpoint(
                directory, self.state, trainee.model.network, trainee.optimizer, self.ctx
            )
        except OSError as error:
            raise UserError(
                f"{directory}: the checkpoint of step {self.state.step:,} cannot be written: "
                f"{error.strerror or error}; the one before it stays, make room there and the same "
                "command goes on from it"
            ) from None
        self.ctx.report({"step": float(self.state.step)})
        self.state.checkpoint_seconds += time.perf_counter() - start

    def enter_stage(self, stage: int) -> None:
        """Place positions as the stage does."""
        if stage != self._stage:
            place_positions(self.trainee.model.network, self.run.rope_parameters(stage))
            self._stage = stage

    def newly_preempted(self) -> bool:
        """Whether this worker group has just learned that it will lose a node: time for a
        checkpoint. Ray ends the group when the node is gone and starts it anew without it."""
        new = not self._preempted and self.ctx.preempted()
        self._preempted |= new
        if new:
            self.announcer.event(f"{self.run.name}: a node is about to be taken away, checkpoint")
        return new

    def score(self, seq_len: int, *, stride: int | None = None) -> Scored:
        """The held-out targets under the positions in force; see ``evaluation.score``."""
        return score(
            self.trainee.model,
            self.targets,
            seq_len,
            self.ctx,
            rows=self.trainee.execution.rows_at_once(seq_len),
            precision=self.run.spec.precision,
            stride=stride,
        )

    def standing(self) -> dict[str, object]:
        """Steps, tokens and clocks, as a record has them."""
        return {
            "step": self.state.step,
            "tokens": self.state.step * self.run.plan.tokens_per_batch,
            "calibrated_seconds": self.calibrated_seconds,
            "measured_seconds": self.state.measured_seconds,
        }

    def track(self, scalars: dict[str, float]) -> None:
        """Give the trackers what was scored at the state's step."""
        for tracker in self.trackers:
            tracker.write(self.state.step, scalars)
            tracker.flush()

    def finish(self) -> None:
        """Export the model and write ``result.json``, which makes the run finished (rank 0).

        All ranks call it: the weights of a sharded model are gathered.
        """
        self._count_wall_seconds()
        network, run, state = self.trainee.model.network, self.run, self.state
        self.enter_stage(run.plan.stage_index(state.step - 1))
        weights = whole_weights(network, self.ctx)
        if self.ctx.rank != 0:
            return
        network.config.tokens_by_seq_len = state.tokens_by_seq_len
        export_model(network, weights, run.corpus, run.directory / "model")
        write_json(
            run.directory / "result.json",
            {
                "steps": state.step,
                "tokens": state.step * run.plan.tokens_per_batch,
                "calibrated_seconds": self.calibrated_seconds,
                "measured_seconds": state.measured_seconds,
                "warm_up_seconds": state.warm_up_seconds,
                "eval_seconds": state.eval_seconds,
                "checkpoint_seconds": state.checkpoint_seconds,
                "wall_seconds": state.wall_seconds,
                "checksum": as_hex(state.checksum),
                "tokens_by_seq_len": state.tokens_by_seq_len,
            },
        )
        self.announcer.event(f"{run.name}: finished at step {state.step:,}")

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self.trackers:
            tracker.close()

    @property
    def calibrated_seconds(self) -> float | None:
        """Seconds calibrated so far on the calibrated clock; None without a calibration."""
        calibrated = self.run.plan.calibrated_microseconds(self.state.step)
        return None if calibrated is None else calibrated / MICROSECONDS

    def _count_wall_seconds(self) -> None:
        now = time.perf_counter()
        self.state.wall_seconds += now - self._resumed_at
        self._resumed_at = now


def open_session(run: Run, ctx: WorkerContext, execution: Execution) -> RunSession:
    """The weights that the run starts from, or its latest committed checkpoint, which rank 0
    names."""
    spec = run.spec
    announcer = Announcer(run.directory.parent, ctx)
    step = latest_step(run, ctx)
    trainee = Trainee(_network_at(step, run, ctx.device), spec, ctx, execution)
    state = TrainState()
    if step:
        path = run.checkpoints / f"step-{step:08d}"
        state = load_checkpoint(path, trainee.model.network, trainee.optimizer, ctx)
        announcer.event(f"{run.name}: resumed at step {step:,} of {run.plan.num_steps:,}")
    else:
        stages = " + ".join(f"{s.num_steps:,} at {s.seq_len}" for s in run.plan.stages)
        announcer.event(f"{run.name}: starts, {stages} = {run.plan.num_steps:,} steps")
    targets = heldout_targets(run.corpus, spec.evaluation)
    trackers = open_trackers(run, ctx, state.step)
    return RunSession(run, ctx, trainee, state, targets, announcer, trackers)


def latest_step(run: Run, ctx: WorkerContext) -> int:
    """The step of the run's latest committed checkpoint, as rank 0 sees it; 0 without one."""
    committed = committed_checkpoints(run.checkpoints)
    return from_rank_zero(ctx, step_of(committed[-1]) if committed else 0)


def _network_at(step: int, run: Run, device: torch.device) -> PreTrainedModel:
    """At step 0 what the run starts from, later what its checkpoint is loaded into."""
    if step == 0 and run.spec.init and run.init_sha256:
        folder = read_pretrained(run.spec.init)
        check_unchanged(folder, run.init_sha256)
        return load_pretrained(folder, run.model_config, device)
    return build_model(run.model_config, run.seed, device)
