"""The token checksum: an order-free sum over what the model was really fed.

Each input and each target adds ``mix(2·offset + kind, token)`` modulo 2^64, where *offset* is the
token's place in the stream. The sum over a step does not depend on rank, length or micro-batch,
and differs when two tokens are swapped or windows shift by one. It is taken from the tensors that
are passed to forward, not from the plan.
"""

import torch

# Odd 64-bit constants of splitmix64 and xxHash, as two's-complement int64.
_PLACE = 0x9E3779B97F4A7C15 - 2**64
_TOKEN = 0xC2B2AE3D27D4EB4F - 2**64
_FINAL = 0x94D049BB133111EB - 2**64


def token_checksum(
    inputs: torch.Tensor, targets: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """The checksum of one micro-batch, int64 scalar on its device (sums wrap modulo 2^64).

    ``inputs`` and ``targets`` are int64[rows, seq_len], ``offsets`` int64[rows] is the stream's
    place of each row's first input.
    """
    places = offsets[:, None] + torch.arange(inputs.shape[1], device=inputs.device)
    return _mix(2 * places, inputs).sum() + _mix(2 * (places + 1) + 1, targets).sum()


def as_hex(checksum: int) -> str:
    """Sixteen hexadecimal digits of a checksum (an int64 or an unsigned sum)."""
    return f"{checksum % 2**64:016x}"


def _mix(places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    mixed = places * _PLACE ^ (tokens + 1) * _TOKEN
    # >> keeps the sign on int64; the mask makes it the logical shift that mixing needs.
    mixed = (mixed ^ ((mixed >> 32) & 0xFFFFFFFF)) * _FINAL
    return mixed ^ ((mixed >> 29) & 0x7FFFFFFFF)
