import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glray.errors import UserError
from glray.run.records import BoundaryLoss, Evaluation
from glray.run.run import Run, open_runs
from tests.report.written import write_run


def loss_at(evaluation: Evaluation | None, seq_len: int) -> float:
    assert evaluation is not None
    scored = evaluation.at(seq_len)
    assert scored is not None
    return scored.loss


def test_a_finished_run_is_read_with_its_figures(pipeline: Path) -> None:
    run = Run.open(pipeline / "grow-seed0")

    assert run.is_finished
    assert [
        (stage.seq_len, stage.windows_per_batch, stage.num_steps) for stage in run.plan.stages
    ] == [
        (4, 8, 10),
        (8, 4, 5),
    ]
    assert run.tokens == 15 * 32
    assert run.calibrated_seconds == 10 * 1.0 + 5 * 2.0
    assert run.measured_seconds == 20.0
    assert run.log.calibrated_seconds is not None
    assert run.log.calibrated_seconds[[0, 9, 10, 14]].tolist() == [1.0, 10.0, 12.0, 20.0]
    assert [evaluation.step for evaluation in run.evaluations] == [10, 15]
    assert loss_at(run.latest, 8) == 4.45
    assert run.latest is not None
    assert run.latest.at(32) is None


def test_a_run_in_progress_is_read_as_far_as_it_got(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], {4: 4.6}, steps_done=12)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "sta')

    run = Run.open(directory)

    assert not run.is_finished
    assert run.steps_done == 12
    assert run.calibrated_seconds == 10 * 1.0 + 2 * 2.0
    assert run.measured_seconds == 14.0
    assert [stage.steps_trained for stage in run.stages] == [10, 2]
    assert run.latest is not None
    assert run.latest.step == 10


def test_a_run_that_diverged_has_ended_and_is_not_finished(tmp_path: Path) -> None:
    stages = [(4, 10), (8, 5)]
    written = write_run(tmp_path / "toy", "grow", stages, {8: 5.0}, steps_done=12, diverged=True)
    run = Run.open(written)
    assert (run.has_ended, run.is_finished, run.result) == (True, False, None)
    assert run.divergence is not None
    assert (run.divergence.step, run.divergence.what, run.steps_done) == (12, "loss", 12)
    assert np.isnan(run.divergence.loss)
    assert run.divergence.sentence == "diverged at step 12 (seq_len 8): its loss is not finite"
    (run.directory / "diverged.json").write_text("{}")
    with pytest.raises(UserError, match=r"diverged.json: damaged, .*step"):
        print(run.divergence)


def test_a_run_that_has_not_trained_a_step_is_read(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "toy", "grow", [(4, 10)], {4: 4.6}, steps_done=0)
    (directory / "metrics.jsonl").unlink()

    run = Run.open(directory)

    assert (run.steps_done, run.tokens, run.measured_seconds, run.latest) == (0, 0, 0.0, None)


def test_a_run_without_calibration_has_no_calibrated_seconds(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "toy", "a", [(4, 10)], {4: 4.6}, calibrated=False))

    assert run.calibrated_seconds is None
    assert run.log.calibrated_seconds is None
    assert run.measured_seconds == 10.0


def test_a_pipeline_directory_gives_its_runs_as_its_spec_lists_the_arms(pipeline: Path) -> None:
    assert [run.arm for run in open_runs([pipeline])] == ["grow", "fixed8", "fixed4"]


def test_without_a_spec_runs_are_sorted_by_name_with_numbers_as_numbers(tmp_path: Path) -> None:
    for arm, seed in (("llm1024", 0), ("llm128", 1), ("llm128", 0)):
        write_run(tmp_path / "toy", arm, [(4, 10)], {4: 4.6}, seed=seed)

    runs = open_runs([tmp_path / "toy"])

    assert [(run.arm, run.seed) for run in runs] == [("llm128", 0), ("llm128", 1), ("llm1024", 0)]


def test_a_run_given_twice_is_read_once(pipeline: Path) -> None:
    assert len(open_runs([pipeline / "grow-seed0", pipeline])) == 3


