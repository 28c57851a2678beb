import json
import sysconfig
from pathlib import Path

import pytest

from glray.data.read.sources import list_source
from glray.errors import UserError
from glray.spec.corpus import ArrowCorpus, JsonlCorpus, SourceCorpus, StdlibCorpus, TextCorpus


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


def test_a_dataset_with_splits_asks_for_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "books" / "train", "data-00000-of-00001.arrow")
    (tmp_path / "books" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"books holds the splits train, test; give one, .*/train$"):
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


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("nowhere://bucket/a.txt", "nowhere://bucket/a.txt cannot be reached: .*nowhere"),
        ("s3://bucket/a.txt?colour=red", "unknown S3 option colour"),
        ("s3://key:secret@bucket/a.txt", "a s3:// URI holds a credential"),
        ("s3://bucket/a.txt?access_key=A&secret_key=B", "a s3:// URI holds a credential"),
        ("abfs://c@a.net/x.txt?sig=abc", "a abfs:// URI holds a credential"),
    ],
)
def test_a_uri_that_cannot_be_is_one_line(uri: str, problem: str) -> None:
    with pytest.raises(UserError, match=rf"^corpus\.paths: .*{problem}") as caught:
        list_source(TextCorpus(paths=(uri,)))
    assert "secret@" not in str(caught.value)
    assert "\n" not in str(caught.value)
