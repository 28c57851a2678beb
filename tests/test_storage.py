from pathlib import Path

import pytest

from glray.errors import UserError
from glray.spec import ComputeSpec
from glray.storage import storage_path


@pytest.fixture
def in_submitted_job(monkeypatch):
    """The environment that Ray's job supervisor gives an entrypoint."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")


def test_a_relative_path_lies_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage_path(ComputeSpec(storage="runs")) == tmp_path / "runs"
    assert list(tmp_path.iterdir()) == []


def test_a_home_path_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert storage_path(ComputeSpec(storage="~/runs")) == Path("/home/ada/runs")


def test_a_relative_path_in_a_submitted_job_is_refused(in_submitted_job):
    with pytest.raises(UserError, match=r"'runs'.*--set compute\.storage=/"):
        storage_path(ComputeSpec(storage="runs"))


def test_an_absolute_path_in_a_submitted_job_is_itself(in_submitted_job):
    assert storage_path(ComputeSpec(storage="/mnt/glray")) == Path("/mnt/glray")


def test_a_bucket_is_refused():
    with pytest.raises(UserError, match=r"s3://bucket/glray"):
        storage_path(ComputeSpec(storage="s3://bucket/glray"))
