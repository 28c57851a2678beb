"""The long documents of a comparison: every run scored on them, once."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glray.cli.app import console
from glray.files import read_json, write_json
from glray.run.run import Run
from glray.spec import ComparisonSpec, ContextSpec

if TYPE_CHECKING:
    from glray.report.long_losses import LongLosses


def check_documents(spec: ComparisonSpec) -> None:
    """Raises UserError if the documents are not there: said before anything is trained."""
    if spec.context is not None:
        _versions(spec.context)


def scored_long_documents(spec: ComparisonSpec, runs: list[Run], directory: Path) -> "LongLosses":
    """Every run's loss on the long documents, in whole and in sliding windows.

    What ``directory`` has of the same run, documents and protocol is read. A run that diverged is
    left out. Raises UserError.
    """
    from glray.report.long_losses import SLIDING, WHOLE

    context = spec.context
    if context is None:
        return {}
    versions = _versions(context)
    return {
        (run.directory, name): _scored(run, context, name, stride, versions, directory)
        for run in runs
        if not _diverged(run)
        for name, stride in ((WHOLE, None), (SLIDING, context.stride))
    }


def _scored(
    run: Run,
    context: ContextSpec,
    name: str,
    stride: int | None,
    versions: list[dict[str, Any]],
    directory: Path,
) -> dict[str, Any]:
    """One run in whole or in sliding windows: ``report.context.context_record``."""
    from glray.report.context import context_record
    from glray.report.long_losses import SCALINGS
    from glray.train.scoring import ScoringProtocol, score_model

    assert run.result is not None, "compared runs are finished"
    scored_as = {
        "fingerprint": run.fingerprint,
        "trained_in_seconds": run.result.wall_seconds,  # trained again it may end elsewhere
        "context": context.model_dump(mode="json"),
        "files": versions,
    }
    path = directory / f"{run.name}-{name}.json"
    record = read_json(path)
    if record is None or record.get("scored_as") != scored_as:
        console.print(f"{run.name}: long documents, {name} windows")
        protocol = ScoringProtocol(
            seq_lens=context.seq_lens,
            stride=stride,
            positions=SCALINGS,
            documents=context.documents,
            num_tokens=context.num_tokens,
        )
        scores = score_model(run.directory, protocol)
        record = {"scored_as": scored_as, **context_record(scores, protocol)}
        write_json(path, record)
    return dict(record)


def _versions(context: ContextSpec) -> list[dict[str, Any]]:
    """The documents' files as they are now; empty for held-out text, which is the corpus's."""
    from glray.data.read.sources import list_source

    if context.documents is None:
        return []
    return [asdict(file) for file in list_source(context.documents)]


def _diverged(run: Run) -> bool:
    """Whether the run's last evaluation has a loss that is not a number."""
    return run.latest is None or not all(math.isfinite(score.loss) for score in run.latest.lengths)
