import errno
import fcntl
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glray.cli import app
from glray.errors import UserError
from glray.spec import ComputeSpec
from glray.spec.loading import to_yaml
from glray.storage import is_seen, nonce_file, storage_path, validate_storage

from .tiny import tiny_spec


@pytest.fixture
def in_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that Ray's job supervisor gives an entrypoint."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")


def test_a_relative_path_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_path(ComputeSpec(storage="runs")) == tmp_path / "runs"
    assert list(tmp_path.iterdir()) == []


def test_a_home_path_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert storage_path(ComputeSpec(storage="~/runs")) == Path("/home/ada/runs")


def test_a_relative_path_in_a_submitted_job_is_refused(in_submitted_job: None) -> None:
    with pytest.raises(UserError, match=r"'runs'.*--set compute\.storage=/"):
        storage_path(ComputeSpec(storage="runs"))


def test_an_absolute_path_in_a_submitted_job_is_itself(in_submitted_job: None) -> None:
    assert storage_path(ComputeSpec(storage="/mnt/glray")) == Path("/mnt/glray")


def test_a_bucket_is_refused() -> None:
    with pytest.raises(UserError, match=r"s3://bucket/glray"):
        storage_path(ComputeSpec(storage="s3://bucket/glray"))


def test_a_storage_that_does_everything_is_left_as_it_was(tmp_path: Path) -> None:
    validate_storage(tmp_path / "new" / "runs")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["new", "new/runs"]


def test_a_mark_is_seen_where_it_was_made_and_nowhere_else(tmp_path: Path) -> None:
    driver, elsewhere = tmp_path / "driver", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with nonce_file(driver) as name:
        assert is_seen(driver / name)
        assert not is_seen(elsewhere / name, wait_seconds=0.1)
        late = threading.Timer(0.3, lambda: (elsewhere / name).touch())  # as over NFS
        late.start()
        assert is_seen(elsewhere / name)
        assert not is_seen(tmp_path / "missing" / name, wait_seconds=0.1)
    assert list(driver.iterdir()) == []
    assert not (tmp_path / "missing").exists()


def fail_for(
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    error: Exception,
    when: Callable[..., bool] = lambda *_: True,
) -> None:
    """Have a system call fail as it does on some file systems."""
    works = getattr(owner, name)

    def call(*arguments: object, **named: object) -> object:
        if when(*arguments):
            raise error
        return works(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def is_folder(path: object, *_: object) -> bool:
    return Path(str(path)).is_dir()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_storage_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail_for(monkeypatch, fcntl, "flock", system_error(number))
    refused_with(tmp_path, "it cannot lock a file", "flock")


def test_a_storage_that_cannot_rename_folders_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(monkeypatch, os, "rename", system_error(errno.ENOSYS), is_folder)
    refused_with(tmp_path, "it cannot rename a folder", "object store")


def test_a_storage_that_cannot_replace_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = lambda _, target: Path(target).exists()  # noqa: E731
    fail_for(monkeypatch, os, "replace", system_error(errno.EPERM), is_there)
    refused_with(tmp_path, "it cannot replace one file with another", "mount it")


def test_a_full_storage_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_for(monkeypatch, os, "fsync", system_error(errno.ENOSPC))
    refused_with(tmp_path, r"it cannot be written \(No space left on device\)", "make room")


def test_a_storage_that_is_not_there_and_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/runs: it cannot be written \(Not a directory\)"):
        validate_storage(tmp_path / "file" / "runs")


def refused_with(storage: Path, lack: str, advice: str) -> None:
    """One line with both, and nothing is left behind."""
    pattern = rf"compute\.storage {re.escape(str(storage))}: {lack}.*{advice}.*compute\.storage="
    with pytest.raises(UserError, match=pattern) as caught:
        validate_storage(storage)
    assert "\n" not in str(caught.value)
    assert list(storage.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "prepare", "profile", "tune"])
def test_a_storage_that_will_not_do_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    spec = tiny_spec(tmp_path / "storage", search={"arm": "grow"}, budget={"seconds": 1})
    spec = spec.derive(arms=spec.arms[:1])
    pipeline = tmp_path / "spec.yaml"
    pipeline.write_text(to_yaml(spec.resolved()))
    fail_for(monkeypatch, os, "rename", system_error(errno.ENOSYS), is_folder)
    result = CliRunner().invoke(app, [command, str(pipeline)])
    assert isinstance(result.exception, UserError), result.output
    assert "it cannot rename a folder" in str(result.exception)
    assert result.output == ""
    assert list((tmp_path / "storage").iterdir()) == []
