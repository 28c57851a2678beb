"""Each choice of positions through training: placed stage by stage, resumed, exported, scored."""

import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from glray.data.corpus import PreparedCorpus
from glray.data.windows import Batch, StageReads
from glray.errors import UserError
from glray.files import read_json
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.run import Run
from glray.spec import (
    BaseFrequencies,
    Extrapolation,
    GPTNeoXModel,
    Interpolation,
    NtkAware,
    PipelineSpec,
    PositionsSpec,
    Yarn,
)
from glray.train.context import WorkerContext
from glray.train.export import latest_model
from glray.train.scoring import Scores, ScoringProtocol, score_model
from glray.train.worker import train_all
from tests.planned import planned, validated
from tests.tiny import arm

from ..group import start_group
from ..tiny import tiny_spec
from ..weights import same_weights

KINDS: dict[str, PositionsSpec] = {
    "extrapolation": Extrapolation(),
    "interpolation": Interpolation(),
    "previous": Interpolation(relative_to="previous"),
    "ntk": NtkAware(),
    "theta": BaseFrequencies(thetas=(100.0, 200.0, 400.0)),
    "yarn": Yarn(),
}
MODEL = GPTNeoXModel(
    num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, rotary_fraction=1
)


def spec_of(storage: Path, kind: str) -> PipelineSpec:
    """12 steps through 8, 16 and 32 tokens, boundaries after 4 and 8, borders every 2 and every
    3."""
    arms = (arm("grow", 8, 16, 32, positions=KINDS[kind]),)
    return tiny_spec(storage, model=MODEL, arms=arms)


def trained(
    spec: PipelineSpec, corpus: PreparedCorpus, stop: Callable[[], bool] = lambda: False
) -> Run:
    train_all(spec, corpus, WorkerContext(stop=stop))
    return planned(spec, corpus)[0]


@pytest.fixture(scope="module")
def trained_under(
    tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus
) -> Callable[[str], Run]:
    """A run of each kind, trained once without a break where a test first asks for it."""

    @cache
    def trained_once(kind: str) -> Run:
        return trained(spec_of(tmp_path_factory.mktemp("undisturbed"), kind), corpus)

    return trained_once


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def undisturbed(trained_under: Callable[[str], Run], kind: str) -> Run:
    return trained_under(kind)


def test_a_run_that_stops_before_on_and_after_a_boundary_ends_with_the_same_bits(
    undisturbed: Run, tmp_path: Path, corpus: PreparedCorpus, kind: str
) -> None:
    spec = spec_of(tmp_path, kind)
    for step, borders in ((3, 2), (4, 1), (6, 1)):  # a boundary is after 4; borders as they come
        asked = iter([False] * (borders - 1) + [True])
        stopped = trained(spec, corpus, stop=asked.__next__)
        assert latest_model(stopped, torch.device("cpu"))[1].step == step
    assert_ends_as(undisturbed, trained(spec, corpus))


@dataclass
class Mortal(WorkerContext):
    """Killed as it asks for the tokens of a step, so after as many steps."""

    dies_after: int = 0

    def batches(self, corpus: PreparedCorpus, segments: Iterator[StageReads]) -> Generator[Batch]:
        for batch in super().batches(corpus, segments):
            if batch.step == self.dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def train_until(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, num_steps: int
) -> None:
    train_all(spec, corpus, Mortal(ctx.rank, ctx.world_size, dies_after=num_steps))


@pytest.mark.soak
def test_a_run_killed_around_its_boundaries_ends_with_the_same_bits(
    undisturbed: Run, tmp_path: Path, corpus: PreparedCorpus, kind: str
) -> None:
    spec = spec_of(tmp_path, kind)
    boundaries_alone = {"checkpoint_every_tokens": 10**6}
    spec = spec.derive(compute=boundaries_alone)
    for num_steps in (3, 4, 5, 7, 8, 9):  # the boundaries are after 4 and 8
        (life,) = start_group(train_until, 1, spec, corpus, num_steps)
        life.join()
        assert life.exitcode == -signal.SIGKILL
        (run,) = planned(spec, corpus)
        kept = [step_of(path) for path in committed_checkpoints(run.checkpoints)]
        assert kept == [boundary for boundary in (4, 8) if boundary <= num_steps]
    assert_ends_as(undisturbed, trained(spec, corpus))


