"""What ``transformers`` is told of the model. Its code, which takes seconds to import, is not
needed for that: see ``glray.model.decoder``."""

from transformers import GPTNeoXConfig

from glray.errors import UserError
from glray.spec.model import ModelSpec

VOCAB_MULTIPLE = 128
"""The embedding is rounded up to this, as Pythia's is: matrix units like multiples of it."""


def embedding_rows(model: ModelSpec, vocab_size: int) -> int:
    """Rows of the embedding for a tokenizer of ``vocab_size`` ids. Raises UserError."""
    if model.vocab_size is None:
        return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if model.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size {model.vocab_size:,} is less than the tokenizer's {vocab_size:,} "
            f"ids: some tokens would have no embedding; set at least {vocab_size:,}, or null"
        )
    return model.vocab_size


def model_config(
    model: ModelSpec, *, vocab_size: int, eos_id: int, max_seq_len: int
) -> GPTNeoXConfig:
    """The configuration for a tokenizer of ``vocab_size`` ids, trained up to ``max_seq_len``."""
    return GPTNeoXConfig(
        vocab_size=embedding_rows(model, vocab_size),
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=max_seq_len,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": model.rope_theta,
            "partial_rotary_factor": model.rotary_fraction,
        },
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        use_cache=False,
    )
