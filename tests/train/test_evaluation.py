"""The held-out targets are one fixed set, and the figures are what their definitions say."""

import math

import numpy as np
import pytest
import torch

from glray.data.corpus import PreparedCorpus
from glray.data.targets import HeldoutTargets, heldout_targets
from glray.errors import UserError
from glray.run.statistics import standard_error
from glray.spec import EvaluationSpec
from glray.train.context import WorkerContext
from glray.train.evaluation import Windows, score


class NextToken(torch.nn.Module):
    """Knows that token t is followed by t + 1, unless it is the window's first position."""

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*inputs.shape, 200)
        logits.scatter_(2, (inputs + 1)[..., None], 20.0)
        logits[:, 0] = 0.0
        return torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")


def targets_of(*sequences: list[int]) -> HeldoutTargets:
    return HeldoutTargets(np.array(sequences), np.arange(len(sequences)), num_bytes=24)


def test_losses_by_length_and_position() -> None:
    targets = targets_of(list(range(9)), list(range(50, 59)), list(range(100, 109)))
    two, eight = (
        score(
            NextToken(),  # type: ignore[arg-type]
            targets,
            Windows.over(targets.longest, n),
            WorkerContext(),
            rows=2,
            precision="float32",
        ).record()
        for n in (2, 8)
    )
    unknown = math.log(200)
    known = math.log(math.exp(20) + 199) - 20
    assert two.loss == pytest.approx((unknown + known) / 2, rel=1e-6)
    assert eight.loss == pytest.approx((unknown + 7 * known) / 8, rel=1e-6)
    assert two.loss_by_position.tolist() == pytest.approx([unknown, known], rel=1e-5, abs=1e-6)
    assert eight.loss_by_position.tolist() == pytest.approx(
        [unknown, *[known] * 7], rel=1e-5, abs=1e-6
    )
    assert eight.bits_per_byte == pytest.approx(eight.loss * 24 / math.log(2) / 24)
    assert two.standard_error == pytest.approx(0, abs=1e-6)


def test_standard_error_of_equal_documents_is_that_of_their_means() -> None:
    losses, counts = np.array([1.0, 2.0, 3.0]), np.array([10, 10, 10])
    # Standard deviation 1, over √3.
    assert standard_error(counts, losses) == pytest.approx(1 / math.sqrt(3))
    assert standard_error(np.array([5]), np.array([1.0])) is None


def test_sequences_are_dealt_round_after_round(corpus: PreparedCorpus) -> None:
    # Three documents of 80 tokens: at 32 each has two sequences, one in each half.
    four = heldout_targets(corpus, EvaluationSpec(seq_lens=(8, 32), num_tokens=4 * 32))
    assert four.documents.tolist() == [0, 1, 2, 0]
    every = heldout_targets(corpus, EvaluationSpec(seq_lens=(8, 32), num_tokens=10**6))
    assert every.documents.tolist() == [0, 1, 2, 0, 1, 2]
    assert every.num_targets == 6 * 32
    assert (every.tokens[:4] == four.tokens).all()


def test_no_document_long_enough_names_both_lengths(corpus: PreparedCorpus) -> None:
    with pytest.raises(UserError, match=r"128 needs.*129 tokens.*longest of 3 has 80"):
        heldout_targets(corpus, EvaluationSpec(seq_lens=(128,), num_tokens=128))
