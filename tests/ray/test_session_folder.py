"""Where a cluster that is started here keeps its sockets, and what is said where it cannot."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from glray.errors import UserError
from glray.ray import session_folder as module
from glray.ray.session_folder import LOG_BYTES, MAX_BYTES, SOCKET, session_folder

STORE_BYTES = 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for ``/tmp``, with a path short enough, and what is said."""
    monkeypatch.chdir(tmp_path_factory.mktemp("t"))
    monkeypatch.setattr(module, "SYSTEM", Path("tmp").absolute())
    monkeypatch.setattr(module, "MAX_BYTES", len(os.fsencode(Path("tmp/ray-1234567").absolute())))
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    return module.SYSTEM


def chosen(said: list[str] | None = None) -> Path:
    return session_folder(STORE_BYTES, (said if said is not None else []).append)


def test_a_folder_of_the_longest_path_has_room_for_a_socket_and_one_more_byte_has_not() -> None:
    assert MAX_BYTES + len(f"/{SOCKET}") in (107, 103)  # Linux, macOS


def test_rays_own_choice_is_taken_without_a_word(
    short: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    assert chosen(said) == short / "ray"
    monkeypatch.setenv("TMPDIR", str(short / "job"))
    assert chosen(said) == short / "job" / "ray"
    monkeypatch.setenv("RAY_TMPDIR", str(short / "mine"))
    assert chosen(said) == short / "mine" / "ray"
    assert said == []


def test_a_long_tmpdir_is_left_for_a_folder_of_this_user(
    short: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 20)))
    said: list[str] = []
    own = short / f"ray-{os.getuid()}"
    assert chosen(said) == own
    (line,) = said
    assert line.startswith(f"Ray keeps its sockets and logs in {own}: {tmp_path}")
    assert f"leave room for {module.MAX_BYTES}" in line
    assert list(tmp_path.iterdir()) == []


def test_another_users_folder_is_left_alone(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / "ray").mkdir(parents=True)
    owner = (short / "ray").stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    other = short / f"ray-{owner + 1}"
    with pytest.raises(UserError, match=rf"/ray belongs to another user \({owner}\).*RAY_TMPDIR"):
        chosen()  # as here all that is made is the owner's
    assert list((short / "ray").iterdir()) == []
    assert other.exists()


def test_what_cannot_be_written_is_said_with_both_folders(short: Path) -> None:
    short.write_text("no folder")
    with pytest.raises(UserError, match=r"ray cannot be written \(Not a d.* and .*ray-\d+ cannot"):
        chosen()


def test_a_folder_that_is_asked_for_is_taken_or_refused(
    short: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    with pytest.raises(UserError, match=r"^RAY_TMPDIR: .* bytes long, .*set RAY_TMPDIR to"):
        chosen()


def test_room_is_needed_for_the_object_store_where_shared_memory_is_small(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"shm": 64 * 2**20, "tmp": LOG_BYTES + STORE_BYTES}
    monkeypatch.setattr(module, "SHARED_MEMORY", short)
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda path: Usage(0, 0, free["shm" if path == module.SHARED_MEMORY else "tmp"]),
    )
    assert chosen() == short / "ray"
    free["tmp"] -= 1
    with pytest.raises(UserError, match=r"has 1179 MB free, Ray needs 1179"):
        chosen()
    free["shm"] = STORE_BYTES
    assert chosen() == short / "ray"
