"""The tables of a report as plain cells. ``render`` shows them in a terminal, HTML or Markdown."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from glray.plan import RESCORE_STEPS, WATCHED_STEPS, StagePlan
from glray.report.arms import by_environment, eval_seq_lens, labelled, longest_trained
from glray.report.folding import folded, length_text
from glray.report.formats import number, plus_minus, seconds_text, tokens_text
from glray.run.records import BoundaryRecord, Jump
from glray.run.run import Run
from glray.run.statistics import standard_error

MOST_LENGTHS = 6
"""Window lengths side by side in a terminal; more go into a further table."""


@dataclass(frozen=True)
class Sheet:
    """One table: a title, plain text in cells, and what is said below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    left: Sequence[int] = (0,)
    """Columns of words, flush left; the others are numbers."""

    def first(self, num_columns: int) -> "Sheet":
        """The same with its first columns alone."""
        rows = [row[:num_columns] for row in self.rows]
        return replace(self, columns=self.columns[:num_columns], rows=rows)


def summary(runs: Sequence[Run]) -> list[Sheet]:
    """For a terminal: what each run took, and its held-out loss at each window length."""
    seq_lens = eval_seq_lens(runs)
    longest = longest_trained(runs)
    sheets = [training(runs).first(6)]
    for start in range(0, len(seq_lens), MOST_LENGTHS):
        part = seq_lens[start : start + MOST_LENGTHS]
        longest_seen = max((n for n in part if n <= longest), default=part[0])
        sheets.append(heldout(runs, part, [longest_seen]))
    return sheets


def training(runs: Sequence[Run]) -> Sheet:
    """What each run took: steps, tokens and every clock; in a terminal the first six columns."""
    rows = []
    for label, run in labelled(runs):
        result = run.result
        clocks = ("warm_up_seconds", "eval_seconds", "checkpoint_seconds", "wall_seconds")
        steps = f"{run.steps_done:,}"
        rows.append(
            [
                label,
                _stages_text(run),
                steps if result else f"{steps}/{run.plan.num_steps:,}",
                tokens_text(run.tokens),
                seconds_text(run.calibrated_seconds),
                seconds_text(run.measured_seconds),
                seconds_text(float(run.log.data_wait_seconds.sum())),
                *(seconds_text(getattr(result, clock) if result else None) for clock in clocks),
            ]
        )
    columns = ["run", "stages", "steps", "tokens", "calibrated s", "measured s"]
    columns += ["waited for data s", "warm-up s", "eval s", "saving s", "wall s"]
    unfinished = not all(run.has_ended for run in runs)
    notes = ["steps/planned: the run is unfinished."] if unfinished else []
    notes += [f"{name} {d.sentence}." for name, run in labelled(runs) if (d := run.divergence)]
    return Sheet("Training", columns, rows, notes, left=(0, 1))


def heldout(runs: Sequence[Run], seq_lens: Sequence[int], byte_lens: Sequence[int]) -> Sheet:
    """Held-out loss of the latest evaluations at each of ``seq_lens`` over its standard error, and
    bits per byte at each of ``byte_lens``."""
    rows = []
    for label, run in labelled(runs):
        latest = run.latest
        if latest is None:
            continue
        cells = [label if run.is_finished else f"{label}\n(step {latest.step:,})"]
        for seq_len in seq_lens:
            score = latest.at(seq_len)
            error = score.standard_error if score else None
            unseen = "*" if score and seq_len > run.longest_seq_len else ""
            below = "" if error is None else f"\n±{error:.3f}"
            cells.append(f"{number(score.loss if score else None)}{unseen}{below}")
        scores = map(latest.at, byte_lens)
        rows.append([*cells, *(number(score.bits_per_byte if score else None) for score in scores)])
    columns = ["run", *map(str, seq_lens), *(f"bits/byte\nat {seq_len}" for seq_len in byte_lens)]
    documents = sorted({run.latest.num_documents for run in runs if run.latest is not None})
    counts = " or ".join(f"{count:,}" for count in documents)
    over = "document" if documents == [1] else "documents"
    note = f"± standard error over {counts} {over}.  * longer than trained on."
    return Sheet("Held-out loss (nats per token) by window length", columns, rows, [note])


def stage_ends(runs: Sequence[Run]) -> Sheet:
    """Held-out loss at the end of each stage."""
    seq_lens = eval_seq_lens(runs)
    rows = [
        [
            label,
            f"{stage.seq_len:,}",
            f"{scored.step:,}",
            tokens_text(scored.tokens),
            seconds_text(scored.calibrated_seconds),
            seconds_text(scored.measured_seconds),
            *(number(length.loss if length else None) for length in map(scored.at, seq_lens)),
        ]
        for label, run in labelled(runs)
        for stage in run.stages
        if (scored := stage.evaluation)
    ]
    columns = ["run", "after length", "step", "tokens", "calibrated s", "measured s"]
    columns += [f"loss at {seq_len:,}" for seq_len in seq_lens]
    return Sheet("At the end of each stage", columns, rows)


