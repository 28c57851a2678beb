"""Files and folders appear whole or not at all."""

import json
import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from glray.errors import UserError
from glray.files import new_directory, read_json, sole_writer, write_json, write_text

from .disk import files_of_a_kilobyte


def test_json_has_no_number_that_is_none(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1.5, float("nan")], "b": {"c": float("inf")}})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1.5, None], "b": {"c": None}}
    assert "NaN" not in text


def test_write_json_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a" / "value.json"
    write_json(path, {"step": 1})
    write_json(path, {"step": 2})
    assert read_json(path) == {"step": 2}
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]
    with pytest.raises(TypeError):
        write_json(path, object())
    assert read_json(path) == {"step": 2}
    assert read_json(tmp_path / "nosuch.json") is None


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with files_of_a_kilobyte():
        write_text(tmp_path / "a", "short")
        with pytest.raises(OSError, match=r"a'$") as caught:
            write_text(tmp_path / "a", "long" * 1000)
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "short"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_that_fails_half_way_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "step-1"

    def fail_half_way() -> None:
        with new_directory(path) as partial:
            (partial / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with new_directory(path) as partial:
        (partial / "whole").touch()
        assert not path.exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["step-1", "whole"]


def _held(directory: Path, acquired: Event, release: Event) -> None:
    with sole_writer(directory):
        acquired.set()
        release.wait(30)


def test_a_second_writer_is_refused_until_the_first_ends_however_it_does(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    acquired, release = spawn.Event(), spawn.Event()
    first = spawn.Process(target=_held, args=(tmp_path, acquired, release))
    first.start()
    assert acquired.wait(30)
    with pytest.raises(UserError, match="another glray process is writing"), sole_writer(tmp_path):
        pass
    first.kill()
    first.join()
    with sole_writer(tmp_path):
        pass


def test_a_writer_that_waits_says_so_once_and_then_writes(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    acquired, release = spawn.Event(), spawn.Event()
    first = spawn.Process(target=_held, args=(tmp_path, acquired, release))
    first.start()
    assert acquired.wait(30)
    said = []

    def say_waiting() -> None:
        said.append("waiting")
        release.set()

    with sole_writer(tmp_path, say_waiting=say_waiting):
        first.join(30)
        assert first.exitcode == 0
    assert said == ["waiting"]
