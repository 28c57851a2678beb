"""Outputs of a comparison: labelled runs, verdicts, an HTML page and ``comparison.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glray.files import write_json
from glray.report.arms import by_environment
from glray.report.headline import headline
from glray.report.long_losses import LongLosses, long_sheet
from glray.report.page import write_report
from glray.report.sheets import Sheet, summary
from glray.report.verdict import Judgement, judge
from glray.run.run import Run
from glray.spec.comparison import ComparisonSpec

RunPlaces = Mapping[tuple[str, str, int], Path]
"""The directory of each run by pipeline, arm and seed."""


@dataclass(frozen=True)
class Compared:
    """A comparison whose runs are finished and judged."""

    spec: ComparisonSpec
    runs: list[Run]
    """Labelled, arm by arm, then by seed."""
    long_losses: LongLosses
    judgements: list[Judgement]

    def sheets(self) -> list[Sheet]:
        """What each run took, its held-out loss and that on long documents."""
        sheets = summary(self.runs)
        return [*sheets, long_sheet(self.runs, self.long_losses)] if self.long_losses else sheets

    def sentences(self) -> list[str]:
        """The verdicts, and what else the numbers say."""
        return [*self.verdicts(), *headline(self.runs)]

    def verdicts(self) -> list[str]:
        """A sentence a claim."""
        return [judgement.sentence for judgement in self.judgements]


def labelled_runs(spec: ComparisonSpec, places: RunPlaces) -> list[Run]:
    """The records of the compared runs under the comparison's labels."""
    return [
        replace(Run.open(places[arm.pipeline.name, arm.arm, seed]), label=arm.label)
        for arm in spec.arms
        for seed in spec.seeds
    ]


def compared(spec: ComparisonSpec, runs: list[Run], long_losses: LongLosses) -> Compared:
    """Judge the claims."""
    arms = {arm.label: [run for run in runs if run.label == arm.label] for arm in spec.arms}
    return Compared(spec, runs, long_losses, judge(spec.claims, arms, long_losses))


def write_comparison(comparison: Compared, directory: Path) -> Path:
    """Write plots, ``report.html`` and ``comparison.json``; returns the page's path."""
    page = write_report(
        comparison.runs,
        directory,
        title=f"{comparison.spec.name}: {comparison.spec.title}",
        verdicts=comparison.verdicts(),
        long_losses=comparison.long_losses,
    )
    write_json(directory / "comparison.json", comparison_record(comparison))
    return page


def comparison_record(comparison: Compared) -> dict[str, Any]:
    """All that a page of results needs, as plain values."""
    spec = comparison.spec
    return {
        "name": spec.name,
        "title": spec.title,
        "seeds": spec.seeds,
        "claims": [judgement.record() for judgement in comparison.judgements],
        "headline": headline(comparison.runs),
        "arms": [
            {
                "label": arm.label,
                "pipeline": arm.pipeline.name,
                "arm": arm.arm,
                "stages": [stage.seq_len for stage in arm.pipeline.arm(arm.arm).stages],
                "runs": [_run(run) for run in comparison.runs if run.label == arm.label],
            }
            for arm in spec.arms
        ],
        "long_documents": _long_documents(comparison),
        "environments": [
            {**environment, "runs": len(labels)}
            for environment, labels in by_environment(comparison.runs)
        ],
        "spec": spec.model_dump(mode="json"),
    }


def _run(run: Run) -> dict[str, Any]:
    latest, result = run.latest, run.result
    assert latest is not None, "a finished run is scored"
    assert result is not None, "compared runs are finished"
    return {
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "checksum": result.checksum,
        "commit": run.environment.get("commit"),
        "steps": run.plan.num_steps,
        "tokens": run.tokens,
        "seconds": {
            "calibrated": run.calibrated_seconds,
            "measured": run.measured_seconds,
            "warm_up": result.warm_up_seconds,
            "evaluation": result.eval_seconds,
            "checkpoints": result.checkpoint_seconds,
            "wall": result.wall_seconds,
        },
        "heldout": {
            "targets_sha256": latest.targets_sha256,
            "num_target_tokens": latest.num_target_tokens,
            "num_documents": latest.num_documents,
            **{
                name: {str(score.seq_len): getattr(score, name) for score in latest.lengths}
                for name in ("loss", "standard_error", "bits_per_byte")
            },
        },
        "boundaries": [
            {
                "from": boundary.from_seq_len,
                "to": boundary.to_seq_len,
                "jump": None if boundary.jump is None else boundary.jump.jump,
            }
            for boundary in run.boundaries
        ],
    }


def _long_documents(comparison: Compared) -> list[dict[str, Any]]:
    """By arm, seed and protocol, without the losses of each document and position."""
    of_record = ("stride", "targets_sha256", "num_documents", "num_target_tokens")
    of_length = ("seq_len", "loss", "standard_error")
    return [
        {
            "label": run.label,
            "seed": run.seed,
            "protocol": protocol,
            **{key: record[key] for key in of_record},
            "positions": {
                scaling: [{key: length[key] for key in of_length} for length in lengths]
                for scaling, lengths in record["positions"].items()
            },
        }
        for run in comparison.runs
        for (directory, protocol), record in comparison.long_losses.items()
        if directory == run.directory
    ]
