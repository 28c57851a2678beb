"""The RoPE decoder and its loss."""
