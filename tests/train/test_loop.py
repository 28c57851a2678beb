"""The loop on the local context: what it leaves, what it feeds, and what stopping changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from glray.data.checksum import as_hex, token_checksum
from glray.data.corpus import PreparedCorpus
from glray.data.windows import read_windows
from glray.errors import UserError
from glray.files import read_json
from glray.model.config import starting_model
from glray.report.headline import headline
from glray.run.checkpoint import TENSORS, committed_checkpoints
from glray.run.run import Run, open_runs, with_calibration
from glray.spec import PipelineSpec, fixed
from glray.train.context import WorkerContext
from glray.train.export import export_run, latest_model
from glray.train.runs import plan_runs
from glray.train.scoring import ScoringProtocol, score_model
from glray.train.worker import train_all
from tests.planned import planned, validated

from ..tiny import tiny_spec
from ..weights import same_weights


def metrics(run: Run) -> list[dict[str, Any]]:
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_leaves_its_records(finished: list[Run]) -> None:
    grow, fixed = finished
    for run in finished:
        assert run.is_finished
        assert [line["step"] for line in metrics(run)] == list(range(1, 13))
        result = read_json(run.directory / "result.json")
        assert result["steps"] == 12
        assert result["tokens"] == 12 * 64
        assert result["calibrated_seconds"] is None
        assert result["measured_seconds"] > 0
    assert [line["seq_len"] for line in metrics(grow)] == [8] * 4 + [16] * 4 + [32] * 4
    assert read_json(grow.directory / "result.json")["tokens_by_seq_len"] == {
        "8": 256,
        "16": 256,
        "32": 256,
    }
    names = sorted(path.name for path in (grow.directory / "evaluations").iterdir())
    assert names == ["step-00000004.json", "step-00000008.json", "step-00000012.json"]
    assert [path.name for path in (fixed.directory / "evaluations").iterdir()] == [names[-1]]
    assert metrics(grow)[-1]["loss"] < metrics(grow)[0]["loss"]


def test_both_arms_are_fed_the_same_tokens_at_every_step(
    finished: list[Run], corpus: PreparedCorpus
) -> None:
    grow, fixed = finished
    order = corpus.order(32, seed=0)
    checksums = [line["checksum"] for line in metrics(grow)]
    assert checksums == [line["checksum"] for line in metrics(fixed)]
    assert len(set(checksums)) == 12
    for step in (0, 7, 11):
        expected = 0
        for offset in order.chunks(step * 2, step * 2 + 2).offset:
            window = torch.from_numpy(
                read_windows(corpus.block_places(offset), offset[None], 32).astype("int64")
            )
            places = torch.from_numpy(offset[None])
            expected += int(token_checksum(window[:, :-1], window[:, 1:], places).item())
        assert checksums[step] == as_hex(expected)
    results = [read_json(run.directory / "result.json")["checksum"] for run in finished]
    assert results[0] == results[1] == as_hex(sum(int(checksum, 16) for checksum in checksums))


def test_a_finished_pipeline_returns_at_once(finished: list[Run], corpus: PreparedCorpus) -> None:
    before = [(run.directory / "result.json").stat().st_mtime_ns for run in finished]
    train_all(finished[0].spec, corpus, WorkerContext())
    assert before == [(run.directory / "result.json").stat().st_mtime_ns for run in finished]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5])
def test_stopping_and_resuming_ends_with_the_same_weights(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus, stop_after: int
) -> None:
    spec = tiny_spec(tmp_path, only=("grow",))
    asked = iter([False] * stop_after + [True])
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))
    (run,) = planned(spec, corpus)
    assert not run.is_finished
    train_all(spec, corpus, WorkerContext())
    undisturbed = finished[0]
    assert run.is_finished
    assert same_weights(run, undisturbed)
    assert [m["loss"] for m in metrics(run)] == [m["loss"] for m in metrics(undisturbed)]
    result, expected = (read_json(r.directory / "result.json") for r in (run, undisturbed))
    assert result["checksum"] == expected["checksum"]
    assert result["tokens_by_seq_len"] == expected["tokens_by_seq_len"]


def test_documents_apart_are_fed_the_same_tokens_and_resume(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    fields: dict[str, Any] = {"attention": "document", "only": ("grow",)}
    specs = [tiny_spec(tmp_path / name, **fields) for name in ("whole", "stopped")]
    asked = iter([False] * 3 + [True])
    train_all(specs[1], corpus, WorkerContext(stop=lambda: next(asked)))
    for spec in specs:
        train_all(spec, corpus, WorkerContext())
    whole, stopped = (planned(spec, corpus)[0] for spec in specs)
    assert same_weights(whole, stopped)
    assert not same_weights(whole, finished[0])
    checksums = [
        read_json(run.directory / "result.json")["checksum"] for run in (whole, finished[0])
    ]
    assert checksums[0] == checksums[1]


class Killed(Exception):
    """Stands for a death between two steps: nothing of the worker runs after it."""


def test_dying_between_checkpoints_repeats_the_lost_steps_alone(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path / "killed")
    calls = 0

    def die() -> bool:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Killed
        return False

    with pytest.raises(Killed):
        train_all(spec, corpus, WorkerContext(stop=die))
    train_all(spec, corpus, WorkerContext())
    for run, undisturbed in zip(planned(spec, corpus), finished, strict=True):
        assert same_weights(run, undisturbed)
        assert [m["checksum"] for m in metrics(run)] == [
            m["checksum"] for m in metrics(undisturbed)
        ]


def test_an_uncommitted_checkpoint_does_not_count(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path, only=("grow",))
    asked = iter([False, True])
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))
    run = planned(spec, corpus)[0]
    torn = run.checkpoints / "step-00000009"
    torn.mkdir()
    (torn / "state.json").write_bytes(b"torn")
    train_all(spec, corpus, WorkerContext())
    assert same_weights(run, finished[0])


def test_a_damaged_checkpoint_is_refused_with_both_hashes(finished: list[Run]) -> None:
    run = finished[0]
    (path,) = (committed_checkpoints(run.checkpoints)[-1] / TENSORS).iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"SHA-256 \w{12}.*\w{12}.*damaged"):
        latest_model(run, torch.device("cpu"))
    path.write_bytes(bytes(content[:-1]))
    size = len(content)
    with pytest.raises(UserError, match=f"{size - 1:,} bytes, {size:,} were committed"):
        latest_model(run, torch.device("cpu"))


def test_an_arm_trains_at_its_own_rate_as_at_its_pipelines(
    finished: list[Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    arms = (fixed(32, lr=1e-2), fixed(32, name="slower", lr=5e-3))
    spec = tiny_spec(tmp_path, arms=arms, optimizer={"lr": 1})
    train_all(spec, corpus, WorkerContext())
    own, slower = planned(spec, corpus)
    assert own.manifest.fingerprint == finished[1].manifest.fingerprint
    assert same_weights(own, finished[1])
    assert [line["lr"] / 2 for line in metrics(own)] == [line["lr"] for line in metrics(slower)]


def test_arms_of_a_seed_start_from_the_same_weights(tmp_path: Path, corpus: PreparedCorpus) -> None:
    spec = tiny_spec(tmp_path, seeds=(0, 1))
    from glray.model.config import config_of
    from glray.model.decoder import build_model

    drawn = [
        build_model(
            config_of(run.manifest.architecture, run.name), run.seed, torch.device("cpu")
        ).state_dict()
        for run in planned(spec, corpus)
    ]
    same = [torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0]]
    other = [torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0]]
    assert all(same)
    assert not all(other)


def test_another_identity_in_the_directory_is_refused(
    finished: list[Run], corpus: PreparedCorpus
) -> None:
    spec = finished[0].spec.derive(budget={"tokens": 64 * 24})
    with pytest.raises(UserError, match=r"grow-seed0.*budget.tokens: 768 → 1536"):
        validated(spec, corpus)
    relaxed = finished[0].spec.derive(
        compute={"micro_batch_tokens": 8},
        evaluation={"seq_lens": (16,), "num_tokens": 16},
    )
    assert planned(relaxed, corpus)


def test_a_corpus_smaller_than_a_batch_is_refused(tmp_path: Path, corpus: PreparedCorpus) -> None:
    spec = tiny_spec(tmp_path, tokens_per_batch=8192, budget={"tokens": 10**6})
    with pytest.raises(UserError, match=r"tokens make 4,992 in whole chunks of 32, .*8,192"):
        validated(spec, corpus)


def test_calibrated_seconds_decide_the_run_and_its_yaml_repeats_it(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path, budget={"seconds": 0.5}, ratios_in="seconds")
    assert plan_runs(with_calibration(spec), corpus, starting_model(spec)) is None
    train_all(spec, corpus, WorkerContext())
    runs = planned(spec, corpus)
    assert all(run.is_finished for run in runs)
    for run in runs:
        result = read_json(run.directory / "result.json")
        assert 0 < result["calibrated_seconds"] <= 0.5
        again = Run.open(run.directory)
        assert again.manifest.identity == run.manifest.identity
        assert again.plan == run.plan
    other = spec.derive(seeds=[1], tokens_per_batch=128)
    with pytest.raises(UserError, match=r"calibration\.json: .*\(tokens_per_batch: 64 → 128\)"):
        with_calibration(other)


def test_the_exported_model_has_the_trained_logits_and_generates(finished: list[Run]) -> None:
    run = finished[0]
    exported = AutoModelForCausalLM.from_pretrained(run.directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.directory / "model")
    trained, state = latest_model(run, torch.device("cpu"))
    assert state.step == 12
    assert exported.config.tokens_by_seq_len == {"8": 256, "16": 256, "32": 256}
    ids = tokenizer("def grow(seq_len):", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            exported(ids).logits, trained.network(ids).logits, rtol=0, atol=0
        )
    generated = exported.generate(ids, max_new_tokens=5, do_sample=False)
    assert generated.shape[1] > ids.shape[1]
    assert tokenizer.decode(ids[0]) == "def grow(seq_len):"
    assert tokenizer.eos_token_id == exported.config.eos_token_id == 0


def test_export_refuses_an_existing_folder(finished: list[Run], tmp_path: Path) -> None:
    path = tmp_path / "exported"
    assert export_run(finished[0].directory, path) == 12
    with pytest.raises(UserError, match="is there already"):
        export_run(finished[0].directory, path)


def test_a_finished_run_whose_last_evaluation_is_gone_is_scored_again(
    finished: list[Run], corpus: PreparedCorpus
) -> None:
    run = finished[0]
    path = run.evaluation_path(12)
    before = read_json(path)["lengths"]
    path.unlink()
    assert not run.is_finished
    train_all(run.spec, corpus, WorkerContext())
    assert read_json(path)["lengths"] == before
    assert len(metrics(run)) == 12


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> PipelineSpec:
    """The spec of a trained pipeline whose budget is in seconds."""
    storage = tmp_path_factory.mktemp("calibrated")
    spec = tiny_spec(storage, budget={"seconds": 0.3}, ratios_in="seconds", only=("grow",))
    train_all(spec, corpus, WorkerContext())
    return spec


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
@pytest.mark.parametrize("name", ["grow-seed0/run.json", "calibration.json"])
def test_damaged_records_are_one_line(
    calibrated: PipelineSpec, corpus: PreparedCorpus, name: str, text: str
) -> None:
    path = Path(calibrated.compute.storage) / "tiny" / name
    whole = path.read_bytes()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="damaged") as error:
        validated(calibrated, corpus)
    assert str(path) in str(error.value)
    path.write_bytes(whole)


def test_arms_scored_on_other_targets_do_not_compare(
    finished: list[Run], corpus: PreparedCorpus
) -> None:
    # The evaluation may change between two calls; then the report must not rank across it.
    evaluation = {"seq_lens": (8, 32), "num_tokens": 128}
    spec = tiny_spec(finished[0].directory.parents[1], seeds=(0, 1), evaluation=evaluation)
    train_all(spec, corpus, WorkerContext())
    runs = open_runs([finished[0].directory.parent])
    assert len(runs) == 4
    assert "do not compare" in headline(runs)[0]


def test_score_model_gives_the_runs_own_figures(finished: list[Run]) -> None:
    run = finished[0]
    recorded = read_json(run.directory / "evaluations" / "step-00000012.json")["lengths"]
    scores = score_model(run.directory, ScoringProtocol(seq_lens=(8, 32, 64)))
    assert scores.own
    assert not score_model(run.directory, ScoringProtocol(seq_lens=(8, 16))).own
    scored = scores.by_positions["as trained"]
    assert [entry["loss"] for entry in scored] == [entry["loss"] for entry in recorded]
