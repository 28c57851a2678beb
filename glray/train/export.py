"""A run's latest model, and a model as a folder that ``transformers`` loads. No Ray."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from glray.data.blocks.tokenizer import without_additions
from glray.data.corpus import PreparedCorpus, run_corpus
from glray.errors import UserError
from glray.files import AnyPath, new_directory
from glray.model.config import config_of
from glray.model.decoder import allocate, meta_model, place_positions
from glray.model.loss import NextTokenLoss
from glray.model.portable import portable_config
from glray.progress import working
from glray.run.checkpoint import committed_checkpoints, state_of, step_of
from glray.run.records import TrainState
from glray.run.run import Run
from glray.train.checkpoint import load_weights
from glray.train.context import WorkerContext
from glray.train.parallel import whole_weights


def export_run(directory: AnyPath, path: AnyPath) -> int:
    """Write the run's latest model to the new folder ``path``; returns its step."""
    run = Run.open(directory)
    if path.exists():
        raise UserError(f"{path}: is there already, and would be replaced; name a new folder")
    with working(f"exporting the model of {directory}"):
        model, state = latest_model(run, torch.device("cpu"))
        weights = whole_weights(model.network, WorkerContext())
        export_model(run, state, model.network, weights, run_corpus(run), path)
    return state.step


def latest_model(run: Run, device: torch.device) -> tuple[NextTokenLoss, TrainState]:
    """The weights and state of a run's latest committed checkpoint, positions as the stage places
    them that it was trained in last. Raises UserError."""
    committed = committed_checkpoints(run.checkpoints)
    if not committed and run.divergence:
        raise UserError(
            f"{run.checkpoints}: no checkpoint, so there is no model: the run "
            f"{run.divergence.sentence}; train with a lower peak learning rate"
        )
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
    model = NextTokenLoss(meta_model(config))
    allocate(model, device)
    load_weights(committed[-1], model.network)
    stage = run.plan.stage_index(step - 1)
    place_positions(model.network, run.manifest.rope_parameters[stage])
    return model, state_of(committed[-1])


def trained_len(run: Run, step: int) -> int:
    """The longest length, in tokens, that was trained up to ``step`` with the positions in force
    there: in the run or, if its path started from a folder, in that folder."""
    config = config_of(run.manifest.architecture, f"{run.directory / 'run.json'}")
    rope, seq_lens = run.manifest.rope_parameters, run.seq_lens
    stage = run.plan.stage_index(step - 1)
    own = max(seq_lens[n] for n in range(stage + 1) if rope[n] == rope[stage])
    if rope[stage] != config.rope_parameters:
        return own
    return max(own, run.folder_len)


def export_model(
    run: Run,
    state: TrainState,
    network: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    corpus: PreparedCorpus,
    path: AnyPath,
) -> None:
    """Write ``path`` with config, weights (safetensors) and tokenizer; it appears all at once.

    ``weights`` are the network's, whole, on the CPU. Its positions go along, and the length that
    has been trained with them, not the one that will be.

    ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained`` load it, of
    ``transformers`` 4.57 and 5.
    """
    seq_len, eos_id = trained_len(run, state.step), corpus.vocabulary.eos_id
    changes = {
        "max_position_embeddings": seq_len,
        "tokens_by_seq_len": state.tokens_by_seq_len,
        "use_cache": True,  # training has no use for it, generation is slow without
    }
    tokenizer = corpus.vocabulary.tokenizer()
    generation = GenerationConfig(bos_token_id=eos_id, eos_token_id=eos_id, pad_token_id=eos_id)
    disable_progress_bar()
    with new_directory(path) as partial:
        network.save_pretrained(partial, state_dict=weights)
        generation.save_pretrained(partial)
        config = partial / "config.json"
        _write(config, portable_config(json.loads(config.read_text()) | changes))
        export_tokenizer(tokenizer, eos_id, seq_len, partial)
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes for its owner alone


def export_tokenizer(tokenizer: Tokenizer, eos_id: int, seq_len: int, path: Path) -> None:
    """Write a tokenizer to the folder ``path``. It encodes text as training did, without any token
    that training has not seen, and decodes to the same text.

    What special tokens it has it knows, and their text becomes these tokens, as everywhere in
    ``transformers``; ``split_special_tokens=True`` makes text of it, as training did.
    """
    alone, eos_token = without_additions(tokenizer), tokenizer.id_to_token(eos_id)
    alone.save(str(path / "tokenizer.json"))
    own = json.loads(alone.to_str())["pre_tokenizer"] or {}
    prefix = {name: own[name] for name in ("add_prefix_space",) if name in own}  # false if unsaid
    declared = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": eos_token,  # what stands before a document in training
        "clean_up_tokenization_spaces": False,
        "eos_token": eos_token,
        "model_input_names": ["input_ids", "attention_mask"],  # no token_type_ids, as 4 would
        "model_max_length": seq_len,
        "tokenizer_class": "PreTrainedTokenizerFast",  # 5 writes another name, unknown to 4
    }
    _write(path / "tokenizer_config.json", prefix | declared)


def _write(file: Path, content: dict[str, Any]) -> None:
    """As ``save_pretrained`` writes its own."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
