"""The token checksum is blind to how a step is cut, and to nothing else."""

import torch

from glray.data.checksum import as_hex, token_checksum

STREAM = torch.arange(1000, 1000 + 33)  # token i is 1000 + i


def checksum(stream: torch.Tensor, seq_len: int, *, shift: int = 0, micro: int = 100) -> int:
    """Of the first 32 targets, cut at seq_len, ``micro`` rows at a time."""
    starts = torch.arange(0, 32, seq_len)
    rows = torch.stack([stream[s : s + seq_len + 1] for s in starts])
    total = 0
    for i in range(0, len(rows), micro):
        part = rows[i : i + micro]
        checksum = token_checksum(part[:, :-1], part[:, 1:], starts[i : i + micro] + shift)
        total += int(checksum.item())
    return total % 2**64


def test_length_micro_batch_and_order_do_not_matter() -> None:
    whole = checksum(STREAM, 32)
    assert checksum(STREAM, 8) == whole
    assert checksum(STREAM, 4, micro=3) == whole
    assert checksum(STREAM, 1, micro=1) == whole


def test_swapped_tokens_are_seen() -> None:
    swapped = STREAM.clone()
    swapped[5], swapped[6] = STREAM[6], STREAM[5]
    assert checksum(swapped, 8) != checksum(STREAM, 8)


def test_a_shift_by_one_is_seen() -> None:
    assert checksum(STREAM, 8, shift=1) != checksum(STREAM, 8)
    rows = STREAM[:33].unfold(0, 9, 8)
    offsets = torch.arange(0, 32, 8)
    right = token_checksum(rows[:, :-1], rows[:, 1:], offsets)
    targets_not_shifted = token_checksum(rows[:, :-1], rows[:, :-1], offsets)
    assert right.item() != targets_not_shifted.item()


def test_a_dropped_and_a_repeated_row_are_seen() -> None:
    rows = STREAM[:33].unfold(0, 9, 8)
    offsets = torch.arange(0, 32, 8)
    whole = token_checksum(rows[:, :-1], rows[:, 1:], offsets).item()
    dropped = token_checksum(rows[:3, :-1], rows[:3, 1:], offsets[:3]).item()
    twice = torch.cat([rows[:3], rows[:1]]), torch.cat([offsets[:3], offsets[:1]])
    repeated = token_checksum(twice[0][:, :-1], twice[0][:, 1:], twice[1]).item()
    assert len({whole, dropped, repeated}) == 3


def test_as_hex_takes_negative_and_large_sums() -> None:
    assert as_hex(-1) == "f" * 16
    assert as_hex(2**64 + 10) == "000000000000000a"
