"""A storage that was moved or copied is read and trained on where it lies now."""

import shutil
from pathlib import Path

import pytest

from glray.data.corpus import PreparedCorpus, run_corpus
from glray.errors import UserError
from glray.files import read_json, write_json
from glray.report.page import Report
from glray.run.run import Run, open_runs
from glray.spec import PipelineSpec
from glray.train.context import WorkerContext
from glray.train.export import export_run
from glray.train.scoring import ScoringProtocol, score_model
from glray.train.worker import train_all
from tests.planned import planned, validated

from ..disk import here
from ..killing import same_run
from ..tiny import tiny_spec
from ..tokens import periodic_corpus

LENGTHS = ScoringProtocol(seq_lens=(8, 32, 64))


def stored(storage: Path) -> PreparedCorpus:
    """The small corpus, in a storage's own folder."""
    return periodic_corpus(storage / "tokens" / ("f" * 16))


def stop_early(spec: PipelineSpec, corpus: PreparedCorpus) -> None:
    asked = iter([False, False, True])
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))


@pytest.mark.usefixtures("undrawn")
def test_a_moved_storage_is_resumed_scored_exported_and_reported(
    finished: list[Run], tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "home" / "after"
    stop_early(tiny_spec(before), stored(before))
    after.parent.mkdir()
    before.rename(after)
    stopped = Run.open(after / "tiny" / "grow-seed0")
    spec = tiny_spec(after)
    corpus = run_corpus(stopped)
    assert Path(corpus.directories[0]).is_relative_to(after)
    assert validated(spec, corpus)[0].manifest.identity == stopped.manifest.identity
    train_all(spec, corpus, WorkerContext())
    runs = planned(spec, corpus)
    assert "grow-seed0: resumed at step 4" in (after / "tiny" / "events.log").read_text()
    assert all(map(same_run, runs, finished))
    assert not before.exists()

    again = tmp_path / "again"
    after.rename(again)
    run = Run.open(again / "tiny" / "grow-seed0")
    scored = score_model(run.directory, LENGTHS)
    assert scored.own
    recorded = read_json(run.evaluation_path(12))["lengths"]
    found = [length["loss"] for length in scored.by_positions["as trained"]]
    assert found == [length["loss"] for length in recorded]
    assert export_run(run.directory, tmp_path / "model") == 12
    Report(open_runs([again / "tiny"])).write(tmp_path / "report")


def test_a_copy_uses_its_own_token_blocks(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    stop_early(tiny_spec(first), stored(first))
    shutil.copytree(first, second)
    (copied,) = run_corpus(Run.open(second / "tiny" / "grow-seed0")).directories
    assert Path(copied).is_relative_to(second)


def test_a_link_to_a_run_finds_the_blocks_of_where_it_lies(tmp_path: Path) -> None:
    stop_early(tiny_spec(tmp_path / "storage"), stored(tmp_path / "storage"))
    (tmp_path / "linked").symlink_to(tmp_path / "storage" / "tiny" / "grow-seed0")
    (found,) = run_corpus(Run.open(tmp_path / "linked")).directories
    assert Path(found).is_relative_to(tmp_path / "storage")


def test_a_record_with_an_absolute_place_is_read_there_and_where_it_was_moved(
    tmp_path: Path,
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    stop_early(tiny_spec(before), stored(before))
    run = Run.open(before / "tiny" / "grow-seed0")
    (tokens,) = run.tokens_directories
    record = read_json(run.directory / "run.json")
    write_json(run.directory / "run.json", record | {"tokens_directories": [str(tokens)]})
    assert Run.open(run.directory).tokens_directories == (tokens,)
    before.rename(after)
    moved = Run.open(after / "tiny" / "grow-seed0")
    assert moved.tokens_directories == (after / here(tokens).relative_to(before),)


def test_a_run_copied_alone_says_what_to_copy_and_where_to(tmp_path: Path) -> None:
    storage, home = tmp_path / "storage", tmp_path / "far" / "from" / "home"
    stop_early(tiny_spec(storage), stored(storage))
    run = home / "grow-seed0"
    shutil.copytree(storage / "tiny" / "grow-seed0", run)
    (tokens,) = Run.open(storage / "tiny" / "grow-seed0").tokens_directories
    for command in (
        lambda: score_model(run, LENGTHS),
        lambda: export_run(run, tmp_path / "model"),
    ):
        with pytest.raises(UserError) as error:
            command()
        assert str(error.value) == (
            f"{run}: its token blocks are not in {home.parent}/tokens/{tokens.name}: without "
            f"them it can neither be scored nor exported nor resumed; copy tokens/{tokens.name} "
            f"and tokens/heldout of the storage in which it was trained to {home}/tokens"
        )
    shutil.copytree(here(tokens), home / "tokens" / tokens.name)
    assert score_model(run, LENGTHS).own
