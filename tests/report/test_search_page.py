"""A search's page: what it answers, shows and leaves out."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from glray.errors import UserError
from glray.report import search_plots
from glray.report.page import Report
from glray.report.search_page import SearchReport, search_report
from glray.report.search_sheets import effects
from glray.run.run import open_runs

from .searched import write_trial
from .test_page import Page

RATES = (1e-3, 3e-3, 1e-2)


def planted(first: float, second: float, lr: float) -> float:
    """Lowest, 3.4, where the boundaries are at 30% and 70% and the rate is 3e-3."""
    away = np.log(lr / 3e-3) ** 2
    return float(3.4 + 3 * (first - 0.3) ** 2 + 2 * (second - 0.7) ** 2 + 0.02 * away)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 schedules of 2, 4 and 8 around the best, the fixed length at each rate, one far off, one
    that diverged and one that is unfinished."""
    directory = tmp_path_factory.mktemp("search") / "toy-search"
    rng = np.random.default_rng(0)
    for first, second, lr in product((20, 30, 40), (60, 70, 80), RATES):
        name = f"2x{first}-4x{second - first}-8x{100 - second}-lr{lr:g}"
        loss = planted(first / 100, second / 100, lr) + rng.normal(0, 0.002)
        losses = {2: loss + 0.5 - first / 100, 8: loss}
        write_trial(directory, name, losses, lr=lr, document_spread=rng.normal(0, 0.03))
    for lr in RATES:
        write_trial(directory, f"8x100-lr{lr:g}", {2: 4.6, 8: planted(0, 0.1, lr)}, lr=lr)
    write_trial(directory, "2x10-4x20-8x70-lr0.01", {2: 9.5, 8: 9.0}, lr=1e-2)
    write_trial(
        directory, "2x10-8x90-lr0.01", {2: 4.6, 8: 4.5}, lr=1e-2, steps_done=5, diverged=True
    )
    write_trial(directory, "2x20-8x80-lr0.01", {2: 4.6, 8: 4.5}, lr=1e-2, steps_done=6)
    return directory


@pytest.fixture(scope="module")
def report(searched: Path) -> SearchReport:
    runs = open_runs([searched])
    baselines = [run.arm for run in runs if len(run.seq_lens) == 1]
    return search_report(runs, 8, title="toy: which schedule?", baselines=baselines)


def test_the_planted_optimum_is_found(report: SearchReport) -> None:
    lists = {its.label: its for its in report.effects}
    grown = lists["2-4-8"]
    assert [factor.name for factor in grown.factors] == ["2→4", "4→8", "peak rate"]
    assert grown.surface.explains
    assert grown.schedule_at_optimum == "2x30-4x40-8x30, peak rate 3e-3"
    assert grown.optimum.loss == pytest.approx(3.4, abs=0.004)
    assert grown.sentence.startswith(
        "2-4-8: a quadratic surface fitted to 27 trials, 1 far above them left out, explains 9"
    )
    assert not lists["8"].is_fitted  # three rates


def test_the_effects_are_shown_with_their_intervals(report: SearchReport) -> None:
    sheet = effects(report.effects)
    assert [[*row[2:4], *row[6:]] for row in sheet.rows] == [
        ["2→4", "20% to 40%", "30%"],
        ["4→8", "60% to 80%", "70%"],
        ["peak rate", "1e-3 to 1e-2", "3e-3"],
    ]
    # Ends over the middle: 3 × 0.1², with an interval.
    bend, half = map(float, sheet.rows[0][5].split(" ± "))
    assert abs(bend - 0.03) <= half < 0.01
    assert sheet.notes[-1] == "8 has 3 trials: fewer than 8, or nothing varies, so not fitted."


