"""What a worker says while it works: each work that has a total reaches it, and no more."""

from copy import copy
from itertools import pairwise
from pathlib import Path

import pytest

from glray.data.corpus import PreparedCorpus
from glray.progress import Work, heard_by
from glray.run.records import Progress
from glray.run.run import Run
from glray.spec import BudgetSpec, Interpolation
from glray.train.announcer import Announcer
from glray.train.context import WorkerContext
from glray.train.probe import calibration
from glray.train.scoring import ScoringProtocol, score_model
from glray.train.worker import train_all
from tests.tiny import arm

from ..tiny import tiny_spec


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """All that a worker is told to say."""
    heard: list[Work] = []
    hear = Announcer.hear

    def listen(self: Announcer, work: Work | None) -> None:
        heard.extend([copy(work)] if work else [])
        hear(self, work)

    monkeypatch.setattr(Announcer, "hear", listen)
    return heard


def test_each_work_is_done_to_its_end_and_training_goes_on_after_it(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch, heard: list[Work]
) -> None:
    monkeypatch.setattr(calibration, "ENOUGH_SECONDS", 0.01)
    arms = (
        arm("grow", 8, 16, 32),
        arm("scaled", 8, 32, positions=Interpolation()),
    )
    spec = tiny_spec(tmp_path, arms=arms, budget=BudgetSpec(seconds=0.1))
    train_all(spec, corpus, WorkerContext())

    last = {work.start: work for work in heard}.values()
    counted = [work for work in last if work.total]
    assert {work.what for work in counted} >= {
        "calibrating: steps of every length, interleaved",
        *(f"evaluating after seq_len {seq_len}" for seq_len in (8, 16, 32)),
        "evaluating after a stage boundary",
    }
    for work in counted:
        assert work.done == pytest.approx(work.total), work.what
    assert {work.run for work in last if "evaluating" in work.what} == {
        "grow-seed0",
        "scaled-seed0",
    }
    for before, after in pairwise(heard):
        if before.what.startswith("evaluating") and after.start != before.start:
            assert after.what == "training"
            assert after.detail is not None
    shown = Progress.read(tmp_path / "tiny" / "progress.json")
    assert shown is not None  # it is what Progress takes


@pytest.mark.parametrize("stride", [None, 4])
def test_scoring_a_model_is_done_to_its_end(finished: list[Run], stride: int | None) -> None:
    heard: list[Work] = []
    protocol = ScoringProtocol(
        seq_lens=(16, 64),
        stride=stride,
        positions=("as trained", "interpolation"),
        far_context=True,
    )
    with heard_by(lambda work: heard.extend([copy(work)] if work else [])):
        score_model(finished[0].directory, protocol)
    (scoring,) = {w.start: w for w in heard if w.what.startswith("scoring")}.values()
    assert scoring.done == scoring.total > 0
