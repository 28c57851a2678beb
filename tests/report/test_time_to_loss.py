"""When an arm has what the longest fixed arm ends with: by hand, on straight lines."""

from pathlib import Path

import pytest

from glray.report.headline import headline, seconds_to_loss
from glray.run.run import open_runs
from tests.report.written import scored_at, write_run


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """``grow`` has 6.0 after 4 s, 5.0 after 8 s, 4.5 after 20 s; ``fixed8`` ends with 5.5."""
    grow = write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], {8: 4.5})
    scored_at(grow, 4, 6.0, 4.0)
    scored_at(grow, 8, 5.0, 8.0)
    fixed = write_run(tmp_path / "toy", "fixed8", [(8, 10)], {8: 5.5})
    scored_at(fixed, 5, 7.0, 10.0)
    return tmp_path / "toy"


@pytest.mark.parametrize(
    ("loss", "seconds"), [(6.5, 4.0), (6.0, 4.0), (5.5, 6.0), (5.0, 8.0), (4.4, None)]
)
def test_a_loss_is_reached_on_the_line_between_two_evaluations(
    toy: Path, loss: float, seconds: float | None
) -> None:
    grow = next(run for run in open_runs([toy]) if run.arm == "grow")
    assert seconds_to_loss(grow, 8, loss) == seconds


def test_the_headline_says_how_much_sooner(toy: Path) -> None:
    said = " ".join(headline(open_runs([toy])))
    assert (
        "grow reaches fixed8's final loss at 8 tokens in 30% of fixed8's training time "
        "(6.0 of 20.0 s); its stage of 8 tokens begins at 50%."
    ) in said


def test_an_arm_that_never_has_it_is_said_to(toy: Path) -> None:
    never = write_run(toy, "fixed4", [(4, 20)], {8: 5.6})
    scored_at(never, 5, 7.0, 5.0)
    said = " ".join(headline(open_runs([toy])))
    assert "fixed4 does not reach fixed8's final loss at 8 tokens." in said


def test_stage_boundaries_alone_say_too_little(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], {8: 4.5})
    write_run(tmp_path / "toy", "fixed8", [(8, 10)], {8: 5.5})
    assert "reaches" not in " ".join(headline(open_runs([tmp_path / "toy"])))
