"""Stages whose ends are not marked: the same bits, without what is done at the end of a stage."""

from pathlib import Path

import pytest

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import matching, read_json
from glray.report import sheets
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.parent import Parents
from glray.run.run import Run
from glray.spec import Fork, PipelineSpec, StageEnd, shuffle
from glray.train.context import WorkerContext
from glray.train.worker import train_all
from tests.planned import planned

from ..tiny import arm, tiny_spec
from ..weights import same_weights

SHUFFLED = shuffle(arm("grow", 8, 16, 32), segments=12, seed=3)
MARKED = SHUFFLED.derive(
    name="marked", stages=[stage.derive(mark_end=True) for stage in SHUFFLED.stages]
)


def spec_of(storage: Path) -> PipelineSpec:
    """24 steps of 64 tokens: a segment has two."""
    compute = tiny_spec(storage).compute.derive(
        checkpoint_every_tokens=10 * 64, keep_checkpoints="all"
    )
    evaluation = {"seq_lens": (8, 32), "num_tokens": 64, "every_tokens": 9 * 64}
    budget = {"tokens": 24 * 64}
    return tiny_spec(
        storage, arms=(SHUFFLED, MARKED), budget=budget, evaluation=evaluation, compute=compute
    ).derive(chunk_len=32)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> list[Run]:
    """The shuffled arm without and with marked ends, each in a storage of its own."""
    found = []
    for name in (SHUFFLED.name, MARKED.name):
        spec = spec_of(tmp_path_factory.mktemp("alone")).derive(only=[name])
        train_all(spec, corpus, WorkerContext())
        found += planned(spec, corpus)
    return found


def steps_in(run: Run, folder: str) -> list[int]:
    return [int(path.stem[-8:]) for path in matching(run.directory, f"{folder}/*.json")]


def checkpoints(run: Run) -> list[int]:
    return [step_of(path) for path in committed_checkpoints(run.checkpoints)]


def test_only_what_is_declared_is_written(alone: list[Run]) -> None:
    """Every 10 steps a checkpoint, every 9 an evaluation, and both at the end."""
    unmarked, marked = alone
    assert [stage.num_steps for stage in unmarked.plan.stages] == [4, 2, 2, 2, 2, 2, 4, 4, 2]
    ends = [4, 6, 8, 10, 12, 14, 18, 22, 24]
    assert checkpoints(unmarked) == [10, 20, 24]
    assert checkpoints(marked) == sorted({10, 20, *ends})
    assert steps_in(unmarked, "evaluations") == [9, 18, 24]
    assert steps_in(marked, "evaluations") == sorted({9, *ends})
    assert (steps_in(unmarked, "boundaries"), steps_in(marked, "boundaries")) == ([], ends[:-1])
    assert all(step is None for step in update_norms(unmarked))
    assert None not in update_norms(marked)


def update_norms(run: Run) -> list[float | None]:
    return [None if norm != norm else norm for norm in run.log.update_norm.tolist()]


def test_marks_change_no_bit(alone: list[Run]) -> None:
    unmarked, marked = alone
    assert unmarked.manifest.fingerprint == marked.manifest.fingerprint
    assert same_weights(unmarked, marked)
    results = [read_json(run.directory / "result.json") for run in alone]
    assert results[0]["checksum"] == results[1]["checksum"]
    assert unmarked.log.loss.tolist() == marked.log.loss.tolist()


def test_a_run_without_marks_forks_from_one_that_has_them(
    tmp_path: Path, corpus: PreparedCorpus, alone: list[Run]
) -> None:
    """It takes the whole run over, but only the records that it plans itself."""
    spec = spec_of(tmp_path)
    train_all(spec, corpus, WorkerContext())
    unmarked = next(run for run in planned(spec, corpus) if run.arm == SHUFFLED.name)
    fork = Run.open(unmarked.directory).manifest.fork
    assert fork is not None
    assert (fork.run, fork.step) == ("marked-seed0", 24)
    assert same_weights(unmarked, alone[0])
    for folder in ("evaluations", "boundaries"):
        assert steps_in(unmarked, folder) == steps_in(alone[0], folder)
    assert unmarked.log.update_norm.tolist() == pytest.approx(
        alone[0].log.update_norm.tolist(), nan_ok=True
    )


def test_a_child_goes_on_where_there_is_a_checkpoint(alone: list[Run], tmp_path: Path) -> None:
    """Inside an unmarked stage as well: the end of what it inherits is a boundary like any."""
    parent = str(alone[0].directory)

    def parents(at: int | StageEnd) -> Parents:
        start = Fork(run=parent, at=at)
        return Parents.of(spec_of(tmp_path).derive(name="child", model=None, start=start))

    stages = parents(10).first.stages
    assert [stage.mark_end for stage in stages] == [False] * (len(stages) - 1) + [True]
    with pytest.raises(UserError, match="its stage 1 is declared with mark_end=False"):
        parents(StageEnd(stage=1))


def test_the_report_shows_stages_of_a_length_in_one_row(alone: list[Run]) -> None:
    rows = [row[1:4] for row in sheets.stages(alone[:1]).rows]
    assert rows == [["8 × 3", "8", "8"], ["16 × 2", "4", "8"], ["32 × 4", "2", "8"]]