def test_a_surface_of_noise_has_no_optimum(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for first, second in product((20, 30, 40), (60, 70, 80)):
        name = f"2x{first}-4x{second - first}-8x{100 - second}"
        write_trial(tmp_path / "toy", name, {8: 3.4 + rng.normal(0, 0.01)})
    report = search_report(open_runs([tmp_path / "toy"]), 8, title="toy")
    (its,) = report.effects
    assert "a quadratic surface fitted to 9 trials explains nothing (R² " in its.sentence
    assert "lowest at" not in its.sentence
    assert [row[6] for row in effects(report.effects).rows] == ["-", "-"]
    figure = search_plots.loss_by_factor(report.trials, report.effects)
    assert headline(figure).startswith("No fitted surface explains anything")


def test_one_length_has_no_boundary_to_place(tmp_path: Path) -> None:
    for place, loss in enumerate((3.41, 3.39, 3.42, 3.40, 3.38, 3.43, 3.39, 3.41), 1):
        write_trial(tmp_path / "toy", f"8x100-lr{place}e-3", {8: loss}, lr=place * 1e-3)
    (its,) = search_report(open_runs([tmp_path / "toy"]), 8, title="toy").effects
    assert its.sentence.startswith("8: a quadratic surface fitted to 8 trials explains nothing")
    assert its.sentence.endswith("so these trials do not say which value is best.")


def headline(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def test_every_plot_says_what_it_shows(report: SearchReport) -> None:
    trials = report.trials
    best = "2x30-4x40-8x30-lr0.003"
    assert trials.best is not None
    assert trials.best.name == best
    near = len(trials.within_noise)
    assert 0 < near < 30
    assert headline(search_plots.trials_by_loss(trials)) == (
        f"{near} of the other 30 cannot be told apart from the best, {best}"
    )
    assert headline(search_plots.loss_by_factor(trials, report.effects)) == (
        "Loss clearly depends on where 2→4 and 4→8 lie, and on the peak rate"
    )
    assert "trade loss at 2 tokens against loss at 8" in headline(
        search_plots.short_against_long(trials)
    )
    assert headline(search_plots.shares_of_all(trials)).startswith(f"The best and {near} within")
    assert headline(search_plots.loss_by_shares(trials)).startswith(f"The best and {near} within")


def test_every_trial_has_a_row_in_the_plot(report: SearchReport) -> None:
    axes = search_plots.trials_by_loss(report.trials).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [trial.name for trial in report.trials.ranked]
    assert len(names) == 33
    written = [text.get_text() for text in axes.texts]
    assert written[-2:] == ["diverged", "unfinished"]  # by name
    assert "+5.6" in written[-3]
    assert axes.get_xlim()[1] < 2


def test_the_page_answers_first_and_has_every_plot(report: SearchReport, tmp_path: Path) -> None:
    page = Page(report.write(tmp_path / "out").read_text(encoding="utf-8"))
    assert page.open == []
    images = [attrs["alt"] for tag, attrs in page.seen if tag == "img"]
    assert len(images) == 5
    assert page.text.index("Of the 33 schedules tried") < page.text.index("Ranked last: 1 diverged")
    assert "2x30-4x40-8x30-lr0.003 has the lowest held-out loss at 8 tokens" in page.text
    assert "fixed 8 at its best rate, 3e-3, has" in page.text
    assert "nothing has been confirmed" in page.text
    assert any(row[:3] == ["-", "2x10-8x90-lr0.01", "diverged"] for row in page.rows)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.seen}


def test_what_was_confirmed_comes_first(report: SearchReport, searched: Path) -> None:
    for seed in (1, 2, 3):
        for name, loss in (("2x30-4x40-8x30", 3.41), ("8x100", 4.4)):
            losses = {2: 4.0, 8: loss}
            fresh = searched.parent / "toy-confirm"
            write_trial(fresh, f"{name}-lr0.003", losses, lr=3e-3, seed=seed)
    confirmed = search_report(
        [trial.run for trial in report.trials.ranked],
        8,
        title="toy",
        baselines=report.trials.baselines,
        confirmed=Report(open_runs([fresh])),
    )
    assert confirmed.sentences[1].startswith("On 3 fresh seeds 2x30-4x40-8x30-lr0.003 is lowest")
    assert "Winner's curse" in confirmed.sentences[2]
    assert confirmed.sheets()[1].title == "The best, trained again on fresh seeds"


@pytest.mark.parametrize("num_finished", [0, 1, 2])
def test_a_search_that_has_just_begun_has_a_page(tmp_path: Path, num_finished: int) -> None:
    """None, one or two finished, one diverged at its first step."""
    directory = tmp_path / "toy"
    write_trial(directory, "2x50-8x50", {8: 4.5}, steps_done=1, diverged=True)
    for name in ("8x100", "4x50-8x50")[:num_finished]:
        write_trial(directory, name, {8: 4.5})
    report = search_report(open_runs([directory]), 8, title="toy")
    page = Page(report.write(tmp_path / "out").read_text(encoding="utf-8"))
    assert any(row[:3] == ["-", "2x50-8x50", "diverged"] for row in page.rows)
    assert report.sheets()[0].rows[-1][2] == "diverged"
    if not num_finished:
        assert "No schedule has a loss yet: 1 trial begun." in page.text


def test_a_page_of_one_document_has_no_intervals(tmp_path: Path) -> None:
    for name, loss in (("8x100", 4.5), ("4x50-8x50", 4.4)):
        write_trial(tmp_path / "toy", name, {8: loss}, standard_error=None)
    report = search_report(open_runs([tmp_path / "toy"]), 8, title="toy")
    assert report.trials.within_noise == {"8x100"}
    assert report.sheets()[0].rows[1][2:5] == ["4.500", "0.100", "yes"]
    assert report.write(tmp_path / "out").exists()


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 trials to report"):
        search_report([], 8, title="toy").write(tmp_path)
