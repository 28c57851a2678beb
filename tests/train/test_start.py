"""Runs that start from a folder, and Llama-shaped ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from glray.cli.app import load_spec
from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import read_json
from glray.model.config import model_config
from glray.model.decoder import build_model
from glray.run.run import Run
from glray.spec import GPTNeoXModel, LlamaModel, PipelineSpec, to_yaml
from glray.spec.model import ModelSpec
from glray.train.context import WorkerContext
from glray.train.execution import execution
from glray.train.export import export_run, latest_model, trained_len
from glray.train.scoring import ScoringProtocol, score_model
from glray.train.session import open_session
from glray.train.worker import train_all
from tests.planned import planned, validated

from ..disk import here
from ..tiny import tiny_spec

SHAPE: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 32,
}
MODELS: dict[str, ModelSpec] = {
    "gpt_neox": GPTNeoXModel(**SHAPE),
    "llama": LlamaModel(**SHAPE, num_kv_heads=1),
    "tied llama": LlamaModel(**SHAPE, tie_embeddings=True),
}
CPU = torch.device("cpu")


def save_model(path: Path, declared: ModelSpec, seed: int = 7, vocab_size: int = 300) -> None:
    config = model_config(declared, vocab_size=vocab_size, eos_id=0, max_seq_len=16)
    build_model(config, seed, CPU).save_pretrained(path)


@pytest.fixture(params=["gpt_neox", "llama"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "start"
    save_model(path, MODELS[request.param])
    return path


def spec_from(folder: Path, storage: Path, **fields: object) -> PipelineSpec:
    return tiny_spec(storage, model=None, init=str(folder), **fields)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_every_run_starts_from_the_folders_weights(
    folder: Path, tmp_path: Path, corpus: PreparedCorpus
) -> None:
    start = weights(folder)
    runs = planned(spec_from(folder, tmp_path, seeds=(0, 1)), corpus)
    assert len(runs) == 4
    for run in runs:
        run.directory.mkdir(parents=True)
        ctx = WorkerContext()
        executed = execution(run.spec, ctx)
        session = open_session(run, corpus, ctx, executed, peak=1e12)
        assert_same(session.trainee.model.network.state_dict(), start)


def test_a_run_from_a_folder_trains_resumes_and_needs_it_no_more(
    folder: Path, tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = spec_from(folder, tmp_path / "undisturbed", only=("grow",))
    train_all(spec, corpus, WorkerContext())
    (expected,) = planned(spec, corpus)
    stopped = spec_from(folder, tmp_path / "stopped", only=("grow",))
    asked = iter([False, False, True])
    train_all(stopped, corpus, WorkerContext(stop=lambda: next(asked)))
    train_all(stopped, corpus, WorkerContext())
    (run,) = planned(stopped, corpus)
    assert run.is_finished
    assert_same(weights(here(run.directory) / "model"), weights(here(expected.directory) / "model"))
    assert sorted(file.name for file in (run.directory / "model").iterdir()) == sorted(
        file.name for file in (expected.directory / "model").iterdir()
    )
    for name in ("config.json", "generation_config.json"):
        ours, theirs = (r.directory / "model" / name for r in (run, expected))
        assert ours.read_text() == theirs.read_text()
        assert str(folder) not in ours.read_text()

    shutil.rmtree(folder)
    run = expected
    again = Run.open(run.directory)
    assert again.manifest.identity == run.manifest.identity
    assert again.manifest.architecture == run.manifest.architecture
    recorded = read_json(run.evaluation_path(12))["lengths"]
    scored = score_model(run.directory, ScoringProtocol(seq_lens=(8, 32, 64))).by_positions[
        "as trained"
    ]
    assert [entry["loss"] for entry in scored] == [entry["loss"] for entry in recorded]
    export_run(run.directory, tmp_path / "exported")
    assert_same(weights(tmp_path / "exported"), weights(here(run.directory) / "model"))
    with pytest.raises(UserError, match=r"start/config\.json does not exist"):
        validated(spec, corpus)


def test_a_run_whose_folder_changed_is_refused_on_one_line(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    folder = tmp_path / "start"
    save_model(folder, MODELS["llama"])
    spec = spec_from(folder, tmp_path)
    asked = iter([False, True])
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))
    before = planned(spec, corpus)[0].manifest.identity["init"]
    save_model(folder, MODELS["llama"], seed=8)
    with pytest.raises(
        UserError, match=rf'grow-seed0: holds run .*\(init: "{before}" → "'
    ) as error:
        train_all(spec, corpus, WorkerContext())
    assert "\n" not in str(error.value)


def test_a_folder_with_a_weight_that_is_not_finite_is_refused_before_training(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    save_model(tmp_path / "start", MODELS["llama"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    model.lm_head.weight.data[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "start")
    spec = spec_from(tmp_path / "start", tmp_path)
    with pytest.raises(UserError, match="start: has weights that are not finite"):
        train_all(spec, corpus, WorkerContext())
    assert not list(tmp_path.glob("tiny/*/metrics.jsonl"))


def test_a_folder_whose_embedding_is_too_small_is_refused_before_training(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    ids = corpus.vocabulary.vocab_size
    small = MODELS["llama"].derive(vocab_size=ids - 1)
    save_model(tmp_path / "small", small, vocab_size=ids - 1)
    with pytest.raises(UserError, match=f"{ids - 1} rows, less than the tokenizer's {ids} ids"):
        validated(spec_from(tmp_path / "small", tmp_path), corpus)


def test_a_calibration_is_measured_on_the_folders_model(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    folder = tmp_path / "start"
    save_model(folder, MODELS["llama"])
    seconds = {"budget": {"seconds": 0.3}, "ratios_in": "seconds"}
    spec = spec_from(folder, tmp_path, only=("grow",), **seconds)
    train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    assert run.is_finished


@pytest.mark.parametrize(
    "kind",
    ["llama", "tied llama"],
)
def test_a_declared_llama_trains_and_exports(
    tmp_path: Path, corpus: PreparedCorpus, kind: str
) -> None:
    spec = tiny_spec(tmp_path, model=MODELS[kind], only=("grow",))
    train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    assert run.is_finished
    exported = AutoModelForCausalLM.from_pretrained(run.directory / "model")
    assert exported.config.model_type == "llama"
    trained, _ = latest_model(run, CPU)
    assert_same(exported.state_dict(), trained.network.state_dict())
    embedding, output = exported.get_input_embeddings(), exported.get_output_embeddings()
    assert (embedding.weight is output.weight) == (kind == "tied llama")


def test_the_command_makes_the_folders_path_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tmp_path / "spec.yaml"
    pipeline.write_text(to_yaml(spec_from(Path("start"), tmp_path)))
    monkeypatch.chdir(tmp_path)
    assert load_spec(pipeline, None).init == str(tmp_path / "start")


def test_a_run_counts_what_its_folder_was_trained_at(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    save_model(tmp_path / "start", MODELS["llama"])
    config = tmp_path / "start" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 64}))
    spec = spec_from(tmp_path / "start", tmp_path / "runs", only=("grow",))
    train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    assert score_model(run.directory, ScoringProtocol((8, 64))).trained_len == 64


@pytest.mark.parametrize(("of_folder", "at_first"), [(16, 16), (32, 32), (8, 8), (4, 8)])
def test_a_folders_length_counts_before_the_run_reaches_it(
    tmp_path: Path, corpus: PreparedCorpus, of_folder: int, at_first: int
) -> None:
    """In the first of the stages of 8, 16 and 32."""
    save_model(tmp_path / "start", MODELS["llama"])
    config = tmp_path / "start" / "config.json"
    fields = {"max_position_embeddings": of_folder}
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    spec = spec_from(tmp_path / "start", tmp_path / "runs", only=("grow",))
    (run,) = planned(spec, corpus)
    assert trained_len(run, 1) == at_first
    assert trained_len(run, run.plan.num_steps) == 32
