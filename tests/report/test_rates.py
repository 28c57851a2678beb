"""The peak rate of an arm, from literal losses of its pilot's runs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from glray.errors import UserError
from glray.files import write_json
from glray.report.page import Report
from glray.report.rates import TunedRate, tuned_rate
from glray.run.run import Run
from tests.report.written import write_run

NAN = math.nan


def pilot(folder: Path, losses: dict[float, float], **fields: Any) -> list[Run]:
    """A finished run of lengths 4 and 8 at each rate, under seed 100, with its loss at 8; that at 4
    is lowest where the loss at 8 is highest."""
    return [
        Run.open(
            write_run(
                folder / "toy-rates",
                f"grow-lr{lr}",
                [(4, 10), (8, 5)],
                {4: 9.0 - loss, 8: loss},
                seed=100,
                lr=lr,
                **fields,
            )
        )
        for lr, loss in losses.items()
    ]


@pytest.mark.parametrize(
    ("losses", "lr", "at_end"),
    [
        ({1e-3: 3.7, 2e-3: 3.5, 4e-3: 3.6}, 2e-3, None),
        ({1e-3: 3.4, 2e-3: 3.5, 4e-3: 3.6}, 1e-3, "lowest"),
        ({1e-3: 3.7, 2e-3: 3.6, 4e-3: 3.5}, 4e-3, "highest"),
        ({1e-3: 3.7, 2e-3: 3.6, 4e-3: NAN}, 2e-3, None),
        ({1e-3: 3.7, 2e-3: NAN, 4e-3: NAN}, 1e-3, "lowest"),
        ({1e-3: 3.5, 2e-3: 3.5, 4e-3: 3.5}, 1e-3, "lowest"),
        # The rate beyond the grid was tried last.
        ({2e-3: 3.4, 4e-3: 3.6, 1e-3: 3.5}, 2e-3, None),
        ({2e-3: 3.5, 4e-3: 3.6, 1e-3: 3.4}, 1e-3, "lowest"),
    ],
)
def test_the_rate_of_the_lowest_loss_at_the_longest_trained_length(
    tmp_path: Path, losses: dict[float, float], lr: float, at_end: str | None
) -> None:
    rate = tuned_rate("grow", pilot(tmp_path, losses))
    assert (rate.lr, rate.at_end) == (lr, at_end)
    assert [tried for tried, _ in rate.losses] == sorted(losses)


def test_a_line_has_every_rate_with_its_loss() -> None:
    inside = TunedRate("grow", 100, 1024, ((3e-3, 3.549), (6e-3, 3.5381), (1.2e-2, NAN)))
    assert inside.sentence == (
        "grow: peak rate 6e-3, by held-out loss at 1,024 tokens under seed 100: 3e-3 3.549, "
        "6e-3 3.538, 1.2e-2 diverged."
    )
    end = TunedRate("grow", 100, 1024, ((3e-3, 3.549), (6e-3, 3.5381)))
    assert end.sentence == (
        "grow: peak rate 6e-3, by held-out loss at 1,024 tokens under seed 100: 3e-3 3.549, "
        "6e-3 3.538. It is the highest rate that was tried, so the best may lie beyond it."
    )


def test_the_record_keeps_every_loss(tmp_path: Path) -> None:
    rate = TunedRate("grow", 100, 1024, ((3e-3, 3.5), (6e-3, NAN)))
    write_json(tmp_path / "rate.json", rate.record())
    assert json.loads((tmp_path / "rate.json").read_text()) == {
        "label": "grow",
        "lr": 3e-3,
        "seed": 100,
        "seq_len": 1024,
        "at_end": "lowest",
        "losses": [{"lr": 3e-3, "loss": 3.5}, {"lr": 6e-3, "loss": None}],
        "sentence": rate.sentence,
    }


@pytest.mark.usefixtures("undrawn")
def test_the_report_has_the_lines_and_no_doubt_about_the_rates(
    tmp_path: Path, pipeline: Path
) -> None:
    rate = TunedRate("grow", 100, 1024, ((3e-3, 3.5), (6e-3, 3.6)))
    runs = [Run.open(pipeline / "grow-seed0")]
    tuned, own = Report(runs, rates=[rate]), Report(runs)
    assert rate.sentence in tuned.sentences
    doubt = "may want another learning rate"
    pages = [report.write(tmp_path / "out").read_text() for report in (tuned, own)]
    assert [doubt in " ".join(page.split()) for page in pages] == [False, True]


def test_where_all_diverged_none_can_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grow diverged at every rate, 1e-3, 2e-3, under seed 100"):
        tuned_rate("grow", pilot(tmp_path, {1e-3: NAN, 2e-3: NAN}))


def test_a_rate_that_diverged_is_ruled_out_and_named(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"seed": 100, "steps_done": 3, "diverged": True}
    written = write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], {8: 3.0}, lr=8e-3, **fields)
    wild = Run.open(written)
    rate = tuned_rate("grow", [*pilot(tmp_path, {1e-3: 3.7, 2e-3: 3.5, 4e-3: 3.6}), wild])
    assert (rate.lr, rate.at_end) == (2e-3, None)
    assert rate.sentence.endswith("1e-3 3.700, 2e-3 3.500, 4e-3 3.600, 8e-3 diverged.")
    with pytest.raises(UserError, match="grow diverged at every rate, 8e-3, under seed 100"):
        tuned_rate("grow", [wild])


def test_rates_that_are_not_scored_alike_are_not_ranked(tmp_path: Path) -> None:
    other = pilot(tmp_path / "other", {2e-3: 3.4}, targets="bbbb")
    with pytest.raises(UserError, match="not scored on the same held-out targets"):
        tuned_rate("grow", [*pilot(tmp_path, {1e-3: 3.5}), *other])
    short = write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], {4: 3.0}, seed=100)
    with pytest.raises(UserError, match=r"step-00000015.json: not scored at 8 tokens"):
        tuned_rate("grow", [Run.open(short)])
