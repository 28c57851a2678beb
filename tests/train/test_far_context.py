"""Far-context gain is what context further back is worth, and nothing else about windows is."""

import numpy as np
import pytest
import torch

from glray.data.targets import HeldoutTargets
from glray.train.context import WorkerContext
from glray.train.evaluation import Scored, Windows, far_windows, score, score_far


class Reaches(torch.nn.Module):
    """Knows a target (loss 0) if it sees at least so many tokens before it; else it loses 1."""

    def __init__(self, distance: int) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen = torch.arange(1, inputs.shape[1] + 1).expand(inputs.shape)
        return (seen < self.distance).float()


def far_losses(distance: int, trained: int = 1024, longest: int = 1024) -> dict[int, float]:
    """By window length; two sequences of one document, one of another."""
    tokens = np.arange(3 * (longest + 1)).reshape(3, -1)
    targets = HeldoutTargets(tokens, np.array([0, 1, 0]), num_bytes=1)
    model = Reaches(distance)

    def score_windows(windows: Windows, first_place: int) -> Scored:
        ctx = WorkerContext()
        return score(
            model,  # type: ignore[arg-type]
            targets,
            windows,
            ctx,
            rows=5,
            precision="float32",
            first_place=first_place,
        )

    context = score_far(targets, trained, score_windows)
    assert context.document_tokens.tolist() == [2 * (longest - longest // 2), longest // 2]
    for loss in context.losses:
        assert loss.document_losses.tolist() == pytest.approx([loss.loss] * 2)
    return {loss.seq_len: loss.loss for loss in context.losses}


def test_a_model_that_sees_16_tokens_gains_nothing() -> None:
    # Its whole windows do: the first 15 targets of each are lost, of 128 more than of 1,024.
    assert far_losses(16) == {128: 0, 256: 0, 512: 0, 1024: 0}


def test_each_window_length_shows_up_to_where_a_model_reaches() -> None:
    # A target at the 65th to 128th place of its window sees so many: 65 to 99 are too few.
    assert far_losses(100) == {128: 35 / 64, 256: 0, 512: 0, 1024: 0}
    assert far_losses(200) == {128: 1, 256: 71 / 128, 512: 0, 1024: 0}
    # A far target has 513 to 1,024 tokens before it, all in sight of the longest window alone.
    assert far_losses(600) == {128: 1, 256: 1, 512: 1, 1024: 87 / 512}


def test_a_model_trained_short_is_scored_in_its_own_windows() -> None:
    assert far_losses(16, trained=128) == {128: 0}
    assert far_losses(16, trained=64) == {64: 0}


@pytest.mark.parametrize(
    ("longest", "trained", "expected"),
    [
        (2048, 1024, (512, [128, 256, 512, 1024])),
        (8192, 4096, (512, [128, 256, 512, 1024, 2048, 4096])),
        (2048, 384, (512, [128, 256, 384])),
        (512, 1024, (256, [64, 128, 256, 512])),  # as far as it is evaluated
        (64, 32, (32, [8, 16, 32])),
        (1, 1, (0, [1])),
    ],
)
def test_windows_double_from_the_short_context_to_the_longest_trained(
    longest: int, trained: int, expected: tuple[int, list[int]]
) -> None:
    assert far_windows(longest, trained) == expected
