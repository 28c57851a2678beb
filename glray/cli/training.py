"""From a spec to its trained runs, as several commands do it."""

import gc
import threading
from importlib import import_module

import typer

from glray.cli.app import (
    console,
    join_cluster,
    prepared_corpus,
    say_stopped,
    show,
    validate_machine,
)
from glray.data.corpus import PreparedCorpus
from glray.files import sole_writer
from glray.machine import usable_cpus
from glray.progress import working
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.profile import Profile, profile_path
from glray.run.run import (
    ENDS,
    Run,
    is_calibration_missing,
    pipeline_directory,
    run_directory,
    with_calibration,
)
from glray.run.start import unapplied_fields
from glray.spec import PipelineSpec
from glray.spec.training import rate_text

WORSENED_STATUS = 3
"""Of a command when a run has diverged, or its held-out loss has risen by more than
``evaluation.max_rise``."""


def trained_runs(spec: PipelineSpec) -> list[Run]:
    """Every run of the pipeline, finished or diverged: what is neither is prepared and trained now.

    Exits where it was stopped or its guard stopped a run. Raises UserError.
    """
    validate_machine(spec)
    _start_early(spec)
    with working("importing the model's code"):
        from glray.model.config import starting_model
        from glray.report.plan_sheets import plan_sheets
        from glray.run.guard import excessive_rise
        from glray.train.runs import plan_runs, validate_pipeline

    spec = with_calibration(spec)
    show(*plan_sheets(spec, Profile.read(profile_path(spec))))
    start = starting_model(spec)  # what is wrong with its folder is said before preparing
    corpus = prepared_corpus(spec)
    with working("validating the pipeline"):
        validate_pipeline(spec, corpus, start)
        runs = plan_runs(spec, corpus, start)
        order = corpus.order(spec.chunk_tokens, seed=0)
    for index, source in enumerate(corpus.sources):
        console.print(
            f"an epoch of {source.name}: {order.num_chunks(index):,} chunks × "
            f"{order.chunk_len:,} tokens; {order.num_lost_targets(index):,} of "
            f"{source.blocks.num_tokens:,} tokens are never targets"
        )
    _say_unapplied([run for run in runs or [] if run.has_ended])
    to_calibrate = is_calibration_missing(spec)
    if not to_calibrate and runs is not None and all(run.has_ended for run in runs):
        finished = all(run.is_finished for run in runs)
        ended = "is finished" if finished else "is finished or has diverged"
        console.print(f"every run {ended}, nothing to train")
    elif (
        to_calibrate
        or runs is None
        or not all(run.has_ended or excessive_rise(run) for run in runs)
    ):
        exit_status = _train(spec, corpus)
        runs = plan_runs(with_calibration(spec), corpus, start)
        if exit_status or runs is None:
            say_stopped(exit_status)
    exit_if_guarded(runs)
    if not all(run.has_ended for run in runs):
        say_stopped(0)
    return runs


def _start_early(spec: PipelineSpec) -> None:
    """Where all is prepared and a run is to be trained on this machine alone, start Ray, whose
    processes take seconds of one core, while this one imports the model's code on the other."""
    with working("importing Ray"):
        from glray.data.blocks.snapshot import find_prepared
        from glray.ray.cluster import connect, joined_address

    compute = spec.compute
    unfinished = sum(
        not any((run_directory(spec, arm.name, seed) / end).exists() for end in ENDS)
        for arm in spec.trained_arms
        for seed in spec.seeds
    )
    if joined_address() is not None or not unfinished or find_prepared(spec) is None:
        return
    room = usable_cpus() // compute.cpus_per_worker
    groups = min(unfinished, room, compute.groups or unfinished)
    if groups == compute.num_workers == 1 and not compute.use_gpu:
        threading.Thread(target=_import_models_code).start()
    connect(compute, console.print)


def _import_models_code() -> None:
    gc.disable()  # nothing of it is garbage, and looking takes a tenth of the time
    import_module("glray.train.worker")
    gc.freeze()
    gc.enable()


def _say_unapplied(ended: list[Run]) -> None:
    fields = sorted({field for run in ended for field in unapplied_fields(run)})
    if fields:
        console.print(
            f"not applied to runs that have ended: {', '.join(fields)}: they stay as they were "
            "trained and scored; --set name=… (for a comparison --set compute.storage=…) trains "
            "others, glray eval scores at other lengths"
        )


def exit_if_guarded(runs: list[Run]) -> None:
    """Exit with status 3 if the guard has stopped a run."""
    from glray.run.guard import excessive_rise

    risen = [(run, rise) for run in runs if (rise := excessive_rise(run))]
    for run, rise in risen:
        console.print(
            f"{run.name}: {rise}: stopped with a checkpoint, as evaluation.max_rise is "
            f"{run.spec.evaluation.max_rise:g}; with a higher one, or null, the same command goes "
            "on"
        )
    if risen:
        raise typer.Exit(WORSENED_STATUS)


def exit_if_diverged(runs: list[Run]) -> None:
    """Exit with status 3 if a run has diverged, after a line for each."""
    diverged = {run.directory: run for run in runs if run.divergence}
    for run in diverged.values():
        assert run.divergence is not None
        committed = committed_checkpoints(run.checkpoints)
        kept = "no checkpoint came before"
        if committed:
            kept = f"the checkpoint of step {step_of(committed[-1]):,} is kept"
        console.print(
            f"{run.name}: {run.divergence.sentence}; {kept}, and the run is not trained again: "
            f"{_lower_rate(run)} under another name "
            "(--set name=…; for a comparison in another folder, --set compute.storage=…), or "
            f"delete {run.directory} to train it again",
            markup=False,
        )
    if diverged:
        raise typer.Exit(WORSENED_STATUS)


def _lower_rate(run: Run) -> str:
    """What to set: an arm's own rate, which a comparison's grid may have chosen, comes first."""
    rate = rate_text(run.optimizer.lr)
    if run.spec.arm(run.arm).lr is None:
        return f"set an optimizer.lr below {rate}"
    return f"set arms.{run.arm}.lr (or the rates.lrs that it is chosen from) below {rate}"


def _train(spec: PipelineSpec, corpus: PreparedCorpus) -> int:
    """Train what is unfinished. Returns 0, or the exit status of the signal that stopped it."""
    with working("importing Ray Train"):
        from glray.cli.stopping import in_a_thread, stop_on_signals
        from glray.cli.watch import watching
        from glray.ray.cluster import starting_workers
        from glray.ray.train import fit

    def starting() -> str:
        return starting_workers(spec.compute)

    directory = pipeline_directory(spec)
    with sole_writer(directory):
        join_cluster(spec.compute)
        with (
            stop_on_signals(console.print) as stop,
            watching(directory, console, starting),
        ):
            in_a_thread(lambda: fit(spec, corpus, stop=stop.event))
    return stop.exit_status
