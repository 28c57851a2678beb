"""Held-out loss over training time, by hand."""

from pathlib import Path

import numpy as np
import pytest

from glray.report.heldout_plots import has_curves, heldout_over_time
from glray.report.page import Report
from glray.run.run import open_runs
from tests.report.written import scored_at, write_run


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """``grow`` has 6.0 after 4 s (untrained at 8), 5.0 after 15 s and 4.5 after 20 s, ``fixed8``
    7.0, 6.0 and 5.5 after 6, 12 and 20 s."""
    directory = tmp_path / "toy"
    grow = write_run(directory, "grow", [(4, 10), (8, 5)], {8: 4.5})
    (grow / "evaluations/step-00000010.json").unlink()
    scored_at(grow, 4, 6.0, 4.0, trained_seq_len=4)
    scored_at(grow, 12, 5.0, 15.0)
    fixed = write_run(directory, "fixed8", [(8, 10)], {8: 5.5})
    scored_at(fixed, 3, 7.0, 6.0)
    scored_at(fixed, 6, 6.0, 12.0)
    return directory


def test_each_arm_has_a_curve_and_an_end(toy: Path) -> None:
    curves, ends = heldout_over_time(open_runs([toy])).axes

    lines = {tuple(np.asarray(line.get_xdata())): line for line in curves.get_lines()}
    drawn = {
        tuple(np.asarray(line.get_xdata())): tuple(np.asarray(line.get_ydata()))
        for line in lines.values()
    }
    assert drawn[4.0, 15.0, 20.0] == (6.0, 5.0, 4.5)
    assert drawn[6.0, 12.0, 20.0] == (7.0, 6.0, 5.5)
    assert drawn[4.0,] == (6.0,)  # the mark of a length that is not trained yet
    assert lines[4.0,].get_markerfacecolor() == "white"
    assert curves.get_ylabel() == "held-out loss at 8 tokens (nats per token)"
    assert [text.get_text() for text in ends.texts] == ["-1.000"]
    low, high = curves.get_ylim()
    assert low < 4.5
    assert high > 7.0  # after a quarter of its time


@pytest.mark.usefixtures("undrawn")
def test_runs_without_curves_have_no_such_plot(toy: Path, tmp_path: Path) -> None:
    assert has_curves(open_runs([toy]))
    drawn = [path.name for path in Report(open_runs([toy])).draw(tmp_path / "out")]
    assert drawn[0] == "heldout_over_time.png"

    (toy / "fixed8-seed0/evaluations/step-00000003.json").unlink()
    assert not has_curves(open_runs([toy]))


def test_one_arm_alone_has_no_such_plot(toy: Path) -> None:
    assert not has_curves([run for run in open_runs([toy]) if run.arm == "grow"])
