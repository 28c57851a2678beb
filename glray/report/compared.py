"""A comparison whose runs have ended: they are labelled, judged, and kept as plain values."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from glray.report.arms import by_arm, by_environment
from glray.report.far_context import far_sentence
from glray.report.headline import headline
from glray.report.long_losses import LongLosses
from glray.report.page import Report
from glray.report.rates import TunedRate
from glray.report.verdict import judge
from glray.run.records import Evaluation
from glray.run.run import Run, run_directory
from glray.spec.comparison import ComparisonSpec

OF_TARGETS = ("targets_sha256", "num_target_tokens", "num_documents")
OF_LONG = ("stride", "document_tokens", "far_context")


def labelled_runs(spec: ComparisonSpec) -> list[Run]:
    """The compared runs under the comparison's labels, arm by arm, then by seed."""
    return [
        replace(Run.open(run_directory(arm.pipeline, arm.arm, seed)), label=arm.label)
        for arm in spec.arms
        for seed in spec.seeds
    ]


def compared(
    spec: ComparisonSpec,
    runs: list[Run],
    long_losses: LongLosses,
    rates: Sequence[TunedRate] = (),
) -> Report:
    """Judge the claims; ``rates`` are those that the arms were tuned to."""
    judgements = judge(spec.claims, runs, long_losses)
    return Report(runs, f"{spec.name}: {spec.title}", judgements, long_losses, rates)


def comparison_record(spec: ComparisonSpec, report: Report) -> dict[str, Any]:
    """``comparison.json``: all that a page of results needs, and judging it again, as plain
    values. ``spec`` is as declared, with ``rates`` that may have been tuned."""
    return {
        "name": spec.name,
        "title": spec.title,
        "seeds": spec.seeds,
        "claims": [judgement.record() for judgement in report.judgements],
        "headline": [*headline(report.runs), *filter(None, [far_sentence(report.runs)])],
        "rates": [rate.record() for rate in report.rates],
        "arms": [
            {
                "label": arm.label,
                "pipeline": arm.runs[0].manifest.pipeline,
                "arm": arm.runs[0].arm,
                "stages": arm.seq_lens,
                "lr": arm.runs[0].optimizer.lr,
                "runs": [_run(run) for run in arm.runs],
            }
            for arm in by_arm(report.runs)
        ],
        "long_documents": _long_documents(report),
        "calibrations": {
            run.manifest.pipeline: [
                {str(n): cost for n, cost in costs.items()} for costs in found.repetitions
            ]
            for run in report.runs
            if (found := run.calibration)
        },
        "environments": [
            found | {"runs": len(labels)} for found, labels in by_environment(report.runs)
        ],
        "spec": spec.model_dump(mode="json"),
    }


def _run(run: Run) -> dict[str, Any]:
    """All of a run; of one that diverged what there is, and null where its result would be."""
    result, divergence = run.result, run.divergence
    return {
        "seed": run.seed,
        "fingerprint": run.manifest.fingerprint,
        "checksum": result and result.checksum,
        "diverged": divergence and divergence.model_dump(mode="json"),
        "commit": run.manifest.environment.get("commit"),
        "steps": run.steps_done,
        "tokens": run.tokens,
        "seconds": {
            "calibrated": run.calibrated_seconds,
            "measured": run.measured_seconds,
            "warm_up": result and result.warm_up_seconds,
            "evaluation": result and result.eval_seconds,
            "checkpoints": result and result.checkpoint_seconds,
            "wall": result and result.wall_seconds,
        },
        "heldout": None if divergence else _heldout(run.evaluations[-1]),
        "evaluations": [
            {
                **{name: getattr(scored, name) for name in ("step", "tokens", "targets_sha256")},
                "calibrated_seconds": scored.calibrated_seconds,
                "measured_seconds": scored.measured_seconds,
                "loss": {str(score.seq_len): score.loss for score in scored.lengths},
            }
            for scored in run.evaluations
        ],
        "boundaries": [
            {"from": b.from_seq_len, "to": b.to_seq_len, "jump": b.jump and b.jump.jump}
            for b in run.boundaries
        ],
    }


def _heldout(latest: Evaluation) -> dict[str, Any]:
    return {
        **{name: getattr(latest, name) for name in OF_TARGETS},
        **{
            name: {str(score.seq_len): getattr(score, name) for score in latest.lengths}
            for name in ("loss", "standard_error", "bits_per_byte")
        },
        "document_tokens": latest.document_tokens.tolist(),
        **{
            name: {str(score.seq_len): _rounded(getattr(score, name)) for score in latest.lengths}
            for name in ("document_losses", "loss_by_position")
        },
        "far_context": latest.far_context and latest.far_context.model_dump(mode="json"),
    }


def _rounded(losses: np.ndarray) -> list[float]:
    """To 4 decimals: thousands of them are kept for each run."""
    return [round(loss, 4) for loss in losses.tolist()]


def _long_documents(report: Report) -> list[dict[str, Any]]:
    """By arm, seed and protocol, without the losses of each position."""
    of_length = ("seq_len", "loss", "standard_error", "document_losses")
    return [
        {
            "label": run.label,
            "seed": run.seed,
            "protocol": protocol,
            **{key: record.get(key) for key in (*OF_LONG, *OF_TARGETS)},
            "positions": {
                scaling: [{key: length[key] for key in of_length} for length in lengths]
                for scaling, lengths in record["positions"].items()
            },
        }
        for run in report.runs
        for (directory, protocol), record in report.long_losses.items()
        if directory == run.directory
    ]
