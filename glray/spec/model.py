"""The model's dimensions, and Pythia's published ones."""

from typing import Annotated, Any, Literal

from pydantic import Field

from glray.spec.base import Count, Integer, Spec

Attention = Literal["window", "document"]
"""What a token attends to in training."""

Precision = Literal["float32", "bfloat16"]
"""Precision of the forward and backward pass."""


class _Decoder(Spec):
    num_layers: Count
    """Transformer blocks."""
    hidden_size: Integer = Field(ge=8)
    """Width of the residual stream."""
    num_heads: Count
    """Attention heads; must divide ``hidden_size``."""
    intermediate_size: Integer = Field(ge=8)
    """Width of the feed-forward layer (Pythia: 4 × ``hidden_size``)."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies (the paper's b, section 2.1)."""
    vocab_size: Count | None = None
    """Rows of the embedding. None: the tokenizer's vocabulary rounded up to a multiple of 128."""

    def model_post_init(self, context: Any) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.num_heads {self.num_heads} does not divide model.hidden_size "
                f"{self.hidden_size}: heads would differ in width; choose a divisor"
            )


class GPTNeoXModel(_Decoder):
    """A GPT-NeoX-shaped RoPE decoder (the Pythia family)."""

    kind: Literal["gpt_neox"] = "gpt_neox"
    rotary_fraction: float = Field(default=0.25, gt=0, le=1)
    """Share of each head's dimensions that RoPE rotates (Pythia: 0.25)."""

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        width = self.hidden_size // self.num_heads
        rotary = int(width * self.rotary_fraction)
        if rotary < 2 or rotary % 2:
            raise ValueError(
                f"model.rotary_fraction {self.rotary_fraction} of {width} dimensions is {rotary}: "
                "rotary positions turn pairs, so this must be even and at least 2"
            )


class LlamaModel(_Decoder):
    """A Llama-shaped RoPE decoder: RMSNorm, gated feed-forward, grouped queries, no biases."""

    kind: Literal["llama"] = "llama"
    num_kv_heads: Count | None = None
    """Key and value heads; must divide ``num_heads``. None: ``num_heads``."""
    tie_embeddings: bool = False
    """The embedding is also the output layer."""

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        width = self.hidden_size // self.num_heads
        if width % 2:
            raise ValueError(
                f"model.num_heads {self.num_heads} of model.hidden_size {self.hidden_size} are "
                f"{width} wide: rotary positions turn pairs; choose a divisor that makes it even"
            )
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads {self.num_kv_heads} does not divide model.num_heads "
                f"{self.num_heads}: groups of queries would differ in size; choose a divisor"
            )


ModelSpec = Annotated[GPTNeoXModel | LlamaModel, Field(discriminator="kind")]


def _pythia(num_layers: int, hidden_size: int, num_heads: int) -> GPTNeoXModel:
    return GPTNeoXModel(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=4 * hidden_size,
    )


# Biderman et al. 2023, table 1, and the published config.json of each size:
# https://github.com/EleutherAI/pythia
PYTHIA_14M = _pythia(6, 128, 4)
PYTHIA_31M = _pythia(6, 256, 8)
PYTHIA_70M = _pythia(6, 512, 8)
PYTHIA_160M = _pythia(12, 768, 12)
PYTHIA_410M = _pythia(24, 1024, 16)
PYTHIA_1B = _pythia(16, 2048, 8)
PYTHIA_1_4B = _pythia(24, 2048, 16)
