"""Which schedule the study recommends at what a step costs here: figures by hand."""

import pytest

from glray.errors import UserError
from glray.report.recommend import Findings, Tried, best, lengths, priced
from glray.report.recommendation import answer, recommendation

from .test_profile import COSTS, PROFILE
from .test_table import rendered, rows_of

HALF = Tried(
    name="half",
    stages=((0.25, 0.5), (1.0, 0.5)),
    worth=(1.25, 1.0, 1.5),
    num_seeds=8,
    extended=True,
)
LATE = Tried(
    name="late",
    stages=((0.5, 0.9), (1.0, 0.1)),
    worth=(0.5, 0.4, 0.6),
    num_seeds=3,
    extended=False,
)
FINDINGS = Findings(
    seq_lens=(64, 128, 256),
    num_tokens=1_500_000,
    num_parameters=1_000_000,
    schedules=(LATE, HALF),
)


def test_a_schedule_is_priced_at_its_own_lengths() -> None:
    assert lengths(FINDINGS, 32) == (8, 16, 32)
    half, late = priced(FINDINGS, 32, COSTS)
    assert [stage.seq_len for stage in half.arm.stages] == [8, 32]
    # Half of the tokens at 1 and half at 4 seconds, against 4; the full length needs 1.25 × them.
    assert half.time == pytest.approx(2.5 / 4)
    assert half.time_to_loss == pytest.approx((0.5, 2.5 / 6, 0.625))
    assert half.pays
    assert late.time == pytest.approx(2.2 / 4)
    assert late.time_to_loss[0] == pytest.approx(1.1)
    assert not late.pays


def test_the_answer_is_the_fastest_if_it_was_clearly_faster() -> None:
    half, late = priced(FINDINGS, 32, COSTS)
    said = answer(half, 32)
    assert (
        "Train half: it should take 50% (42% to 62%) of the time that 32 throughout needs" in said
    )
    assert "StageSpec(seq_len=8, ratio=0.5), StageSpec(seq_len=32, ratio=0.5)" in said
    assert "Train at 32 throughout: no schedule was clearly faster" in answer(late, 32)


@pytest.mark.parametrize("worth", [(2.0, 0.5, 8.0), (1.4, 0.9, 2.0)])
def test_a_fast_schedule_that_is_unsure_gives_way_to_a_sure_one(
    worth: tuple[float, float, float],
) -> None:
    """The second pays as well, and its interval ends above the other's."""
    unsure = HALF.model_copy(update={"name": "unsure", "worth": worth})
    both = FINDINGS.model_copy(update={"schedules": (HALF, unsure)})
    found = priced(both, 32, COSTS)
    assert [each.arm.name for each in found] == ["unsure", "half"]
    assert best(found).arm.name == "half"


def test_the_table_fits_a_terminal_and_says_where_its_numbers_are_from() -> None:
    text = rendered(recommendation(FINDINGS, priced(FINDINGS, 32, COSTS), 32, PROFILE, None))
    assert [row[0] for name in ("half", "late") for row in rows_of(text, name)] == ["half", "late"]
    assert "0.50 (0.42 to 0.62)" in text
    assert "under 3 or 8 seeds of 1.5 M tokens" in " ".join(text.split())
    assert "extended in a straight line" in " ".join(text.split())
    assert "an abacus" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_a_length_without_whole_parts_is_an_error() -> None:
    with pytest.raises(UserError, match="full length 30 is not a multiple of 4"):
        lengths(FINDINGS, 30)
