from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glray.report.length_plots import bucketed, loss_by_length, loss_by_position
from glray.report.look import styles_of
from glray.report.page import Report
from glray.report.training_plots import (
    around_boundaries,
    loss_over_time,
    loss_over_tokens,
    smoothed,
)
from glray.run.run import open_runs
from tests.report.written import write_run

PNG = b"\x89PNG\r\n\x1a\n"
LOSSES = arrays(np.float64, st.integers(1, 200), elements=st.floats(0.0, 20.0))


def test_smoothed_is_the_mean_of_the_last_steps() -> None:
    assert smoothed(np.array([8.0, 6.0, 4.0, 2.0]), 2).tolist() == [8.0, 7.0, 5.0, 3.0]


def test_smoothed_leaves_out_losses_that_are_no_number() -> None:
    assert smoothed(np.array([8.0, np.nan, 4.0]), 2).tolist() == [8.0, 8.0, 4.0]


@given(LOSSES, st.integers(1, 20))
def test_smoothed_stays_between_the_least_and_the_greatest(
    loss: np.ndarray, num_steps: int
) -> None:
    means = smoothed(loss, num_steps)

    assert len(means) == len(loss)
    assert (means >= loss.min() - 1e-9).all()
    assert (means <= loss.max() + 1e-9).all()


def test_bucketed_means_positions_in_ranges_that_double() -> None:
    centres, means = bucketed(np.array([9.0, 7.0, 5.0, 3.0, 2.0, 2.0, 1.0, 1.0]))

    assert means.tolist() == [9.0, 7.0, 4.0, 1.5]
    assert centres == pytest.approx([1.0, 2.0, 12**0.5, 40**0.5])


@given(LOSSES)
def test_bucketed_counts_every_position_once(by_position: np.ndarray) -> None:
    _, means = bucketed(by_position)
    sizes = np.diff([0, *[2**power for power in range(len(means) - 1)], len(by_position)])

    assert (means * sizes).sum() == pytest.approx(by_position.sum())


def test_the_plots_are_written_and_nothing_else(pipeline: Path, tmp_path: Path) -> None:
    paths = Report(open_runs([pipeline])).draw(tmp_path / "out")

    assert [path.name for path in paths] == [
        "loss_over_time.png",
        "loss_over_tokens.png",
        "loss_by_length.png",
        "loss_by_position.png",
        "around_boundaries.png",
    ]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def xs_of(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_xdata())


def ys_of(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_ydata())


def losses_of(axes: Axes) -> list[list[float]]:
    """Of each arm's line over all three lengths."""
    lines = [ys_of(line) for line in axes.lines if line.get_linestyle() != "None"]
    return [losses.tolist() for losses in lines if len(losses) == 3]


def test_the_length_plot_has_each_arm_s_losses(pipeline: Path) -> None:
    axes, below = loss_by_length(open_runs([pipeline])).axes

    assert losses_of(axes) == [[4.6, 4.45, 4.5], [4.8, 4.69, 4.7], [4.5, 4.67, 6.5]]
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["4", "8", "16"]


def test_seeds_evaluated_at_other_lengths_are_drawn_where_all_are(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "a", [(4, 10)], {4: 4.6, 8: 4.5, 16: 4.4}, seed=0)
    write_run(tmp_path / "toy", "a", [(4, 10)], {4: 4.8, 16: 4.6}, seed=1)
    axes = loss_by_length(open_runs([tmp_path / "toy"])).axes[0]
    assert xs_of(axes.lines[0]).tolist() == [4, 16]
    assert axes.lines[0].get_ydata() == pytest.approx([4.7, 4.5])


def test_below_it_are_paired_differences_from_the_longest_fixed_arm(tmp_path: Path) -> None:
    for seed, more in enumerate((0.0, 1.0, 2.0)):
        grow = {4: 4.6 + more, 8: 4.5 + more + 0.1 * seed}
        write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], grow, seed=seed)
        write_run(tmp_path / "toy", "fixed8", [(8, 10)], {4: 4.8 + more, 8: 4.7 + more}, seed=seed)

    below = loss_by_length(open_runs([tmp_path / "toy"])).axes[1]

    (differences,) = below.containers
    assert isinstance(differences, ErrorbarContainer)
    assert differences.lines[0].get_ydata() == pytest.approx([-0.2, -0.1])
    bars = [segment[:, 1] for segment in differences.lines[2][0].get_segments()]
    # -0.2, -0.1 and 0.0 at 8: a deviation of 0.1, over √3, times 4.303.
    assert [(high - low) / 2 for low, high in bars] == pytest.approx([0, 0.2484], abs=1e-4)
    assert "difference from fixed8" in below.get_ylabel()


def test_the_time_plot_marks_a_stage_where_it_starts(pipeline: Path) -> None:
    axes = loss_over_time(open_runs([pipeline])).axes[0]

    vertical = [xs_of(line) for line in axes.lines if line.get_linestyle() == ":"]
    assert [list(x) for x in vertical] == [[10.0, 10.0]]


