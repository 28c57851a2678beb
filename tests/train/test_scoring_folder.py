"""A model in a ``transformers`` folder, scored: as the run that it comes from."""

import json

import pytest

from glray.data.read.sources import corpus_of_files
from glray.errors import UserError
from glray.spec import ArmSpec, GPTNeoXModel, Yarn
from glray.train.context import WorkerContext
from glray.train.scoring import ScoringProtocol, score_model
from glray.train.worker import train_all
from tests.planned import planned

from ..tiny import tiny_spec

SEQ_LENS = (16, 32, 64)


@pytest.fixture
def documents(tmp_path):
    for index in range(3):
        text = f"def function_{index}(argument):\n    return argument + {index}\n" * 30
        (tmp_path / f"{index}.txt").write_text(text)
    return corpus_of_files([f"{tmp_path}/*.txt"], "text")


def trained(tmp_path, corpus, **fields):
    """Up to 32 tokens."""
    spec = tiny_spec(tmp_path / "runs", **fields)
    train_all(spec, corpus, WorkerContext())
    return planned(spec, corpus)[0].directory


def test_a_folder_scores_as_the_run_that_wrote_it(finished, documents):
    run = finished[0].directory
    protocol = ScoringProtocol(
        SEQ_LENS, positions=("as trained", "interpolation"), documents=documents, num_tokens=192
    )
    of_run, of_folder = (score_model(path, protocol) for path in (run, run / "model"))
    assert of_folder.targets.sha256 == of_run.targets.sha256
    assert (of_folder.trained_len, of_folder.step) == (32, None)
    for name, records in of_run.by_positions.items():
        expected = [record["loss"] for record in records]
        losses = [record["loss"] for record in of_folder.by_positions[name]]
        assert losses == pytest.approx(expected, rel=1e-6)


def test_a_folder_with_scaled_positions_is_scored_as_trained_alone(tmp_path, corpus, documents):
    model = GPTNeoXModel(
        num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, rotary_fraction=1
    )
    arms = (ArmSpec(name="grow", stages=(8, 16, 32), positions=Yarn()),)
    run = trained(tmp_path, corpus, model=model, arms=arms)
    protocol = ScoringProtocol(SEQ_LENS, documents=documents, num_tokens=192)
    of_run, of_folder = (
        [record["loss"] for record in score_model(path, protocol).by_positions["as trained"]]
        for path in (run, run / "model")
    )
    assert of_folder == pytest.approx(of_run, rel=1e-6)
    with pytest.raises(UserError, match="trained with positions scaled by yarn"):
        score_model(
            run / "model", ScoringProtocol(SEQ_LENS, positions=("ntk",), documents=documents)
        )


def test_what_a_folder_lacks_is_said(finished, documents):
    folder = finished[0].directory / "model"
    with pytest.raises(UserError, match=r"no held-out text of its own.*name documents"):
        score_model(folder, ScoringProtocol(SEQ_LENS))
    protocol = ScoringProtocol(SEQ_LENS, documents=documents)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(UserError, match=r"model/tokenizer\.json is no tokenizer\.json"):
        score_model(folder, protocol)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"model/tokenizer\.json does not exist"):
        score_model(folder, protocol)
