"""A run's directory after training: scored at other lengths, or exported. No Ray."""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import GPTNeoXForCausalLM

from glray.errors import UserError
from glray.model.decoder import build_model
from glray.spec.loading import describe
from glray.spec.training import EvaluationSpec
from glray.training.checkpoint import committed_checkpoints, load_weights
from glray.training.context import LocalContext
from glray.training.evaluation import evaluate, heldout_targets
from glray.training.export import export_model
from glray.training.run_directory import Run, find_run


def score_run(directory: Path, seq_lens: tuple[int, ...]) -> list[dict[str, Any]]:
    """One record a length, like those of the run's own evaluations, of its latest checkpoint.

    The targets are a fixed set for the longest of ``seq_lens``, so figures of two calls compare
    only if that is the same. Raises UserError.
    """
    run = find_run(directory)
    num_tokens = max(run.spec.evaluation.num_tokens, *seq_lens)
    try:
        evaluation = EvaluationSpec(seq_lens=seq_lens, num_tokens=num_tokens)
    except ValidationError as error:
        raise UserError(f"--seq-lens: {describe(error)}") from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _ = latest_model(run, device)
    targets = heldout_targets(run.blocks, evaluation)
    return evaluate(model, targets, seq_lens, run.spec, LocalContext(device=device))


def export_run(directory: Path, path: Path) -> int:
    """Write the run's latest model to the new folder ``path``; returns its step."""
    run = find_run(directory)
    if path.exists():
        raise UserError(f"{path}: is there already, an export would replace it; name a new folder")
    model, step = latest_model(run, torch.device("cpu"))
    export_model(model, run.blocks, path, run.longest_seq_len)
    return step


def latest_model(run: Run, device: torch.device) -> tuple[GPTNeoXForCausalLM, int]:
    """The weights of a run's latest committed checkpoint, and its step. Raises UserError."""
    committed = committed_checkpoints(run.checkpoints)
    if not committed:
        raise UserError(
            f"{run.checkpoints}: no checkpoint yet, so there is no model; train on with glray run"
        )
    model = build_model(run.model_config, run.seed, device)
    load_weights(committed[-1], model)
    return model, int(committed[-1].name.removeprefix("step-"))
