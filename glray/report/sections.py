"""The parts of the page that are tables: what was held out, trained and run where."""

from collections.abc import Iterator, Sequence

from glray.report.arms import Arm, by_arm, eval_seq_lens
from glray.report.formats import plus_minus, seconds_text, tokens_text
from glray.report.markup import folded, paragraph, section, table
from glray.report.run_record import Evaluation, RunRecord


def figures(runs: Sequence[RunRecord]) -> str:
    """What each run took: tokens and every clock."""
    rows = []
    for label, _, run in labelled(runs):
        waited = float(run.log.data_wait_seconds.sum())
        result = run.result
        steps = f"{run.steps_done:,}"
        rows.append(
            [
                label,
                "-".join(str(stage.seq_len) for stage in run.stages),
                steps if result else f"{steps} of {run.num_steps:,}",
                tokens_text(run.tokens),
                seconds_text(run.calibrated_seconds),
                seconds_text(run.measured_seconds),
                seconds_text(waited),
                seconds_text(result.warm_up_seconds) if result else "-",
                seconds_text(result.eval_seconds) if result else "-",
                seconds_text(result.checkpoint_seconds) if result else "-",
                seconds_text(result.wall_seconds) if result else "-",
            ]
        )
    columns = (
        "run",
        "stages",
        "steps",
        "tokens",
        "calibrated s",
        "measured s",
        "waited for data s",
        "warm-up s",
        "eval s",
        "saving s",
        "wall s",
    )
    return section("Figures", table(columns, rows, num_text=2))


def heldout(runs: Sequence[RunRecord]) -> str:
    """Held-out loss with its standard error, and bits per byte, at each window length."""
    seq_lens = eval_seq_lens(runs)
    if not seq_lens:
        return section("Held-out loss by window length", paragraph("Nothing is evaluated yet."))
    losses, bits = [], []
    for label, _, run in labelled(runs):
        if run.latest is None:
            continue
        if not run.is_finished:
            label = f"{label} (unfinished, step {run.latest.step:,})"
        losses.append([label, *_loss_cells(run, run.latest, seq_lens)])
        bits.append([label, *_bits_cells(run, run.latest, seq_lens)])
    lengths = [f"{seq_len:,}" for seq_len in seq_lens]
    return section(
        "Held-out loss by window length",
        paragraph(
            "Nats per token ± standard error over documents; * longer than the run was trained on:"
        ),
        table(["run", *lengths], losses),
        paragraph("Bits per byte of the same targets:"),
        table(["run", *lengths], bits),
    )


def stage_ends(runs: Sequence[RunRecord]) -> str:
    """Held-out loss at the end of each stage."""
    seq_lens = eval_seq_lens(runs)
    rows = [
        [
            label,
            f"{evaluation.trained_seq_len:,}",
            f"{evaluation.step:,}",
            tokens_text(evaluation.tokens),
            seconds_text(evaluation.calibrated_seconds),
            seconds_text(evaluation.measured_seconds),
            *(_boundary_cell(evaluation, seq_len) for seq_len in seq_lens),
        ]
        for label, _, run in labelled(runs)
        for evaluation in run.evaluations
        if evaluation.step in {stage.end_step for stage in run.stages}
    ]
    if not rows:
        return ""
    columns = ["run", "after length", "step", "tokens", "calibrated s", "measured s"]
    columns += [f"loss at {seq_len:,}" for seq_len in seq_lens]
    return section("At the end of each stage", table(columns, rows))


def stages(runs: Sequence[RunRecord]) -> str:
    """What each stage trained, and what its steps cost."""
    rows = []
    for label, _, run in labelled(runs):
        for index, stage in enumerate(run.stages):
            steps = run.steps_in(stage)
            cost = stage.step_microseconds
            measured = _measured_step_milliseconds(run, index)
            rows.append(
                [
                    label,
                    f"{stage.seq_len:,}",
                    f"{stage.rows:,}",
                    f"{steps:,}"
                    if steps == stage.num_steps
                    else f"{steps:,} of {stage.num_steps:,}",
                    tokens_text(steps * run.tokens_per_batch),
                    seconds_text(None if cost is None else steps * cost / 1e6),
                    "-" if cost is None else f"{cost / 1e3:,.1f}",
                    "-" if measured is None else f"{measured:,.1f}",
                ]
            )
    columns = (
        "run",
        "length",
        "rows",
        "steps",
        "tokens",
        "calibrated s",
        "calibrated ms a step",
        "measured ms a step",
    )
    batches = " or ".join(
        f"{tokens:,}" for tokens in sorted({run.tokens_per_batch for run in runs})
    )
    return section(
        "Stages",
        table(columns, rows),
        paragraph(f"A step trains {batches} tokens at every length: rows × length.", "note"),
    )


