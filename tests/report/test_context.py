"""What ``glray eval`` shows: nothing cut off, and what it is that is shown."""

from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from glray.data.targets import HeldoutTargets
from glray.report.context import context_sheets
from glray.report.length_plots import loss_by_context
from glray.train.scoring import Scores, ScoringProtocol

from .test_table import rendered, rows_of

LENGTHS: list[dict[str, Any]] = [
    {"seq_len": 128, "loss": 4.5, "standard_error": 0.05, "bits_per_byte": 1.9},
    {"seq_len": 256, "loss": 4.25, "standard_error": None, "bits_per_byte": 1.8},
]


def scores(*names: str, **fields: Any) -> Scores:
    targets = HeldoutTargets(np.zeros((2, 257)), np.array([0, 1]), num_bytes=99, num_skipped=3)
    declared: dict[str, Any] = {"step": 7, "trained_len": 128, "targets": targets, "own": True}
    return Scores(**declared | fields, by_positions=dict.fromkeys(names, LENGTHS))


def test_one_placing_is_named_with_its_windows_and_has_bits_per_byte() -> None:
    protocol = ScoringProtocol((128, 256), stride=64, positions=("yarn",))
    text = rendered(context_sheets(scores("yarn"), protocol))
    assert "windows sliding by 64, positions yarn" in text
    assert rows_of(text, "128") == [["128", "4.500", "±", "0.050", "1.900"]]
    assert rows_of(text, "256") == [["256", "4.250", "1.800"]]


def test_many_placings_are_several_tables_within_80_columns() -> None:
    names = ["as trained", "extrapolation", "interpolation", "ntk", "yarn", "theta=123456789.5"]
    text = rendered(context_sheets(scores(*names), ScoringProtocol((128, 256))))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert text.count("4.500 ± 0.050") == len(names)
    assert all(name in text for name in names[1:5])


def test_what_was_left_out_is_said() -> None:
    (sheet,) = context_sheets(scores("yarn"), ScoringProtocol((128,)))
    assert sheet.notes == [
        "± is the standard error over documents.",
        "512 targets of 2 held-out documents; trained up to 128, step 7",
        "3 documents are left out: empty, not UTF-8 or without the column",
    ]


@pytest.mark.parametrize(
    ("trained_len", "start"), [(128, 2**7.5), (200, 2**7.5), (100, 128 / 2**0.3)]
)
def test_the_plot_shades_every_length_that_was_not_trained(trained_len: int, start: float) -> None:
    figure = loss_by_context({"yarn": LENGTHS}, trained_len, "whole windows")
    (span,) = figure.axes[0].patches
    assert isinstance(span, Rectangle)
    assert span.get_x() == pytest.approx(start)