def test_the_time_plot_takes_measured_seconds_if_a_run_has_no_calibrated_ones(
    tmp_path: Path,
) -> None:
    write_run(tmp_path / "toy", "a", [(4, 10)], {4: 4.6}, calibrated=False, slowdown=3.0)
    write_run(tmp_path / "toy", "b", [(4, 10)], {4: 4.6}, slowdown=2.0)

    axes = loss_over_time(open_runs([tmp_path / "toy"])).axes[0]

    assert "measured" in axes.get_xlabel()
    assert [xs_of(line)[-1] for line in axes.lines[::2]] == [30.0, 20.0]


def test_runs_without_steps_or_evaluations_draw_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "a", [(4, 10)], {4: 4.6}, steps_done=0)

    assert Report(open_runs([tmp_path / "toy"])).draw(tmp_path / "out") == []


def test_a_diverged_run_is_drawn_beside_the_others(pipeline: Path, tmp_path: Path) -> None:
    write_run(pipeline, "wild", [(8, 10)], {4: float("nan"), 8: float("nan"), 16: float("nan")})

    assert len(Report(open_runs([pipeline])).draw(tmp_path / "out")) == 5


def test_a_run_that_diverged_at_its_first_step_is_drawn_alone(tmp_path: Path) -> None:
    stages = [(4, 10), (8, 5)]
    wild = write_run(tmp_path / "toy", "grow", stages, {8: 4.6}, steps_done=1, diverged=True)

    assert Report(open_runs([wild])).draw(tmp_path / "out") != []


def test_seeds_are_one_line_of_means_with_the_range_around_it(tmp_path: Path) -> None:
    for seed, loss in enumerate((4.0, 5.0)):
        write_run(tmp_path / "toy", "a", [(4, 10)], {4: loss}, seed=seed)

    axes = loss_over_time(open_runs([tmp_path / "toy"])).axes[0]

    line, mark = axes.lines[:2]
    assert len(xs_of(line)) == 10
    assert ys_of(mark).tolist() == [4.5]
    (container,) = axes.containers
    assert isinstance(container, ErrorbarContainer)
    (bar,) = container.lines[2][0].get_segments()
    assert bar[:, 1].tolist() == [4.0, 5.0]
    assert len(axes.collections) == 2  # the band, and the bar


def test_seeds_that_have_not_trained_as_far_are_drawn_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "a", [(4, 10)], {4: 4.6})
    write_run(tmp_path / "toy", "a", [(4, 10)], {4: 4.6}, seed=1, steps_done=5)

    axes = loss_over_time(open_runs([tmp_path / "toy"])).axes[0]

    assert [len(xs_of(line)) for line in axes.lines if len(xs_of(line)) > 1] == [10, 5]


def colours(figure: Figure) -> dict[str, str]:
    """Of each label of a figure's legend."""
    legend = figure.legends[0]
    labels = [text.get_text() for text in legend.get_texts()]
    return dict(zip(labels, (str(line.get_color()) for line in legend.get_lines()), strict=True))


def test_an_arm_keeps_its_colour_in_every_picture_and_on_every_page(tmp_path: Path) -> None:
    stages = {"llm128": [(4, 20)], "slow": [(4, 10), (8, 5)], "growlength": [(4, 10), (8, 5)]}
    for arm, planned in stages.items():
        write_run(tmp_path / "toy", arm, planned, {4: 4.6, 8: 4.4})
    all_runs = open_runs([tmp_path / "toy"])
    arms = colours(loss_over_time(all_runs))

    assert set(arms) == set(stages)
    assert len(set(arms.values())) == 3
    for plot in (loss_over_tokens, loss_by_length, loss_by_position):
        assert colours(plot(all_runs)) == arms
    boundary = colours(around_boundaries(all_runs))
    assert boundary == {f"{arm} 4→8": arms[arm] for arm in ("growlength", "slow")}
    for arm in ("growlength", "llm128"):  # a page of its own, or of several pipelines
        assert styles_of([arm])[arm].colour == arms[arm]
        assert styles_of([f"toy/{arm}"])[f"toy/{arm}"].colour == arms[arm]


NAMES = st.text(max_size=8) | st.sampled_from(["llm128", "growlength", "growlength-1", "a/llm128"])


@given(st.lists(NAMES, unique=True))
def test_no_two_arms_share_a_colour_while_one_is_left(names: list[str]) -> None:
    styles = styles_of(names)

    assert list(styles) == names
    assert len({style.colour for style in styles.values()}) == min(len(names), 7)
    assert styles == styles_of(names[::-1])  # whatever the order
    looks = {(style.colour, style.line) for style in styles.values()}
    assert len(looks) == min(len(names), 49)


def test_a_diverged_run_has_its_line_beside_the_others(pipeline: Path) -> None:
    write_run(pipeline, "wild", [(8, 10)], {4: float("nan"), 8: float("nan"), 16: float("nan")})
    axes = loss_by_length(open_runs([pipeline])).axes[0]

    losses = losses_of(axes)
    assert len(losses) == 4
    assert np.isnan(losses[-1]).all()
