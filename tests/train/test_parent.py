"""Runs that go on from runs of another pipeline: the bits, tokens and records of the whole path."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glray.data.corpus import PreparedCorpus
from glray.data.inspection import shown_windows
from glray.errors import UserError
from glray.files import read_json
from glray.plan import StagePlan, learning_rate, make_plan
from glray.report.corpus_sheets import parent_text
from glray.report.headline import headline
from glray.report.plan_sheets import event_sheets, plan_sheets
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.parent import Parents
from glray.run.run import Run
from glray.search.space import candidates, search_pipeline
from glray.spec import (
    BaseFrequencies,
    CosineSchedule,
    Fork,
    Interpolation,
    LinearSchedule,
    PipelineSpec,
    SearchSpec,
    StageEnd,
    to_yaml,
)
from glray.spec.loading import load_pipeline
from glray.train.context import WorkerContext
from glray.train.worker import train_all
from tests.planned import planned, validated

from ..tiny import arm, tiny_spec
from ..weights import same_weights
from .test_forks import fork_of, killed_at_the_fork, records, trained
from .test_loop import metrics
from .test_stages import checksum_of, mixture  # noqa: F401 (a fixture)
from .test_start import MODELS, save_model

CONSTANT = {"lr": 1e-2, "schedule": CosineSchedule(warmup=0, final=1)}
DECAY = {"lr": 1e-2, "schedule": LinearSchedule(warmup=0, final=0)}


def parent_spec(storage: Path, **fields: object) -> PipelineSpec:
    """12 steps at 8 under a constant rate, in three stages."""
    declared: dict[str, object] = {
        "name": "parent",
        "arms": (arm("short", 8, 8, 8),),
        "chunk_len": 16,
        "optimizer": CONSTANT,
        "seeds": (0, 1),
    }
    spec = tiny_spec(storage, **(declared | fields))
    return spec.derive(compute={"keep_checkpoints": "stages"})


def child_spec(storage: Path, start: Fork | None = None, **fields: object) -> PipelineSpec:
    """12 steps more at 16; a second arm shares half of them, and goes back to 8."""
    declared: dict[str, object] = {
        "name": "child",
        "model": None,
        "start": start or Fork(run=str(storage / "parent" / "short")),
        "arms": (arm("longer", 16), arm("back", 16, 8)),
        "seeds": (0,),
    }
    return parent_spec(storage, **(declared | fields))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> Path:
    """One that has the parents."""
    path = tmp_path_factory.mktemp("parents")
    trained(parent_spec(path), corpus)
    return path


@pytest.fixture(scope="module")
def children(storage: Path, corpus: PreparedCorpus) -> dict[str, Run]:
    return trained(child_spec(storage), corpus)


@pytest.fixture
def copied(storage: Path, tmp_path: Path) -> Path:
    """The parents in a storage of the test's own."""
    shutil.copytree(storage / "parent", tmp_path / "parent")
    return tmp_path


def opened(run: Run) -> Run:
    return Run.open(run.directory)


