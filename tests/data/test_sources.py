import json
import os
import sysconfig
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from glray.data.read.sources import list_source, search_source
from glray.errors import UserError
from glray.spec.corpus import (
    ArrowCorpus,
    JsonlCorpus,
    ParquetCorpus,
    SourceCorpus,
    StdlibCorpus,
    TextCorpus,
)


def listed(corpus: SourceCorpus) -> list[Path]:
    return [Path(file.uri) for file in list_source(corpus)]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_the_stdlib_is_its_modules_without_tests_and_installed_packages() -> None:
    files = listed(StdlibCorpus())
    names = {path.name for path in files}
    assert {"argparse.py", "topics.py"} <= names
    assert {path.suffix for path in files} == {".py"}
    root = Path(sysconfig.get_path("stdlib")).resolve()
    parts = {part for path in files for part in path.relative_to(root).parts}
    assert parts.isdisjoint({"site-packages", "test", "tests", "idle_test", "__pycache__"})


def test_files_folders_and_globs_give_each_file_once_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "deep/a.txt", "c.txt", "notes.md")
    declared = (
        f"{tmp_path}/c.txt",
        str(tmp_path),
        f"{tmp_path}/*.md",
        f"{tmp_path}/**/a.txt",
        f"file://{tmp_path}/b.txt",
    )
    files = listed(TextCorpus(paths=declared))
    assert files == [tmp_path / name for name in ("b.txt", "c.txt", "deep/a.txt", "notes.md")]


def test_a_folder_gives_the_files_of_its_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.txt.gz", "c.txt.zst", "d.jsonl", "e.jsonl.gz", "f.jsonl.zst", "g")
    texts, lines = (
        [path.name for path in listed(kind(paths=(str(tmp_path),)))]
        for kind in (TextCorpus, JsonlCorpus)
    )
    assert texts == ["a.txt", "b.txt.gz", "c.txt.zst"]
    assert lines == ["d.jsonl", "e.jsonl.gz", "f.jsonl.zst"]


def test_a_file_whose_name_looks_like_a_glob_is_taken_as_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].txt")
    assert listed(TextCorpus(paths=(f"{tmp_path}/a[1].txt",))) == [tmp_path / "a[1].txt"]


@pytest.mark.parametrize("declared", ["absent.txt", "*.txt", "empty"])
def test_a_path_without_files_is_refused(tmp_path: Path, declared: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"corpus\.paths: .*" + declared.replace("*", r"\*")):
        list_source(TextCorpus(paths=(str(tmp_path / declared),)))


@pytest.mark.parametrize("declared", ["~nosuchuser/a.txt", "\udcff"])
def test_a_path_that_cannot_be_is_one_line(tmp_path: Path, declared: str) -> None:
    if not declared.startswith("~"):
        (tmp_path / declared).touch()
        declared = str(tmp_path / "*")
    with pytest.raises(UserError, match=r"^corpus\.paths: .*(home directory|not UTF-8)"):
        list_source(TextCorpus(paths=(declared,)))


def test_json_is_read_as_lines_where_there_is_no_jsonl_that_it_may_describe(tmp_path: Path) -> None:
    touch(tmp_path, "c4/a.json.gz", "c4/b.json", "c4/c.json.zst")
    touch(tmp_path, "own/a.jsonl", "own/metadata.json")
    names = [
        [path.name for path in listed(JsonlCorpus(paths=(str(tmp_path / folder),)))]
        for folder in ("c4", "own")
    ]
    assert names == [["a.json.gz", "b.json", "c.json.zst"], ["a.jsonl"]]
    assert listed(JsonlCorpus(paths=(f"{tmp_path}/own/metadata.json",)))


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_a_glob_stands_for_folders_too(tmp_path: Path, scheme: str) -> None:
    touch(tmp_path, "2026-01/a.jsonl", "2026-01/deep/b.jsonl", "2026-02.jsonl", "2025-12/c.jsonl")
    touch(tmp_path, "2026-03/notes.md", "2026-01/.git/d.jsonl")

    def found(pattern: str) -> list[str]:
        listing = search_source(JsonlCorpus(paths=(f"{scheme}{tmp_path}/{pattern}",)))
        return [file.uri.removeprefix(f"{scheme}{tmp_path}/") for file in listing.files]

    inside = ["2026-01/a.jsonl", "2026-01/deep/b.jsonl"]
    assert found("2026-*/") == found("2026-*") == [*inside, "2026-02.jsonl"]
    assert found("2026-0[13]") == inside
    assert found("2026-*/*.jsonl") == inside[:1]
    assert found("**/b.jsonl") == inside[1:]


# ---- what is no content


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_glrays_own_storage_is_no_text(tmp_path: Path, scheme: str) -> None:
    touch(tmp_path, "a.jsonl", "runs/mine/grow-seed0/metrics.jsonl", "runs-of-mine/b.jsonl")
    own = f"{scheme}{tmp_path}/runs"
    for declared in (f"{scheme}{tmp_path}", f"{scheme}{tmp_path}/*"):
        found = search_source(JsonlCorpus(paths=(declared,)), storage=own)
        assert [Path(file.uri).name for file in found.files] == ["a.jsonl", "b.jsonl"]
        assert len(found.left_out) == 1
        assert "glray's own storage" in found.left_out[0]
    for declared in (own, f"{own}/*/*/*.jsonl"):  # what is named is taken
        assert len(list_source(JsonlCorpus(paths=(declared,)), storage=own)) == 1


