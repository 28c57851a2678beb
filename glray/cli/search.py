"""The command that searches a schedule: tune."""

import math

from glray.cli.app import (
    Overrides,
    PipelineFile,
    app,
    console,
    load_spec,
    prepared_corpus,
    say_stopped,
    show,
    validate_machine,
)
from glray.cli.comparisons import compare_runs
from glray.errors import UserError
from glray.files import sole_writer, write_text
from glray.progress import working
from glray.report.formats import number
from glray.report.sheets import Sheet
from glray.run.run import Run, pipeline_directory
from glray.spec.loading import to_yaml
from glray.spec.training import rate_text


@app.command()
def tune(pipeline: PipelineFile, overrides: Overrides = None) -> None:
    """Search an arm's schedule, confirm the best, write best.yaml. Run again to resume.

    Tries the schedules that the pipeline's `search=SearchSpec(…)` declares, beside fair baselines,
    all at the same budget, and ranks them by held-out loss. What they share is trained once. The
    best train again on fresh seeds. The winner is left as best.yaml, which glray run takes.
    """
    from glray.search.confirm import best_pipeline, confirmation
    from glray.search.space import check_search, fresh_seeds, ranking_seq_len

    spec = load_spec(pipeline, overrides)
    check_search(spec)
    validate_machine(spec)
    with working("importing Ray Tune"):
        from glray.cli.stopping import in_a_thread, stop_on_signals
        from glray.cli.watch import watching
        from glray.model.config import starting_model
        from glray.ray.cluster import connect, require_workers
        from glray.ray.tune import search

    starting_model(spec)
    if spec.start is not None and spec.search is not None and spec.search.confirm:
        starting_model(spec.derive(seeds=fresh_seeds(spec)))  # they need parents of their own
    corpus = prepared_corpus(spec)
    directory = pipeline_directory(spec).with_name(f"{spec.name}-search")
    with sole_writer(directory):
        connect(spec.compute, console.print)
        require_workers(spec.compute, console.print)
        with stop_on_signals(console.print) as stop, watching(directory, console):
            tried = in_a_thread(lambda: search(spec, corpus, console.print, stop.event))
    if tried is None:
        say_stopped(stop.exit_status)
    seq_len = ranking_seq_len(spec)
    losses = {run.arm: _loss(run, seq_len) for run in tried.runs}
    ranked = sorted(tried.candidates, key=lambda candidate: losses[candidate.name])
    best = ranked[0]
    if not math.isfinite(losses[best.name]):
        lr = spec.optimizer.lr
        raise UserError(
            f"{directory}: none of {len(ranked)} trials was trained to its end, so none can be "
            f"chosen; set rates below {rate_text(lr)} under another name (--set name=…)"
        )
    show(_sheet(tried.runs, seq_len))
    best_yaml = pipeline_directory(spec) / "best.yaml"
    write_text(best_yaml, to_yaml(best_pipeline(spec, tried.spec, best)))
    console.print(f"best schedule: glray run {best_yaml}")
    finite = [candidate for candidate in ranked if math.isfinite(losses[candidate.name])]
    comparison = confirmation(spec, tried.spec, finite)
    if comparison is not None:
        compare_runs(comparison)


def _loss(run: Run, seq_len: int) -> float:
    """A trial's held-out loss; infinite if it diverged or was stopped."""
    run = Run.open(run.directory)
    score = run.latest.at(seq_len) if run.is_finished and run.latest else None
    return score.loss if score and math.isfinite(score.loss) else math.inf


def _sheet(runs: tuple[Run, ...], seq_len: int) -> Sheet:
    """Trials by held-out loss."""
    rows, notes = [], []
    for run in sorted((Run.open(run.directory) for run in runs), key=lambda r: _loss(r, seq_len)):
        score = run.latest.at(seq_len) if run.is_finished and run.latest else None
        if score is None:
            why = run.divergence.sentence if run.divergence else "was stopped"
            notes.append(f"{run.arm} {why}.")
        numbers = (score.loss, score.standard_error) if score else (None, None)
        rows.append([run.arm, *(number(value, ".4f") for value in numbers)])
    columns = ("schedule: seq_len x share", "loss", "± over documents")
    return Sheet(f"Held-out loss at {seq_len:,} tokens, best first", columns, rows, notes)
