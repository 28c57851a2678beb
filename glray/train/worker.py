"""A worker's program: calibrate once if seconds decide, then train run after run."""

from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import AnyPath, sole_writer, write_text
from glray.model.config import starting_model
from glray.progress import heard_by, working
from glray.run.records import Calibration, Execution, Progress, mean_costs
from glray.run.run import (
    CALIBRATION,
    calibrated_conditions,
    is_calibration_missing,
    pipeline_directory,
    with_calibration,
)
from glray.run.start import record_start
from glray.spec.loading import load_pipeline, to_yaml
from glray.spec.pipeline import PipelineSpec
from glray.train.agenda import Agenda
from glray.train.announcer import Announcer
from glray.train.context import WorkerContext, as_rank_zero_sees, from_rank_zero
from glray.train.execution import choose_kernels, environment, execution
from glray.train.loop import train
from glray.train.parallel import release_models
from glray.train.probe.calibration import REPETITIONS, calibrate
from glray.train.probe.micro_batches import micro_batches
from glray.train.probe.peak import matmul_peak
from glray.train.session import Ending, latest_step

LOCK_SECONDS = 60.0
"""How long rank 0 waits at once for a group that probes what fits in memory; then the others, which
wait for rank 0 in a collective, are told to wait on: a collective has a time-out."""


def train_all(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> None:
    """Train the unfinished runs of the pipeline, in the order of their tree, and those of arms that
    are offered meanwhile; each of several worker groups trains those that it claims.

    Returns early if asked to stop; where a run diverges or its guard stops it, the others go on.
    Every rank of a group calls it.
    """
    announcer = Announcer(pipeline_directory(spec), ctx)
    try:
        with heard_by(announcer.hear), working("looking at what is to be trained"):
            _train_all(spec, corpus, ctx, announcer)
    finally:
        announcer.flush()


def _train_all(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, announcer: Announcer
) -> None:
    directory = pipeline_directory(spec)
    choose_kernels(spec.compute, ctx)
    executed = _execution(spec, corpus, ctx)
    start = starting_model(spec)
    known = spec
    if as_rank_zero_sees(ctx, lambda: is_calibration_missing(spec)):
        known = _calibrated(spec, corpus, ctx, executed)
    elif spec.needs_calibration and spec.calibration is None:
        recorded = as_rank_zero_sees(ctx, lambda: _recorded_calibration(spec))
        known = spec.derive(calibration=recorded)
    agenda = Agenda(known, corpus, start, ctx)
    if ctx.rank == 0 and ctx.group.claims("spec.yaml"):
        _write_spec(known, directory / "spec.yaml")
    if as_rank_zero_sees(ctx, lambda: agenda.is_over):
        return
    with working("measuring the peak of matrix products"):
        peak = matmul_peak(ctx, spec.precision)
    machine = environment(ctx) | {"matmul_flops_per_second": asdict(peak)}
    flops_per_second = peak.measured * ctx.world_size
    for run in agenda.in_turn():
        release_models()
        if ctx.rank == 0 and (origin := agenda.begin(run)):
            announcer.event(f"{run.name}: {origin.sentence}")
        step = latest_step(run, ctx)
        if ctx.rank == 0:
            changes = record_start(run, machine, executed, step)
            if changes:
                announcer.event(
                    f"{run.name}: bit-identity ends at step {step:,}: {'; '.join(changes)}"
                )
        needed = partial(agenda.needed, run)
        ending = train(run, corpus, ctx, executed, flops_per_second, needed)
        if ending is Ending.STOPPED and not agenda.is_withdrawn(run):
            return
    if ctx.group.count > 1:  # it is shown until the others have ended
        announcer.progress(Progress(phase="no run is left for this worker group"))


def _write_spec(spec: PipelineSpec, path: AnyPath) -> None:
    """The spec of all runs in the pipeline's directory: also of seeds and arms of earlier calls."""
    try:
        seeds = (*load_pipeline(path).seeds, *spec.seeds)
    except UserError:  # the first call, or of another version
        seeds = spec.seeds
    write_text(path, to_yaml(spec.derive(only=None, seeds=tuple(dict.fromkeys(seeds)))))


def _recorded_calibration(spec: PipelineSpec) -> dict[str, Any] | None:
    """The calibration in the pipeline's directory, as JSON; None if none counts."""
    calibration = with_calibration(spec).calibration
    return None if calibration is None else calibration.model_dump(mode="json")


def _execution(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> Execution:
    """How this group executes the spec; where it must be probed, as the first group found it."""
    directory = pipeline_directory(spec)
    with ExitStack() as held:
        if spec.compute.micro_batch_tokens == "auto":
            held.enter_context(
                working("probing what fits in memory at once", len(spec.all_seq_lens))
            )
            while not as_rank_zero_sees(ctx, lambda: _has_lock(directory, held)):
                pass
        probed = micro_batches(spec, corpus, ctx, directory / "micro_batches.json")
    return execution(spec, ctx, probed)


def _has_lock(directory: AnyPath, held: ExitStack) -> bool:
    """Whether this group is now the one that probes, until ``held`` ends; after ``LOCK_SECONDS``
    another one still is."""
    try:
        lock = sole_writer(directory, lock=".probing", wait_seconds=LOCK_SECONDS)
        held.enter_context(lock)
    except UserError:
        return False
    return True


def _calibrated(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, executed: Execution
) -> PipelineSpec:
    """The spec with the cost of a step at each length, measured in all groups at once, as they will
    train; each group leaves the mean in ``calibration.json`` before it trains."""
    directory = pipeline_directory(spec)
    with working("waiting for the other worker groups to calibrate with"):
        means = ctx.group.meet() if ctx.rank == 0 else None
        is_missing = from_rank_zero(ctx, int(means is None))
    if is_missing:
        with working("calibrating: steps of every length, interleaved", REPETITIONS):
            repetitions = calibrate(spec, corpus, ctx, executed)
        with working("waiting for the other worker groups' calibration"):
            means = ctx.group.mean_of_all(repetitions) if ctx.rank == 0 else None
    costs = dict.fromkeys(spec.all_seq_lens, 0)
    if means is not None:
        costs = mean_costs(means)
        Calibration(
            step_microseconds=costs,
            repetitions=means,
            conditions=calibrated_conditions(spec),
            environment=environment(ctx),
        ).write(directory / CALIBRATION)
        if ctx.group.claims("calibration"):
            shown = ", ".join(f"{cost / 1000:.0f} ms at {length}" for length, cost in costs.items())
            Announcer(directory, ctx).event(f"calibration: a step takes {shown}")
    if not spec.needs_calibration:  # it was measured on request, and decides nothing
        return spec
    costs = {n: from_rank_zero(ctx, costs[n]) for n in spec.all_seq_lens}
    return spec.derive(calibration={"step_microseconds": costs})
