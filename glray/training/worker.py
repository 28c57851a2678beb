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
from glray.training.loop import train
from glray.training.metrics import Announcer
from glray.training.peak import matmul_peak
from glray.training.run_directory import Run, pipeline_directory, settle, write_run


def train_all(spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext) -> None:
    """Train every unfinished run of the pipeline, in the order of its seeds and arms.

    Returns early if asked to stop. Every rank of a group calls it.
    """
    directory = pipeline_directory(spec)
    announcer = Announcer(directory, ctx)
    directory.mkdir(parents=True, exist_ok=True)
    runs = settle(spec, corpus) or _calibrated_runs(spec, corpus, ctx, announcer)
    if ctx.rank == 0:
        write_text(directory / "spec.yaml", to_yaml(runs[0].spec))
    unfinished = [run for run in runs if not run.is_finished]
    if not unfinished:
        return
    peak = matmul_peak(ctx, spec.precision)
    machine = environment(ctx) | {"matmul_flops_per_second": asdict(peak)}
    for run in unfinished:
        if ctx.rank == 0:
            run.directory.mkdir(parents=True, exist_ok=True)
            write_run(run, machine)
        if not train(run, ctx, peak.measured * ctx.world_size):
            return


def write_calibration(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, path: Path
) -> dict[int, int]:
    """Measure microseconds of a step by sequence length and leave them in ``path`` (rank 0)."""
    costs = calibrate(spec, corpus, ctx)
    if ctx.rank == 0:
        write_json(path, {"step_microseconds": costs, "environment": environment(ctx)})
    return costs


def _calibrated_runs(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, announcer: Announcer
) -> list[Run]:
    announcer.progress(phase="calibrating: steps of every length, interleaved")
    path = pipeline_directory(spec) / "calibration.json"
    costs = write_calibration(spec, corpus, ctx, path)
    shown = ", ".join(f"{cost / 1000:.0f} ms at {length}" for length, cost in costs.items())
    announcer.event(f"calibration: a step takes {shown}")
    runs = settle(spec.with_fields(calibration={"step_microseconds": costs}), corpus)
    assert runs is not None, "a calibrated spec has a plan"
    return runs
