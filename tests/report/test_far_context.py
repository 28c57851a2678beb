"""Far-context gain by hand: four documents, three seeds, Student's t of a printed table."""

from pathlib import Path

import pytest

from glray.report.arms import by_arm
from glray.report.far_context import far_gain, far_sentence, far_sheet
from glray.report.page import Report
from glray.run.run import Run
from tests.report.written import write_run


def arm_of(
    folder: Path, label: str, losses: dict[int, list[float]], num_seeds: int = 1
) -> list[Run]:
    """A run a seed whose four documents, of 10 far targets each, have ``losses`` by window, and one
    nat more for each seed."""
    return [
        Run.open(
            write_run(
                folder,
                label,
                [(8, 10)],
                {8: 5.0},
                seed=seed,
                far={n: [loss + seed for loss in of_n] for n, of_n in losses.items()},
            )
        )
        for seed in range(num_seeds)
    ]


USES = {2: [3.0, 3.1, 3.2, 3.3], 8: [2.8, 2.9, 2.9, 3.0]}  # gains 0.2, 0.2, 0.3, 0.3
DOES_NOT = {2: [3.0, 3.1, 3.2, 3.3], 8: [3.1, 3.0, 3.3, 3.2]}  # -0.1, 0.1, -0.1, 0.1


def test_a_gain_is_paired_by_document(tmp_path: Path) -> None:
    (arm,) = by_arm(arm_of(tmp_path, "fixed8", USES, num_seeds=3))
    gain = far_gain(arm)
    # Every seed has the same gains. Standard deviation 0.05774, over √4, times 3.182.
    assert gain is not None
    assert gain.estimate.mean == pytest.approx(0.25)
    assert gain.estimate.half == pytest.approx(3.182 * 0.057735 / 2, abs=1e-5)
    assert {name: part.count for name, part in gain.estimate.parts.items()} == {
        "seeds": 3,
        "documents": 4,
    }
    assert (gain.short, gain.is_positive) == (2, True)
    assert str(gain) == "+0.250 ± 0.092"


def test_the_sentence_says_who_gains(tmp_path: Path) -> None:
    uses = arm_of(tmp_path, "fixed8", USES)
    unsure = arm_of(tmp_path, "grow", DOES_NOT)
    idle = arm_of(tmp_path, "idle", {2: [3.0, 3.1, 3.2, 3.3], 8: [3.0, 3.101, 3.2, 3.301]})
    short = arm_of(tmp_path, "fixed2", {2: [3.0] * 4})
    assert far_sentence([*idle, *short]) == (
        "No arm gains from context beyond 2 tokens at this scale: idle -0.001 ± 0.001 nats."
    )
    assert far_sentence([*uses, *short]) == (
        "Every arm trained on more gains from context beyond 2 tokens: fixed8 +0.250 ± 0.092 nats."
    )
    assert far_sentence([*unsure, *idle, *uses]) == (
        "fixed8 gains from context beyond 2 tokens, idle does not gain, whether grow gains cannot "
        "be told: grow +0.000 ± 0.184, idle -0.001 ± 0.001, fixed8 +0.250 ± 0.092 nats."
    )
    assert far_sentence(unsure) == (
        "Whether grow gains from context beyond 2 tokens cannot be told: grow +0.000 ± 0.184 nats."
    )
    assert far_sentence(short) == ""
    write_run(tmp_path, "late", [(8, 10)], {8: 5.0}, steps_done=3, diverged=True)
    assert far_sentence([*uses, *short, Run.open(tmp_path / "late-seed0")]) == (
        "fixed8 gains from context beyond 2 tokens, no gain is known for late: "
        "fixed8 +0.250 ± 0.092 nats."
    )


def test_a_gain_that_rounds_to_zero_has_no_minus(tmp_path: Path) -> None:
    (arm,) = by_arm(arm_of(tmp_path, "fixed8", {2: [3.0, 3.1], 8: [3.0, 3.1008]}))
    assert str(far_gain(arm)).startswith("+0.000 ±")


def test_an_arm_is_not_judged_by_a_part_of_its_seeds(tmp_path: Path) -> None:
    scored = arm_of(tmp_path, "fixed8", USES, num_seeds=2)
    lacks_it = Run.open(write_run(tmp_path, "fixed8", [(8, 10)], {8: 5.0}, seed=2))
    (arm,) = by_arm([*scored, lacks_it])
    assert far_gain(arm) is None
    assert far_sheet([*scored, lacks_it]).rows == []


@pytest.mark.usefixtures("undrawn")
def test_the_report_shows_every_length(tmp_path: Path) -> None:
    runs = [*arm_of(tmp_path, "fixed8", USES), *arm_of(tmp_path, "fixed2", {2: [2.5] * 4})]
    (sheet,) = [s for s in Report(runs).sheets() if s.title.startswith("Far context")]
    assert list(sheet.columns) == ["run", "2", "8", "gain"]
    assert sheet.rows == [
        ["fixed8", "3.150", "2.900", "+0.250 ± 0.092"],
        ["fixed2", "2.500", "-", "-"],
    ]
    assert "The same 40 targets of 4 documents" in sheet.notes[0]
    far = {2: [2.5] * 4, 8: [2.4] * 4}
    other = Run.open(write_run(tmp_path, "other", [(8, 10)], {8: 5.0}, targets="b", far=far))
    assert far_sheet([*runs, other]).notes[0].startswith("The arms are not scored on the same")
    page = Report(runs).write(tmp_path / "report").read_text()
    assert "Far context" in page
    assert "gains from context beyond 2 tokens" in page
