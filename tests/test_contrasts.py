"""The study's analysis: printed tables, examples worked by hand, studies without a difference."""

import math

import numpy as np
import pytest

from benchmarks.contrasts import BudgetCurve, Contrast, Costs, Worth, contrasts, sign_flip_p
from glray.report.outcome import Verdict

ONE_DOCUMENT = np.array([1])


def family(*differences: list[float], margin: float = 0.02) -> list[Contrast]:
    """Contrasts of arms ``a0``, ``a1``, … with these differences from ``base`` by seed."""
    arms = {f"a{n}": np.array(values)[:, None] for n, values in enumerate(differences)}
    losses = {"base": np.zeros((len(differences[0]), 1)), **arms}
    return contrasts(losses, ONE_DOCUMENT, [(name, "base") for name in arms], margin)


@pytest.mark.parametrize(
    ("count", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (8, 2.365), (12, 2.201)]
)
def test_p_values_are_those_of_a_printed_t_table(count: int, t: float) -> None:
    """Two-sided 5% points: seeds whose mean is ``t`` standard errors below 0."""
    spread = np.linspace(-1, 1, count)
    values = spread - t * spread.std(ddof=1) / count**0.5
    (found,) = family(values.tolist())
    assert found.outcome.p == pytest.approx(0.05, abs=5e-5)


def test_a_contrast_worked_by_hand() -> None:
    """Of -1, -2, -3: mean -2, SD 1, t -3.464 with 2 degrees, p = 1 - t / √(2 + t²) = 0.0742; two
    of the 8 choices of signs sum to 6."""
    (found,) = family([-1, -2, -3])
    assert found.over_seeds.mean == -2
    assert found.over_seeds.half == pytest.approx(4.303 / 3**0.5)
    assert found.outcome.p == pytest.approx(1 - 12**0.5 / 14**0.5)
    assert found.p_flips == 0.25
    assert found.verdict is Verdict.UNDERPOWERED


def test_documents_count_by_their_tokens() -> None:
    """(1 × 3 + 2 × 1) / 4."""
    losses = {"a": np.array([[1.0, 2.0], [1.0, 2.0]]), "b": np.zeros((2, 2))}
    (found,) = contrasts(losses, np.array([3, 1]), [("a", "b")], 0.02)
    assert found.by_seed.tolist() == [1.25, 1.25]
    assert set(found.over_documents.parts) == {"seeds", "documents"}


def test_verdicts_are_adjusted_for_the_family() -> None:
    """p is 0.03 alone; of two tests the smaller counts twice."""
    values = [-0.32, -0.10, -0.22, -0.12]
    (alone,) = family(values)
    again, _ = family(values, values)
    assert alone.outcome.p is not None
    assert 0.025 < alone.outcome.p < 0.05
    assert (alone.verdict, again.verdict) == (Verdict.SUPPORTED, Verdict.UNDERPOWERED)
    assert again.outcome.p_adjusted == pytest.approx(2 * alone.outcome.p)


def test_the_same_within_a_margin() -> None:
    """± 0.02 holds ± 2.353 standard errors of 0.002 about 0.001, not of 0.02."""
    near, wide = ([0.001 + s * n for n in (-3, -1, 1, 3)] for s in (0.0015, 0.015))
    same, unknown = family(near)[0], family(wide)[0]
    assert (same.is_same, same.verdict) == (True, Verdict.WITHIN_NOISE)
    assert (unknown.is_same, unknown.verdict) == (False, Verdict.UNDERPOWERED)


def test_eight_seeds_that_agree_may_pass_holms_first_step() -> None:
    assert sign_flip_p(-np.arange(1.0, 9.0)) == 2 / 256 < 0.05 / 4
    assert sign_flip_p(np.array([1.0, -1.0])) == 1.0