def stages(runs: Sequence[Run]) -> Sheet:
    """What each stage trained, and what its steps cost."""
    rows = []
    for label, run in labelled(runs):
        for row in folded(run.plan.stages, _kind):
            together = [run.stages[run.plan.stage_index(stage.first_step)] for stage in row]
            cost, trained = row[0].step_microseconds, sum(n.steps_trained for n in together)
            seconds = [stage.calibrated_seconds for stage in together]
            num_steps = sum(stage.num_steps for stage in row)
            measured = together[0].measured_seconds if len(row) == 1 else None
            rows.append(
                [
                    label,
                    length_text(row),
                    f"{row[0].windows_per_batch:,}",
                    f"{trained:,}" if trained == num_steps else f"{trained:,}/{num_steps:,}",
                    tokens_text(sum(stage.tokens_trained for stage in together)),
                    seconds_text(None if cost is None else sum(n or 0 for n in seconds)),
                    number(cost and cost / 1e3, ",.1f"),
                    number(measured and 1e3 * measured / num_steps, ",.1f"),
                ]
            )
    columns = ["run", "length", "windows", "steps", "tokens", "calibrated s"]
    batches = sorted({stage.tokens_per_batch for run in runs for stage in run.plan.stages})
    always = " at every length" if len(batches) == 1 else ""
    tokens = " or ".join(f"{n:,}" for n in batches)
    note = f"A step trains {tokens} tokens{always}: windows × length."
    columns += ["calibrated ms a step", "measured ms a step"]
    return Sheet("Stages", columns, rows, [note])


def _kind(stage: StagePlan) -> Hashable:
    """What the stages of a row have in common."""
    return stage.seq_len, stage.windows_per_batch, stage.step_microseconds


def boundaries(runs: Sequence[Run]) -> Sheet:
    """Held-out loss at both lengths before and after each boundary between two stages."""
    rows = [
        [
            *_name(label, boundary),
            *_change(boundary, boundary.from_seq_len),
            *_change(boundary, boundary.to_seq_len),
            "-" if (rise := run.gradient_rise(boundary)) is None else f"× {rise:.2f}",
        ]
        for label, run in labelled(runs)
        for boundary in run.boundaries
    ]
    columns = ["run", "boundary", "step"]
    for length in ("old", "new"):
        columns += [f"{length} length: before", "after", "change"]
    note = (
        "Held-out loss at the lengths before and after a boundary: when the stage before has "
        f"ended, and {RESCORE_STEPS} steps later (at the end of a shorter stage). ± is one "
        "standard error over documents of the change. Gradient: the largest norm of the "
        f"{RESCORE_STEPS} steps after the boundary over the median of the {WATCHED_STEPS} before."
    )
    title = "At the boundaries between stages"
    return Sheet(title, [*columns, "gradient"], rows, [note], left=(0, 1))


def jumps(runs: Sequence[Run]) -> Sheet:
    """The jump of the held-out loss at each boundary where the length grows, and its parts."""
    rows = [
        [*_name(label, boundary), *(f"{change:+z.3f}" for _, change in boundary.jump)]
        for label, run in labelled(runs)
        for boundary in run.boundaries
        if boundary.jump
    ]
    note = (
        "The same weights from the old length to the new: the jump, and the parts that sum to it. "
        "Rescaled positions: at positions that the old window has too, where RoPE is scaled. "
        "Longer context: what the other targets gain from half an old window or more, at trained "
        "positions. Unseen positions: what the new window adds to that."
    )
    columns = ["run", "boundary", "step", *(part.replace("_", " ") for part in Jump.model_fields)]
    return Sheet("The jump at each boundary", columns, rows, [note], left=(0, 1))


def identities(runs: Sequence[Run]) -> Sheet:
    """Fingerprints and checksums; machine, versions and commit, each once with its runs."""
    rows, notes = [], []
    for label, run in labelled(runs):
        checksum = "diverged" if run.divergence else "unfinished"
        checksum = run.result.checksum if run.result else checksum
        peak = _matmul_peak(run)
        about = run.manifest
        rows.append([label, about.pipeline, str(run.seed), about.fingerprint, checksum, peak])
    environments = by_environment(runs)
    for environment, labels in environments:
        described = ", ".join(
            f"{key.replace('_', ' ')} {'none' if value is None else value}"
            for key, value in environment.items()
        )
        notes.append(described if len(environments) == 1 else f"{', '.join(labels)}: {described}")
    columns = ["run", "pipeline", "seed", "training fingerprint", "token checksum"]
    title = "Machine, versions and identity"
    return Sheet(title, [*columns, "matmul TFLOP/s"], rows, notes, left=range(5))


def _stages_text(run: Run) -> str:
    """``128-256-512-1024``; the ends and the count of a long list."""
    lengths = [str(stage.seq_len) for stage in run.plan.stages]
    if len(lengths) > 4:
        return f"{lengths[0]}-...-{lengths[-1]} ({len(lengths)})"
    return "-".join(lengths)


def _name(label: str, boundary: BoundaryRecord) -> list[str]:
    return [label, f"{boundary.from_seq_len:,}→{boundary.to_seq_len:,}", f"{boundary.step:,}"]


def _change(boundary: BoundaryRecord, seq_len: int) -> list[str]:
    """Loss before, loss after, and their difference over its standard error."""
    before, after = boundary.before.get(seq_len), boundary.after.get(seq_len)
    if before is None or after is None:
        return [*(number(scored.loss if scored else None) for scored in (before, after)), "-"]
    losses = after.document_losses - before.document_losses
    error = standard_error(boundary.document_tokens, losses)
    sign = "+" if after.loss >= before.loss else ""
    change = sign + plus_minus(after.loss - before.loss, error)
    return [number(before.loss), number(after.loss), change]


def _matmul_peak(run: Run) -> str:
    """``0.101``, of one worker as measured, or ``742 (nominal 989)``; empty in older records."""
    peak = run.manifest.environment.get("matmul_flops_per_second")
    if peak is None:
        return ""
    nominal = "" if peak["nominal"] is None else f" (nominal {peak['nominal'] / 1e12:.3g})"
    return f"{peak['measured'] / 1e12:.3g}{nominal}"
