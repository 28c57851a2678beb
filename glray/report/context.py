"""What ``glray eval`` shows and leaves: loss over window length under each scaling of positions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glray.files import AnyPath, write_json
from glray.report.formats import counted, plus_minus
from glray.report.length_plots import loss_by_context
from glray.report.long_losses import SLIDING, WHOLE
from glray.report.look import save
from glray.report.sheets import Sheet

if TYPE_CHECKING:
    from glray.train.scoring import Scores, ScoringProtocol

MOST_SCALINGS = 4
"""Scalings of positions side by side; more go into a further table."""


def context_sheets(scores: "Scores", protocol: "ScoringProtocol") -> list[Sheet]:
    """One row a window length: nats per token under each scaling of positions, and bits per byte
    if there is one scaling. What belongs to the numbers stands below the last."""
    names = list(scores.by_positions)
    scaled = f", positions {names[0]}" if len(names) == 1 else ""
    title = f"Loss (nats per token) by window length, {_how(protocol)}{scaled}"
    sheets = []
    for start in range(0, len(names), MOST_SCALINGS):
        part = names[start : start + MOST_SCALINGS]
        rows = []
        for records in zip(*(scores.by_positions[name] for name in part), strict=True):
            losses = [plus_minus(record["loss"], record["standard_error"]) for record in records]
            bits = [f"{records[0]['bits_per_byte']:.3f}"] if scaled else []
            rows.append([f"{records[0]['seq_len']:,}", *losses, *bits])
        columns = ["nats per token", "bits per byte"] if scaled else part
        notes = _remarks(scores, protocol) if part[-1] == names[-1] else []
        sheets.append(Sheet("" if start else title, ["window", *columns], rows, notes, left=()))
    return sheets


def write_context(
    scores: "Scores", protocol: "ScoringProtocol", about: Mapping[str, Any], directory: AnyPath
) -> list[AnyPath]:
    """Write ``context.json``, whose head is ``about``, and ``context.png``; returns the paths."""
    plot = loss_by_context(scores.by_positions, scores.trained_len, _how(protocol))
    paths = [directory / "context.json", save(plot, directory / "context.png")]
    write_json(paths[0], {**about, **context_record(scores, protocol)})
    return paths


def context_record(scores: "Scores", protocol: "ScoringProtocol") -> dict[str, Any]:
    """What was scored and how, as plain values."""
    targets = scores.targets
    return {
        "step": scores.step,
        "protocol": WHOLE if protocol.stride is None else SLIDING,
        "stride": protocol.stride,
        "begins_with": scores.prepended if protocol.bos else "",
        "num_documents": targets.num_documents,
        "document_tokens": targets.document_tokens,
        "num_target_tokens": targets.num_targets,
        "targets_sha256": targets.sha256,
        "trained_len": scores.trained_len,
        "far_context": scores.far_context and scores.far_context.model_dump(mode="json"),
        "positions": scores.by_positions,
    }


def _how(protocol: "ScoringProtocol") -> str:
    """How windows go over a document."""
    stride = protocol.stride
    return "whole windows" if stride is None else f"windows sliding by {stride:,}"


def _remarks(scores: "Scores", protocol: "ScoringProtocol") -> list[str]:
    targets = scores.targets
    whose = "held-out document" if protocol.documents is None else "document"
    at_step = "" if scores.step is None else f", step {scores.step:,}"
    remarks = [
        "± is the standard error over documents.",
        f"{targets.num_targets:,} targets of {counted(targets.num_documents, whose)}; "
        f"trained up to {scores.trained_len:,}{at_step}",
    ]
    if targets.num_skipped:
        are = "is" if targets.num_skipped == 1 else "are"
        remarks.append(
            f"{counted(targets.num_skipped, 'document')} {are} left out: empty, not UTF-8 or "
            "without the column"
        )
    if scores.prepended and protocol.bos:
        remarks.append(f"each window begins with {scores.prepended}, in place of its first token")
    elif scores.prepended:
        remarks.append(
            f"the tokenizer prepends {scores.prepended} to a text, these windows are scored "
            "without: --bos begins each with it"
        )
    if scores.step is not None and not scores.own:
        remarks.append("not the targets of the run's own evaluations: do not compare with those")
    return remarks
