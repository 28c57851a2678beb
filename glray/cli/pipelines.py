"""Commands that take a pipeline: plan, profile, recommend, prepare, data, run."""

from itertools import product
from typing import Annotated, Any

import typer

from glray.cli.app import (
    Overrides,
    PipelineFile,
    app,
    console,
    load_spec,
    naming_options,
    parsed_lengths,
    prepared_corpus,
    show,
    show_runs,
)
from glray.cli.training import exit_if_diverged, trained_runs
from glray.errors import UserError
from glray.files import as_path
from glray.progress import working
from glray.run.parent import Parents
from glray.run.profile import Profile, Setting, own_setting, profile_path
from glray.run.run import pipeline_directory, with_calibration
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec
from glray.storage import storage_path, validate_storage


@app.command()
def plan(
    pipeline: PipelineFile,
    overrides: Overrides = None,
    events: Annotated[
        bool, typer.Option("--events", help="Also list when each arm checkpoints and evaluates.")
    ] = False,
) -> None:
    """Print each arm's stages in steps and tokens, and which steps runs share. Touches nothing."""
    from glray.report.plan_sheets import event_sheets, plan_sheets, tree_text
    from glray.search.space import candidates, check_search, search_pipeline

    spec = load_spec(pipeline, overrides)
    sheets = plan_sheets(spec, Profile.read(profile_path(spec)))
    show(*sheets, *(event_sheets(spec) if events else []))
    if spec.search is not None:
        try:
            check_search(spec)
        except UserError as error:  # glray run would go well
            console.print(f"\nglray tune would be refused: {error}", markup=False)
            return
        trials = search_pipeline(spec, candidates(spec))
        more = ", and those that Optuna will suggest" if spec.search.method == "optuna" else ""
        drawn = tree_text(trials) or "they share nothing"
        console.print(f"\nglray tune: {len(trials.arms)} trials{more}\n{drawn}", markup=False)


@app.command()
def profile(
    pipeline: PipelineFile,
    overrides: Overrides = None,
    seq_lens: Annotated[
        str | None, typer.Option(help="Lengths: 128,256,512. Default: the pipeline's.")
    ] = None,
    attention: Annotated[
        str, typer.Option(help="Kernel: sdpa (fused), eager (scores in memory) or sdpa,eager.")
    ] = "sdpa",
    compiled: Annotated[
        str | None, typer.Option("--compile", help="off,on. Default: the pipeline's.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32,bfloat16. Default: the pipeline's.")
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Memory of a step. Default: 92% of the GPU's, or 80% of what a CPU has free.",
        ),
    ] = None,
    out: Annotated[str, typer.Option(help="File of the plot.")] = "profile.png",
) -> None:
    """Measure time, memory and largest batch of a step at each length.

    The paper's Tables 1 to 3, for the pipeline's model and batch, with an upper bound on what
    growing can save. Each of --attention, --compile and --precision may name several: every
    combination is measured. glray plan prices the pipeline by what was measured.
    """
    with working("importing the model's code"):
        from glray.report.length_plots import costs_by_length
        from glray.report.look import save
        from glray.report.profile_sheets import profile_sheets
        from glray.train.probe.profile import measure

    spec = load_spec(pipeline, overrides)
    validate_storage(storage_path(spec.compute))
    lengths = parsed_lengths(seq_lens) if seq_lens else spec.all_seq_lens
    settings = settings_of(own_setting(spec), attention, compiled, precision)
    with naming_options({"^seq_lens": "--seq-lens", "^kernel": "--attention"}):
        measured = measure(
            spec, lengths, settings, memory_gib, lambda phase: console.print(phase, style="dim")
        )
    show(*profile_sheets(measured, spec))
    path = profile_path(spec)
    measured.keep(path)
    with working("drawing the plot"):
        plot = save(costs_by_length(measured), as_path(out))
    console.print(f"profile: {path}\nplot: {plot}")


def settings_of(
    own: Setting, kernels: str, compiled: str | None, precisions: str | None
) -> list[Setting]:
    """Every combination of what the options list with commas; one left out takes the pipeline's
    ``own`` value. Raises UserError for an unknown name."""
    own_compiled = "on" if own.compile else "off"
    return [
        Setting(kernel, on == "on", precision)
        for kernel, on, precision in product(
            _listed("--attention", kernels, ("sdpa", "eager")),
            _listed("--compile", compiled or own_compiled, ("off", "on")),
            _listed("--precision", precisions or own.precision, ("float32", "bfloat16")),
        )
    ]


