"""What one worker holds of a run while it trains: restored, saved, evaluated, finished."""

import time
from dataclasses import dataclass, field

import torch
from transformers import GPTNeoXForCausalLM

from glray.data.proof import as_hex
from glray.files import write_json
from glray.model.decoder import build_model
from glray.plan import MICROSECONDS
from glray.training.checkpoint import (
    TrainState,
    committed_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from glray.training.context import WorkerContext, from_rank_zero
from glray.training.evaluation import HeldoutTargets, evaluate, heldout_targets
from glray.training.export import export_model
from glray.training.metrics import Announcer
from glray.training.optimizer import build_optimizer
from glray.training.run_directory import Run
from glray.training.trackers import Tracker, open_trackers


@dataclass
class RunSession:
    """One worker's model, optimizer and state of a run."""

    run: Run
    ctx: WorkerContext
    model: GPTNeoXForCausalLM
    optimizer: torch.optim.Optimizer
    state: TrainState
    targets: HeldoutTargets
    announcer: Announcer
    trackers: list[Tracker]
    _resumed_at: float = field(default_factory=time.perf_counter)

    def save(self) -> None:
        """Commit a checkpoint (rank 0) and report it to the controller (all ranks)."""
        start = time.perf_counter()
        self._count_wall_seconds()
        if self.ctx.rank == 0:
            save_checkpoint(self.run.checkpoints, self.state, self.model, self.optimizer)
        self.ctx.report({"step": float(self.state.step)})
        self.state.checkpoint_seconds += time.perf_counter() - start

    def evaluate_edge(self) -> None:
        """Score the held-out targets, if the state stands on a stage edge not yet scored."""
        plan, state = self.run.plan, self.state
        path = self.run.evaluation_path(state.step)
        if state.step not in plan.edges or from_rank_zero(self.ctx, int(path.exists())):
            return
        trained = plan.stages[plan.stage_index(state.step - 1)].seq_len
        self.announcer.progress(run=self.run.name, phase=f"evaluating after seq_len {trained}")
        start = time.perf_counter()
        spec = self.run.spec
        lengths = evaluate(self.model, self.targets, spec.evaluation.seq_lens, spec, self.ctx)
        seconds = time.perf_counter() - start
        state.eval_seconds += seconds
        if self.ctx.rank == 0:
            write_json(
                path,
                {
                    "step": state.step,
                    "tokens": state.step * plan.tokens_per_batch,
                    "charged_seconds": self.charged_seconds,
                    "measured_seconds": state.measured_seconds,
                    "trained_seq_len": trained,
                    "eval_seconds": seconds,
                    "targets_sha256": self.targets.sha256,
                    "num_documents": self.targets.num_documents,
                    "document_tokens": self.targets.document_tokens,
                    "num_target_tokens": self.targets.num_targets,
                    "lengths": lengths,
                },
            )
        scalars = {f"heldout/loss/{entry['seq_len']}": entry["loss"] for entry in lengths}
        for tracker in self.trackers:
            tracker.write(state.step, scalars)
            tracker.flush()
        shown = next((entry for entry in lengths if entry["seq_len"] == trained), lengths[-1])
        self.announcer.event(
            f"{self.run.name}: step {state.step:,} ends seq_len {trained}; "
            f"held-out loss {shown['loss']:.3f} at {shown['seq_len']}"
        )

    def finish(self) -> None:
        """Export the model and write ``result.json``, which makes the run finished (rank 0)."""
        self._count_wall_seconds()
        if self.ctx.rank != 0:
            return
        run, state = self.run, self.state
        export_model(self.model, run.corpus, run.directory / "model", run.longest_seq_len)
        write_json(
            run.directory / "result.json",
            {
                "steps": state.step,
                "tokens": state.step * run.plan.tokens_per_batch,
                "charged_seconds": self.charged_seconds,
                "measured_seconds": state.measured_seconds,
                "eval_seconds": state.eval_seconds,
                "checkpoint_seconds": state.checkpoint_seconds,
                "wall_seconds": state.wall_seconds,
                "proof": as_hex(state.proof),
                "tokens_by_seq_len": state.tokens_by_seq_len,
            },
        )
        self.announcer.event(f"{run.name}: finished at step {state.step:,}")

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self.trackers:
            tracker.close()

    @property
    def charged_seconds(self) -> float | None:
        """Seconds charged so far on the calibrated clock; None without a calibration."""
        charged = self.run.plan.charged_microseconds(self.state.step)
        return None if charged is None else charged / MICROSECONDS

    def _count_wall_seconds(self) -> None:
        now = time.perf_counter()
        self.state.wall_seconds += now - self._resumed_at
        self._resumed_at = now


def open_session(run: Run, ctx: WorkerContext) -> RunSession:
    """Fresh weights of the run's seed, or its latest committed checkpoint, which rank 0 names."""
    spec = run.spec
    model = build_model(run.model_config, run.seed, ctx.device)
    optimizer = build_optimizer(model, spec.optimizer)
    announcer = Announcer(run.directory.parent, ctx)
    committed = committed_checkpoints(run.checkpoints)
    latest = int(committed[-1].name.removeprefix("step-")) if committed else 0
    step = from_rank_zero(ctx, latest)
    state = TrainState()
    if step:
        state = load_checkpoint(run.checkpoints / f"step-{step:08d}", model, optimizer)
        announcer.event(f"{run.name}: resumed at step {step:,} of {run.plan.num_steps:,}")
    else:
        stages = " + ".join(f"{s.num_steps:,} at {s.seq_len}" for s in run.plan.stages)
        announcer.event(f"{run.name}: starts, {stages} = {run.plan.num_steps:,} steps")
    targets = heldout_targets(run.corpus, spec.evaluation)
    trackers = open_trackers(run, ctx, state.step)
    return RunSession(run, ctx, model, optimizer, state, targets, announcer, trackers)
