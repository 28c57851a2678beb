"""Stages with their own batch, rate and weights of the sources: what they are fed, and resuming."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glray.data.checksum import as_hex, token_checksum
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.inspection import shown_windows
from glray.data.windows import read_windows
from glray.errors import UserError
from glray.files import read_json
from glray.plan import scheduled_rate
from glray.report.headline import headline
from glray.run.run import Run, open_runs
from glray.spec import PipelineSpec
from glray.train.context import WorkerContext
from glray.train.worker import train_all
from tests.planned import planned, validated

from ..group import join_group, start_group, train
from ..tiny import arm, tiny_spec
from ..tokens import write_tokens
from ..weights import same_weights
from .test_loop import Killed, metrics

OWN = (
    {"seq_len": 8},
    {"seq_len": 16, "tokens_per_batch": 128, "lr_factor": 0.5, "weights": {"books": 3}},
    {"seq_len": 32, "weights": {"web": 0}},
)
"""8 steps of 64 tokens, 4 of 128 and 8 of 64."""
DEALT = [0, 1] * 8 + [1, 0, 1, 1] * 4 + [1] * 16
"""The source of each chunk of 32 tokens: the stages have 16 each."""


def spec_of(storage: Path, **fields: object) -> PipelineSpec:
    """``own`` and ``plain`` through the same lengths over 48 chunks, of two sources."""
    sources = [
        {"name": name, "weight": 1, "corpus": {"kind": "stdlib"}} for name in ("web", "books")
    ]
    declared: dict[str, object] = {
        "corpus": {"kind": "mixture", "sources": sources},
        "arms": ({"name": "own", "stages": OWN}, arm("plain", 8, 16, 32)),
        "budget": {"tokens": 24 * 64},
    }
    return tiny_spec(storage, **(declared | fields))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> PreparedCorpus:
    """The usual corpus, and 24 chunks of another."""
    rng = np.random.default_rng(1)
    tokens, heldout = rng.integers(1, 300, size=777), [rng.integers(1, 300, size=200)]
    books = write_tokens(tmp_path_factory.mktemp("books"), tokens, heldout, "b" * 16)
    (web,) = corpus.sources
    return PreparedCorpus((PreparedSource("web", 1, web.blocks), PreparedSource("books", 1, books)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, mixture: PreparedCorpus) -> list[Run]:
    """Both arms, trained without a break."""
    torch.set_num_threads(1)
    spec = spec_of(tmp_path_factory.mktemp("trained"))
    train_all(spec, mixture, WorkerContext())
    return planned(spec, mixture)


def checksum_of(corpus: PreparedCorpus, offsets: np.ndarray) -> str:
    windows = torch.from_numpy(read_windows(corpus.block_places(offsets), offsets, 32).astype("i8"))
    found = token_checksum(windows[:, :-1], windows[:, 1:], torch.from_numpy(offsets))
    return as_hex(int(found.item()))


def test_each_stage_is_fed_its_own_batches_of_its_own_mix(
    trained: list[Run], mixture: PreparedCorpus
) -> None:
    lines = metrics(trained[0])
    assert [line["seq_len"] for line in lines] == [8] * 8 + [16] * 4 + [32] * 8
    batches = [64] * 8 + [128] * 4 + [64] * 8
    assert [line["tokens"] for line in lines] == np.cumsum(batches).tolist()
    # Each source goes on where the stage before left it; 36 chunks of books are 1.5 epochs.
    order = mixture.order(32, seed=0)
    chunks = order.chunks(0, 80)
    own = [iter(chunks.offset[chunks.source == source]) for source in (0, 1)]
    offsets = np.array([next(own[source]) for source in DEALT])
    assert len({int(o) for o, source in zip(offsets, DEALT, strict=True) if source == 1}) == 24
    ends = np.cumsum(batches) // 32
    fed = [checksum_of(mixture, part) for part in np.split(offsets, ends[:-1])]
    assert [line["checksum"] for line in lines] == fed
    result = read_json(trained[0].directory / "result.json")
    assert result["tokens"] == 24 * 64
    assert result["tokens_by_seq_len"] == {"8": 512, "16": 512, "32": 512}
    assert [stage.tokens_trained for stage in trained[0].stages] == [512, 512, 512]
    assert trained[0].evaluations[1].tokens == 1024


def test_a_stage_has_its_share_of_the_scheduled_rate(trained: list[Run]) -> None:
    run = trained[0]
    schedule, plan = run.spec.optimizer.schedule, run.plan
    usual = [scheduled_rate(schedule, 1e-2, plan.progress(step)) for step in range(plan.num_steps)]
    factors = [1.0] * 8 + [0.5] * 4 + [1.0] * 8
    rates = [rate * factor for rate, factor in zip(usual, factors, strict=True)]
    assert [line["lr"] for line in metrics(run)] == rates


def test_arms_are_the_same_up_to_a_stage_that_differs(trained: list[Run]) -> None:
    own, plain = map(metrics, trained)
    assert len(plain) == 24
    for name in ("loss", "grad_norm", "lr", "checksum", "tokens"):
        assert [line[name] for line in own[:8]] == [line[name] for line in plain[:8]]
        assert own[8][name] != plain[8][name]


def test_a_comparison_says_what_stages_have_of_their_own(trained: list[Run]) -> None:
    runs = open_runs([trained[0].directory.parent])  # as they were written
    assert [run.plan for run in runs] == [run.plan for run in trained]
    said = headline(runs)
    own = "own at 16 (batch 128, rate × 0.5, weights web 1, books 3); own at 32 (weights web 0, "
    assert f"Stages with settings of their own: {own}books 1)." in said
    assert "Their weights differ, so the arms are not trained on the same text." in said


def same_run(run: Run, undisturbed: Run) -> None:
    assert run.is_finished
    assert same_weights(run, undisturbed)
    for name in ("loss", "grad_norm", "checksum", "tokens"):
        ours, theirs = ([line[name] for line in metrics(each)] for each in (run, undisturbed))
        assert ours == theirs
    result, expected = (read_json(each.directory / "result.json") for each in (run, undisturbed))
    assert result["checksum"] == expected["checksum"]


@pytest.mark.parametrize("stop_after", [3, 6, 8, 10])  # steps 4, 9, 12 and 16
def test_stopped_or_killed_anywhere_it_ends_with_the_same_bits(
    trained: list[Run], tmp_path: Path, mixture: PreparedCorpus, stop_after: int
) -> None:
    spec = spec_of(tmp_path).derive(only=["own"])
    calls = count(1)

    def die() -> bool:
        if next(calls) == stop_after:
            raise Killed
        return False

    with pytest.raises(Killed):
        train_all(spec, mixture, WorkerContext(stop=die))
    asked = count(1)
    train_all(spec, mixture, WorkerContext(stop=lambda: next(asked) == 2))
    (run,) = planned(spec, mixture)
    assert not run.is_finished
    train_all(spec, mixture, WorkerContext())
    same_run(run, trained[0])


# At seq_len 32 a batch of 64 has 2 rows: of 3 workers one has none; at 16 one of 128 has 8.
@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_together_are_one_worker(
    trained: list[Run], tmp_path: Path, mixture: PreparedCorpus, world_size: int
) -> None:
    spec = spec_of(tmp_path).derive(only=["own"])
    assert join_group(start_group(train, world_size, spec, mixture))
    (run,) = planned(spec, mixture)
    ours, theirs = metrics(run), metrics(trained[0])
    assert [line["checksum"] for line in ours] == [line["checksum"] for line in theirs]
    for name in ("loss", "grad_norm"):
        found, expected = ([line[name] for line in lines] for lines in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=2e-5, err_msg=name)


def test_a_stages_batch_is_as_if_it_were_the_pipelines(
    tmp_path: Path, mixture: PreparedCorpus
) -> None:
    """Loss, gradient, order and rates of a batch that every stage declares."""
    stages = [{"seq_len": n, "tokens_per_batch": 128} for n in (8, 16, 32)]
    fields: dict[str, Any] = {"budget": {"tokens": 12 * 128}}
    declared = spec_of(tmp_path / "own", arms=[{"name": "a", "stages": stages}], **fields)
    pipelines = spec_of(tmp_path, arms=[arm("a", 8, 16, 32)], tokens_per_batch=128, **fields)
    for spec in (declared, pipelines):
        train_all(spec, mixture, WorkerContext())
    (run,), (expected,) = planned(declared, mixture), planned(pipelines, mixture)
    same_run(run, expected)


def test_a_corpus_smaller_than_a_stages_batch_is_refused(
    tmp_path: Path, mixture: PreparedCorpus
) -> None:
    stages = [{"seq_len": 32, "tokens_per_batch": 8192}]
    spec = spec_of(tmp_path, arms=[{"name": "own", "stages": stages}], budget={"tokens": 10**6})
    with pytest.raises(UserError, match=r"tokens make 5,760 in whole chunks of 32, .*8,192"):
        validated(spec, mixture)


def test_the_windows_of_a_step_are_those_of_the_arm(
    tmp_path: Path, mixture: PreparedCorpus
) -> None:
    spec = spec_of(tmp_path)
    size = {"seq_len": 32, "num_rows": 100}
    for step, first, stop in ((7, 14, 16), (8, 16, 20), (12, 32, 34)):
        windows = list(shown_windows(spec, mixture, spec.arms[0], step=step, **size))
        assert [w.source for w in windows] == [("web", "books")[n] for n in DEALT[first:stop]]
    last = list(shown_windows(spec, mixture, spec.arms[0], step=19, **size))
    assert [window.epoch for window in last] == [1, 1]
    with pytest.raises(UserError, match=r"arm own: .*step 20 is not among its 20 steps; give 0 to"):
        list(shown_windows(spec, mixture, spec.arms[0], step=20, **size))
    in_seconds = spec.derive(budget={"tokens": None, "seconds": 5})
    with pytest.raises(UserError, match=r"arm own: .*it has none before the calibration"):
        list(shown_windows(in_seconds, mixture, spec.arms[0], step=0, **size))