def test_a_run_and_one_more_stage_end_with_the_bits_of_one_run_of_both(
    children: dict[str, Run], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    both = arm("both", stages=(8, 8, 8, {"seq_len": 16, "ratio": 3.0}))
    whole = parent_spec(tmp_path, arms=(both,), budget={"tokens": 24 * 64}, seeds=(0,))
    one = trained(whole, corpus)["both"]
    longer = children["longer"]
    assert same_weights(longer, one)
    ours, theirs = records(longer), records(one)
    # What is logged around a boundary is not logged before one that was not planned yet.
    watched = [line.pop("update_norm") for line in ours["metrics"]]
    assert [line.pop("update_norm") for line in theirs["metrics"]][12:] == watched[12:]
    assert ours == theirs
    assert len(ours["metrics"]) == 24
    assert set(read_json(longer.directory / "result.json")["tokens_by_seq_len"]) == {"8", "16"}


def test_the_arms_of_a_pipeline_with_a_parent_share_their_own_steps(
    children: dict[str, Run],
) -> None:
    assert {name: fork_of(run) for name, run in children.items()} == {
        "back": None,
        "longer": ("back-seed0", 18),
    }
    fork = opened(children["longer"]).manifest.fork
    back = opened(children["back"])
    assert fork is not None
    assert fork.measured_seconds == pytest.approx(
        back.log.measured_seconds[17] - back.log.measured_seconds[11], rel=0.2
    )


def test_each_seed_goes_on_from_its_own_run(storage: Path, corpus: PreparedCorpus) -> None:
    runs = planned(child_spec(storage, arms=(arm("longer", 16),), seeds=(1, 0)), corpus)
    parents = [run.manifest.parent for run in runs]
    assert [parent and parent.run for parent in parents] == ["short-seed1", "short-seed0"]
    assert len({parent.fingerprint for parent in parents if parent}) == 2
    (alone,) = planned(
        child_spec(
            storage,
            Fork(run=str(storage / "parent" / "short-seed1")),
            arms=(arm("longer", 16),),
            seeds=(1,),
        ),
        corpus,
    )
    assert alone.manifest.fingerprint == runs[0].manifest.fingerprint


def test_several_decays_go_on_from_one_stable_phase(copied: Path, corpus: PreparedCorpus) -> None:
    stable = Run.open(copied / "parent" / "short-seed0")
    decayed: dict[str, Any] = {
        "arms": (arm("decayed", 8),),
        "optimizer": DECAY,
        "budget": {"tokens": 4 * 64},
    }
    for step, at in ((8, {"stage": 1}), (4, 4), (12, "end")):
        start = Fork.model_validate({"run": str(copied / "parent" / "short"), "at": at})
        run = trained(child_spec(copied, start, name=f"decay{step}", **decayed), corpus)["decayed"]
        lines, theirs = metrics(run), metrics(stable)
        assert [line["step"] for line in lines] == list(range(1, step + 5))
        rates = [line["lr"] for line in lines]
        assert rates[:step] == [1e-2] * step
        assert rates[step:] == pytest.approx([8.75e-3, 6.25e-3, 3.75e-3, 1.25e-3])
        assert [line["loss"] for line in lines[:step]] == [n["loss"] for n in theirs[:step]]
        # The same tokens as the stable phase read there, if it got so far.
        ours = [line["checksum"] for line in lines[: len(theirs)]]
        assert ours == [line["checksum"] for line in theirs[: len(lines)]]
    assert same_weights(Run.open(stable.directory), stable)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [(None, [9, 12]), ("stages", [4, 8, 9, 12]), ("all", [3, 4, 6, 8, 9, 12])],
)
def test_checkpoints_are_kept_as_declared(
    keep: str | None, kept: list[int], tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = parent_spec(tmp_path, seeds=(0,)).derive(compute={"keep_checkpoints": keep})
    run = trained(spec, corpus)["short"]
    assert [step_of(path) for path in committed_checkpoints(run.checkpoints)] == kept


def test_a_run_killed_while_it_takes_over_or_later_goes_on(
    copied: Path, corpus: PreparedCorpus, children: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = child_spec(copied)
    killed_at_the_fork(lambda: trained(spec, corpus), monkeypatch)
    stops = iter([False] * 2 + [True] * 100)
    train_all(spec, corpus, WorkerContext(stop=lambda: next(stops)))
    begun = Run.open(copied / "child" / "back-seed0")
    assert 12 < begun.steps_done < 24
    for path in copied.glob("parent/*/checkpoints"):  # a run that has begun needs them no more
        shutil.rmtree(path)
    validated(spec.derive(only=["back"]), corpus)
    for name, run in trained(spec.derive(only=["back"]), corpus).items():
        assert records(run) == records(children[name]), name
        assert same_weights(run, children[name])


def test_nothing_is_read_twice_under_another_batch_and_other_weights(
    tmp_path: Path,
    mixture: PreparedCorpus,  # noqa: F811
) -> None:
    """8 steps of 2 chunks, one of each source, then 4 steps of 4 chunks, 3 of 4 of books."""

    def sources(web: int, books: int) -> dict[str, object]:
        named = {"web": web, "books": books}.items()
        stdlib = {"kind": "stdlib"}
        items = [{"name": name, "weight": weight, "corpus": stdlib} for name, weight in named]
        return {"kind": "mixture", "sources": items}

    sized: dict[str, Any] = {"chunk_len": 32, "seeds": (0,), "budget": {"tokens": 8 * 64}}
    parent = parent_spec(tmp_path, corpus=sources(1, 1), arms=(arm("short", 8),), **sized)
    trained(parent, mixture)
    child = child_spec(
        tmp_path,
        corpus=sources(1, 3),
        arms=(arm("longer", 32),),
        **{**sized, "tokens_per_batch": 128},
    )
    weighted = PreparedCorpus(
        tuple(
            type(source)(source.name, weight, source.blocks)
            for source, weight in zip(mixture.sources, (1, 3), strict=True)
        )
    )
    run = trained(child, weighted)["longer"]
    lines = metrics(run)
    assert [line["tokens"] for line in lines] == [*range(64, 513, 64), *range(640, 1025, 128)]
    dealt = [0, 1] * 8 + [1, 0, 1, 1] * 4
    chunks = mixture.order(32, seed=0).chunks(0, 80)
    own = [iter(chunks.offset[chunks.source == source]) for source in (0, 1)]
    offsets = np.array([next(own[source]) for source in dealt])
    assert len(set(offsets.tolist())) == len(offsets)
    ends = np.cumsum([2] * 8 + [4] * 4)
    fed = [checksum_of(mixture, part) for part in np.split(offsets, ends[:-1])]
    assert [line["checksum"] for line in lines] == fed


def test_the_whole_path_is_told(
    children: dict[str, Run], storage: Path, corpus: PreparedCorpus
) -> None:
    """Of a run that goes on from one that went on itself."""
    start = Fork(run=str(storage / "child" / "longer"))
    spec = child_spec(storage, start, name="grandchild", arms=(arm("last", 8),))
    run = opened(trained(spec, corpus)["last"])
    exported = read_json(run.directory / "model" / "config.json")
    assert exported["tokens_by_seq_len"] == {"8": 24 * 64, "16": 12 * 64}
    assert exported["max_position_embeddings"] == 16
    said = (
        "goes on from longer-seed0 of child after 24 steps (1,536 tokens), which goes on from "
        "short-seed0 of parent after 12 steps (768 tokens)"
    )
    assert run.manifest.parent is not None
    assert run.manifest.parent.sentence == said
    assert f"last-seed0: {said}" in (storage / "grandchild" / "events.log").read_text()
    assert any(sentence.startswith(f"last {said}.") for sentence in headline([run]))
    assert len(run.log.step) == 36 == run.steps_done
    assert [stage.seq_len for stage in run.stages] == [8, 8, 8, 16, 8]
    assert [stage.evaluation is not None for stage in run.stages] == [True] * 5
    assert [boundary.step for boundary in run.boundaries] == [4, 8, 12, 24]
    plan = next(part for part in plan_sheets(spec) if isinstance(part, str) and "every run" in part)
    assert plan == f"every run {said}"
    (sheet,) = (part for part in plan_sheets(spec) if not isinstance(part, str))
    assert [row[:5] for row in sheet.rows] == [["8", "8", "12", "768", "100.0%"]]
    assert "12 steps × 64 = 768 tokens" in sheet.notes
    (events,) = event_sheets(spec)
    assert events.rows[0][0] == "27"


def test_a_run_and_what_it_goes_on_from_are_the_same_model(
    children: dict[str, Run], storage: Path
) -> None:
    runs = [opened(children["longer"]), Run.open(storage / "parent" / "short-seed0")]
    said = " ".join(headline(runs))
    assert "At unequal budgets" in said
    assert "Besides" not in said


def test_the_windows_of_any_step_are_shown(storage: Path, corpus: PreparedCorpus) -> None:
    spec, parent = child_spec(storage), parent_spec(storage)
    for step, whose in ((3, "is one of short-seed0's"), (12, "is read by the pipeline's runs")):
        ours, theirs = (
            list(shown_windows(its, corpus, its.arms[0], step=step, seq_len=8, num_rows=4))
            for its in (spec, parent)
        )
        assert ours == theirs
        text = parent_text(Parents.of(spec).first.record, step)
        assert text.endswith(f"(768 tokens): step {step} {whose}.")
    with pytest.raises(UserError, match="step 24 is not among its 24 steps"):
        list(shown_windows(spec, corpus, spec.arms[0], step=24, seq_len=8, num_rows=1))


def test_positions_are_relative_to_the_path(storage: Path, corpus: PreparedCorpus) -> None:
    arms = (
        arm("first", 16, positions=Interpolation()),
        arm("previous", 16, 16, positions=Interpolation(relative_to="previous")),
        arm("thetas", 16, 16, positions=BaseFrequencies(thetas=(100.0, 200.0))),
    )
    runs = planned(child_spec(storage, arms=arms), corpus)
    first, previous, thetas = (run.manifest.rope_parameters for run in runs)
    declared = first[0]
    assert first == (*[declared] * 3, declared | {"rope_type": "linear", "factor": 2.0})
    assert previous == (*first, declared)
    assert [its["rope_theta"] for its in thetas] == [declared["rope_theta"]] * 3 + [100.0, 200.0]


def test_a_path_that_began_with_a_folder_keeps_the_folders_length(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    save_model(tmp_path / "start", MODELS["gpt_neox"])  # trained up to 16
    init = {"model": None, "init": str(tmp_path / "start"), "seeds": (0,)}
    trained(parent_spec(tmp_path, **init), corpus)
    run = trained(child_spec(tmp_path, arms=(arm("more", 8),)), corpus)["more"]
    assert read_json(run.directory / "model" / "config.json")["max_position_embeddings"] == 16


def test_the_budget_covers_what_is_added_and_seconds_count_the_path(tmp_path: Path) -> None:
    spec = tiny_spec(
        tmp_path,
        arms=(arm("longer", 16),),
        budget={"tokens": None, "seconds": 0.02},
        ratios_in="seconds",
        optimizer=DECAY,
        calibration={"step_microseconds": {16: 2000}},
    )
    before = StagePlan(
        seq_len=8, windows_per_batch=16, first_step=0, num_steps=5, step_microseconds=1000
    )
    plan = make_plan(spec, spec.arms[0], (before,))
    assert plan is not None
    assert (plan.num_steps, plan.num_own_steps, plan.first_step) == (15, 10, 5)
    assert plan.num_tokens == 5 * 128 + 10 * 64
    assert plan.budget_seconds == 0.025 == plan.calibrated_seconds(15)
    assert plan.own_seconds(15) == pytest.approx(0.02)
    assert [float(plan.progress(step)) for step in (5, 14)] == [0.05, 0.95]
    assert learning_rate(spec.optimizer, plan, 5) == pytest.approx(0.95e-2)


def test_a_path_of_two_calibrations_counts_each_part_by_its_own(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    def timed(costs: dict[int, int]) -> dict[str, Any]:
        seconds = {"budget": {"seconds": 0.012}, "ratios_in": "seconds", "seeds": (0,)}
        return {**seconds, "calibration": {"step_microseconds": costs}}

    trained(parent_spec(tmp_path, arms=(arm("short", 8),), **timed({8: 1000})), corpus)
    child = child_spec(tmp_path, arms=(arm("longer", 16, 8),), **timed({8: 1500, 16: 3000}))
    run = opened(trained(child, corpus)["longer"])
    assert [stage.num_steps for stage in run.plan.stages] == [12, 2, 4]
    expected = [*range(1, 13), 15, 18, 19.5, 21, 22.5, 24]
    assert run.log.calibrated_seconds is not None
    assert run.log.calibrated_seconds.tolist() == pytest.approx([n / 1000 for n in expected])
    assert run.plan.budget_seconds == pytest.approx(0.024)
    assert [scored.calibrated_seconds for scored in run.evaluations] == [0.012, 0.018, 0.024]


START = "start: {storage}/parent/short-seed0: "
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "no run": (
        {"start": Fork(run="nowhere/none")},
        "start.run: no run under seed 0 in nowhere/none-seed0: there is nothing to go on from; "
        "train it first, or name <pipeline's directory>/<arm>, such as runs/quickstart/growlength",
    ),
    "another seed": (
        {"start": {"run": "{storage}/parent/short-seed0"}, "seeds": (0, 1)},
        "start.run: {storage}/parent/short-seed0 is a run of seed 0, which read the tokens in "
        "another order than seed 1 does: set seeds to 0 alone, or name the arm, "
        "{storage}/parent/short, so that each seed goes on from its own run",
    ),
    "itself": (
        {"name": "parent"},
        "start.run: {storage}/parent/short is a run of the pipeline parent itself: its directory "
        "would mix parents and children; give this pipeline another name (--set name=…)",
    ),
    "no checkpoint": (
        {"start": {"run": "{storage}/parent/short", "at": 7}, "name": "other"},
        START + "has a checkpoint only of 4, 8, 9, 12, not of step 7: there is no state to go on "
        "from; set start.at to a step that it has, or train the parent with "
        'compute.keep_checkpoints="stages" or "all"',
    ),
    "beyond": (
        {"start": {"run": "{storage}/parent/short", "at": 13}},
        START + "ends at step 12, start.at is 13, which it never reaches; give 1 to 12",
    ),
    "no stage": (
        {"start": {"run": "{storage}/parent/short", "at": {"stage": 3}}},
        START + "has 3 stages, start.at names stage 3, which it never trains; give 0 to 2",
    ),
    "another chunk": (
        {"chunk_len": 32},
        START + "its tokens were read in chunks of 16 tokens, this pipeline's are 32: some would "
        "be read twice and others never; set chunk_len=16",
    ),
    "a longer length": (
        {"chunk_len": None, "arms": (arm("longest", 32),)},
        START + "its tokens were read in chunks of 16 tokens, this pipeline's are 32: some would "
        "be read twice and others never; lengths up to 16 can be added, longer ones only to a run "
        "that was trained with chunk_len=32 from its start",
    ),
    "seconds": (
        {"budget": {"seconds": 60}, "ratios_in": "seconds"},
        START + "was trained without a calibration, and seconds decide here: the path's seconds "
        "would be unknown; set budget.tokens (budget.seconds=null) and ratios_in=tokens",
    ),
}


def filled(value: Any, storage: Path) -> Any:
    if isinstance(value, str):
        return value.replace("{storage}", str(storage))
    return {k: filled(v, storage) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_go_on_is_said_on_one_line(
    case: str, storage: Path, corpus: PreparedCorpus
) -> None:
    fields, message = ERRORS[case]
    spec = child_spec(storage, **{k: filled(v, storage) for k, v in fields.items()})
    with pytest.raises(UserError, match=f"^{re.escape(filled(message, storage))}$"):
        validated(spec, corpus)


def test_a_parent_of_other_tokens_is_refused(
    storage: Path,
    mixture: PreparedCorpus,  # noqa: F811
) -> None:
    books = PreparedCorpus((mixture.sources[1],))
    with pytest.raises(UserError, match=f"short-seed0: was trained on .* reads {'b' * 16}: what"):
        validated(child_spec(storage), books)


def test_a_parent_that_still_trains_must_keep_the_state(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = parent_spec(tmp_path, seeds=(0,))
    run_spec = spec.derive(compute={"keep_checkpoints": None})
    stops = iter([False] * 5 + [True] * 100)
    train_all(run_spec, corpus, WorkerContext(stop=lambda: next(stops)))
    begun = Run.open(tmp_path / "parent" / "short-seed0")
    latest = step_of(committed_checkpoints(begun.checkpoints)[-1])
    start = Fork(run=str(tmp_path / "parent" / "short"), at=latest)
    with pytest.raises(UserError, match=f"checkpoint of step {latest} is deleted as it trains on"):
        validated(child_spec(tmp_path, start), corpus)
    with pytest.raises(UserError, match="so it has no end to go on from"):
        validated(child_spec(tmp_path), corpus)


def test_a_start_is_declared_alone_and_read_back(tmp_path: Path) -> None:
    spec = child_spec(tmp_path, Fork(run="runs/parent/short", at=StageEnd(stage=1)))
    (tmp_path / "spec.yaml").write_text(to_yaml(spec))
    assert load_pipeline(tmp_path / "spec.yaml") == spec
    named = load_pipeline(tmp_path / "spec.yaml", ["start.at=12"]).start
    assert named == Fork(run="runs/parent/short", at=12)
    with pytest.raises(ValueError, match="model and start are both set"):
        tiny_spec(tmp_path, start={"run": "runs/parent/short"})
    with pytest.raises(ValueError, match="none of model, init, start is set"):
        tiny_spec(tmp_path, model=None)
    with pytest.raises(ValueError, match=r"start.run '.' names no arm"):
        tiny_spec(tmp_path, model=None, start={"run": "."})


def test_a_search_goes_on_from_its_parent(
    children: dict[str, Run], copied: Path, corpus: PreparedCorpus
) -> None:
    search = SearchSpec(arm="growing", lengths=((8, 16),), grid=4, num_trials=4)
    spec = child_spec(copied, name="searched", arms=(arm("growing", 8, 16),), search=search)
    tried = candidates(spec)
    runs = trained(search_pipeline(spec, tried), corpus)
    assert len(runs) == len(tried) == 4
    (fixed,) = (candidate.name for candidate in tried if candidate.seq_lens == (16,))
    assert same_weights(runs[fixed], children["longer"])
    for run in runs.values():
        parent = opened(run).manifest.parent
        assert parent is not None
        assert parent.run == "short-seed0"
        assert len(records(run)["metrics"]) == 24  # of the whole path
