"""What can be scored: a run's latest model, or that of a ``transformers`` folder. No Ray."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig

from glray.data.blocks.tokenizer import parse_tokenizer, vocab_size
from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.model.config import config_of, model_config
from glray.model.decoder import load_pretrained
from glray.model.loss import NextTokenLoss
from glray.model.pretrained import read_pretrained
from glray.run.run import Run
from glray.spec.model import Precision
from glray.train.context import LocalContext
from glray.train.execution import CPU_MOST_TOKENS, execution
from glray.train.export import latest_model, run_corpus


@dataclass(frozen=True)
class TrainedModel:
    """A model, and what one has to know of its training to score it."""

    directory: Path
    """Of the run, or the folder."""
    model: NextTokenLoss
    rope_parameters: dict[str, Any]
    """Where its windows were placed last, in ``transformers``' words."""
    scaled_by: str | None
    """What has scaled these positions; None if they are those that ``config`` declares."""
    config: PreTrainedConfig
    trained_len: int
    """The longest length trained with these positions, in tokens; of a folder, what its config says
    of that."""
    tokenizer: Tokenizer
    precision: Precision
    rows_at_once: Callable[[int], int]
    """Windows of a length that go through the model at once."""
    run: Run | None = None
    corpus: PreparedCorpus | None = None
    """The run's."""
    step: int | None = None
    """Of the run's checkpoint."""


def find_model(directory: Path, device: torch.device) -> TrainedModel:
    """The latest model of a run's directory, else that of a folder. Raises UserError."""
    if (directory / "run.json").exists():
        return model_of_run(Run.open(directory), device)
    if (directory / "config.json").exists():
        return model_of_folder(directory, device)
    raise UserError(
        f"{directory}: no model to score, it has neither run.json nor config.json; give a run's "
        "directory, such as runs/quickstart/growlength-seed0, or a folder that transformers loads"
    )


def model_of_run(run: Run, device: torch.device) -> TrainedModel:
    """The model of the run's latest checkpoint. Raises UserError."""
    model, state = latest_model(run, device)
    stage = run.plan.stage_index(state.step - 1)
    executed = execution(run.spec, LocalContext(device=device))
    corpus = run_corpus(run)
    config = config_of(run.manifest.architecture, f"{run.directory / 'run.json'}")
    rope = run.manifest.rope_parameters[stage]
    return TrainedModel(
        directory=run.directory,
        model=model,
        rope_parameters=rope,
        scaled_by=None if rope == config.rope_parameters else run.positions.kind,
        config=config,
        trained_len=_trained_len(run, stage, config),
        tokenizer=_tokenizer(corpus.tokenizer_path),
        precision=run.spec.precision,
        rows_at_once=executed.rows_at_once,
        run=run,
        corpus=corpus,
        step=state.step,
    )


def _trained_len(run: Run, stage: int, config: PreTrainedConfig) -> int:
    """The longest length that was trained with the positions of ``stage``, in the run or, if it
    started from one, in the folder."""
    rope, seq_lens = run.manifest.rope_parameters, run.seq_lens
    own = max(seq_lens[n] for n in range(stage + 1) if rope[n] == rope[stage])
    of_folder = config.max_position_embeddings  # or the arm's longest, if that is more
    if run.spec.init is None or of_folder == max(seq_lens) or rope[stage] != config.rope_parameters:
        return own
    return max(own, of_folder)


def model_of_folder(path: Path, device: torch.device) -> TrainedModel:
    """The model of a ``transformers`` folder with its ``tokenizer.json``, in float32. Raises
    UserError."""
    folder = read_pretrained(str(path))
    tokenizer = _tokenizer(path / "tokenizer.json")
    trained_len = folder.config.max_position_embeddings
    config = model_config(  # no text is generated, so no token has to end one
        folder, vocab_size=vocab_size(tokenizer), eos_id=0, max_seq_len=trained_len
    )
    network = load_pretrained(folder, config, device)
    rope_type = config.rope_parameters["rope_type"]
    return TrainedModel(
        directory=path,
        model=NextTokenLoss(network),
        rope_parameters=config.rope_parameters,
        scaled_by=None if rope_type == "default" else rope_type,
        config=config,
        trained_len=trained_len,
        tokenizer=tokenizer,
        precision="float32",
        rows_at_once=lambda seq_len: max(1, CPU_MOST_TOKENS // seq_len),
    )


def _tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise UserError(
            f"{file} does not exist: text could not be tokenized; put the model's there"
        )
    return parse_tokenizer(file.read_bytes(), str(file))
