"""A worker's program: calibrate once if seconds decide, then train every run in turn."""

from dataclasses import asdict
from pathlib import Path

from glray.data.corpus import PreparedCorpus
from glray.files import write_json, write_text
from glray.spec.loading import to_yaml
from glray.spec.pipeline import PipelineSpec
from glray.training.calibration import calibrate
from glray.training.context import WorkerContext
from glray.training.environment import environment
from glray.training.execution import Execution, execution
from glray.training.loop import Ending, train
from glray.training.metrics import Announcer
from glray.training.micro_batches import micro_batches
from glray.training.parallel import release_models
from glray.training.peak import matmul_peak
from glray.training.run_directory import Run, pipeline_directory, settle, write_run
from glray.training.session import latest_step


def train_all(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> None:
    """Train every unfinished run of the pipeline, in the order of its seeds and arms.

    Returns early if asked to stop; where its guard stops a run, the others go on. Every rank of a
    group calls it.
    """
    directory = pipeline_directory(spec)
    announcer = Announcer(directory, ctx)
    directory.mkdir(parents=True, exist_ok=True)
    executed = _execution(spec, corpus, ctx)
    runs = settle(spec, corpus) or _calibrated_runs(spec, corpus, ctx, executed, announcer)
    if ctx.rank == 0:
        write_text(directory / "spec.yaml", to_yaml(runs[0].spec))
    unfinished = [run for run in runs if not run.is_finished]
    if not unfinished:
        return
    peak = matmul_peak(ctx, spec.precision)
    machine = environment(ctx) | {"matmul_flops_per_second": asdict(peak)}
    for run in unfinished:
        release_models()
        step = latest_step(run, ctx)
        if ctx.rank == 0:
            run.directory.mkdir(parents=True, exist_ok=True)
            changes = write_run(run, machine, executed, step)
            if changes:
                announcer.event(
                    f"{run.name}: bit-identity ends at step {step:,}: {'; '.join(changes)}"
                )
        if train(run, ctx, executed, peak.measured * ctx.world_size) is Ending.STOPPED:
            return


def calibrate_alone(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, path: Path
) -> None:
    """Calibrate as a search does before its trials, and leave ``path``."""
    _write_calibration(spec, corpus, ctx, _execution(spec, corpus, ctx), path)


def _execution(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> Execution:
    directory = pipeline_directory(spec)
    if spec.compute.micro_batch_tokens == "auto":
        Announcer(directory, ctx).progress(phase="probing what fits in memory at once")
    probed = micro_batches(spec, corpus, ctx, directory / "micro_batches.json")
    return execution(spec, ctx, probed)


def _write_calibration(
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    ctx: WorkerContext,
    executed: Execution,
    path: Path,
) -> dict[int, int]:
    """Measure microseconds of a step by sequence length and leave them in ``path`` (rank 0)."""
    costs = calibrate(spec, corpus, ctx, executed)
    if ctx.rank == 0:
        write_json(path, {"step_microseconds": costs, "environment": environment(ctx)})
    return costs


def _calibrated_runs(
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    ctx: WorkerContext,
    executed: Execution,
    announcer: Announcer,
) -> list[Run]:
    announcer.progress(phase="calibrating: steps of every length, interleaved")
    path = pipeline_directory(spec) / "calibration.json"
    costs = _write_calibration(spec, corpus, ctx, executed, path)
    shown = ", ".join(f"{cost / 1000:.0f} ms at {length}" for length, cost in costs.items())
    announcer.event(f"calibration: a step takes {shown}")
    runs = settle(spec.with_fields(calibration={"step_microseconds": costs}), corpus)
    assert runs is not None, "a calibrated spec has a plan"
    return runs
