"""Windows of any length over any documents: the same targets, each once, in the context it should
have."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from glray.cli.app import naming_options
from glray.cli.runs import EVAL_OPTIONS
from glray.data.corpus import PreparedCorpus, run_corpus
from glray.data.read.sources import corpus_of_files
from glray.errors import UserError
from glray.run.run import Run
from glray.spec import (
    Interpolation,
    JsonlCorpus,
    ParquetCorpus,
    TextCorpus,
)
from glray.train.context import WorkerContext
from glray.train.evaluation import Windows
from glray.train.export import latest_model
from glray.train.scoring import ScoringProtocol, score_model
from glray.train.worker import train_all
from tests.planned import planned
from tests.tiny import arm

from ..disk import here
from ..tiny import tiny_spec


@pytest.fixture
def run(finished: list[Run]) -> Run:
    """Trained up to 32 tokens."""
    return finished[0]


@given(
    st.integers(0, 5).flatmap(
        lambda power: st.tuples(st.just(2**power), st.integers(1, 2**power), st.integers(1, 6))
    )
)
def test_every_target_of_a_sequence_is_new_once_and_with_context(
    case: tuple[int, int, int],
) -> None:
    seq_len, stride, times = case
    windows = Windows.over(seq_len * times, seq_len, stride)
    scored: list[int] = []
    for start, num_new in zip(windows.starts, windows.num_new, strict=True):
        scored += range(start + seq_len - num_new, start + seq_len)
        assert start == 0 or num_new <= stride
    assert scored == list(range(seq_len * times))
    assert len(windows.positions) == seq_len * times


def test_windows_by_hand() -> None:
    sliding = Windows.over(longest=16, seq_len=8, stride=3)
    assert sliding.starts.tolist() == [0, 3, 6, 8]  # the last one is whole, so it starts earlier
    assert sliding.num_new.tolist() == [8, 3, 3, 2]
    assert sliding.positions.tolist() == [*range(8), 5, 6, 7, 5, 6, 7, 6, 7]
    whole = Windows.over(longest=16, seq_len=8, stride=8)
    assert (whole.starts.tolist(), whole.num_new.tolist()) == ([0, 8], [8, 8])


def test_a_sliding_window_gives_each_target_the_context_it_should_have(run: Run) -> None:
    scores = score_model(run.directory, ScoringProtocol(seq_lens=(16, 64), stride=4))
    model, _ = latest_model(run, torch.device("cpu"))
    network = model.network.eval()
    total = 0.0
    tokens = torch.from_numpy(scores.targets.tokens)
    for sequence in tokens:  # target by target, as nobody would do it
        for target in range(64):
            # the first window's targets have what is before them, later ones a window that ends at
            # the first multiple of the stride from there on
            end = max(16, -(-(target + 1) // 4) * 4)
            window = sequence[end - 16 : target + 1]
            with torch.no_grad():
                logits = network(window[None]).logits[0, -1]
            total -= torch.log_softmax(logits.double(), dim=0)[sequence[target + 1]].item()
    assert total / tokens[:, 1:].numel() == pytest.approx(
        scores.by_positions["as trained"][0]["loss"], rel=1e-5
    )


def test_whole_and_sliding_windows_agree_at_the_longest_length(run: Run) -> None:
    whole, sliding = (
        score_model(run.directory, ScoringProtocol(seq_lens=(16, 64), stride=stride)).by_positions[
            "as trained"
        ]
        for stride in (None, 4)
    )
    assert whole[1] == sliding[1]
    assert whole[0]["loss"] != sliding[0]["loss"]


@pytest.mark.parametrize("kind", ["txt", "separated", "jsonl", "json.gz"])
def test_other_documents_are_scored_in_the_runs_tokens(run: Run, tmp_path: Path, kind: str) -> None:
    texts = [f"def function_{n}(argument):\n    return argument + {n}\n" * 30 for n in range(3)]
    if kind == "txt":
        for index, text in enumerate([*texts, "too short"]):
            (tmp_path / f"{index}.txt").write_text(text)
        documents = corpus_of_files([f"{tmp_path}/*.txt"], "text")
    elif kind == "separated":
        (tmp_path / "all.txt").write_text("<|endoftext|>\n".join([*texts, "too short\n"]))
        documents = corpus_of_files([f"{tmp_path}/all.txt"], "text")
    else:
        lines = [json.dumps({"body": text}) + "\n" for text in [*texts, "too short", ""]]
        content = "".join(['{"id": 3}\n', *lines]).encode()
        (tmp_path / f"all.{kind}").write_bytes(
            gzip.compress(content) if kind.endswith("gz") else content
        )
        documents = corpus_of_files([f"{tmp_path}/all.{kind}"], "body")
    scores = score_model(
        run.directory, ScoringProtocol(seq_lens=(8, 64), documents=documents, num_tokens=256)
    )
    assert not scores.own
    assert scores.targets.num_targets == 256
    assert scores.targets.num_documents == 3
    assert scores.targets.document_tokens == [128, 64, 64]
    tokenizer = Tokenizer.from_file(str(run_corpus(run).vocabulary.tokenizer_path))
    assert tokenizer.decode(scores.targets.tokens[0][:5].tolist()) in texts[0]


def test_the_kind_of_documents_is_told_by_their_names() -> None:
    assert corpus_of_files(["a.txt", "b.txt.gz"], "text") == TextCorpus(paths=("a.txt", "b.txt.gz"))
    assert corpus_of_files(["a.jsonl.zst"], "x") == JsonlCorpus(paths=("a.jsonl.zst",), column="x")
    assert corpus_of_files(["s3://b/*.parquet"], "x") == ParquetCorpus(
        paths=("s3://b/*.parquet",), column="x"
    )
    assert corpus_of_files(["c4.json.gz", "s3://b/a.json?region=x"], "x").kind == "jsonl"
    with pytest.raises(UserError, match=r"a\.txt\.bz2 is compressed as \.bz2, which is not read"):
        corpus_of_files(["a.txt.bz2"], "text")
    for paths in (["a.txt", "b.jsonl"], ["folder"], ["a.csv"]):
        with pytest.raises(UserError, match="not files of one kind"):
            corpus_of_files(paths, "text")


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ({"seq_lens": (8, 12)}, "8 does not divide the longest, 12"),
        ({"seq_lens": (0, 8)}, "0 is not a length"),
        ({"seq_lens": (8, 16), "stride": 17}, "^stride 17: a window of 16 tokens"),
        ({"seq_lens": (8,), "stride": 0}, "^stride 0"),
        ({"seq_lens": (8, 64), "num_tokens": 63}, "^num_tokens 63 is less than one window of 64"),
        ({"seq_lens": (2**20,)}, "1048576 needs a held-out document of 1,048,577 tokens"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(
    run: Run, protocol: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        score_model(run.directory, ScoringProtocol(**protocol))


def test_short_documents_beside_a_long_one_take_nothing_from_it(run: Run, tmp_path: Path) -> None:
    for index, lines in enumerate((60, 5, 5)):
        (tmp_path / f"{index}.txt").write_text("def long(argument): return argument\n" * lines)
    documents = corpus_of_files([f"{tmp_path}/*.txt"], "text")
    protocol = ScoringProtocol(seq_lens=(8,), documents=documents, num_tokens=320)
    targets = score_model(run.directory, protocol).targets
    assert targets.num_targets == 320
    assert targets.num_documents == 3


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [("no.txt", "text", "^--documents: .*no.txt"), ("a.jsonl", "x", "--column")],
)
def test_what_is_wrong_with_documents_is_said_as_the_command_has_it(
    run: Run, tmp_path: Path, name: str, column: str, words: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "def long(argument): return argument"}\n')
    documents = corpus_of_files([str(tmp_path / name)], column)
    with pytest.raises(UserError, match=words) as error, naming_options(EVAL_OPTIONS):
        score_model(run.directory, ScoringProtocol((8,), documents=documents))
    assert "corpus." not in str(error.value)
    assert "\n" not in str(error.value)


def test_documents_too_short_for_a_window_are_refused_with_both_numbers(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("def short(): pass\n")
    documents = corpus_of_files([str(tmp_path / "short.txt")], "text")
    with pytest.raises(UserError, match=r"needs a document of 65, the longest of 1 has \d+"):
        score_model(run.directory, ScoringProtocol(seq_lens=(64,), documents=documents))


def test_positions_in_the_window_are_averaged_over_what_is_scored_there(run: Run) -> None:
    scores = score_model(run.directory, ScoringProtocol(seq_lens=(16, 64), stride=4))
    record = scores.by_positions["as trained"][0]
    counts = np.bincount(Windows.over(64, 16, 4).positions)
    mean = np.average(record["loss_by_position"], weights=counts)
    assert mean == pytest.approx(record["loss"])


def test_texts_that_are_not_utf_8_are_counted_and_never_the_reason(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1") * 99)
    documents = corpus_of_files([f"{tmp_path}/*.txt"], "text")
    protocol = ScoringProtocol((8,), documents=documents)
    with pytest.raises(UserError, match=r"longest of 0 has 0 \(1 more are empty or not UTF-8\)"):
        score_model(run.directory, protocol)
    (tmp_path / "short.txt").write_text("def longer(argument): return argument\n")
    assert score_model(run.directory, protocol).targets.num_skipped == 1


def test_a_loss_that_is_no_number_is_no_figure(run: Run) -> None:
    model = run.directory / "model" / "model.safetensors"
    weights = {name: torch.full_like(w, torch.nan) for name, w in load_file(here(model)).items()}
    save_file(weights, here(model), metadata={"format": "pt"})
    (run.directory / "text.txt").write_text("def long(argument): return argument\n" * 9)
    documents = corpus_of_files([str(run.directory / "text.txt")], "text")
    with pytest.raises(UserError, match="the loss at 8 is nan"):
        score_model(run.directory / "model", ScoringProtocol((8,), documents=documents))


@pytest.mark.parametrize(
    "wrong",
    [{"identity": []}, {"architecture": {}}, {"tokens_directories": []}, {"seed": None}],
)
def test_a_damaged_record_of_the_run_is_refused(run: Run, wrong: dict[str, Any]) -> None:
    path = run.directory / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(UserError, match=r"run\.json: damaged"):
        score_model(run.directory, ScoringProtocol((8,)))


@pytest.mark.parametrize(("seq_lens", "trained_len"), [((8, 32, 16), 16), ((32, 8, 16), 16)])
def test_only_what_was_trained_with_the_positions_in_force_counts_as_trained(
    tmp_path: Path, corpus: PreparedCorpus, seq_lens: tuple[int, ...], trained_len: int
) -> None:
    positions = Interpolation(relative_to="previous")
    arms = (arm("grow", *seq_lens, positions=positions),)
    spec = tiny_spec(tmp_path, arms=arms)
    train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    assert score_model(run.directory, ScoringProtocol((8, 64))).trained_len == trained_len
