"""What is logged says which pipeline, run, stage, step and rank it comes from."""

import logging
from pathlib import Path

import pytest

from glray.data.blocks.token_blocks import open_token_blocks
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.errors import UserError
from glray.files import copy_tree
from glray.train.announcer import PLACE
from glray.train.context import WorkerContext
from glray.train.worker import train_all

from ..tiny import tiny_spec

Said = tuple[str, tuple[object, ...]]
"""A message, and the values of ``PLACE``."""


def said(caplog: pytest.LogCaptureFixture) -> list[Said]:
    return [
        (record.getMessage(), tuple(vars(record)[name] for name in PLACE))
        for record in caplog.records
        if record.name == "glray"
    ]


def test_a_run_is_logged_with_its_place(
    corpus: PreparedCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "glray")
    train_all(tiny_spec(tmp_path, only=("grow",)), corpus, WorkerContext())
    logged = said(caplog)
    for expected in (
        ("grow-seed0: starts, 4 at 8 + 4 at 16 + 4 at 32 = 12 steps", 0, 0),
        ("grow-seed0: committed the checkpoint of step 12", 2, 12),
        ("grow-seed0: finished at step 12", 2, 12),
    ):
        message, stage, step = expected
        assert (message, ("tiny", "grow-seed0", stage, step, 0)) in logged
    events = (tmp_path / "tiny" / "events.log").read_text().splitlines()
    assert {line[len("2026-11-29 00:00:00 ") :] for line in events} <= {text for text, _ in logged}


def test_what_ends_a_run_is_logged_and_not_shown(
    corpus: PreparedCorpus,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (source,) = corpus.sources
    copy_tree(source.blocks.directory, tmp_path / "tokens")
    damaged = PreparedCorpus((PreparedSource("stdlib", 1, open_token_blocks(tmp_path / "tokens")),))
    path = Path(str(damaged.sources[0].blocks.file_path(0)))
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError) as error:
        train_all(tiny_spec(tmp_path), damaged, WorkerContext())
    assert said(caplog)[-1] == (str(error.value), ("tiny", "grow-seed0", 0, 0, 0))
    assert caplog.records[-1].levelno == logging.ERROR
    assert caplog.records[-1].exc_info is None
    assert capfd.readouterr().err == ""
