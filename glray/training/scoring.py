"""A run's directory after training: scored at other lengths, or exported. No Ray."""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from glray.data.targets import HeldoutTargets, heldout_targets
from glray.errors import UserError
from glray.model.decoder import build_model
from glray.model.loss import NextTokenLoss
from glray.spec.loading import describe
from glray.spec.training import EvaluationSpec
from glray.training.checkpoint import (
    TrainState,
    committed_checkpoints,
    load_weights,
    state_of,
    step_of,
)
from glray.training.context import LocalContext
from glray.training.evaluation import evaluate
from glray.training.execution import execution
from glray.training.export import export_model
from glray.training.micro_batches import declared_micro_batches
from glray.training.parallel import whole_weights
from glray.training.run_directory import Run, find_run


def score_run(
    directory: Path, seq_lens: tuple[int, ...]
) -> tuple[list[dict[str, Any]], HeldoutTargets, bool]:
    """One record a length, like those of the run's own evaluations, of its latest checkpoint; the
    targets scored; and whether the run's own evaluations scored the same.

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
    ctx = LocalContext(device=device)
    executed = execution(run.spec, ctx, declared_micro_batches(run.spec))
    targets = heldout_targets(run.corpus, evaluation)
    own = heldout_targets(run.corpus, run.spec.evaluation).sha256 == targets.sha256
    return evaluate(model, targets, seq_lens, run.spec, ctx, executed), targets, own


def export_run(directory: Path, path: Path) -> int:
    """Write the run's latest model to the new folder ``path``; returns its step."""
    run = find_run(directory)
    if path.exists():
        raise UserError(f"{path}: is there already, an export would replace it; name a new folder")
    model, state = latest_model(run, torch.device("cpu"))
    network = model.network
    network.config.tokens_by_seq_len = state.tokens_by_seq_len
    export_model(network, whole_weights(network, LocalContext()), run.corpus, path)
    return state.step


def latest_model(run: Run, device: torch.device) -> tuple[NextTokenLoss, TrainState]:
    """The weights and state of a run's latest committed checkpoint. Raises UserError."""
    committed = committed_checkpoints(run.checkpoints)
    if not committed:
        raise UserError(
            f"{run.checkpoints}: no checkpoint yet, so there is no model; train on with glray run"
        )
    step = step_of(committed[-1])
    if run.is_finished and step != run.plan.num_steps:
        raise UserError(
            f"{run.checkpoints}: the latest checkpoint is of step {step:,}, the run finished at "
            f"{run.plan.num_steps:,}: its last was deleted; delete {run.directory / 'result.json'} "
            "and run again to train the steps between"
        )
    model = NextTokenLoss(build_model(run.model_config, run.seed, device))
    load_weights(committed[-1], model.network)
    return model, state_of(committed[-1])