def _listed(option: str, text: str, choices: tuple[str, ...]) -> list[Any]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in choices:
            raise UserError(f"{option} {name}: unknown; choose from {', '.join(choices)}")
    return names


@app.command()
def recommend(pipeline: PipelineFile, overrides: Overrides = None) -> None:
    """Name a schedule from glray's own study, without a search.

    What schedules were worth there, for the pipeline's longest length and at the prices of glray
    profile on this machine. Where none was clearly faster it says so. Touches nothing.
    """
    from glray.data.blocks.snapshot import find_prepared
    from glray.report.recommend import Findings, lengths, priced
    from glray.report.recommendation import recommendation

    spec = load_spec(pipeline, overrides)
    findings, full = Findings.packaged(), spec.all_seq_lens[-1]
    needed = lengths(findings, full)
    kept = Profile.read(profile_path(spec))
    costs = kept.of(spec) if kept is not None else None
    measured = {cost.seq_len for cost in costs.lengths} if costs is not None else set()
    if kept is None or costs is None or not measured.issuperset(needed):
        own = "".join(f" --set {override}" for override in overrides or [])
        listed = ",".join(map(str, needed))
        raise UserError(
            f"{profile_path(spec)}: lacks some of the lengths {listed}, so schedules have no "
            f"price; run glray profile {pipeline}{own} --seq-lens {listed}"
        )
    for seq_len in needed:
        if costs.at(seq_len) is None:
            raise UserError(
                f"{profile_path(spec)}: a step of {seq_len:,} tokens does not fit on this machine, "
                "so the full length has no price; lower compute.micro_batch_tokens"
            )
    try:
        corpus = find_prepared(spec)
    except UserError:  # its lengths are a remark
        corpus = None
    show(*recommendation(findings, priced(findings, full, costs), full, kept, corpus))


@app.command()
def prepare(pipeline: PipelineFile, overrides: Overrides = None) -> None:
    """Turn the corpus into token blocks, unless they are there."""
    prepared_corpus(load_spec(pipeline, overrides))


@app.command()
def data(
    pipeline: PipelineFile,
    overrides: Overrides = None,
    step: Annotated[
        int | None,
        typer.Option(
            help="The step whose windows to show. Default: the first that the pipeline trains "
            "itself, 0 unless it goes on from a parent."
        ),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Window length. Default: the arm's first stage's.")
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option(
            help="The arm whose step to show, if stages have their own batch or weights. "
            "Default: the first."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many windows to show.")] = 3,
) -> None:
    """Look into the corpus: sources, document lengths, decoded windows of any step."""
    from glray.data.inspection import shown_windows
    from glray.report.corpus_sheets import document_lengths, parent_text, sources, windows_text

    spec = with_calibration(load_spec(pipeline, overrides))
    shown = spec.arms[0] if arm is None else _named_arm(spec, arm)
    parent = None if spec.start is None else Parents.of(spec).first
    step = step if step is not None else parent.step if parent else 0
    corpus = prepared_corpus(spec)
    length = seq_len if seq_len is not None else shown.seq_lens[0]
    show(sources(corpus), document_lengths(corpus))
    with naming_options({"^step": "--step", "^seq_len": "--seq-len"}):
        windows = list(shown_windows(spec, corpus, shown, step=step, seq_len=length, num_rows=rows))
    whose = [] if parent is None else [parent_text(parent.record, step)]
    console.print()
    show(*whose, windows_text(windows, step, length))


def _named_arm(spec: PipelineSpec, name: str) -> ArmSpec:
    try:
        return spec.arm(name)
    except ValueError as error:
        raise UserError(f"--arm {name}: {error}; give one of them") from None


@app.command()
def run(pipeline: PipelineFile, overrides: Overrides = None) -> None:
    """Prepare, train, evaluate and report every arm. Run again to resume."""
    spec = load_spec(pipeline, overrides)
    runs = trained_runs(spec)
    show_runs([run.directory for run in runs], pipeline_directory(spec))
    exit_if_diverged(runs)
