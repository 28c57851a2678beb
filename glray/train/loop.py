"""The training loop of one worker. It knows a run and a WorkerContext, not Ray.

Nothing here reads a clock to decide: the plan says which stage a step belongs to, when the stage
ends and what the learning rate is. Measured seconds are only written down; they count steps and
the waits for their batches, not the first read's start-up, checkpoints or evaluations.
"""

import time
from contextlib import closing
from enum import Enum

from glray.data.windows import stage_reads
from glray.plan import MICROSECONDS, Plan, learning_rate
from glray.run.guard import excessive_rise
from glray.run.records import Execution
from glray.run.run import Run
from glray.train.boundaries import rescore_boundary, score_stage
from glray.train.context import WorkerContext, from_rank_zero
from glray.train.metrics import Interval, MetricsLog, PendingStep
from glray.train.optimizer import update_norm
from glray.train.session import RunSession, open_session

SEGMENT_TOKENS = 64 * 2**20
"""A worker reads a stage in segments of at most this many tokens over all ranks."""


class Ending(Enum):
    """How a call of ``train`` ended."""

    FINISHED = "at the run's last step"
    STOPPED = "asked to stop"
    GUARDED = "the held-out loss has risen by more than evaluation.max_rise"


def train(run: Run, ctx: WorkerContext, execution: Execution, peak: float) -> Ending:
    """Train a run to its end, from its latest checkpoint, unless something stops it before.

    ``peak`` is the FLOP/s of all workers' matrix products, for MFU. Leaves checkpoints, metrics,
    evaluations, ``model/`` and ``result.json``.
    """
    with closing(open_session(run, ctx, execution)) as session:
        score_stage(session)  # a boundary whose checkpoint was committed but not scored
        if _is_guarded(session):
            return Ending.GUARDED
        if session.state.step < run.plan.num_steps:
            ending = _train_steps(session, peak)
            if ending is not Ending.FINISHED:
                return ending
        session.finish()
        return Ending.FINISHED


def _train_steps(session: RunSession, peak: float) -> Ending:
    """All steps from the state's on."""
    run, ctx, state = session.run, session.ctx, session.state
    plan = run.plan
    every_steps = max(1, run.spec.compute.checkpoint_every_tokens // plan.tokens_per_batch)
    trainee = session.trainee
    start = time.perf_counter()
    if trainee.has_to_warm_up:
        session.announcer.progress(run=run.name, phase="warming up every length")
        trainee.warm_up({stage.seq_len for stage in plan.stages if stage.end_step > state.step})
    state.warm_up_seconds += time.perf_counter() - start
    log = MetricsLog(run, ctx, session.trackers, peak)
    log.rewind(state.step, state.measured_seconds)
    settled = {boundary.rescore_step for boundary in plan.boundaries}

    # ---- data: this rank's windows from the cursor to the end of the plan
    segments = stage_reads(
        run.order,
        plan,
        first_step=state.step,
        steps_per_segment=max(1, SEGMENT_TOKENS // plan.tokens_per_batch),
        rank=ctx.rank,
        world_size=ctx.world_size,
    )
    batches = ctx.batches(run.corpus, segments)
    batch = next(batches)
    waited_seconds = 0.0
    clock = time.perf_counter() - state.measured_seconds
    while True:
        # ---- one step
        lr = learning_rate(run.spec.optimizer, plan, batch.step)
        session.enter_stage(plan.stage_index(batch.step))
        sums = trainee.step(batch, lr)
        norms = {"grad_norm": sums.grad_norm}
        if plan.is_watched(batch.step):
            norms["update_norm"] = update_norm(trainee.optimizer, lr)
        assert batch.step == state.step, "the stream is not where the state is"
        state.step += 1
        ledger = state.tokens_by_seq_len
        ledger[str(batch.seq_len)] = ledger.get(str(batch.seq_len), 0) + plan.tokens_per_batch

        # ---- what is known of it without waiting for the device
        state.measured_seconds = time.perf_counter() - clock
        record = {
            "step": state.step,
            "stage": plan.stage_index(state.step - 1),
            "seq_len": batch.seq_len,
            "tokens": state.step * plan.tokens_per_batch,
            "lr": lr,
            "calibrated_seconds": session.calibrated_seconds,
            "measured_seconds": round(state.measured_seconds, 6),
            "data_wait_seconds": round(waited_seconds, 6),
        }
        log.add(PendingStep(sums, norms, record))

        # ---- borders: log, score, checkpoint, stop
        is_due = state.step in plan.stage_ends or state.step % every_steps == 0
        is_rescored = state.step in settled
        is_scored = plan.is_scored(state.step, run.spec.evaluation.every_tokens)
        stop = guarded = False
        if is_due or is_rescored or is_scored or state.step % run.spec.compute.log_every_steps == 0:
            interval = log.flush(clock)
            state.checksum = (state.checksum + interval.checksum) % 2**64
            state.measured_seconds = time.perf_counter() - clock
            stop = bool(from_rank_zero(ctx, int(ctx.stop_requested())))
            is_due |= session.newly_preempted()
            session.announcer.progress(**_progress(session, plan, interval))
        if is_rescored:
            rescore_boundary(session)  # before the checkpoint, so that no resume can miss it
            guarded = _is_guarded(session)
        if is_due or stop or guarded:
            session.save()
        if is_scored:
            score_stage(session)
        if is_due or is_rescored or is_scored or stop:
            clock = time.perf_counter() - state.measured_seconds
        if guarded:
            return Ending.GUARDED
        if state.step == plan.num_steps:
            return Ending.FINISHED
        if stop:
            session.announcer.event(f"{run.name}: stopped at step {state.step:,}")
            return Ending.STOPPED

        # ---- the next batch
        wait_start = time.perf_counter()
        batch = next(batches)
        waited_seconds = time.perf_counter() - wait_start


def _is_guarded(session: RunSession) -> bool:
    rise = excessive_rise(session.run) if session.ctx.rank == 0 else None
    if rise is not None:
        session.announcer.event(f"{session.run.name}: {rise}: stopped")
    return bool(from_rank_zero(session.ctx, int(rise is not None)))


def _progress(session: RunSession, plan: Plan, interval: Interval) -> dict[str, object]:
    """What the live line shows. The time left knows that later stages are slower: by their
    calibrated cost where the plan has it, else by the FLOPs of a token at their length."""
    state, run = session.state, session.run
    calibrated, total = (plan.calibrated_microseconds(n) for n in (state.step, plan.num_steps))
    if calibrated and total:
        share = calibrated / total
    else:
        share = run.model_flops(state.step) / run.model_flops(plan.num_steps)
    stage = plan.stage_index(state.step - 1)
    return {
        "run": run.arm.name if len(run.spec.seeds) == 1 else run.name,
        "phase": "training",
        "stage": stage + 1,
        "num_stages": len(plan.stages),
        "seq_len": plan.stages[stage].seq_len,
        "step": state.step,
        "num_steps": plan.num_steps,
        "tokens": state.step * plan.tokens_per_batch,
        "loss": interval.loss,
        "tokens_per_second": interval.tokens_per_second,
        "mfu": interval.mfu,
        "measured_seconds": state.measured_seconds,
        "calibrated_seconds": None if calibrated is None else calibrated / MICROSECONDS,
        "seconds_left": state.measured_seconds / share * (1 - share),
    }
