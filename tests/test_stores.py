"""Files in an object store: the same as here, where a store allows it."""

import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import boto3
import pyarrow as pa
import pytest

from glray.errors import UserError
from glray.files import (
    AnyPath,
    LineLog,
    NewLines,
    Outbox,
    StorePath,
    add_line,
    as_path,
    commits,
    copy_tree,
    files_below,
    leases,
    local_copy,
    logs,
    new_directory,
    paths,
    read_log,
    read_range,
    remove,
    remove_tree,
    sha256_of,
    sole_writer,
    versions_of_leases,
    write_chunks,
    write_log,
    write_new,
    write_text,
)
from glray.files.commits import committed, write_bytes
from glray.spec import ComputeSpec
from glray.train.group import WorkerGroup

from .stores import BUCKET, Headers, StoreServer


@pytest.fixture(params=["here", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """An empty folder: what is asserted of it holds in both kinds of place."""
    if request.param == "here":
        return tmp_path
    bucket: StorePath = request.getfixturevalue("bucket")
    return bucket / "runs"


def is_put(request: str, headers: Headers) -> bool:
    return request.startswith("PUT")


def names(found: object) -> list[str]:
    return sorted(path.name for path in found)  # type: ignore[attr-defined]


def test_files_are_looked_for_listed_and_read_alike(place: AnyPath) -> None:
    for name in ("run-0/run.json", "run-0/step-1.json", "run-0/step-12.json", "run-1/run.json"):
        write_text(place / name, f"“{name}”")
    assert (place / "run-0").is_dir()
    assert not (place / "run-0").is_file()
    assert (place / "run-0").exists()
    assert (place / "run-0" / "run.json").is_file()
    assert not (place / "run-0" / "run").exists()
    assert not (place / "run").exists()
    assert names(place.iterdir()) == ["run-0", "run-1"]
    assert names((place / "run-0").glob("step-*.json")) == ["step-1.json", "step-12.json"]
    assert sorted(f"{p.parent.name}/{p.name}" for p in place.glob("*/run.json")) == [
        "run-0/run.json",
        "run-1/run.json",
    ]
    assert names(place.rglob("step*")) == ["step-1.json", "step-12.json"]
    assert (place / "run-0/step-1.json").read_text(encoding="utf-8") == "“run-0/step-1.json”"
    with (place / "run-1/run.json").open("rb") as file:
        assert file.read() == "“run-1/run.json”".encode()
    assert (place / "run-1/run.json").stat().st_size == len("“run-1/run.json”".encode())
    assert read_range(place / "run-1/run.json", 3, 5) == b"run-1"
    remove(place / "run-1/run.json")
    remove(place / "run-1/run.json")
    assert not (place / "run-1/run.json").exists()
    with pytest.raises(FileNotFoundError) as caught:
        (place / "run-1/run.json").read_bytes()
    assert caught.value.filename == str(place / "run-1/run.json")


def test_a_file_that_fails_half_way_is_not_there(place: AnyPath) -> None:
    def fail() -> None:
        with committed(place / "a") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (place / "a").exists()


def test_arrow_writes_and_reads_a_file(place: AnyPath) -> None:
    table = pa.table({"tokens": list(range(1000))})
    with committed(place / "a.arrow") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert pa.ipc.open_file((place / "a.arrow").read_bytes()).read_all() == table


def test_one_of_two_makes_a_new_file(place: AnyPath) -> None:
    assert write_new(place / "a", b"first")
    assert not write_new(place / "a", b"second")
    assert (place / "a").read_bytes() == b"first"
    assert files_below(place) == ["a"]


def test_a_copy_stays_as_it_is_when_its_source_grows(place: AnyPath) -> None:
    write_text(place / "a/events", "first ")
    copy_tree(place / "a", place / "copy")
    if isinstance(place, Path):
        with (place / "a/events").open("a") as file:
            file.write("second")
    else:
        write_text(place / "a/events", "first second")
    assert (place / "a/events").read_text() == "first second"
    assert (place / "copy/events").read_text() == "first "


def test_large_files_and_trees_are_copied_and_removed(
    place: AnyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(12 * 2**20 + 1)  # in parts of 5 MiB, read in 10 requests
    monkeypatch.setattr(commits, "REQUEST_BYTES", 5 * 2**20)
    write_bytes(place / "a/large", content)
    write_text(place / "a/b/small", "small")
    copy_tree(place / "a", place / "copy")
    assert files_below(place / "copy") == ["b/small", "large"]
    assert (place / "copy/large").read_bytes() == content
    assert sha256_of(place / "copy/large") == sha256_of(place / "a/large")
    with local_copy(place / "copy") as copy:
        assert isinstance(copy, Path)
        assert (copy / "large").read_bytes() == content
    monkeypatch.setattr(commits, "MOST_COPIED_BYTES", 0)  # by way of this machine
    copy_tree(place / "a", place / "again")
    assert (place / "again/large").read_bytes() == content
    remove_tree(place / "a")
    remove_tree(place / "a")
    assert files_below(place / "a") == []
    assert len(files_below(place)) == 4


def test_an_upload_has_no_more_parts_than_a_store_takes(
    bucket: StorePath, server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "REQUEST_BYTES", 5 * 2**20)
    monkeypatch.setattr(commits, "MOST_PARTS", 2)
    content = os.urandom(12 * 2**20)  # three parts of 5 MiB, two of 6
    write_chunks(bucket / "a", iter([memoryview(content)]), len(content))
    assert server.requests.count(f"PUT /{BUCKET}/a") == 2
    assert (bucket / "a").read_bytes() == content


def test_a_folder_is_filled_here_and_appears(place: AnyPath) -> None:
    write_text(place / "model/old", "")
    with new_directory(place / "model") as folder:
        (folder / "deep").mkdir()
        (folder / "deep/new").write_text("new")
        assert not (place / "model/deep/new").exists()
    assert files_below(place / "model") == ["deep/new"]


def test_names_are_as_paths_have_them() -> None:
    path = as_path("s3://storage/runs/quick start/")
    assert str(path) == "s3://storage/runs/quick start"
    assert str(path / "run.json") == "s3://storage/runs/quick start/run.json"
    assert (path.name, path.parent.name, str(path.parents[-1])) == (
        "quick start",
        "runs",
        "s3://storage/",
    )
    assert pickle.loads(pickle.dumps(path)) == path
    assert as_path("runs") == Path("runs")


@pytest.mark.parametrize("url", ["hdfs://host/runs", "s3:///runs", "http://host/a", "s3://a/b?c=d"])
def test_another_url_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match=r"s3://, gs://, az://") as caught:
        as_path(url)
    assert str(caught.value).startswith(url)


def test_a_url_with_a_credential_is_one_line_without_it() -> None:
    with pytest.raises(UserError, match="a s3:// URL holds a credential") as caught:
        as_path("s3://key:hidden@bucket/runs")
    assert "hidden" not in str(caught.value)


def test_a_storage_has_one_name() -> None:
    assert ComputeSpec(storage="s3://bucket/runs//").storage == "s3://bucket/runs"
    assert ComputeSpec(storage="/runs/").storage == "/runs"
    assert ComputeSpec(storage="/").storage == "/"


# ---- logs


def test_a_log_grows_and_is_cut_back(place: AnyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PART_BYTES", 20)
    lines = [f"line {n:02d}\n".encode() for n in range(10)]
    log = LineLog(place / "metrics.jsonl")
    log.append(lines[:2])
    log.append(lines[2:7])
    log.flush()
    assert read_log(place / "metrics.jsonl") == b"".join(lines[:7])
    log.append(lines[7:])
    log.flush()
    log.close()
    assert read_log(place / "metrics.jsonl") == b"".join(lines)
    again = LineLog(place / "metrics.jsonl")
    again.keep(lines[:5])
    again.append(lines[9:])
    again.flush()
    again.close()
    assert read_log(place / "metrics.jsonl") == b"".join([*lines[:5], lines[9]])
    write_log(place / "metrics.jsonl", lines[8:])
    assert read_log(place / "metrics.jsonl") == b"".join(lines[8:])
    assert read_log(place / "none.jsonl") == b""


def test_a_log_may_be_copied_from_one_place_to_the_other(bucket: StorePath, tmp_path: Path) -> None:
    lines = [b"1\n", b"2\n", b"3\n"]
    write_log(bucket / "a.jsonl", lines)
    copy_tree(bucket / "a.jsonl", tmp_path / "a.jsonl")
    assert read_log(tmp_path / "a.jsonl") == b"1\n2\n3\n"
    log = LineLog(tmp_path / "a.jsonl")
    log.keep(lines[:2])
    log.append([b"4\n"])
    assert (tmp_path / "a.jsonl").read_bytes() == b"1\n2\n4\n"
    copy_tree(bucket / "a.jsonl", tmp_path / ".c.log.parts")  # killed while it became a file
    add_line(tmp_path / "c.log", "4")
    assert (tmp_path / "c.log").read_bytes() == b"1\n2\n3\n4\n"
    assert files_below(tmp_path) == ["a.jsonl", "c.log"]
    write_bytes(bucket / "b.jsonl", b"1\n2\n3\n")
    assert read_log(bucket / "b.jsonl") == b"1\n2\n3\n"
    log = LineLog(bucket / "b.jsonl")
    log.keep(lines[:2])
    log.flush()
    log.close()
    assert read_log(bucket / "b.jsonl") == b"1\n2\n"


def test_lines_of_several_writers_are_seen_once(place: AnyPath) -> None:
    add_line(place / "events.log", "before")
    new = NewLines(place / "events.log")
    add_line(place / "events.log", "first")
    add_line(place / "events.log", "second")
    assert new.read() == ["first", "second"]
    assert new.read() == []
    add_line(place / "events.log", "third")
    assert new.read() == ["third"]
    assert read_log(place / "events.log").decode().split() == ["before", "first", "second", "third"]


def test_what_is_put_often_is_written_seldom(bucket: StorePath, server: StoreServer) -> None:
    outbox = Outbox(pace_seconds=60)
    for number in range(100):
        outbox.put(bucket / "progress.json", str(number).encode())
        time.sleep(0.001)
    outbox.put(bucket / "other", b"other")
    outbox.flush()
    outbox.close()
    assert (bucket / "progress.json").read_bytes() == b"99"
    assert (bucket / "other").read_bytes() == b"other"
    assert server.requests.count(f"PUT /{BUCKET}/progress.json") == 2


def test_who_puts_is_told_what_went_wrong_and_does_not_wait(
    bucket: StorePath, server: StoreServer
) -> None:
    outbox = Outbox()
    with server.refusing("403 Forbidden", is_put):
        outbox.put(bucket / "a", b"1")
        with pytest.raises(PermissionError, match=f"s3://{BUCKET}/a"):
            outbox.flush()
    outbox.put(bucket / "a", b"2")
    outbox.flush()
    outbox.close()
    assert (bucket / "a").read_bytes() == b"2"


# ---- errors


def test_a_store_that_is_busy_for_a_while_is_waited_for(
    bucket: StorePath, server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "QUICK_SECONDS", 0.2)
    with server.refusing("503 Slow Down"):
        over = threading.Timer(1, server.recover)
        over.start()
        write_text(bucket / "a", "written")
        assert (bucket / "a").read_text() == "written"


@pytest.mark.parametrize(
    ("status", "said"),
    [("403 Forbidden", "allows no such request"), ("503 Slow Down", "answers 503 Service")],
)
def test_what_a_store_refuses_names_the_url(
    bucket: StorePath,
    server: StoreServer,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    said: str,
) -> None:
    monkeypatch.setattr(paths, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(paths, "QUICK_SECONDS", 0.1)
    with server.refusing(status):
        for look in (
            (bucket / "a").exists,
            (bucket / "a").read_bytes,
            lambda: remove(bucket / "a"),
        ):
            with pytest.raises(OSError, match=said) as caught:
                look()
            assert caught.value.filename == f"s3://{BUCKET}/a"
            assert "\n" not in str(caught.value)
        with pytest.raises(OSError, match=said):
            write_text(bucket / "a", "")
    assert files_below(bucket) == []


def test_a_bucket_that_is_not_there_is_not_an_empty_folder(bucket: StorePath) -> None:
    absent = StorePath("s3://absent/runs")
    with pytest.raises(FileNotFoundError, match=r"its bucket does not exist.*s3://absent/runs"):
        absent.exists()
    with pytest.raises(FileNotFoundError, match=r"its bucket does not exist.*s3://absent/runs"):
        list(absent.iterdir())
    with pytest.raises(FileNotFoundError, match=r"its bucket does not exist.*s3://absent/runs/a"):
        write_text(absent / "a", "")


def test_a_store_that_is_not_there_is_one_line(
    bucket: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(TimeoutError, match=r"does not answer at http://127.0.0.1:1") as caught:
        bucket.exists()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example")
    with pytest.raises(UserError, match=r"http://store.example: is not encrypted"):
        bucket.exists()


def test_the_marker_of_a_folder_is_no_file_below_it(bucket: StorePath, tmp_path: Path) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key="run/")  # as pyarrow makes a folder
    write_text(bucket / "run/a", "")
    assert files_below(bucket / "run") == ["a"]
    copy_tree(bucket / "run", tmp_path / "run")


def test_a_connection_that_breaks_is_no_failure(bucket: StorePath, server: StoreServer) -> None:
    def hold() -> None:
        with sole_writer(bucket / "run"):
            pass

    for work in (
        lambda: write_new(bucket / "run/new", b"new"),
        lambda: write_text(bucket / "run/text", "text"),
        lambda: remove(bucket / "run/new"),
        lambda: remove_tree(bucket / "run"),
        hold,
    ):
        with server.breaking():
            work()
    assert files_below(bucket) == ["run/.lock"]


def test_http_is_allowed_in_a_network_that_is_trusted(
    server: StoreServer, bucket: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An address that is not known as this machine's own.
    elsewhere = server.listen(socket.create_server(("127.0.0.2", 0)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", elsewhere)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert not bucket.exists()


# ---- leases


def _held(directory: StorePath, seconds: float, acquired: Event, release: Event) -> None:
    with sole_writer(directory, lease_seconds=seconds):
        acquired.set()
        release.wait(30)


def test_a_second_writer_is_refused_while_the_first_lives(bucket: StorePath) -> None:
    with sole_writer(bucket / "run", lease_seconds=6):
        write_text(bucket / "run/a", "1")
        start = time.monotonic()
        with (
            pytest.raises(UserError, match="another glray process is writing"),
            sole_writer(bucket / "run", lease_seconds=6),
        ):
            pass
        assert time.monotonic() - start < 10
        with sole_writer(bucket / "run", lock=".other"):  # another lock is another
            pass
    with sole_writer(bucket / "run"):  # at once
        write_text(bucket / "run/a", "2")


def test_a_lease_of_a_killed_process_is_taken_over(bucket: StorePath) -> None:
    spawn = multiprocessing.get_context("spawn")
    acquired, release = spawn.Event(), spawn.Event()
    first = spawn.Process(target=_held, args=(bucket / "run", 3.0, acquired, release))
    first.start()
    assert acquired.wait(30)
    first.kill()
    first.join()
    start, said = time.monotonic(), []
    with sole_writer(bucket / "run", say_waiting=lambda: said.append("waiting")):
        assert time.monotonic() - start >= 3
        write_text(bucket / "run/a", "")
    assert said == ["waiting"]


def test_the_time_of_a_lease_counts_from_when_it_was_first_seen(bucket: StorePath) -> None:
    dead = leases.Lease(bucket / "run", ".lock", seconds=60)
    assert dead.take(None)
    dead._over.set()
    dead._thread.join()
    leases._held.remove(dead)

    seen = versions_of_leases(bucket)
    assert seen.keys() == {"run"}
    group = WorkerGroup()
    group.saw(seen)
    first = group.seconds_seen("run", seen["run"])
    group.saw(seen)
    assert 0 < first < group.seconds_seen("run", seen["run"])
    assert group.seconds_seen("run", "another version") == 0

    start = time.monotonic()
    with sole_writer(bucket / "run", seconds_seen={seen["run"]: 60.0}.__getitem__):
        assert time.monotonic() - start < 30
    assert versions_of_leases(bucket) != seen


def test_the_lock_of_a_folder_that_was_copied_to_a_store_holds_nothing(
    bucket: StorePath, tmp_path: Path
) -> None:
    with sole_writer(tmp_path / "run"):
        copy_tree(tmp_path / "run", bucket / "run")
    assert (bucket / "run/.lock").read_bytes() == b""
    with sole_writer(bucket / "run"):
        write_text(bucket / "run/a", "")


@pytest.mark.parametrize("what", ["remove", "remove_tree", "write_new", "copy_tree"])
def test_a_change_that_waits_for_the_store_does_not_land_after_a_takeover(
    bucket: StorePath, server: StoreServer, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(paths, "QUICK_SECONDS", 0.2)
    write_text(bucket / "run/a", "first")
    write_text(bucket / "other/b", "other")
    changes: dict[str, Callable[[], object]] = {
        "remove": lambda: remove(bucket / "run/a"),
        "remove_tree": lambda: remove_tree(bucket / "run"),
        "write_new": lambda: write_new(bucket / "run/b", b"late"),
        "copy_tree": lambda: copy_tree(bucket / "other", bucket / "run"),
    }
    first = leases.Lease(bucket / "run", ".lock", seconds=3)
    assert first.take(None)
    first._over.set()  # it is not renewed any more
    first._thread.join()

    def take_over() -> None:
        first._taken_by = "the second"
        time.sleep(1)  # what was asked before has ended
        server.recover()

    methods = ("PUT", "POST", "DELETE")
    server.refuse("503 Slow Down", lambda request, headers: request.startswith(methods))
    over = threading.Timer(0.7, take_over)
    over.start()
    with pytest.raises(UserError, match="the second has taken over"):
        changes[what]()
    over.join()
    leases._held.remove(first)
    assert (bucket / "run/a").read_text() == "first"
    assert not (bucket / "run/b").exists()


def test_a_writer_that_was_taken_over_writes_nothing_more(bucket: StorePath) -> None:
    first = leases.Lease(bucket / "run", ".lock", seconds=3)
    assert first.take(None)
    write_text(bucket / "run/a", "first")
    second = leases.Lease(bucket / "run", ".lock", seconds=60)
    while not second.take(first.look()):  # sooner than anybody would
        pass
    leases._held.remove(second)  # as in another process
    first._thread.join(30)  # it has seen that
    with pytest.raises(UserError, match=r"has taken over.*writes nothing more"):
        write_text(bucket / "run/a", "first again")
    with pytest.raises(UserError, match="has taken over"):
        remove_tree(bucket / "run")
    first.release()
    assert (bucket / "run/a").read_text() == "first"
    leases._held.append(second)
    second.release()


def test_a_writer_whose_store_was_away_goes_on_once_it_knows(
    bucket: StorePath, server: StoreServer
) -> None:
    with sole_writer(bucket / "run", lease_seconds=3):
        with server.refusing("503 Slow Down"):
            time.sleep(2)  # too long to be sure
        write_text(bucket / "run/a", "still its own")
    assert (bucket / "run/a").read_text() == "still its own"
