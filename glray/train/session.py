"""What one worker holds of a run while it trains, and what each event of the plan does."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from enum import Enum
from functools import partial
from itertools import groupby
from math import isfinite
from pathlib import Path

from transformers import PreTrainedModel

from glray.data.checksum import as_hex
from glray.data.corpus import PreparedCorpus
from glray.data.targets import heldout_targets
from glray.data.windows import Batch, stage_reads
from glray.errors import UserError
from glray.files import StorePath, remove_tree
from glray.model.config import config_of
from glray.model.decoder import meta_model, place_positions, pretrained_meta_model
from glray.model.pretrained import check_unchanged, read_pretrained
from glray.model.weights import Weights, drawn, from_folder
from glray.plan import learning_rate
from glray.progress import advance, working
from glray.run.checkpoint import checkpoint_path, committed_checkpoints, size_of, step_of
from glray.run.guard import excessive_rise
from glray.run.records import (
    Divergence,
    Execution,
    NotFinite,
    Result,
    TrainingProgress,
    TrainState,
)
from glray.run.run import DIVERGED, METRICS, RESULT, Run, StepLog
from glray.train.announcer import Announcer, Place
from glray.train.checkpoint import Saver, load_checkpoint
from glray.train.context import WorkerContext, as_rank_zero_sees, from_rank_zero
from glray.train.evaluation import Scored, Windows, score
from glray.train.export import export_model
from glray.train.metrics import Arrival, MetricsLog, PendingStep, Signals, Stopwatch
from glray.train.optimizer import update_norm
from glray.train.parallel import are_weights_finite, whole_weights
from glray.train.trackers import open_trackers
from glray.train.trainee import Trainee

SEGMENT_TOKENS = 16 * 2**20
"""A worker reads a stage in segments of about this many tokens of its own. A whole one, of ids of
four bytes too, fits into half of the object store that Ray Data may fill for it (``STORE_BYTES`` of
``glray.ray.stream``): as long as reads are held back for lack of room, Ray Data's scheduling thread
spins in the worker's process, at the expense of training."""

MOST_SHOWN = 8
"""Stages that are listed where a run starts."""

NeededSteps = Callable[[], Mapping[int, Sequence[str]]]
"""Steps whose checkpoints other runs are still to fork from, and the names of these."""


class Ending(Enum):
    """How a call of ``train`` ended."""

    FINISHED = "at the run's last step"
    STOPPED = "asked to stop"
    GUARDED = "the held-out loss has risen by more than evaluation.max_rise"
    DIVERGED = "a number was not finite"


