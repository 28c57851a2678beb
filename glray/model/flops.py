"""Model FLOPs of training: what the mathematics asks for, whatever the hardware really does."""

from transformers import PreTrainedConfig


def training_flops_per_token(config: PreTrainedConfig, seq_len: int) -> int:
    """FLOPs, forward and backward, of one target token in a window of ``seq_len``; exact.

    A multiplication and an addition are two FLOPs, and backward has two matrix products for each
    of forward: 6 × the parameters of every matrix that is multiplied, and for the attention of a
    layer 12 × heads × head dimension × the mean number of attended positions, for scores and
    values. The output head counts, tied or not; the embedding, which is looked up, does not; nor do
    norms, activations, softmax and rotary turns, as is usual (Kaplan et al. 2020, arXiv:2001.08361,
    section 2.1; PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

    Attention is **causal**: position i of a window attends to i + 1 positions, on average
    (``seq_len`` + 1) / 2, which is what fused kernels compute. The other common convention, that of
    PaLM's appendix B, counts the full square, ``seq_len`` positions: nearly twice the attention.

    What activation checkpointing computes again is not counted: this is the M of MFU, not the H of
    HFU.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    if config.model_type == "llama":
        head_dim, key_value_heads = config.head_dim, config.num_key_value_heads
        feed_forward_matrices = 3  # gate, up, down
    else:
        head_dim, key_value_heads = hidden // heads, heads
        feed_forward_matrices = 2
    attention_matrices = 2 * hidden * head_dim * (heads + key_value_heads)  # q and o, k and v
    feed_forward = feed_forward_matrices * hidden * config.intermediate_size
    layers = config.num_hidden_layers
    matrices = layers * (attention_matrices + feed_forward) + hidden * config.vocab_size
    # 12 × layers × width × (seq_len + 1) / 2, in integers
    attention = 6 * layers * heads * head_dim * (seq_len + 1)
    return 6 * matrices + attention
