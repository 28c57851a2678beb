"""A run's latest model, and a model as a folder that ``transformers`` loads. No Ray."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from glray.data.corpus import PreparedCorpus, open_corpus
from glray.errors import UserError
from glray.files import new_directory
from glray.model.config import config_of
from glray.model.decoder import build_model, place_positions
from glray.model.loss import NextTokenLoss
from glray.progress import working
from glray.run.checkpoint import committed_checkpoints, state_of, step_of
from glray.run.records import TrainState
from glray.run.run import Run
from glray.train.checkpoint import load_weights
from glray.train.context import WorkerContext
from glray.train.parallel import whole_weights


def export_run(directory: Path, path: Path) -> int:
    """Write the run's latest model to the new folder ``path``; returns its step."""
    run = Run.open(directory)
    if path.exists():
        raise UserError(f"{path}: is there already, and would be replaced; name a new folder")
    with working(f"exporting the model of {directory}"):
        model, state = latest_model(run, torch.device("cpu"))
        network = model.network
        network.config.tokens_by_seq_len = state.tokens_by_seq_len
        export_model(network, whole_weights(network, WorkerContext()), run_corpus(run), path)
    return state.step


def latest_model(run: Run, device: torch.device) -> tuple[NextTokenLoss, TrainState]:
    """The weights and state of a run's latest committed checkpoint, positions as the stage places
    them that it was trained in last. Raises UserError."""
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
    if step > run.plan.num_steps:
        raise UserError(
            f"{run.checkpoints}: the latest checkpoint is of step {step:,}, the plan of "
            f"{run.directory / 'spec.yaml'} ends at {run.plan.num_steps:,}: it is another run's; "
            "restore the file"
        )
    config = config_of(run.manifest.architecture, f"{run.directory / 'run.json'}")
    model = NextTokenLoss(build_model(config, run.seed, device))
    load_weights(committed[-1], model.network)
    stage = run.plan.stage_index(step - 1)
    place_positions(model.network, run.manifest.rope_parameters[stage])
    return model, state_of(committed[-1])


def run_corpus(run: Run) -> PreparedCorpus:
    """The token blocks that the run was started with. Raises UserError."""
    directories = list(run.manifest.tokens_directories)
    if len(directories) != len(run.spec.sources):
        raise UserError(
            f"{run.directory / 'run.json'}: damaged, it names {len(directories)} folders of token "
            f"blocks for {len(run.spec.sources)} sources; restore it"
        )
    return open_corpus(run.spec, directories)


def export_model(
    model: PreTrainedModel, weights: dict[str, torch.Tensor], corpus: PreparedCorpus, path: Path
) -> None:
    """Write ``path`` with config, weights (safetensors) and tokenizer; it appears all at once.

    ``weights`` are the model's, whole, on the CPU. Its config goes along, with all that is in it.

    ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained`` load it.
    """
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(corpus.vocabulary.tokenizer_path))
    eos_token = tokenizer.convert_ids_to_tokens(corpus.vocabulary.eos_id)
    tokenizer.add_special_tokens({"eos_token": eos_token, "bos_token": eos_token})
    tokenizer.model_max_length = model.config.max_position_embeddings
    use_cache = model.config.use_cache
    model.config.use_cache = True  # training has no use for it, generation is slow without
    disable_progress_bar()
    try:
        with new_directory(path) as partial:
            model.save_pretrained(partial, state_dict=weights)
            tokenizer.save_pretrained(partial)
            for file in partial.iterdir():
                file.chmod(0o644)  # safetensors writes for its owner alone
    finally:
        model.config.use_cache = use_cache
