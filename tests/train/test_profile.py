"""A profile of a tiny model, really measured: what fits, what does not, and what memory says."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glray.errors import UserError
from glray.run.profile import Setting, own_setting
from glray.spec import GPTNeoXModel, PipelineSpec
from glray.train.probe import calibration, memory
from glray.train.probe import profile as measuring
from glray.train.probe.memory import peak_bytes_in_a_process
from glray.train.probe.profile import ProfiledModel, measure

from ..tiny import tiny_spec

FUSED = Setting("sdpa", False, "float32")
EAGER = Setting("eager", False, "float32")
GIB = 2**30


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few rounds: what is measured is not the speed."""
    monkeypatch.setattr(calibration, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "MIN_ROUNDS", 2)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def spec_of(tmp_path: Path, **fields: object) -> PipelineSpec:
    model = GPTNeoXModel(num_layers=2, hidden_size=64, num_heads=4, intermediate_size=128)
    compute = {"storage": str(tmp_path), "micro_batch_tokens": 4096}
    return tiny_spec(tmp_path, model=model, tokens_per_batch=4096, compute=compute, **fields)


def known(value: int | None) -> int:
    assert value is not None
    return value


def test_every_length_has_time_memory_and_largest_batch(tmp_path: Path) -> None:
    said: list[str] = []
    spec = spec_of(tmp_path).derive(tokens_per_batch=2048, compute={"micro_batch_tokens": 2048})
    profile = measure(spec, (64, 512), [FUSED, EAGER], 1.0, said.append)
    assert profile.budget_bytes == GIB
    fused, eager = profile.settings
    for costs in (fused, eager):
        assert [cost.seq_len for cost in costs.lengths] == [64, 512]
        for cost in costs.lengths:
            assert cost.seconds > 0
            assert cost.phase_shares is not None
            assert sum(cost.phase_shares.values()) == pytest.approx(1)
            assert 0 < known(cost.peak_bytes) < GIB
            assert known(cost.largest_batch_tokens) % cost.seq_len == 0
    # Scores in memory: 2 layers × 4 heads × 2,048 × 512 × 4 bytes are 32 MiB, several times.
    long_fused, long_eager = fused.at(512), eager.at(512)
    assert long_fused is not None
    assert long_eager is not None
    assert known(long_eager.peak_bytes) > known(long_fused.peak_bytes) + 32 * 2**20
    assert known(long_eager.largest_batch_tokens) < known(long_fused.largest_batch_tokens)
    assert "eager, not compiled, float32: memory at 512" in said


def test_the_largest_batch_is_about_what_fits(tmp_path: Path) -> None:
    spec, budget = spec_of(tmp_path), GIB // 2
    model = ProfiledModel.under(EAGER, spec, (512,))
    tokens = model.largest_batch_tokens(512, budget)
    assert tokens is not None
    peak = model.at_once(tokens // 2 // 512 * 512).peak_bytes(512, budget)
    assert peak is not None
    assert 0.35 * budget < peak < 0.65 * budget


def test_a_chunk_that_is_long_enough_stays(tmp_path: Path) -> None:
    """What goes on from a parent has the parent's."""
    spec = spec_of(tmp_path).derive(chunk_len=2048)
    assert ProfiledModel.under(FUSED, spec, (64, 512)).spec.chunk_tokens == 2048
    assert ProfiledModel.under(FUSED, spec, (64, 4096)).spec.chunk_tokens == 4096


@pytest.mark.parametrize(("most", "largest"), [(100_000, 98_304), (64, 64), (63, 0)])
def test_on_a_gpu_the_largest_batch_is_tried_to_an_eighth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, largest: int
) -> None:
    spec = spec_of(tmp_path).derive(compute={"use_gpu": True})
    tried = []

    def peak_bytes(model: ProfiledModel, seq_len: int, budget: int) -> int | None:
        tried.append(model.spec.tokens_per_batch)
        return 1 if tried[-1] <= most else None

    monkeypatch.setattr(ProfiledModel, "peak_bytes", peak_bytes)
    assert ProfiledModel.under(FUSED, spec, (64,)).largest_batch_tokens(64, GIB) == largest
    assert tried[:2] == [2**21, 2**20]


def test_a_step_that_does_not_fit_is_no_failure(tmp_path: Path) -> None:
    profile = measure(spec_of(tmp_path), (64, 4096), [EAGER], 0.4, lambda _: None)
    short, long = profile.settings[0].lengths
    assert short.fits
    assert not long.fits
    assert (long.peak_bytes, long.largest_batch_tokens, long.phase_shares) == (None, 0, None)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_the_system_ends_has_no_answer() -> None:
    assert peak_bytes_in_a_process(dies, GIB) is None


def test_a_long_path_of_temporary_files_leaves_no_room_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a process is forked by a server, it listens at a socket below that path."""
    assert memory._process_context().get_start_method() == "forkserver"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    assert memory._process_context().get_start_method() == "spawn"


def fails() -> None:
    raise ValueError("a bug")


def test_another_failure_of_the_process_is_no_lack_of_memory() -> None:
    with pytest.raises(ValueError, match="a bug"):
        peak_bytes_in_a_process(fails, GIB)


@pytest.mark.parametrize(
    ("seq_lens", "fields", "setting", "words"),
    [
        ((8, 12), {}, FUSED, "12 does not divide a token block"),
        ((0,), {}, FUSED, "0 is not a length"),
        ((8192,), {}, FUSED, "--set tokens_per_batch=8192"),
        ((8,), {"attention": "document"}, EAGER, "add --set attention=window"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, seq_lens: tuple[int, ...], fields: dict[str, str], setting: Setting, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        measure(spec_of(tmp_path, **fields), seq_lens, [setting], None, print)


def test_the_pipelines_own_setting_is_what_it_trains_in(tmp_path: Path) -> None:
    assert own_setting(spec_of(tmp_path)) == FUSED