HIDDEN = (
    *(".git/config.txt", "._a.txt", ".ipynb_checkpoints/a.txt", "deep/.cache/a.txt", ".hidden.txt"),
    *("__pycache__/a.txt", "__MACOSX/a.txt"),
)


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_hidden_files_are_left_out_of_a_folder_and_counted(tmp_path: Path, scheme: str) -> None:
    touch(tmp_path, "a.txt", "deep/b.txt", "notes.md", *HIDDEN)
    found = search_source(TextCorpus(paths=(f"{scheme}{tmp_path}",)))
    assert [file.uri.removeprefix(f"{scheme}{tmp_path}/") for file in found.files] == [
        "a.txt",
        "deep/b.txt",
    ]
    assert found.left_out == ("7 hidden", "1 of other kinds")


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_hidden_files_that_are_named_are_taken(tmp_path: Path, scheme: str) -> None:
    touch(tmp_path, "a.txt", *HIDDEN)
    for name in (*HIDDEN, ".ipynb_checkpoints", "__pycache__", ".ip*/*.txt"):
        assert len(list_source(TextCorpus(paths=(f"{scheme}{tmp_path}/{name}",)))) == 1
    assert len(list_source(TextCorpus(paths=(f"{scheme}{tmp_path}/*.txt",)))) == 1


def test_linked_folders_are_followed_and_each_file_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/b.txt", "corpus/a.txt", "corpus/z/c.txt")
    corpus = tmp_path / "corpus"
    (corpus / "linked").symlink_to(tmp_path / "elsewhere")
    (corpus / "z" / "cycle").symlink_to(corpus)
    (corpus / "again").symlink_to(corpus / "z")
    (corpus / "0.txt").symlink_to(corpus / "a.txt")
    (corpus / "broken.txt").symlink_to(tmp_path / "absent.txt")
    (corpus / "itself.txt").symlink_to(corpus / "itself.txt")
    found = search_source(TextCorpus(paths=(str(corpus), f"{corpus}/**/*.txt")))
    assert [Path(file.uri) for file in found.files] == [
        corpus / name for name in ("a.txt", "linked/b.txt", "z/c.txt")
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "lost+found/b.txt")
    (tmp_path / "lost+found").chmod(0)
    found = search_source(TextCorpus(paths=(str(tmp_path),)))
    (tmp_path / "lost+found").chmod(0o700)
    assert found.left_out == ("1 folders that may not be read",)


# ---- compressed in a way that is not read


@pytest.mark.parametrize("kind", [TextCorpus, JsonlCorpus, ParquetCorpus, ArrowCorpus])
@pytest.mark.parametrize("end", ["bz2", "xz", "lz4", "br", "zip", "7z", "tar"])
@pytest.mark.parametrize("declared", ["", "/*", "/b.{suffix}.{end}"])
def test_an_unknown_compression_is_refused(
    tmp_path: Path,
    kind: type[TextCorpus | JsonlCorpus | ParquetCorpus | ArrowCorpus],
    end: str,
    declared: str,
) -> None:
    suffix = {TextCorpus: "txt", JsonlCorpus: "jsonl", ParquetCorpus: "parquet"}.get(kind, "arrow")
    touch(tmp_path, f"a.{suffix}", f"b.{suffix}.{end}")
    path = f"{tmp_path}{declared.format(suffix=suffix, end=end)}"
    with pytest.raises(UserError, match=rf"b\.{suffix}\.{end} is compressed as \.{end}, which is"):
        list_source(kind(paths=(path,)))


def test_tables_are_not_read_through_a_compression(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", "b.parquet.gz")
    with pytest.raises(UserError, match=r"b\.parquet\.gz is compressed as \.gz.*; decompress it$"):
        list_source(ParquetCorpus(paths=(str(tmp_path),)))


def test_an_archive_beside_the_texts_is_none_of_them(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "all.zip")
    assert listed(TextCorpus(paths=(str(tmp_path),))) == [tmp_path / "a.txt"]


# ---- splits


@pytest.mark.parametrize(
    ("names", "splits", "one"),
    [
        (
            [f"{split}-0000{n}-of-2.jsonl" for split in ("train", "validation") for n in (0, 1)],
            "train, validation",
            "/train*",
        ),
        (
            ["c4-train.00000-of-01024.json.gz", "c4-validation.00000-of-00008.json.gz"],
            "train, validation",
            "/c4-train.00000-of-01024.json.gz",
        ),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], "train, dev, test", "/train.jsonl"),
        (["valid/a.jsonl", "test/a.jsonl", "readme.jsonl"], "valid, test", "/valid"),
        (["train/00.jsonl.zst", "val.jsonl.zst", "test.jsonl.zst"], "train, val, test", "/train"),
        (["en/Train/a.jsonl", "en/Test/a.jsonl"], "Train, Test", "/en/Train"),
        (["x-train.jsonl", "x-valid.jsonl"], "train, valid", "/x-train.jsonl"),
    ],
)
@pytest.mark.parametrize("scheme", ["", "local://"])
def test_splits_are_never_taken_together(
    tmp_path: Path, scheme: str, names: list[str], splits: str, one: str
) -> None:
    touch(tmp_path, *names)
    folder = f"{scheme}{tmp_path}"
    with pytest.raises(UserError, match=rf" holds the splits {splits}, .*; give one, ") as caught:
        list_source(JsonlCorpus(paths=(folder,)))
    offered = str(caught.value).rpartition("give one, ")[2]
    assert offered == folder + one
    assert 0 < len(list_source(JsonlCorpus(paths=(offered,)))) < len(names)
    as_told = JsonlCorpus(paths=(f"{folder}/**/*.json*",))
    assert len(list_source(as_told)) == len(names)  # a glob is taken at its word