def provenance(runs: Sequence[RunRecord]) -> str:
    """Machine, versions and commit, each once with the runs it belongs to; fingerprints; specs."""
    environments: dict[str, list[str]] = {}
    fingerprints = []
    for label, _, run in labelled(runs):
        described = ", ".join(
            f"{key.replace('_', ' ')} {'none' if value is None else value}"
            for key, value in run.environment.items()
            if key != "matmul_flops_per_second"  # measured, so another one at each start
        )
        environments.setdefault(described, []).append(label)
        checksum = run.result.checksum if run.result else "unfinished"
        fingerprints.append(
            [label, run.pipeline, str(run.seed), run.fingerprint, checksum, _matmul_peak(run)]
        )
    parts = [
        paragraph(described if len(environments) == 1 else f"{', '.join(labels)}: {described}")
        for described, labels in environments.items()
    ]
    parts.append(
        table(
            ["run", "pipeline", "seed", "training fingerprint", "token checksum", "matmul TFLOP/s"],
            fingerprints,
            num_text=5,
        )
    )
    parts += [
        folded(f"Resolved spec of {label}", run.spec_yaml)
        for label, _, run in labelled(runs)
        if run.spec_yaml
    ]
    return section("Machine, versions and identity", *parts)


def _matmul_peak(run: RunRecord) -> str:
    """``0.101``, of one worker as measured, or ``742 (nominal 989)``; empty in older records."""
    peak = run.environment.get("matmul_flops_per_second")
    if peak is None:
        return ""
    nominal = "" if peak["nominal"] is None else f" (nominal {peak['nominal'] / 1e12:.3g})"
    return f"{peak['measured'] / 1e12:.3g}{nominal}"


def labelled(runs: Sequence[RunRecord]) -> Iterator[tuple[str, Arm, RunRecord]]:
    """Each run with its label and its arm, arm by arm."""
    for arm in by_arm(runs):
        for run in arm.runs:
            yield arm.run_label(run), arm, run


def _loss_cells(run: RunRecord, evaluation: Evaluation, seq_lens: list[int]) -> list[str]:
    scores = [evaluation.at(seq_len) for seq_len in seq_lens]
    return [
        "-"
        if score is None
        else _unseen(run, score.seq_len) + plus_minus(score.loss, score.standard_error)
        for score in scores
    ]


def _bits_cells(run: RunRecord, evaluation: Evaluation, seq_lens: list[int]) -> list[str]:
    scores = [evaluation.at(seq_len) for seq_len in seq_lens]
    return [
        "-" if score is None else f"{_unseen(run, score.seq_len)}{score.bits_per_byte:.3f}"
        for score in scores
    ]


def _unseen(run: RunRecord, seq_len: int) -> str:
    return "* " if seq_len > run.longest_seq_len else ""


def _boundary_cell(evaluation: Evaluation, seq_len: int) -> str:
    score = evaluation.at(seq_len)
    return "-" if score is None else f"{score.loss:.3f}"


def _measured_step_milliseconds(run: RunRecord, index: int) -> float | None:
    """From the clocks of the evaluations at the stage's boundaries, where the host has waited for
    the device; None until the stage's end is evaluated."""
    stage = run.stages[index]
    clocks = {0: 0.0} | {
        evaluation.step: evaluation.measured_seconds for evaluation in run.evaluations
    }
    if stage.first_step not in clocks or stage.end_step not in clocks:
        return None
    seconds = clocks[stage.end_step] - clocks[stage.first_step]
    return 1e3 * seconds / stage.num_steps
