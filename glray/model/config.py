"""What ``transformers`` is told of the model. Its code, which takes seconds to import, is not
needed for that: see ``glray.model.decoder``."""

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from glray.errors import UserError
from glray.model.pretrained import PretrainedFolder, read_pretrained
from glray.run.parent import Parents
from glray.spec.model import LlamaModel, ModelSpec
from glray.spec.pipeline import PipelineSpec

VOCAB_MULTIPLE = 128
"""The embedding is rounded up to this, as Pythia's is: matrix units like multiples of it."""


Start = ModelSpec | PretrainedFolder | Parents
"""What the runs of a pipeline start from."""


def starting_model(spec: PipelineSpec) -> Start:
    """What the runs of the spec start from: the model that it declares, the folder that it names,
    or its parents. Raises UserError if the folder or a run cannot be started from."""
    if spec.model is not None:
        return spec.model
    if spec.start is not None:
        return Parents.of(spec)
    assert spec.init is not None, "a spec has a model, a folder or a start"
    folder = read_pretrained(spec.init)
    rope_type = folder.config.rope_parameters["rope_type"]
    if rope_type != "default":
        raise UserError(
            f"init: {folder.path} has rope_type {rope_type!r}, only 'default' can be trained: an "
            "arm would scale scaled positions; give a model without scaling"
        )
    return folder


def embedding_rows(model: Start, vocab_size: int) -> int:
    """Rows of the embedding for a tokenizer of ``vocab_size`` ids. Raises UserError."""
    if isinstance(model, Parents):
        return int(model.architecture["vocab_size"])  # of the same tokens
    if isinstance(model, PretrainedFolder):
        rows, remedy = model.config.vocab_size, "use the folder's own tokenizer.json"
        where = str(model.path)
    elif model.vocab_size is None:
        return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    else:
        rows, remedy = model.vocab_size, f"set at least {vocab_size:,}, or null"
        where = "model.vocab_size"
    if rows < vocab_size:
        raise UserError(
            f"{where}: the embedding has {rows:,} rows, less than the tokenizer's {vocab_size:,} "
            f"ids: some tokens would have none; {remedy}"
        )
    return rows


def model_config(
    model: Start, *, vocab_size: int, eos_id: int, max_seq_len: int
) -> PreTrainedConfig:
    """The configuration for a tokenizer of ``vocab_size`` ids, trained up to ``max_seq_len``.

    Raises UserError if the embedding would have fewer rows than the tokenizer has ids.
    """
    rows = embedding_rows(model, vocab_size)
    if isinstance(model, Parents):
        config = config_of(model.architecture, f"{model.first.run.directory / 'run.json'}")
        config.max_position_embeddings = max(model.first.run.folder_len, max_seq_len)
        return config
    if isinstance(model, PretrainedFolder):
        config = copy.deepcopy(model.config)
        config.max_position_embeddings = max(config.max_position_embeddings, max_seq_len)
        config.bos_token_id = config.eos_token_id = eos_id
        return config
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_theta}
    own: dict[str, Any] = {}
    if isinstance(model, LlamaModel):
        own["num_key_value_heads"] = model.num_kv_heads
        own["tie_word_embeddings"] = model.tie_embeddings
    else:
        rope["partial_rotary_factor"] = model.rotary_fraction
    return AutoConfig.for_model(  # imports the one kind alone: Llama's takes 5 s
        model.kind,
        vocab_size=rows,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=max_seq_len,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        use_cache=False,
        rope_parameters=rope,
        **own,
    )


def config_of(architecture: dict[str, Any], where: str) -> PreTrainedConfig:
    """The configuration that a run records. Raises UserError, which names ``where``."""
    try:
        return AutoConfig.for_model(**architecture)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"{where}: damaged, its architecture is not as glray wrote it ({error}); restore it"
        ) from None


def longest_config(spec: PipelineSpec, *, vocab_size: int, eos_id: int) -> PreTrainedConfig:
    """The configuration of a scratch model for every length of the spec, trained by no run."""
    start, longest = starting_model(spec), max(spec.all_seq_lens)
    return model_config(start, vocab_size=vocab_size, eos_id=eos_id, max_seq_len=longest)