def test_studies_without_a_difference_rarely_have_a_verdict() -> None:
    """Eight seeds, four contrasts that share an arm: a false one in at most one of twenty."""
    rng = np.random.default_rng(7)
    pairs = [("grow", f"control{n}") for n in range(4)]
    studies, false = 400, 0
    for _ in range(studies):
        losses = {name: rng.normal(3, 0.02, (8, 1)) for pair in pairs for name in pair}
        found = contrasts(losses, ONE_DOCUMENT, pairs, 0.02)
        false += any(each.outcome.verdict is not Verdict.WITHIN_NOISE for each in found)
    assert false / studies < 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5


def test_arms_at_the_margin_are_rarely_called_the_same() -> None:
    rng = np.random.default_rng(8)
    studies = 400
    found = [family(rng.normal(0.02, 0.01, 8).tolist())[0].is_same for _ in range(studies)]
    assert sum(found) / studies < 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5


# ---- budgets

CURVE = BudgetCurve((50, 100), (3.0 + 0.5 * math.log(2), 3.0))
"""Half a nat for each factor e."""


def test_a_curve_is_straight_over_the_logarithm_and_goes_on() -> None:
    assert CURVE.loss_at(50 * 2**0.5) == pytest.approx(3 + 0.25 * math.log(2))
    assert CURVE.loss_at(200) == pytest.approx(3 - 0.5 * math.log(2))
    for tokens in (40, 50, 80, 100, 130):
        assert CURVE.tokens_to(CURVE.loss_at(tokens)) == pytest.approx(tokens)


def test_a_curve_of_more_pieces() -> None:
    curve = BudgetCurve((1, math.e, math.e**2), (5, 4, 3.5))
    assert curve.loss_at(math.e**1.5) == pytest.approx(3.75)
    assert curve.tokens_to(4.5) == pytest.approx(math.e**0.5)
    assert curve.tokens_to(3.0) == pytest.approx(math.e**3)


def test_a_curve_that_rises_has_no_budget_for_a_loss() -> None:
    assert math.isnan(BudgetCurve((1, 2, 4), (3.0, 3.1, 2.9)).tokens_to(3.05))


def test_costs_are_straight_in_the_length() -> None:
    costs = Costs(128, 1024, 1.7)
    assert [costs.of(n) for n in (128, 256, 512, 1024)] == pytest.approx([1, 1.1, 1.3, 1.7])
    assert costs.time({128: 10, 1024: 10}) == pytest.approx(27)


def worth(tokens: dict[int, float], *shares: float) -> Worth:
    """An arm whose loss the full length reaches on these shares of its 100 tokens, by seed."""
    return Worth("arm", tokens, 100, np.array(shares) * 100)


def test_an_arms_worth_by_hand() -> None:
    """Half at 128 and half at 1,024. At ratio 2 it takes 150 / 200 of the full length's time, and
    its loss 90%: worth 1.2 times its time. At 1.25 it takes 112.5 / 125: even."""
    arm = worth({128: 50, 1024: 50}, 0.9, 0.9)
    assert arm.multiplier(Costs(128, 1024, 1.0)) == pytest.approx((0.9, 0.9, 0.9))
    assert arm.multiplier(Costs(128, 1024, 2.0)) == pytest.approx((1.2, 1.2, 1.2))
    assert arm.break_even(128, 1024) == pytest.approx((1.25, 1.25, 1.25))


def test_an_arm_that_never_pays() -> None:
    """Even where short steps cost nothing, half of its tokens are at full length."""
    assert worth({128: 50, 1024: 50}, 0.4, 0.4).break_even(128, 1024)[0] == math.inf


def test_intervals_are_over_seeds() -> None:
    """Shares e^±0.1: the mean of the logarithms is 0, ± 12.706 × 0.1 of two seeds."""
    arm = worth({128: 100}, math.exp(-0.1), math.exp(0.1))
    mean, low, high = arm.multiplier(Costs(128, 1024, 1.0))
    half = 12.706 * 0.1
    assert (mean, low, high) == pytest.approx((1, math.exp(-half), math.exp(half)))
    assert arm.break_even(128, 1024) == pytest.approx((1, math.exp(-half), math.exp(half)))
