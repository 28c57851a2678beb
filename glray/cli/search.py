"""The command that searches for a schedule: tune."""

import time

from glray.cli.app import (
    Overrides,
    PipelineFile,
    app,
    console,
    join_cluster,
    load_spec,
    prepared_corpus,
    say_stopped,
    validate_machine,
    write_and_show,
)
from glray.cli.comparisons import compare_runs
from glray.errors import UserError
from glray.files import sole_writer, write_text
from glray.progress import working
from glray.run.run import Run, pipeline_directory
from glray.spec.loading import to_yaml
from glray.spec.training import rate_text


@app.command()
def tune(pipeline: PipelineFile, overrides: Overrides = None) -> None:
    """Search for an arm's best schedule, confirm it, write best.yaml. Run again to resume.

    Tries the schedules that the pipeline's `search=SearchSpec(…)` declares, beside fair baselines,
    all at the same budget, and ranks them by held-out loss. Steps that they share are trained once.
    The best train again on fresh seeds. The winner is written to best.yaml, for glray run.
    """
    from glray.search.confirm import best_pipeline, confirmation
    from glray.search.space import (
        baselines,
        check_search,
        fresh_seeds,
        ranking_seq_len,
        search_name,
    )
    from glray.search.suggestions import validate_optuna

    spec = load_spec(pipeline, overrides)
    check_search(spec)
    if spec.search is not None and spec.search.method == "optuna":
        validate_optuna()
    validate_machine(spec)
    with working("importing Ray Tune"):
        from glray.cli.stopping import in_a_thread, stop_on_signals
        from glray.cli.watch import watching
        from glray.model.config import starting_model
        from glray.ray.tune import search
        from glray.report.search_page import search_report
        from glray.report.trials import Trials

    start = time.monotonic()
    starting_model(spec.derive(seeds=spec.seeds[:1]))  # the search's
    if spec.start is not None and spec.search is not None and spec.search.confirm:
        starting_model(spec.derive(seeds=fresh_seeds(spec)))  # they need parents of their own
    corpus = prepared_corpus(spec)
    directory = pipeline_directory(spec).with_name(search_name(spec.name))
    is_resumed = any(directory.glob("*/run.json"))
    with sole_writer(directory):
        join_cluster(spec.compute)
        with stop_on_signals(console.print) as stop, watching(directory, console):
            tried = in_a_thread(lambda: search(spec, corpus, console.print, stop.event))
    if tried is None:
        say_stopped(stop.exit_status)
    wall_seconds = None if is_resumed else time.monotonic() - start
    runs, seq_len = [Run.open(run.directory) for run in tried.runs], ranking_seq_len(spec)
    by_name = {candidate.name: candidate for candidate in tried.candidates}
    ranked = [by_name[trial.name] for trial in Trials.of(runs, seq_len).scored]
    if not ranked:
        lowest = min(tried.spec.optimizer_of(arm).lr for arm in tried.spec.arms)
        remedy = f"set peak rates below {rate_text(lowest)}, the lowest tried"
        num_stopped = sum(run.stopped is not None for run in runs)
        if num_stopped:
            remedy = f"raise search.max_behind, or {remedy}"
        raise UserError(
            f"{directory}: 0 of {len(runs)} trials have a loss ({len(runs) - num_stopped} "
            f"diverged, {num_stopped} were stopped), so there is no best schedule; {remedy}, under "
            "another name (--set name=…)"
        )
    best_yaml = pipeline_directory(spec) / "best.yaml"
    write_text(best_yaml, to_yaml(best_pipeline(spec, tried.spec, ranked[0])))
    comparison = confirmation(spec, tried.spec, ranked)
    report = search_report(
        runs,
        seq_len,
        title=f"{spec.name}: which schedule?",
        baselines=[candidate.name for candidate in baselines(spec)],
        confirmed=compare_runs(comparison) if comparison else None,
        wall_seconds=wall_seconds,
        at_once=tried.num_groups,
    )
    console.print(f"\n{report.title}", style="bold", markup=False)
    write_and_show(report, directory)
    console.print(f"best schedule: glray run {best_yaml}")
