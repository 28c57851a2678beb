"""What a run left on disk, read back: plan, steps, evaluations, result.

A run that is still going is read as far as it got; a line that is being written is skipped. Costs
one pass over ``metrics.jsonl``.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from glray.errors import UserError
from glray.files import read_json
from glray.plan import StagePlan
from glray.report.run_record import (
    BoundaryLoss,
    BoundaryRecord,
    Evaluation,
    Jump,
    LengthLoss,
    Result,
    RunRecord,
    StepLog,
)

__all__ = ["RunRecord", "load_run", "load_runs"]


def load_run(directory: Path) -> RunRecord:
    """The records of one run's directory. Raises UserError if it is none, or is damaged."""
    path = directory / "run.json"
    if not path.is_file():
        raise UserError(
            f"{directory}: has no run.json, so it is no run; give a run's directory "
            "(runs/NAME/ARM-seed0) or a pipeline's (runs/NAME)"
        )
    run = read_json(path)
    try:
        evaluations = [_evaluation(record) for record in _steps_in(directory / "evaluations")]
        boundaries = [_boundary(record) for record in _steps_in(directory / "boundaries")]
        result_path, spec_path = directory / "result.json", directory / "spec.yaml"
        return RunRecord(
            directory=directory,
            pipeline=run["pipeline"],
            arm=run["arm"],
            seed=run["seed"],
            fingerprint=run["fingerprint"],
            identity=run["identity"],
            environment=run["environment"],
            tokens_per_batch=run["plan"]["tokens_per_batch"],
            budget_seconds=run["plan"]["budget_seconds"],
            budget_tokens=run["plan"]["budget_tokens"],
            stages=tuple(StagePlan(**stage) for stage in run["plan"]["stages"]),
            predicted_seconds=run["plan"].get("predicted_seconds"),
            log=_step_log(directory / "metrics.jsonl"),
            evaluations=tuple(evaluations),
            boundaries=tuple(boundaries),
            result=_result(read_json(result_path)) if result_path.is_file() else None,
            spec_yaml=spec_path.read_text(encoding="utf-8") if spec_path.is_file() else "",
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{directory}: its records lack {error}, so they are not of this version of glray; "
            "report them with the version that wrote them"
        ) from None


def load_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """The runs of each path, a run's directory or a pipeline's that holds runs.

    In the order of the paths; within a pipeline's directory arm by arm as its ``spec.yaml`` lists
    them, else by name, then by seed. A run given twice is read once. Raises UserError if a path
    holds no run.
    """
    directories: dict[Path, None] = {}
    for path in paths:
        found = [path] if not path.is_dir() or (path / "run.json").is_file() else _runs_in(path)
        directories |= dict.fromkeys(directory.absolute() for directory in found or [path])
    runs = [load_run(directory) for directory in directories]
    parents = list(dict.fromkeys(run.directory.parent for run in runs))
    arms = {parent: _arm_order(parent) for parent in parents}

    def place(run: RunRecord) -> tuple[Any, ...]:
        parent = run.directory.parent
        known = arms[parent]
        index = known.index(run.arm) if run.arm in known else len(known)
        return parents.index(parent), index, _natural(run.arm), run.seed

    return sorted(runs, key=place)


def _runs_in(directory: Path) -> list[Path]:
    return sorted(path.parent for path in directory.glob("*/run.json"))


def _arm_order(pipeline_directory: Path) -> list[str]:
    """The arms' names as the pipeline's ``spec.yaml`` lists them; empty if it cannot be read."""
    try:
        spec = yaml.safe_load((pipeline_directory / "spec.yaml").read_text(encoding="utf-8"))
        return [arm["name"] for arm in spec["arms"]]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``llm128`` before ``llm1024``."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def _step_log(path: Path) -> StepLog:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be half written
    try:
        steps = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: has a line that is not JSON ({error}), so the run cannot be reported; "
            "remove the line"
        ) from None

    def column(name: str, dtype: type = np.float64) -> np.ndarray:
        return np.array([step[name] for step in steps], dtype=dtype)

    near_boundaries = [step.get("update_norm") for step in steps]  # null becomes NaN

    calibrated = column("calibrated_seconds")
    return StepLog(
        step=column("step", np.int64),
        tokens=column("tokens", np.int64),
        loss=column("loss"),
        grad_norm=column("grad_norm"),
        update_norm=np.array(near_boundaries, dtype=np.float64),
        lr=column("lr"),
        calibrated_seconds=None if np.isnan(calibrated).any() else calibrated,
        measured_seconds=column("measured_seconds"),
        data_wait_seconds=column("data_wait_seconds"),
    )


def _steps_in(folder: Path) -> list[Any]:
    """The records of a folder in the order of their steps."""
    records = [read_json(file) for file in folder.glob("step-*.json")]
    return sorted(records, key=lambda record: record["step"])


def _evaluation(record: dict[str, Any]) -> Evaluation:
    lengths = [
        LengthLoss(
            seq_len=length["seq_len"],
            loss=length["loss"],
            standard_error=length["standard_error"],
            document_losses=np.array(length["document_losses"], dtype=np.float64),
            bits_per_byte=length["bits_per_byte"],
            loss_by_position=np.array(length["loss_by_position"], dtype=np.float64),
        )
        for length in record["lengths"]
    ]
    return Evaluation(
        step=record["step"],
        tokens=record["tokens"],
        calibrated_seconds=record["calibrated_seconds"],
        measured_seconds=record["measured_seconds"],
        trained_seq_len=record["trained_seq_len"],
        targets_sha256=record["targets_sha256"],
        num_documents=record["num_documents"],
        document_tokens=np.array(record["document_tokens"], dtype=np.int64),
        num_target_tokens=record["num_target_tokens"],
        lengths=tuple(sorted(lengths, key=lambda length: length.seq_len)),
    )


def _boundary(record: dict[str, Any]) -> BoundaryRecord:
    def losses(entries: list[dict[str, Any]] | None) -> dict[int, BoundaryLoss]:
        return {
            entry["seq_len"]: BoundaryLoss(entry["loss"], np.array(entry["document_losses"]))
            for entry in entries or []
        }

    return BoundaryRecord(
        step=record["step"],
        from_seq_len=record["from_seq_len"],
        to_seq_len=record["to_seq_len"],
        rescore_step=record["rescore_step"],
        document_tokens=np.array(record["document_tokens"], dtype=np.int64),
        before=losses(record["before"]),
        switched=losses(record["switched"]),
        after=losses(record["after"]),
        jump=None if record["jump"] is None else Jump(**record["jump"]),
    )


def _result(record: dict[str, Any]) -> Result:
    return Result(
        measured_seconds=record["measured_seconds"],
        warm_up_seconds=record.get("warm_up_seconds", 0.0),
        eval_seconds=record["eval_seconds"],
        checkpoint_seconds=record["checkpoint_seconds"],
        wall_seconds=record["wall_seconds"],
        checksum=record["checksum"],
    )
