"""A model in a ``transformers`` folder, scored: as the run that it comes from."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM

from glray.data.corpus import PreparedCorpus
from glray.data.read.sources import corpus_of_files
from glray.errors import UserError
from glray.report.context import context_record, context_sheets
from glray.run.run import Run
from glray.spec import GPTNeoXModel, Yarn
from glray.spec.corpus import SourceCorpus
from glray.train.context import WorkerContext
from glray.train.scoring import Scores, ScoringProtocol, score_model
from glray.train.worker import train_all
from tests.planned import planned
from tests.tiny import arm

from ..disk import here
from ..tiny import tiny_spec

SEQ_LENS = (16, 32, 64)


@pytest.fixture
def documents(tmp_path: Path) -> SourceCorpus:
    for index in range(3):
        text = f"def function_{index}(argument):\n    return argument + {index}\n" * 30
        (tmp_path / f"{index}.txt").write_text(text)
    return corpus_of_files([f"{tmp_path}/*.txt"], "text")


def trained(tmp_path: Path, corpus: PreparedCorpus, **fields: object) -> Path:
    """Up to 32 tokens."""
    spec = tiny_spec(tmp_path / "runs", **fields)
    train_all(spec, corpus, WorkerContext())
    return here(planned(spec, corpus)[0].directory)


def test_a_folder_scores_as_the_run_that_wrote_it(
    finished: list[Run], documents: SourceCorpus
) -> None:
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


def test_a_folder_with_scaled_positions_is_scored_as_trained_alone(
    tmp_path: Path, corpus: PreparedCorpus, documents: SourceCorpus
) -> None:
    model = GPTNeoXModel(
        num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, rotary_fraction=1
    )
    arms = (arm("grow", 8, 16, 32, positions=Yarn()),)
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


def test_what_a_folder_lacks_is_said(finished: list[Run], documents: SourceCorpus) -> None:
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


# ---- a tokenizer that prepends a token


@pytest.fixture
def begun(finished: list[Run]) -> Path:
    """A folder whose tokenizer puts its token 7 before a text, and EOS after it."""
    folder = finished[0].directory / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos, eos = tokenizer.id_to_token(7), tokenizer.id_to_token(0)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos], special_tokens=[(bos, 7), (eos, 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return here(folder)


def losses_of(scores: Scores) -> list[float]:
    return [record["loss"] for record in scores.by_positions["as trained"]]


def test_a_token_that_the_tokenizer_prepends_is_left_out_and_offered(
    begun: Path, documents: SourceCorpus
) -> None:
    protocol = ScoringProtocol(SEQ_LENS, documents=documents, num_tokens=192)
    scores = score_model(begun, protocol)
    of_run = score_model(begun.parent, protocol)
    assert losses_of(scores) == pytest.approx(losses_of(of_run), rel=1e-6)
    token = Tokenizer.from_file(str(begun / "tokenizer.json")).id_to_token(7)
    (sheet,) = context_sheets(scores, protocol)
    assert sheet.notes[-1] == (
        f"the tokenizer prepends {token} to a text, these windows are scored without: --bos begins "
        "each with it"
    )
    assert context_record(scores, protocol)["begins_with"] == ""
    (sheet,) = context_sheets(of_run, protocol)
    assert "prepends" not in " ".join(sheet.notes)


def test_with_bos_each_window_begins_with_it_and_the_targets_stay(
    begun: Path, documents: SourceCorpus
) -> None:
    protocol = ScoringProtocol(SEQ_LENS, documents=documents, num_tokens=192, bos=True)
    scores = score_model(begun, protocol)
    network = AutoModelForCausalLM.from_pretrained(begun).eval()
    tokens = torch.from_numpy(scores.targets.tokens)
    for seq_len, loss in zip(SEQ_LENS, losses_of(scores), strict=True):
        inputs, labels = (part.reshape(-1, seq_len) for part in (tokens[:, :-1], tokens[:, 1:]))
        inputs = torch.cat([torch.full((len(inputs), 1), 7), inputs[:, 1:]], dim=1)
        with torch.no_grad():
            expected = torch.nn.functional.cross_entropy(network(inputs).logits.mT, labels)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
    (sheet,) = context_sheets(scores, protocol)
    token = Tokenizer.from_file(str(begun / "tokenizer.json")).id_to_token(7)
    assert sheet.notes[-1] == f"each window begins with {token}, in place of its first token"
    assert context_record(scores, protocol)["begins_with"] == token


def test_bos_without_a_token_to_prepend_is_refused(
    finished: list[Run], begun: Path, documents: SourceCorpus
) -> None:
    protocol = ScoringProtocol(SEQ_LENS, documents=documents, bos=True)
    with pytest.raises(UserError, match=r"bos: .* to begin a window with: a run trains without"):
        score_model(finished[0].directory, protocol)
    with pytest.raises(UserError, match=r"bos: .*/model has .*: its tokenizer prepends none"):
        score_model(finished[1].directory / "model", protocol)
    with pytest.raises(UserError, match=r"a window of 1 would hold no text, .* is 1; score"):
        score_model(begun, ScoringProtocol((1, 32), documents=documents, bos=True))
