"""One self-contained HTML page of any set of runs: no scripts, no links, plots inside."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from glray.errors import UserError
from glray.files import write_text
from glray.report import sections
from glray.report.arms import eval_seq_lens, longest_trained
from glray.report.boundaries import crossings
from glray.report.figure import save
from glray.report.headline import headline
from glray.report.long_losses import LongLosses, long_plot
from glray.report.markup import definitions, document, opening, paragraph, picture, section
from glray.report.plots import draw
from glray.report.run_record import RunRecord

_PLOTS = {
    "long_documents.png": (
        "Long documents",
        "Loss on documents at least as long as the longest window, the same targets at every "
        "length. Whole windows give a target as much context as its place in the window; sliding "
        "ones give each nearly the whole window.",
    ),
    "loss_over_time.png": (
        "Loss over training time",
        "Loss while training. Training losses at different window lengths are not the same task: "
        "a longer window gives most targets more context. Dotted lines: the arm's next stage "
        "starts. Open marks: held-out loss at the length in training. With several seeds lines "
        "and marks are means, bands and bars the range over seeds. The "
        "first steps may lie above the axis.",
    ),
    "loss_over_tokens.png": (
        "Loss over training tokens",
        "The same over tokens trained: what each token was worth, apart from what it cost.",
    ),
    "loss_by_length.png": (
        "Held-out loss by window length",
        "Held-out loss of the latest evaluation. The targets are the same at every length; a "
        "longer window gives them more context. Bars: one standard error over documents. Marks "
        "of the arms stand side by side at the same length.",
    ),
    "loss_by_position.png": (
        "Held-out loss by position",
        "Held-out loss in the longest window by the target's position. A curve that falls up to "
        "the last position goes on gaining from context; one that rises after its longest trained "
        "length does not carry over to longer windows.",
    ),
    "around_boundaries.png": (
        "Around the boundaries between stages",
        "Each training step's loss, gradient norm, update norm and learning rate in the 32 steps "
        "before and after a boundary. The loss of training changes its task there: a longer window "
        "gives most targets more context.",
    ),
}


def write_report(
    runs: list[RunRecord],
    directory: Path,
    *,
    title: str | None = None,
    verdicts: Sequence[str] = (),
    long_losses: LongLosses = MappingProxyType({}),
) -> Path:
    """Write the plots and ``report.html`` into ``directory``; returns the page's path.

    A comparison has a ``title``, ``verdicts`` that come before anything else, and may have scored
    long documents. Raises UserError if there is no run.
    """
    if not runs:
        raise UserError(f"{directory}: 0 runs to report, a report needs at least 1; name one")
    plots = draw(runs, directory)
    if long_losses:
        plots.insert(0, save(long_plot(runs, long_losses), directory / "long_documents.png"))
    title = title or " and ".join(dict.fromkeys(run.pipeline for run in runs))
    body = [
        opening(title, [*verdicts, *headline(runs)]),
        sections.figures(runs),
        sections.heldout(runs),
        section("Plots", *(picture(path, *_PLOTS[path.name]) for path in plots)),
        sections.stage_ends(runs),
        crossings(runs),
        sections.stages(runs),
        sections.provenance(runs),
        section("How to read this", definitions(_how_to_read(runs))),
        section("What it leaves out", *(paragraph(text) for text in _left_out(runs))),
    ]
    path = directory / "report.html"
    write_text(path, document(f"glray: {title}", body))
    return path


def _how_to_read(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    latest = [run.latest for run in runs if run.latest is not None]
    targets = " or ".join(
        f"{tokens:,} tokens of {documents:,} documents"
        for tokens, documents in sorted(
            {(score.num_target_tokens, score.num_documents) for score in latest}
        )
    )
    return [
        (
            "Held-out loss",
            "Mean negative log-likelihood in nats per token of one fixed set of held-out target "
            f"tokens{f' ({targets})' if targets else ''}, the same at every window length and for "
            "every arm. Each document is cut into windows of the given length, and a window never "
            "crosses into another document. A window's first targets have little context, so that "
            "the loss in short windows is higher for that reason alone.",
        ),
        (
            "±",
            "One standard error over documents: how far the loss might move with other held-out "
            "documents. It says nothing of how far it might move with another seed. Arms are "
            "scored on the same documents, so the noise of their difference is rather smaller "
            "than the two errors combined.",
        ),
        (
            "Bits per byte",
            "The same loss per UTF-8 byte of the targets, which compares across tokenizers.",
        ),
        (
            "Calibrated and measured seconds",
            "Calibrated: steps × the cost of a step at that length, measured once before the first "
            "step; it decides where stages and runs end. Measured: what training took by the "
            "clock. Neither counts evaluation, checkpoints or start-up, which wall seconds do.",
        ),
        (
            "Token checksum",
            "A sum over every input and target that was passed to the model. Runs of one seed "
            "that trained the same tokens have the same checksum.",
        ),
    ]


def _left_out(runs: Sequence[RunRecord]) -> list[str]:
    seeds = len({run.seed for run in runs})
    texts = []
    if seeds == 1:
        texts.append("One seed: how much the losses vary with the seed is not known.")
    evaluated = eval_seq_lens(runs)
    beyond = f" and no loss beyond {evaluated[-1]:,} tokens" if evaluated else ""
    texts += [
        "Whether the optimizer's settings suit each arm equally well: one that takes more steps, "
        "or shorter windows, may want another learning rate.",
        f"No downstream task{beyond}; training lengths go up to {longest_trained(runs):,}.",
        "Times hold for this machine and its load; on another, steps of different lengths cost "
        "otherwise, and a comparison at equal time may turn out otherwise.",
    ]
    return texts
