"""The cache of a node, by several processes."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from glray.errors import UserError
from glray.files.cache import NodeCache


def names(cache: NodeCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.is_file())


def age(cache: NodeCache, *oldest_first: str) -> None:
    for number, name in enumerate(oldest_first):
        os.utime(cache.folder / name, (number, number))


def test_what_is_there_is_not_fetched(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 2**20)
    assert cache.mapped("a", lambda: b"first").tobytes() == b"first"
    assert cache.mapped("a", lambda: b"second").tobytes() == b"first"
    cache.discard("a")
    assert cache.mapped("a", lambda: b"second").tobytes() == b"second"


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 64)
    for name in "abc":
        cache.mapped(name, lambda: bytes(20))
    age(cache, "a", "b", "c")
    cache.mapped("a", lambda: b"it is there")
    (cache.folder / ".half-written").write_bytes(bytes(20))
    age(cache, "b", ".half-written", "c")
    mapped = cache.mapped("c", lambda: b"it is there")
    age(cache, "b", ".half-written", "c")
    cache.mapped("d", lambda: bytes(20))  # of 100 bytes 56 may stay, so a seventh may be added
    assert names(cache) == ["a", "d"]
    assert mapped.tobytes() == bytes(20)  # for whoever reads it


def test_a_file_larger_than_the_cache_is_read(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 64)
    assert len(cache.mapped("a", lambda: bytes(100))) == 100


def test_of_several_that_want_the_same_one_fetches_it(tmp_path: Path) -> None:
    fetched: list[str] = []

    def read(reader: int) -> int:
        cache = NodeCache(tmp_path / "cache", 2**20)

        def fetch(name: str) -> bytes:
            fetched.append(name)
            time.sleep(0.01)
            return name.encode()

        found = [cache.mapped(name, partial(fetch, name)) for name in map(str, range(9))]
        return sum(int(content.tobytes()) for content in found)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [36] * 4
    assert sorted(fetched) == list(map(str, range(9)))


def fetch_forever(folder: Path) -> None:
    def fetch() -> bytes:
        (folder / "locks" / "fetching").touch()
        time.sleep(60)
        return b""

    NodeCache(folder, 2**20).mapped("a", fetch)


def test_a_killed_process_is_in_nobodys_way(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 2**20)
    process = multiprocessing.get_context("fork").Process(
        target=fetch_forever, args=(cache.folder,)
    )
    process.start()
    while not (cache.folder / "locks" / "fetching").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert cache.mapped("a", lambda: b"again").tobytes() == b"again"


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match=r"/cache: belongs to another user, .* set TMPDIR"):
        NodeCache(tmp_path / "cache", 2**20)
