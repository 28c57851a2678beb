from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.inspection import ShownWindow, shown_windows
from glray.errors import UserError
from glray.spec import PipelineSpec

from ..tiny import tiny_spec
from ..tokens import write_tokens


@pytest.fixture
def counting(tmp_path: Path) -> PreparedCorpus:
    """Two sources with token 1 + i mod 299 at place i; three chunks of ``a`` to one of ``b``."""
    blocks = {
        name: write_tokens(tmp_path / name, 1 + np.arange(size) % 299, [np.arange(9)], name)
        for name, size in (("a", 1000), ("b", 300))
    }
    return PreparedCorpus(
        (PreparedSource("a", 3, blocks["a"]), PreparedSource("b", 1, blocks["b"]))
    )


def shown(spec: PipelineSpec, corpus: PreparedCorpus, step: int, seq_len: int) -> list[ShownWindow]:
    size = {"step": step, "seq_len": seq_len, "num_rows": 100}
    return list(shown_windows(spec, corpus, spec.arms[0], **size))


def test_a_steps_windows_are_its_tokens_at_every_length(
    tmp_path: Path, counting: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path)  # 2 chunks of 32 tokens a step
    decode = Tokenizer.from_file(str(counting.vocabulary.tokenizer_path)).decode
    for step in (0, 1, 17):
        for seq_len in (8, 16, 32):
            windows = shown(spec, counting, step, seq_len)
            assert [window.row for window in windows] == list(range(64 // seq_len))
            for window in windows:
                places = window.first_token + np.arange(seq_len)
                assert window.text == decode((1 + places % 299).tolist())
                assert window.chunk == window.first_token // 32


def test_sources_and_epochs_are_told_apart(tmp_path: Path, counting: PreparedCorpus) -> None:
    spec = tiny_spec(tmp_path)
    windows = [window for step in range(20) for window in shown(spec, counting, step, 32)]
    assert [window.source for window in windows[:8]] == list("aabaaaba")
    # Of b's 9 chunks 10 were read, so its second epoch has begun; a's 31 are not yet all read.
    assert [window.epoch for window in windows if window.source == "b"] == [0] * 9 + [1]
    assert {window.epoch for window in windows if window.source == "a"} == {0}


def test_a_source_without_a_chunk_has_no_windows(tmp_path: Path, counting: PreparedCorpus) -> None:
    spec = tiny_spec(tmp_path, chunk_len=512, tokens_per_batch=512)
    with pytest.raises(UserError, match="b: 300 training tokens are fewer than a chunk of 512"):
        shown(spec, counting, step=0, seq_len=8)


def test_no_rows_are_no_windows(tmp_path: Path, counting: PreparedCorpus) -> None:
    spec = tiny_spec(tmp_path)
    assert not list(shown_windows(spec, counting, spec.arms[0], step=0, seq_len=8, num_rows=0))


@pytest.mark.parametrize(
    ("step", "seq_len", "problem"),
    [
        (0, 64, r"^seq_len 64 does not divide chunk_len 32"),
        (0, 0, r"^seq_len 0 "),
        (-1, 8, r"^step -1 is before the first step"),
    ],
)
def test_what_no_stage_has_is_refused(
    tmp_path: Path, counting: PreparedCorpus, step: int, seq_len: int, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        shown(tiny_spec(tmp_path), counting, step, seq_len)