class RunSession:
    """One worker's part of a run: its trainee, its state and its records."""

    def __init__(
        self,
        run: Run,
        corpus: PreparedCorpus,
        ctx: WorkerContext,
        trainee: Trainee,
        state: TrainState,
        peak: float,
        needed: NeededSteps,
    ) -> None:
        self._needed = needed
        self.run, self.corpus, self.ctx = run, corpus, ctx
        self.trainee, self.state = trainee, state
        self.targets = heldout_targets(corpus, run.spec.evaluation)
        scored = as_rank_zero_sees(ctx, lambda: self.targets.sha256)
        if self.targets.sha256 != scored:
            raise UserError(
                f"{corpus.check_path}: rank {ctx.rank} sees held-out targets "
                f"{self.targets.sha256[:12]}…, rank 0 {scored[:12]}…: their losses could not be "
                "summed; repeat the command when every node sees the same file"
            )
        self.announcer = Announcer(run.directory.parent, ctx, lambda: _place(run, self.state.step))
        self.trackers = open_trackers(run, ctx, state.step)
        self._log = MetricsLog(run, ctx, self.trackers, peak)
        self._resumed_at = time.perf_counter()
        self.watch = Stopwatch(state.measured_seconds)
        self._waited_seconds = 0.0
        self._saver = Saver(run.checkpoints, ctx)
        self._saved_step, self._saved_at = state.step, self._resumed_at
        self._stage: int | None = None
        self._open = ExitStack()
        self._stop = self._guarded = self._preempted = self._must_save = self._is_due = False
        self.has_diverged = False

    # ---- stages and steps

    def stages(self) -> Iterator[tuple[int, Iterator[Batch]]]:
        """Each stage from the state's on, by its index, with this rank's batches. They are read
        one segment ahead, across stage boundaries, until the session is closed."""
        run, plan, state = self.run, self.run.plan, self.state
        if state.step == plan.num_steps:
            return
        start = time.perf_counter()
        if self.trainee.has_to_warm_up:
            left = [stage for stage in plan.stages if stage.end_step > state.step]
            sizes = {(stage.seq_len, stage.tokens_per_batch) for stage in left}
            with working("warming up every length", len(sizes)):
                self.trainee.warm_up(self.trainee.random_batch(*size) for size in sizes)
        state.warm_up_seconds += time.perf_counter() - start
        self._log.rewind(state.step, state.measured_seconds)
        largest_batch = max(stage.tokens_per_batch for stage in plan.stages)
        segments = stage_reads(
            self.corpus.order_of(plan, run.seed),
            plan,
            first_step=state.step,
            steps_per_segment=max(1, SEGMENT_TOKENS * self.ctx.world_size // largest_batch),
            rank=self.ctx.rank,
            world_size=self.ctx.world_size,
        )
        batches = self._open.enter_context(closing(self.ctx.batches(self.corpus, segments)))
        yield from groupby(self._timed(batches), key=lambda batch: plan.stage_index(batch.step))

    def enter(self, stage: int) -> None:
        """Give the network the stage's RoPE."""
        if stage != self._stage:
            place_positions(self.trainee.model.network, self.run.manifest.rope_parameters[stage])
            self._stage = stage

    def step(self, batch: Batch) -> None:
        """Train one step, without waiting for the device."""
        run, plan, state = self.run, self.run.plan, self.state
        assert batch.step == state.step, "the stream is not where the state is"
        lr = learning_rate(run.optimizer, plan, batch.step)
        sums = self.trainee.step(batch, lr)
        norms = {"grad_norm": sums.grad_norm}
        if plan.is_watched(batch.step):
            norms["update_norm"] = update_norm(self.trainee.optimizer, lr)
        state.step += 1
        length = str(batch.seq_len)
        trained = state.tokens_by_seq_len.get(length, 0) + batch.tokens_per_batch
        state.tokens_by_seq_len[length] = trained
        state.measured_seconds = self.watch.seconds
        known = {
            "step": state.step,
            "stage": plan.stage_index(batch.step),
            "seq_len": batch.seq_len,
            "tokens": plan.tokens_after(state.step),
            "lr": lr,
            "calibrated_seconds": plan.calibrated_seconds(state.step),
            "measured_seconds": round(state.measured_seconds, 6),
            "data_wait_seconds": round(self._waited_seconds, 6),
        }
        self._log.add(PendingStep(sums, norms, known))

    def ending(self) -> Ending | None:
        """Why the run goes no further for now, with a committed checkpoint of its state, unless it
        diverged; None if it does. If time has passed, a checkpoint is begun."""
        is_asked = self._stop or self._guarded or self._must_save
        if is_asked or self._is_due:
            self.catch_up_with_device()
            with self.watch.paused():
                is_saved = self._saved_step == self.state.step
                # If weights are not finite, the plan's next event says so.
                if not self.has_diverged and not is_saved and self.are_weights_finite():
                    self.save()
                if is_asked:
                    self.commit()
            self._must_save = self._is_due = False
        if self.has_diverged:
            return Ending.DIVERGED
        ending = Ending.GUARDED if self._guarded else Ending.STOPPED if self._stop else None
        if ending is Ending.STOPPED:
            self.announcer.event(f"{self.run.name}: stopped at step {self.state.step:,}")
        return ending

    def finish(self) -> Ending:
        """Export the model and write ``result.json``, which makes the run finished (rank 0).

        All ranks call it: the weights of a sharded model are gathered.
        """
        run, state, network = self.run, self.state, self.trainee.model.network
        self._count_wall_seconds()
        self.enter(run.plan.stage_index(state.step - 1))
        with working("exporting the model"):
            weights = whole_weights(network, self.ctx)
            if self.ctx.rank == 0:
                if isinstance(run.directory, Path):  # of an export that was killed
                    for left in run.directory.glob(".partial-model-*"):
                        remove_tree(left)
                export_model(run, state, network, weights, self.corpus, run.directory / "model")
        self._log.keep()
        if self.ctx.rank == 0:
            clocks = state.model_dump(exclude={"step", "checksum"})
            Result(
                steps=state.step,
                tokens=run.plan.tokens_after(state.step),
                calibrated_seconds=run.plan.calibrated_seconds(state.step),
                checksum=as_hex(state.checksum),
                **clocks,
            ).write(run.directory / RESULT)
            self.announcer.event(f"{run.name}: finished at step {state.step:,}")
        return Ending.FINISHED

    def __enter__(self) -> "RunSession":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            self.announcer.failed(error)
        self.close()

    def close(self) -> None:
        """Close the token stream and the trackers. A checkpoint still in flight, as after an error,
        does not count."""
        self._open.close()
        self._saver.close()
        self._log.close()

    # ---- what events do

    def are_weights_finite(self) -> bool:
        """Whether the state is worth a checkpoint; all ranks call it."""
        return are_weights_finite(self.trainee.model.network, self.ctx)

    def diverge(self, what: NotFinite, step: int | None = None) -> None:
        """End the run at a step, by default the state's, where ``what`` is not finite; all ranks
        call it. A checkpoint in flight was finite, and is kept."""
        self.has_diverged = True
        self.commit()
        self._log.keep()
        if self.ctx.rank == 0:
            run, index = self.run, (step or self.state.step) - 1
            log = StepLog.read(run.directory / METRICS)
            divergence = Divergence(
                step=index + 1,
                seq_len=run.plan.stages[run.plan.stage_index(index)].seq_len,
                what=what,
                loss=float(log.loss[index]),
                grad_norm=float(log.grad_norm[index]),
            )
            divergence.write(run.directory / DIVERGED)
            self.announcer.event(f"{run.name}: {divergence.sentence}")

    def save(self) -> None:
        """Begin a checkpoint of the state, which is written beside training; at the run's last step
        it is committed at once. All ranks call it.

        Raises UserError if the storage is full: the checkpoint before it stays the latest.
        """
        self.commit()
        start = time.perf_counter()
        state, trainee = self.state, self.trainee
        self._count_wall_seconds()
        with (
            working(f"copying the checkpoint of step {state.step:,}"),
            self._keeping_the_one_before(state.step),
        ):
            self._saver.begin(state, trainee.model.network, trainee.optimizer)
        self._saved_step, self._saved_at = state.step, time.perf_counter()
        state.checkpoint_seconds += self._saved_at - start
        if state.step == self.run.plan.num_steps:
            self.commit()

    def commit(self) -> None:
        """Commit the checkpoint in flight, if there is one, and report it to the controller; all
        ranks call it. Raises UserError if it could not be written."""
        step = self._saver.in_flight
        if step is None:
            return
        start = time.perf_counter()
        needed = self._needed() if self.ctx.rank == 0 else {}
        with (
            working(f"writing the checkpoint of step {step:,}"),
            self._keeping_the_one_before(step),
        ):
            self._log.keep()  # a run that goes on from here has its steps
            self._saver.commit({*needed, *self.run.kept_steps})
        if step in needed:
            size = size_of(checkpoint_path(self.run.checkpoints, step)) / 2**20
            self.announcer.event(
                f"{self.run.name}: keeps its checkpoint of step {step:,} ({size:,.1f} MiB) "
                f"for {', '.join(needed[step])} to fork from"
            )
        self.announcer.log(f"{self.run.name}: committed the checkpoint of step {step:,}")
        self.ctx.report({"step": float(step)})
        self.state.checkpoint_seconds += time.perf_counter() - start

    def score(self, seq_len: int) -> Scored:
        """The held-out targets with the RoPE in force; see ``evaluation.score``."""
        return self.score_windows(Windows.over(self.targets.longest, seq_len))

    def score_windows(self, windows: Windows, first_place: int = 0) -> Scored:
        """The same in any windows."""
        return score(
            self.trainee.model,
            self.targets,
            windows,
            self.ctx,
            rows=self.trainee.execution.rows_at_once(windows.seq_len),
            precision=self.run.spec.precision,
            first_place=first_place,
        )

    def track(self, scalars: dict[str, float]) -> None:
        """Give the trackers what was scored at the state's step."""
        for tracker in self.trackers:
            tracker.write(self.state.step, scalars)
            tracker.flush()

    def flush(self) -> None:
        """Have the metrics of the steps since the last call summed and written, and agree with the
        other ranks on what is to be done. On a GPU this is about the call before, so that the
        device has the next interval to compute meanwhile."""
        if self._log.is_late:
            self.catch_up_with_device()
        if self.has_diverged:
            return
        self._log.send(
            Signals(
                stop=self.ctx.stop_requested(),
                is_due=self._is_checkpoint_due(),
                num_written=int(self._saver.is_written),
            )
        )
        if not self._log.is_late:
            self.catch_up_with_device()
        if not self._preempted and self.ctx.preempted():
            # Ray ends the group when the node is gone and starts it again without.
            self._preempted = self._must_save = True
            self.announcer.event(f"{self.run.name}: a node is about to be taken away, saving")

    def catch_up_with_device(self) -> None:
        """Receive what was sent so far; before anything that needs the state whole. See whether
        all is finite, who asks to stop, and whether the checkpoint in flight is written."""
        while self._log.has_sent and not self.has_diverged:
            self._take_in(self._log.receive(self.watch))

    def _take_in(self, arrival: Arrival) -> None:
        state, steps, signals = self.state, arrival.steps, arrival.signals
        state.checksum = sum((int(step.checksum, 16) for step in steps), state.checksum) % 2**64
        state.measured_seconds = self.watch.seconds
        self._stop |= signals.stop
        self._is_due |= signals.is_due
        if not steps[-1].is_finite:
            self.diverge("gradient" if isfinite(steps[-1].loss) else "loss", steps[-1].step)
        elif signals.num_written == self.ctx.world_size:
            with self.watch.paused():
                self.commit()
        advance(
            detail=TrainingProgress(
                last_step=steps[-1],
                num_stages=len(self.run.plan.stages),
                num_steps=self.run.plan.num_steps,
                seconds_left=state.measured_seconds * self._left_over_done(),
            )
        )

    def _is_checkpoint_due(self) -> bool:
        """Whether the latest checkpoint is old, by this rank's clock."""
        seconds = time.perf_counter() - self._saved_at
        is_old = seconds >= self.run.spec.compute.checkpoint_every_seconds
        return is_old and self._saver.in_flight is None

    @contextmanager
    def _keeping_the_one_before(self, step: int) -> Iterator[None]:
        """An error of the storage within the block, as a person's."""
        try:
            yield
        except OSError as error:
            checkpoints = self.run.checkpoints
            remedy = "fix that" if isinstance(checkpoints, StorePath) else "make room there"
            raise UserError(
                f"{checkpoints}: the checkpoint of step {step:,} cannot be written: "
                f"{error.strerror or error}; the one before it stays, {remedy} and the same "
                "command goes on from it"
            ) from None

    def look_at_guard(self) -> None:
        """See whether the records allow the run to go on."""
        rise = excessive_rise(self.run) if self.ctx.rank == 0 else None
        if rise is not None:
            self.announcer.event(f"{self.run.name}: {rise}: stopped")
        self._guarded = bool(from_rank_zero(self.ctx, int(rise is not None)))

    def _left_over_done(self) -> float:
        """What is left / what is done. Later stages are slower, which is known from their
        calibrated cost where the plan has it, else from the FLOPs of a token at their length."""
        run, step, end = self.run, self.state.step, self.run.plan.num_steps
        done, total = (run.plan.calibrated_microseconds(n) for n in (step, end))
        if not done or not total:
            done, total = run.model_flops(step), run.model_flops(end)
        return (total - done) / done

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the wait for each. The wait for the first one is start-up."""
        with working("opening the token stream"):
            batch = next(batches, None)
        self.watch = Stopwatch(self.state.measured_seconds)
        self._waited_seconds = 0.0
        while batch is not None:
            yield batch
            before = self.watch.seconds
            batch = next(batches, None)
            self._waited_seconds = self.watch.seconds - before

    def _count_wall_seconds(self) -> None:
        now = time.perf_counter()
        self.state.wall_seconds += now - self._resumed_at
        self._resumed_at = now


def open_session(
    run: Run,
    corpus: PreparedCorpus,
    ctx: WorkerContext,
    execution: Execution,
    peak: float,
    needed: NeededSteps = dict,
) -> RunSession:
    """The weights that the run starts from, or its latest committed checkpoint, which rank 0
    names."""
    step = latest_step(run, ctx)
    announcer = Announcer(run.directory.parent, ctx, lambda: _place(run, step))
    state = TrainState()
    with working(f"loading the checkpoint of step {step:,}" if step else "making the model"):
        trainee = Trainee(*_start(run, step), run.spec, ctx, execution)
        if not step and run.spec.init and not are_weights_finite(trainee.model.network, ctx):
            raise UserError(
                f"{run.spec.init}: has weights that are not finite, so the first loss would not be "
                "either; give the folder of a model that has not diverged"
            )
        if step:
            path = checkpoint_path(run.checkpoints, step)
            state = load_checkpoint(path, trainee.model.network, trainee.optimizer, ctx)
    if ctx.rank == 0:
        run.forget_after(step)
    if step:
        announcer.event(f"{run.name}: resumed at step {step:,} of {run.plan.num_steps:,}")
        if not execution.deterministic:
            announcer.event(
                f"{run.name}: bits are not promised from step {step:,} on: this GPU's kernels may "
                "sum in another order each time; compute.deterministic=true asks for those that "
                "do not"
            )
    else:
        steps = [f"{stage.num_steps:,} at {stage.seq_len}" for stage in run.plan.stages]
        stages = " + ".join(steps) if len(steps) <= MOST_SHOWN else f"{len(steps)} stages"
        announcer.event(f"{run.name}: starts, {stages} = {run.plan.num_steps:,} steps")
    return RunSession(run, corpus, ctx, trainee, state, peak, needed)


def _place(run: Run, step: int) -> Place:
    """Where a run stands after ``step`` steps, in the stage of the last one."""
    return {"run": run.name, "stage": run.plan.stage_index(max(0, step - 1)), "step": step}


def latest_step(run: Run, ctx: WorkerContext) -> int:
    """The step of the run's latest committed checkpoint, as rank 0 sees it; 0 without one."""
    committed = partial(committed_checkpoints, run.checkpoints)
    return int(as_rank_zero_sees(ctx, lambda: max(map(step_of, committed()), default=0)))


def _start(run: Run, step: int) -> tuple[PreTrainedModel, Weights | None]:
    """The run's model, on ``meta``, and its weights at step 0; later a checkpoint's are loaded."""
    config = config_of(run.manifest.architecture, f"{run.directory / 'run.json'}")
    if step:
        return meta_model(config), None
    init_sha256 = run.manifest.identity["init"]
    if run.spec.init and init_sha256:
        folder = read_pretrained(run.spec.init)
        check_unchanged(folder, init_sha256)
        return pretrained_meta_model(folder, config), from_folder(folder)
    return meta_model(config), drawn(run.seed)
