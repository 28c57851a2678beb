import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glray.data.corpora import EMPTY, NOT_UTF8, Document, Skipped, list_files, read_documents
from glray.errors import UserError
from glray.spec.corpus import CorpusSpec, JsonlCorpus, ParquetCorpus, StdlibCorpus, TextCorpus


def read(corpus: CorpusSpec) -> list[Document | Skipped]:
    return [item for path in list_files(corpus) for item in read_documents(path, corpus)]


def test_the_stdlib_is_its_modules_without_tests_and_installed_packages() -> None:
    files = list_files(StdlibCorpus())
    names = {path.name for path in files}
    assert {"argparse.py", "topics.py"} <= names
    assert {path.suffix for path in files} == {".py"}
    root = Path(sysconfig.get_path("stdlib")).resolve()
    parts = {part for path in files for part in path.relative_to(root).parts}
    assert parts.isdisjoint({"site-packages", "test", "tests", "idle_test", "__pycache__"})
    assert files == sorted(files)


def test_a_stdlib_document_is_named_by_its_place_in_the_library() -> None:
    corpus = StdlibCorpus()
    path = next(path for path in list_files(corpus) if path.name == "decoder.py")
    (document,) = read_documents(path, corpus)
    assert isinstance(document, Document)
    assert document.name == "json/decoder.py"


def test_files_folders_and_globs_give_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "deep/a.txt", "c.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    declared = (f"{tmp_path}/c.txt", str(tmp_path), f"{tmp_path}/*.md", f"{tmp_path}/**/a.txt")
    files = list_files(TextCorpus(paths=declared))
    assert files == [tmp_path / name for name in ("b.txt", "c.txt", "deep/a.txt", "notes.md")]


def test_a_file_whose_name_looks_like_a_glob_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a[1].txt"
    path.write_text("a")
    assert list_files(TextCorpus(paths=(str(path),))) == [path]


@pytest.mark.parametrize("declared", ["absent.txt", "*.txt", "empty"])
def test_a_path_without_files_is_refused(tmp_path: Path, declared: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"corpus\.paths: .*" + declared.replace("*", r"\*")):
        list_files(TextCorpus(paths=(str(tmp_path / declared),)))


def test_text_is_read_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\ntwö\n".encode())
    assert read(TextCorpus(paths=(str(tmp_path),))) == [
        Document(str(tmp_path / "a.txt"), "one\r\ntwö\n")
    ]


def test_empty_and_not_utf8_texts_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    assert read(TextCorpus(paths=(str(tmp_path),))) == [
        Skipped(str(tmp_path / "a.txt"), EMPTY),
        Skipped(str(tmp_path / "b.txt"), NOT_UTF8),
    ]


def test_jsonl_documents_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "one"}', "", '{"text": ""}', '{"text": null}', r'{"text": "\ud800"}']
    path.write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n{"text": "two"}')
    assert read(JsonlCorpus(paths=(str(path),))) == [
        Document(f"{path}:1", "one"),
        Skipped(f"{path}:3", EMPTY),
        Skipped(f"{path}:4", EMPTY),
        Skipped(f"{path}:5", NOT_UTF8),
        Skipped(f"{path}:6", NOT_UTF8),
        Document(f"{path}:7", "two"),
    ]


@pytest.mark.parametrize("line", ['{"text": ', "[1]", '{"text": 3}', '{"body": "x"}'])
def test_a_wrong_jsonl_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one"}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=f"{path}:2: "):
        read(JsonlCorpus(paths=(str(path),)))


def test_parquet_documents_are_named_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "body": ["one", None, "two"]}), path)
    assert read(ParquetCorpus(paths=(str(path),), column="body")) == [
        Document(f"{path}:0", "one"),
        Skipped(f"{path}:1", EMPTY),
        Document(f"{path}:2", "two"),
    ]


def test_a_missing_parquet_column_is_named_beside_those_present(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "body": ["one"]}), path)
    with pytest.raises(UserError, match=f"{path}: no column 'text'.* 'id', 'body'"):
        read(ParquetCorpus(paths=(str(path),)))


def test_a_parquet_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1]}), path)
    with pytest.raises(UserError, match=f"{path}: column 'text' is int64"):
        read(ParquetCorpus(paths=(str(path),)))


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("text")
    with pytest.raises(UserError, match=f"{path}: not a Parquet file"):
        read(ParquetCorpus(paths=(str(path),)))