def assert_ends_as(expected: Run, run: Run) -> None:
    """The same weights, scores and boundaries."""
    assert same_weights(run, expected)
    for step in (4, 8, 12):
        scored, wanted = (read_json(r.evaluation_path(step))["lengths"] for r in (run, expected))
        assert scored == wanted
    for step in (4, 8):
        assert read_json(run.boundary_path(step)) == read_json(expected.boundary_path(step))


def test_every_choice_trains_other_weights_but_on_the_same_tokens(
    trained_under: Callable[[str], Run],
) -> None:
    runs = [trained_under(kind) for kind in KINDS]
    for index, run in enumerate(runs):
        assert not any(same_weights(run, other) for other in runs[:index])
    checksums = {read_json(run.directory / "result.json")["checksum"] for run in runs}
    assert len(checksums) == 1


def test_the_exported_model_scores_as_the_run_does(undisturbed: Run) -> None:
    exported = AutoModelForCausalLM.from_pretrained(undisturbed.directory / "model").eval()
    last = read_json(undisturbed.evaluation_path(12))["lengths"]
    scores = score_model(undisturbed.directory, ScoringProtocol(seq_lens=(8, 32, 64)))
    assert scores.own
    assert losses(scores) == {entry["seq_len"]: entry["loss"] for entry in last}
    windows = torch.from_numpy(scores.targets.tokens)
    for seq_len, scored in losses(scores).items():
        rows, labels = (part.reshape(-1, seq_len) for part in (windows[:, :-1], windows[:, 1:]))
        with torch.no_grad():
            logits = exported(rows).logits
        loss = torch.nn.functional.cross_entropy(logits.mT, labels)
        assert loss.item() == pytest.approx(scored, rel=1e-5)


# ---- glray eval --positions


@pytest.fixture(scope="module")
def extrapolated(trained_under: Callable[[str], Run]) -> Run:
    return trained_under("extrapolation")


def losses(scores: Scores, positions: str = "as trained") -> dict[int, float]:
    return {entry["seq_len"]: entry["loss"] for entry in scores.by_positions[positions]}


def test_another_choice_changes_the_lengths_beyond_training_alone(extrapolated: Run) -> None:
    choices = ("as trained", "extrapolation", "interpolation", "ntk", "yarn", "theta=500")
    protocol = ScoringProtocol(seq_lens=(8, 32, 64), positions=choices)
    scores = score_model(extrapolated.directory, protocol)
    plain, same, *others = (losses(scores, name) for name in choices)
    assert same == plain
    for other in others:
        assert (other[8], other[32]) == (plain[8], plain[32])
        assert other[64] != plain[64]
    assert len({other[64] for other in others}) == 4


@pytest.mark.parametrize(
    "name", ["linear", "theta", "theta=1", "theta=x", "theta=nan", "theta=inf"]
)
def test_a_choice_that_does_not_exist_is_refused(extrapolated: Run, name: str) -> None:
    with pytest.raises(
        UserError, match="not one of as trained, extrapolation, interpolation, ntk, yarn"
    ):
        score_model(extrapolated.directory, ScoringProtocol(seq_lens=(8, 64), positions=(name,)))


def test_a_scaling_upon_another_is_refused(trained_under: Callable[[str], Run]) -> None:
    run = trained_under("yarn")
    with pytest.raises(UserError, match="trained with positions scaled by yarn"):
        score_model(run.directory, ScoringProtocol(seq_lens=(8, 64), positions=("interpolation",)))


def test_ntk_needs_more_than_one_pair_of_rotary_dimensions(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    with pytest.raises(UserError, match="heads rotate 2 dimensions"):
        validated(spec_of(tmp_path, "ntk").derive(model={"rotary_fraction": 0.25}), corpus)