@pytest.mark.parametrize(
    "names",
    [
        ["train-0.jsonl", "train-1.jsonl"],
        ["train/a.jsonl", "training/b.jsonl"],
        ["trains.jsonl", "contest.jsonl", "a-test.jsonl", "a-train.jsonl"],  # not all are splits
        ["train/test/a.jsonl", "train/b.jsonl"],
    ],
)
def test_what_is_one_split_or_none_is_taken(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    assert len(listed(JsonlCorpus(paths=(str(tmp_path),)))) == len(names)


# ---- what `save_to_disk` of Hugging Face `datasets` leaves


def write_dataset(folder: Path, *names: str) -> None:
    touch(folder, *names)
    state = {"_data_files": [{"filename": name} for name in names], "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))


def test_a_saved_dataset_is_its_data_files_without_caches(tmp_path: Path) -> None:
    names = ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    write_dataset(tmp_path / "books", *names)
    touch(tmp_path, "books/cache-1f2e.arrow", "other.arrow")
    expected = [tmp_path / "books" / name for name in names]
    assert listed(ArrowCorpus(paths=(str(tmp_path / "books"),))) == expected
    assert listed(ArrowCorpus(paths=(str(tmp_path),))) == [*expected, tmp_path / "other.arrow"]


def test_records_of_other_programs_are_none_of_a_dataset(tmp_path: Path) -> None:
    touch(tmp_path, "a.arrow", "state.json", "dataset_dict.json")
    (tmp_path / "state.json").write_text('{"step": 3}')
    (tmp_path / "dataset_dict.json").write_text('{"splits": []}')
    assert listed(ArrowCorpus(paths=(str(tmp_path),))) == [tmp_path / "a.arrow"]


def test_a_dataset_with_splits_asks_for_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "books" / "train", "data-00000-of-00001.arrow")
    (tmp_path / "books" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"books holds the splits train, test, .* one, .*/train$"):
        list_source(ArrowCorpus(paths=(str(tmp_path / "books"),)))


# ---- URIs (see test_s3.py for a store)


def test_fsspec_opens_what_pyarrow_does_not(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "deep/a.txt", "c.md")
    files = list_source(TextCorpus(paths=(f"local://{tmp_path}",)))
    assert [file.uri for file in files] == [
        f"local://{tmp_path}/b.txt",
        f"local://{tmp_path}/deep/a.txt",
    ]
    assert [file.num_bytes for file in files] == [5, 10]


class Page(BaseHTTPRequestHandler):
    """A page that says, by its name, how large it is and which version it has."""

    version = "1"

    def do_GET(self) -> None:
        self.send_response(200)
        if "unsized" not in self.path:
            self.send_header("Content-Length", "5")
        if "unnamed" not in self.path:
            self.send_header("ETag", self.version)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"words")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server_has_to_say_how_large_a_file_is_and_when_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        corpus = TextCorpus(paths=(f"{address}/a.txt",))
        (before,) = list_source(corpus)
        assert (before.num_bytes, before.version) == (5, "1")
        monkeypatch.setattr(Page, "version", "2")
        (after,) = list_source(corpus)
        assert after != before
        for name in ("unsized.txt", "unnamed.txt"):
            with pytest.raises(UserError, match="its server does not say"):
                list_source(TextCorpus(paths=(f"{address}/{name}",)))
        server.shutdown()


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("nowhere://bucket/a.txt", "nowhere://bucket/a.txt cannot be reached: .*nowhere"),
        ("s3://bucket/a.txt?colour=red", "unknown S3 option colour"),
        ("s3://key:secret@bucket/a.txt", "a s3:// URL holds a credential"),
        ("s3://bucket/a.txt?access_key=A&secret_key=B", "a s3:// URL holds a credential"),
        ("abfs://c@a.net/x.txt?sig=abc", "a abfs:// URL holds a credential"),
    ],
)
def test_a_uri_that_cannot_be_is_one_line(uri: str, problem: str) -> None:
    with pytest.raises(UserError, match=rf"^corpus\.paths: .*{problem}") as caught:
        list_source(TextCorpus(paths=(uri,)))
    assert "secret@" not in str(caught.value)
    assert "\n" not in str(caught.value)
