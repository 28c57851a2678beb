"""A trained model as a folder that ``transformers`` loads."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from glray.data.corpus import PreparedCorpus
from glray.files import new_directory


def export_model(
    model: PreTrainedModel, weights: dict[str, torch.Tensor], corpus: PreparedCorpus, path: Path
) -> None:
    """Write ``path`` with config, weights (safetensors) and tokenizer; it appears all at once.

    ``weights`` are the model's, whole, on the CPU. Its config goes along, with all that is in it.

    ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained`` load it.
    """
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(corpus.tokenizer_path))
    eos_token = tokenizer.convert_ids_to_tokens(corpus.eos_id)
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
