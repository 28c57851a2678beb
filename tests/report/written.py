"""Runs on disk without training: the files that a run leaves, with figures checkable by eye."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from glray.plan import Plan, StagePlan
from glray.run.records import ForkRecord, Manifest
from glray.spec import load_pipeline, to_yaml

WriteRun = Callable[..., Path]

STEP_MICROSECONDS = {2: 1_000_000, 4: 1_000_000, 8: 2_000_000}
"""A step of 32 tokens is calibrated 1 s at lengths 2 and 4, and 2 s at length 8."""


def write_run(
    pipeline_directory: Path,
    arm: str,
    stages: list[tuple[int, int]],
    losses: dict[int, float],
    *,
    seed: int = 0,
    standard_error: float | None = 0.05,
    document_spread: float = 0.0,
    steps_done: int | None = None,
    diverged: bool = False,
    slowdown: float = 1.0,
    budget_seconds: float | None = 20.0,
    targets: str = "aaaa",
    calibrated: bool = True,
    predicted_seconds: float | None = None,
    lr: float = 3e-3,
    ratios: Sequence[float] | None = None,
    fork: tuple[str, int] | None = None,
    identity: dict[str, Any] | None = None,
    far: dict[int, list[float]] | None = None,
) -> Path:
    """A run of ``stages`` (seq_len, steps) in batches of 32 tokens.

    It ends with held-out ``losses`` by length (each 1 nat more at earlier boundaries), after
    ``slowdown`` times its calibrated seconds. ``steps_done`` leaves it unfinished, or is where it
    has ``diverged``, with a loss that is not finite. The losses of its 16 documents (of 20 tokens)
    lie ``document_spread`` above and below in turn; without a ``standard_error`` there is one
    document. Its shares are declared as ``ratios``, equal ones unless they are given. ``fork`` says
    which run it forks from, and at which step. ``far`` has the losses of as many documents, of 10
    far targets each, by the length of sliding windows.
    """
    directory = pipeline_directory / f"{arm}-seed{seed}"
    plan = _plan(stages, calibrated, budget_seconds)
    num_steps = sum(steps for _, steps in stages)
    done = num_steps if steps_done is None else steps_done
    clock = [0.0]
    for seq_len, steps in stages:
        clock += [clock[-1] + STEP_MICROSECONDS[seq_len] / 1e6 * (i + 1) for i in range(steps)]
    declared = {"tokens": "aaaa", "stages": stages, "seed": seed, "optimizer": {"lr": lr}}
    declared |= identity or {}
    Manifest(
        pipeline=pipeline_directory.name,
        arm=arm,
        seed=seed,
        fingerprint=f"{abs(hash_of(arm, seed)):016x}",
        identity=declared,
        plan=plan,
        architecture={},
        rope_parameters=({},) * len(stages),
        flops_per_token=(1,) * len(stages),
        tokens_directories=(),
        environment=ENVIRONMENT,
        predicted_seconds=predicted_seconds,
        fork=_fork(*fork, clock, slowdown) if fork else None,
    ).write(directory / "run.json")
    declared_stages = [
        {"seq_len": seq_len, "ratio": ratio}
        for (seq_len, _), ratio in zip(stages, ratios or [1.0] * len(stages), strict=True)
    ]
    spec = load_pipeline("pipelines/quickstart.py").derive(
        name=pipeline_directory.name,
        arms=[{"name": arm, "stages": declared_stages}],
        tokens_per_batch=32,
        chunk_len=8,
        optimizer={"lr": lr},
        seeds=[seed],
        search=None,
    )
    (directory / "spec.yaml").write_text(to_yaml(spec))
    with (directory / "metrics.jsonl").open("w") as file:
        for step in range(1, done + 1):
            record = {
                "step": step,
                "stage": 0,
                "seq_len": stages[0][0],
                "tokens": 32 * step,
                "loss": None if diverged and step == done else 8.0 - 4.0 * step / num_steps,
                "lr": 0.001,
                "grad_norm": 1.0 + (step == stages[0][1] + 1),
                "update_norm": 0.5,
                "calibrated_seconds": clock[step] if calibrated else None,
                "measured_seconds": clock[step] * slowdown,
                "data_wait_seconds": 0.25,
                "checksum": "0" * 16,
                "tokens_per_second": 32.0,
                "mfu": 0.5,
                "memory_bytes": None,
            }
            file.write(json.dumps(record) + "\n")
    for (seq_len, steps), (longer, _) in pairwise(stages):
        if diverged and done < steps:
            break
        _write(
            directory / "boundaries" / f"step-{steps:08d}.json", _boundary(seq_len, longer, steps)
        )
    boundary = 0
    for seq_len, steps in stages:
        boundary += steps
        if boundary <= done:
            more = 0.0 if boundary == num_steps else 1.0
            lengths = [
                _length(length, loss + more, standard_error, document_spread)
                for length, loss in losses.items()
            ]
            _write(
                directory / "evaluations" / f"step-{boundary:08d}.json",
                {
                    "step": boundary,
                    "tokens": 32 * boundary,
                    "calibrated_seconds": clock[boundary] if calibrated else None,
                    "measured_seconds": clock[boundary] * slowdown,
                    "trained_seq_len": seq_len,
                    "eval_seconds": 0.5,
                    "targets_sha256": targets,
                    "num_documents": 16 if standard_error else 1,
                    "document_tokens": [20] * 16 if standard_error else [320],
                    "num_target_tokens": 320,
                    "lengths": lengths,
                    "far_context": far_context(far) if far and boundary == num_steps else None,
                },
            )
    if diverged:
        record = {"step": done, "seq_len": 8, "what": "loss", "loss": None, "grad_norm": None}
        _write(directory / "diverged.json", record)
    if steps_done is None:
        _write(
            directory / "result.json",
            {
                "steps": num_steps,
                "tokens": 32 * num_steps,
                "calibrated_seconds": clock[-1] if calibrated else None,
                "measured_seconds": clock[-1] * slowdown,
                "warm_up_seconds": 0.0,
                "eval_seconds": 1.0,
                "checkpoint_seconds": 0.5,
                "wall_seconds": 25.0,
                "checksum": "f" * 16,
                "tokens_by_seq_len": {str(length): 32 * steps for length, steps in stages},
            },
        )
    return directory


ENVIRONMENT = {
    "glray": "0.1.0",
    "commit": "abc1234",
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "ray": "2.60.0",
    "transformers": "5.23.0",
    "processor": "A Processor",
    "num_cpus": 2,
    "memory_gib": 23.5,
    "gpu": None,
    "num_workers": 1,
}


def scored_at(
    run: Path, step: int, loss: float, seconds: float, *, trained_seq_len: int | None = None
) -> None:
    """One more evaluation of a run that is evaluated at one length, between its stage boundaries;
    ``trained_seq_len`` as at the end unless it is given."""
    last = json.loads(max((run / "evaluations").iterdir()).read_text())
    (length,) = last["lengths"]
    record = last | {
        "step": step,
        "calibrated_seconds": seconds,
        "trained_seq_len": trained_seq_len or last["trained_seq_len"],
        "lengths": [length | {"loss": loss}],
    }
    _write(run / "evaluations" / f"step-{step:08d}.json", record)


def _fork(run: str, step: int, clock: list[float], slowdown: float) -> ForkRecord:
    return ForkRecord(
        run=run,
        step=step,
        calibrated_seconds=clock[step],
        measured_seconds=clock[step] * slowdown,
    )


def _plan(stages: list[tuple[int, int]], calibrated: bool, budget_seconds: float | None) -> Plan:
    first, planned = 0, []
    for seq_len, steps in stages:
        planned.append(
            StagePlan(
                seq_len=seq_len,
                windows_per_batch=32 // seq_len,
                first_step=first,
                num_steps=steps,
                step_microseconds=STEP_MICROSECONDS[seq_len] if calibrated else None,
            )
        )
        first += steps
    return Plan(
        stages=tuple(planned),
        tokens_per_batch=32,
        chunk_len=8,
        budget_tokens=None if budget_seconds else 32 * first,
        budget_microseconds=round(budget_seconds * 1e6) if budget_seconds else None,
        log_every_steps=1,
        checkpoint_every_tokens=320,
        evaluate_every_tokens=None,
    )


def _boundary(from_seq_len: int, to_seq_len: int, step: int) -> dict[str, Any]:
    """Two documents of 10 tokens; the longer length is 0.5 better, all gain 0.1 or 0.3 after."""

    def losses(first: float, second: float) -> list[dict[str, Any]]:
        return [
            {
                "seq_len": seq_len,
                "loss": (first + second) / 2 - better,
                "document_losses": [first - better, second - better],
            }
            for seq_len, better in ((from_seq_len, 0.0), (to_seq_len, 0.5))
        ]

    return {
        "step": step,
        "from_seq_len": from_seq_len,
        "to_seq_len": to_seq_len,
        "before": losses(5.0, 6.0),
        "switched": losses(5.0, 6.0),
        "jump": {
            "jump": -0.5,
            "rescaled_positions": 0.0,
            "longer_context": -0.75,
            "unseen_positions": 0.25,
        },
        "rescore_step": step + 2,
        "after": losses(4.9, 5.7),
        "targets_sha256": "aaaa",
        "document_tokens": [10, 10],
    }


def _length(
    seq_len: int, loss: float, standard_error: float | None, spread: float
) -> dict[str, Any]:
    return {
        "seq_len": seq_len,
        "loss": loss,
        "standard_error": standard_error,
        "document_losses": [loss + spread, loss - spread] * 8 if standard_error else [loss],
        "bits_per_byte": loss / 4,
        "loss_by_position": [loss] * seq_len,
    }


def far_context(far: dict[int, list[float]]) -> dict[str, Any]:
    """The record of far targets with these losses."""
    documents = {len(losses) for losses in far.values()}
    return {
        "tokens_before": 4,
        "document_tokens": [10] * documents.pop(),
        "losses": [
            {"seq_len": n, "loss": sum(losses) / len(losses), "document_losses": losses}
            for n, losses in far.items()
        ],
    }


def hash_of(arm: str, seed: int) -> int:
    """A number that stands for a fingerprint, the same in every process."""
    return sum(ord(letter) << (8 * index % 48) for index, letter in enumerate(arm)) + seed


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
