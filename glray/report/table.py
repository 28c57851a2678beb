"""The figures of any set of runs in a terminal of 80 columns."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from glray.report.arms import Arm, by_arm, eval_seq_lens, longest_trained
from glray.report.formats import loss_text, seconds_text, tokens_text
from glray.report.headline import headline
from glray.report.run_record import RunRecord

__all__ = ["headline", "heldout_table", "summary", "training_table"]


MOST_LENGTHS = 6
"""Window lengths side by side; more go into a further table."""


def summary(runs: Sequence[RunRecord]) -> list[Table]:
    """What each run took, and its held-out loss at each window length."""
    seq_lens = eval_seq_lens(runs)
    parts = [seq_lens[i : i + MOST_LENGTHS] for i in range(0, len(seq_lens), MOST_LENGTHS)]
    return [training_table(runs), *(heldout_table(runs, part) for part in parts)]


def training_table(runs: Sequence[RunRecord]) -> Table:
    """One row a run: stages, steps, tokens, calibrated and measured seconds."""
    table = plain_table("Training")
    table.add_column("run", overflow="fold")
    for name in ("stages", "steps", "tokens", "calibrated s", "measured s"):
        table.add_column(name, justify="left" if name == "stages" else "right", overflow="fold")
    for arm in by_arm(runs):
        for run in arm.runs:
            steps = f"{run.steps_done:,}"
            table.add_row(
                arm.run_label(run),
                arm.stages,
                steps if run.is_finished else f"{steps}/{run.num_steps:,}",
                tokens_text(run.tokens),
                seconds_text(run.calibrated_seconds),
                seconds_text(run.measured_seconds),
            )
    if not all(run.is_finished for run in runs):
        table.caption = "steps/planned: the run is unfinished."
    return table


def heldout_table(runs: Sequence[RunRecord], seq_lens: list[int]) -> Table:
    """One row a run: held-out loss at each of ``seq_lens`` over its standard error, and bits per
    byte at the longest of them that any run was trained on."""
    longest = longest_trained(runs)
    byte_len = max((length for length in seq_lens if length <= longest), default=seq_lens[0])
    table = plain_table("Held-out loss (nats per token) by window length")
    table.add_column("run", overflow="fold")
    for seq_len in seq_lens:
        table.add_column(str(seq_len), justify="right", no_wrap=True)
    table.add_column(f"bits/byte\nat {byte_len}", justify="right", no_wrap=True)
    for arm in by_arm(runs):
        for run in arm.runs:
            if run.latest is not None:
                table.add_row(*_heldout_row(arm, run, seq_lens, byte_len))
    table.caption = _heldout_caption(runs)
    return table


def _heldout_row(arm: Arm, run: RunRecord, seq_lens: list[int], byte_len: int) -> list[str]:
    evaluation = run.latest
    assert evaluation is not None
    label = arm.run_label(run)
    cells = [label if run.is_finished else f"{label}\n(step {evaluation.step:,})"]
    for seq_len in seq_lens:
        score = evaluation.at(seq_len)
        if score is None:
            cells.append("-")
            continue
        unseen = "*" if seq_len > run.longest_seq_len else " "
        error = "" if score.standard_error is None else f"\n±{score.standard_error:.3f} "
        cells.append(f"{loss_text(score.loss)}{unseen}{error}")
    score = evaluation.at(byte_len)
    return [*cells, "-" if score is None else f"{score.bits_per_byte:.3f}"]


def _heldout_caption(runs: Sequence[RunRecord]) -> str:
    documents = sorted({run.latest.num_documents for run in runs if run.latest is not None})
    counts = " or ".join(f"{count:,}" for count in documents)
    return f"± standard error over {counts} documents.  * longer than trained on."


def plain_table(title: str | None = None) -> Table:
    """An empty table in the look of all."""
    return Table(
        title=title and f"\n{title}",
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="none",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