def test_a_run_is_opened_without_torch_and_ray(pipeline: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from glray.run.run import Run\n"
        "run = Run.open(Path(sys.argv[1]))\n"
        "(run.latest, run.log, run.boundaries, run.result, [s.evaluation for s in run.stages])\n"
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(pipeline / "grow-seed0")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"


def test_each_stage_says_what_was_planned_trained_timed_and_scored(pipeline: Path) -> None:
    first, second = Run.open(pipeline / "grow-seed0").stages
    assert (first.planned.num_steps, first.steps_trained, first.tokens_trained) == (10, 10, 320)
    assert (second.seq_len, second.steps_trained) == (8, 5)
    assert (first.calibrated_seconds, second.calibrated_seconds) == (10.0, 10.0)
    assert (first.measured_seconds, second.measured_seconds) == (10.0, 10.0)
    assert [loss_at(stage.evaluation, 8) for stage in (first, second)] == [5.45, 4.45]


def test_a_diverged_loss_is_null_in_json_and_not_a_number_in_a_record(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.json"
    loss = BoundaryLoss(seq_len=4, loss=float("nan"), document_losses=np.array([1.0, np.inf]))
    loss.write(path)
    assert json.loads(path.read_text()) == {
        "seq_len": 4,
        "loss": None,
        "document_losses": [1.0, None],
    }
    read = BoundaryLoss.read(path)
    assert read is not None
    assert np.isnan(read.loss)
    assert np.isnan(read.document_losses).tolist() == [False, True]


def test_a_run_of_an_earlier_version_is_refused_on_one_line(pipeline: Path) -> None:
    path = pipeline / "grow-seed0" / "run.json"
    record = json.loads(path.read_text())
    del record["format"]
    path.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"^\S*run\.json: written by glray 0\.1 .*format 3"
    ) as error:
        Run.open(path.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_directory_without_runs_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
        open_runs([tmp_path / name])


def test_damaged_records_are_refused_with_their_place(pipeline: Path) -> None:
    path = pipeline / "grow-seed0" / "run.json"
    record = json.loads(path.read_text())
    del record["plan"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"grow-seed0.*plan"):
        Run.open(path.parent)

    path.write_text("{")
    with pytest.raises(UserError, match=r"grow-seed0/run\.json"):
        Run.open(path.parent)


LAST = "evaluations/step-00000015.json"


@pytest.mark.parametrize(
    ("file", "place", "value", "words"),
    [
        ("run.json", ("plan", "stages"), [], "at least 1 item"),
        ("run.json", ("plan", "stages", 1, "first_step"), 7, "begins at step 7"),
        (LAST, ("document_tokens",), [None], "int()"),
        (LAST, ("document_tokens",), [20] * 15, "16 document_losses of 15 documents"),
        (LAST, ("lengths", 0, "document_losses"), 3, "not a list of numbers"),
        (LAST, ("lengths", 0, "loss_by_position"), [], "0 losses by position at 4"),
        (
            LAST,
            ("far_context",),
            {"tokens_before": 1, "document_tokens": [1], "losses": []},
            "1 item",
        ),
        ("boundaries/step-00000010.json", ("before",), [1], "not a list of losses"),
        ("boundaries/step-00000010.json", ("document_tokens",), [20], "2 document_losses of 1"),
        ("boundaries/step-00000010.json", ("before",), [{"seq_len": [1]}], "not a list of losses"),
    ],
)
def test_a_value_of_the_wrong_shape_is_one_line_that_says_where(
    tmp_path: Path,
    file: str,
    place: tuple[str | int, ...],
    value: object,
    words: str,
) -> None:
    directory = write_run(tmp_path, "grow", [(4, 10), (8, 5)], {4: 5.0, 8: 4.0})
    record = found = json.loads((directory / file).read_text())
    for part in place[:-1]:
        found = found[part]
    found[place[-1]] = value
    (directory / file).write_text(json.dumps(record))

    def read() -> object:
        run = Run.open(directory)
        return run.evaluations, run.boundaries

    with pytest.raises(UserError, match=re.escape(words)) as refused:
        read()
    assert str(refused.value).startswith(f"{directory / file}: damaged")
    assert "\n" not in str(refused.value)


def test_a_line_that_is_no_step_is_named_by_its_number(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "grow", [(4, 10), (8, 5)], {4: 5.0, 8: 4.0})
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for damaged in ("", '{"step": 1}', lines[2].replace('"step": 3', f'"step": {10**30}')):
        path.write_text("\n".join([*lines[:2], damaged, *lines[3:]]) + "\n")
        with pytest.raises(UserError, match=r"metrics.jsonl: line 3 is not a step"):
            assert Run.open(directory).log
