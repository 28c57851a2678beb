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
from glray.files import StorePath, files_below, paths
from glray.spec import ComputeSpec
from glray.spec.loading import to_yaml
from glray.storage import is_seen, nonce_file, storage_path, validate_storage

from .stores import Headers, StoreServer
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


def test_a_url_of_a_store_is_itself_and_another_is_refused(in_submitted_job: None) -> None:
    assert str(storage_path(ComputeSpec(storage="s3://bucket/glray/"))) == "s3://bucket/glray"
    with pytest.raises(UserError, match=r"^compute\.storage: hdfs://host/glray: .*s3://, gs://"):
        storage_path(ComputeSpec(storage="hdfs://host/glray"))


def test_a_store_that_does_everything_is_left_as_it_was(
    bucket: StorePath, server: StoreServer
) -> None:
    validate_storage(bucket / "runs")
    assert files_below(bucket) == []
    assert len(server.requests) < 30


@pytest.mark.parametrize(
    ("refuses", "status", "lack"),
    [
        (lambda request, _: True, "403 Forbidden", "cannot be written .*allows no such request"),
        (lambda request, _: True, "503 Slow Down", "cannot be written .*answers 503"),
        (lambda request, _: "GET" in request, "403 Forbidden", "does not show what was just"),
        (lambda _, headers: "If-None-Match" in headers, "501 Not Implemented", "create-only"),
        (lambda _, headers: "If-Match" in headers, "501 Not Implemented", "if it is unchanged"),
        (lambda request, _: "?delete" in request, "403 Forbidden", "cannot be deleted from"),
    ],
    ids=["write", "busy", "read", "create", "replace", "delete"],
)
def test_what_a_store_lacks_is_one_line(
    bucket: StorePath,
    server: StoreServer,
    monkeypatch: pytest.MonkeyPatch,
    refuses: Callable[[str, Headers], bool],
    status: str,
    lack: str,
) -> None:
    monkeypatch.setattr(paths, "QUICK_SECONDS", 0.3)
    monkeypatch.setattr(paths, "PATIENCE_SECONDS", 0.5)
    with (
        server.refusing(status, refuses),
        pytest.raises(UserError, match=rf"storage s3://storage/runs: it .*{lack}") as caught,
    ):
        validate_storage(bucket / "runs")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gone", ["bucket", "credentials", "store"])
def test_a_store_that_cannot_be_reached_is_one_line_before_any_work(
    bucket: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr(paths, "QUICK_SECONDS", 0.3)
    name, said = "storage", "the store does not answer at http://127.0.0.1:1"
    if gone == "bucket":
        name, said = "absent", "its bucket does not exist"
    elif gone == "credentials":
        said = "no credentials"
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    pipeline = tmp_path / "spec.yaml"
    spec = tiny_spec(tmp_path).derive(compute={"storage": f"s3://{name}/runs"})
    pipeline.write_text(to_yaml(spec.resolved()))
    result = CliRunner().invoke(app, ["prepare", str(pipeline)])
    assert isinstance(result.exception, UserError | OSError), result.output
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)


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
