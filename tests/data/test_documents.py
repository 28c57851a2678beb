import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glray.data.read import documents
from glray.data.read.documents import (
    EMPTY,
    NO_COLUMN,
    NOT_UTF8,
    Document,
    Skipped,
    check_column,
    read_part,
    split_file,
)
from glray.data.read.sources import list_source
from glray.errors import UserError
from glray.spec.corpus import (
    ArrowCorpus,
    JsonlCorpus,
    ParquetCorpus,
    SourceCorpus,
    StdlibCorpus,
    TextCorpus,
)


def read(corpus: SourceCorpus, part_bytes: int = 2**60) -> list[Document | Skipped]:
    return [
        item
        for file in list_source(corpus)
        for part in split_file(file, corpus, part_bytes)
        for item in read_part(part, corpus)
    ]


def num_parts(corpus: SourceCorpus, part_bytes: int) -> int:
    return sum(len(split_file(file, corpus, part_bytes)) for file in list_source(corpus))


# ---- texts


def test_a_stdlib_document_is_named_by_its_place_in_the_library() -> None:
    corpus = StdlibCorpus()
    file = next(file for file in list_source(corpus) if file.uri.endswith("json/decoder.py"))
    (document,) = read_part(split_file(file, corpus, 1)[0], corpus)
    assert isinstance(document, Document)
    assert document.name == "json/decoder.py"


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


def test_compressed_texts_are_decompressed(tmp_path: Path) -> None:
    two_members = gzip.compress(b"one ") + gzip.compress(b"two")
    (tmp_path / "a.txt.gz").write_bytes(two_members)
    (tmp_path / "b.txt.zst").write_bytes(pa.compress(b"three", "zstd", asbytes=True))
    found = read(TextCorpus(paths=(str(tmp_path),)))
    assert [item.content for item in found if isinstance(item, Document)] == ["one two", "three"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, name: str) -> None:
    text = np.random.default_rng(0).bytes(10_000)
    whole = gzip.compress(text) if name.endswith("gz") else pa.compress(text, "zstd", asbytes=True)
    for content in (whole[: len(whole) // 2], b"no such format"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^{tmp_path}/{name}: cannot be read: "):
            read(TextCorpus(paths=(str(tmp_path),)))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (gzip.compress(b"text"), "gzip"),
        (bz2.compress(b"text"), "bzip2"),
        (lzma.compress(b"text"), "xz"),
        (pa.compress(b"text", "zstd", asbytes=True), "zstd"),
    ],
    ids=["gzip", "bzip2", "xz", "zstd"],
)
@pytest.mark.parametrize("kind", [TextCorpus, JsonlCorpus])
def test_compressed_data_under_another_name_is_no_text(
    tmp_path: Path, kind: type[TextCorpus | JsonlCorpus], content: bytes, name: str
) -> None:
    (tmp_path / "part-0").write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/part-0: holds {name} data, not text"):
        read(kind(paths=(f"{tmp_path}/part-*",)))


# ---- texts with separators


def contents(corpus: SourceCorpus, part_bytes: int = 2**60) -> list[Any]:
    return [item.content for item in read(corpus, part_bytes) if isinstance(item, Document)]


@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_separator_lines_part_documents(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"{line}<|endoftext|>{line}".join(["one", "two\nlines", "", "four"]).encode())
    size = len(line)
    assert read(TextCorpus(paths=(str(path),))) == [
        Document(f"{path}@0", "one"),
        Document(f"{path}@{16 + 2 * size}", "two\nlines"),
        Skipped(f"{path}@{38 + 4 * size}", EMPTY),
        Document(f"{path}@{51 + 6 * size}", "four"),
    ]


def test_a_separator_at_the_end_is_followed_by_nothing(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"  # as TinyStories has them
    path.write_text("\nOnce\n\n<|endoftext|>\n\nOnce more\n<|endoftext|>\n\n")
    assert contents(TextCorpus(paths=(str(path),))) == ["\nOnce\n", "\nOnce more"]


def test_only_a_whole_line_is_a_separator(tmp_path: Path) -> None:
    text = "a <|endoftext|>\n<|endoftext|> b\n <|endoftext|>\nx<|endoftext|>"
    (tmp_path / "a.txt").write_text(text)
    assert read(TextCorpus(paths=(str(tmp_path),))) == [Document(f"{tmp_path}/a.txt", text)]


@given(
    texts=st.lists(st.text("aä \n", max_size=12).map(lambda text: f"x{text}x"), max_size=8),
    line=st.sampled_from(["\n", "\r\n"]),
    part_bytes=st.integers(1, 60),
)
def test_how_a_separated_text_is_cut_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], line: str, part_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    path.write_bytes(f"{line}<|endoftext|>{line}".join(texts).encode())
    corpus = TextCorpus(paths=(str(path),))
    assert read(corpus, part_bytes) == read(corpus)
    assert contents(corpus) == texts


def test_a_compressed_text_is_separated_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n<|endoftext|>\ntwo"))
    assert contents(TextCorpus(paths=(str(tmp_path),)), part_bytes=1) == ["one", "two"]


# ---- long texts


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "TEXT_BYTES", 12)
    monkeypatch.setattr(documents, "PIECE_BYTES", 6)


def write_as(folder: Path, kind: str, text: str) -> SourceCorpus:
    """One document of that text."""
    if kind == "text":
        (folder / "a.txt").write_bytes(text.encode())
        return TextCorpus(paths=(f"{folder}/a.txt",))
    if kind == "jsonl":
        (folder / "a.jsonl").write_text(json.dumps({"body": text}))
        return JsonlCorpus(paths=(f"{folder}/a.jsonl",), column="body")
    return write_parquet(folder / "a.parquet", pa.table({"body": [text]}), rows=1)


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a\nbb\nccc\ndd", ["a\nbb\nccc\ndd"]),  # 12 bytes: whole
        ("a\nbb\nccc\ndddd", ["a\nbb\n", "ccc\n", "dddd"]),  # whole lines of 6 bytes at most
        ("abcdefghijklmn", ["abcdef", "ghijkl", "mn"]),  # a longer line
        ("äöüßäöü", ["äöü", "ßäö", "ü"]),
        ("aäöüßäöü", ["aäö", "üßä", "öü"]),  # between characters
        ("€€€€€", ["€€", "€€", "€"]),
    ],
)
def test_a_long_text_is_documents_of_whole_lines(
    tmp_path: Path, kind: str, text: str, pieces: list[str]
) -> None:
    found = read(write_as(tmp_path, kind, text))
    assert [item.content for item in found if isinstance(item, Document)] == pieces
    names = [item.name.rpartition("@")[2] for item in found]
    if len(pieces) > 1:
        starts = [len("".join(pieces[:n]).encode()) for n in range(len(pieces))]
        assert names == [str(start) for start in starts]


@pytest.mark.usefixtures("short_limits")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("aä€\n", min_size=1, max_size=60), is_compressed=st.booleans())
def test_the_pieces_of_a_text_are_the_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, is_compressed: bool
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    content = text.encode()
    name = "a.txt.gz" if is_compressed else "a.txt"
    (folder / name).write_bytes(gzip.compress(content) if is_compressed else content)
    pieces = contents(TextCorpus(paths=(str(folder),)))
    assert "".join(pieces) == text
    if len(content) > 12:
        assert all(len(piece.encode()) <= 6 + 3 for piece in pieces)


def test_a_long_text_between_separators_is_cut_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "TEXT_BYTES", 24)
    monkeypatch.setattr(documents, "PIECE_BYTES", 16)
    path = tmp_path / "a.txt"
    long = "line 1\nline 2\nline 3\nline 4\n"
    path.write_text(f"short\n<|endoftext|>\n{long}<|endoftext|>\nend")
    assert read(TextCorpus(paths=(str(path),))) == [
        Document(f"{path}@0", "short"),
        Document(f"{path}@20", "line 1\nline 2\n"),
        Document(f"{path}@34", "line 3\nline 4"),
        Document(f"{path}@62", "end"),
    ]


# ---- byte order marks


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbfone\n<|endoftext|>\n\xef\xbb\xbftwo"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert contents(TextCorpus(paths=(str(tmp_path),))) == ["one", "\ufefftwo"]


def test_a_file_of_a_byte_order_mark_alone_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf")
    assert read(TextCorpus(paths=(str(tmp_path),))) == [Skipped(f"{tmp_path}/a.txt", EMPTY)]


@pytest.mark.parametrize("part_bytes", [1, 5, 1000])
def test_a_byte_order_mark_begins_json_lines(tmp_path: Path, part_bytes: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}\n')
    assert contents(JsonlCorpus(paths=(str(path),)), part_bytes) == ["one", "two"]


# ---- JSON Lines


def test_a_line_without_the_column_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 3}\n{"text": "one"}\n{}\n')
    corpus = JsonlCorpus(paths=(str(path),))
    assert read(corpus) == [
        Skipped(f"{path}@0", NO_COLUMN, ("id",)),
        Document(f"{path}@10", "one"),
        Skipped(f"{path}@26", NO_COLUMN),
    ]
    check_column(list_source(corpus), corpus)


def test_a_column_that_no_line_has_is_named_beside_those_there_are(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"id": 3, "body": "x"}\n' * 2)
    corpus = JsonlCorpus(paths=(str(tmp_path),))
    with pytest.raises(UserError, match=r"a\.jsonl@0: no column 'text', there are 'id', 'body'; s"):
        check_column(list_source(corpus), corpus)
    (tmp_path / "c.jsonl").write_text('{"text": null}\n')
    check_column(list_source(corpus), corpus)


@pytest.mark.parametrize(
    ("content", "found", "command"),
    [
        (
            '[{"text": "one"}]',
            "a JSON array",
            "cat a.json | jq -c '.[]' > a-lines.jsonl and give that file",
        ),
        (
            '[\n {"text": "one"}\n]',
            "a JSON array",
            "cat a.json | jq -c '.[]' > a-lines.jsonl and give that file",
        ),
        (
            '{\n "text": "one"\n}',
            "a JSON object over several lines",
            "cat a.json | jq -c . > a-lines.jsonl and give that file",
        ),
    ],
)
def test_json_that_is_not_lines_says_how_to_make_them(
    tmp_path: Path, content: str, found: str, command: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read(JsonlCorpus(paths=(str(tmp_path),)))
    assert f"a.json:1: holds {found}, not JSON Lines" in str(caught.value)
    assert str(caught.value).endswith(command)


def test_a_single_object_on_a_line_is_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "one"}')
    assert contents(JsonlCorpus(paths=(str(tmp_path),))) == ["one"]


def test_jsonl_documents_are_named_by_the_byte_where_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "one"}', "", '{"text": ""}', '{"text": null}', r'{"text": "\ud800"}']
    path.write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n{"text": "two"}')
    assert read(JsonlCorpus(paths=(str(path),))) == [
        Document(f"{path}@0", "one"),
        Skipped(f"{path}@17", EMPTY),
        Skipped(f"{path}@30", EMPTY),
        Skipped(f"{path}@45", NOT_UTF8),
        Skipped(f"{path}@64", NOT_UTF8),
        Document(f"{path}@78", "two"),
    ]


@pytest.mark.parametrize("ending", [b"\n", b""])
@pytest.mark.parametrize("part_bytes", [1, 2, 7, 18, 19, 20, 50, 1000])
def test_each_line_is_in_one_piece(tmp_path: Path, part_bytes: int, ending: bytes) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": "x" * number}).encode() for number in (1, 30, 2, 9, 1)]
    path.write_bytes(b"\n".join(lines) + ending)
    corpus = JsonlCorpus(paths=(str(path),))
    assert read(corpus, part_bytes) == read(corpus)
    assert len(read(corpus)) == 5
    assert num_parts(corpus, part_bytes) == -(-path.stat().st_size // part_bytes)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_lines_are_one_piece(tmp_path: Path, suffix: str) -> None:
    lines = b'{"text": "one"}\n{"text": "two"}\n'
    compressed = (
        gzip.compress(lines) if suffix == "gz" else pa.compress(lines, "zstd", asbytes=True)
    )
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(compressed)
    corpus = JsonlCorpus(paths=(str(tmp_path),))
    assert read(corpus, part_bytes=1) == [
        Document(f"{path}@0", "one"),
        Document(f"{path}@16", "two"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": ', "not JSON"),
        ("[1]", "holds list, not a JSON object"),
        ('{"text": ' + "[" * 100_000, "not JSON"),
        ('{"text": 3}', "'text' is int"),
        ('{"text": [3, -1]}', "'text' is list"),
        ('{"text": [3, true]}', "'text' is list"),
    ],
)
@pytest.mark.parametrize("part_bytes", [10, 1000])
def test_a_wrong_jsonl_line_is_named(
    tmp_path: Path, line: str, problem: str, part_bytes: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one"}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=f"{path}:2: {problem}"):
        read(JsonlCorpus(paths=(str(path),)), part_bytes)


# ---- tables


class TableWriter(Protocol):
    """Writes a table in parts of so many rows."""

    def __call__(self, path: Path, table: pa.Table, rows: int) -> SourceCorpus: ...


def write_parquet(path: Path, table: pa.Table, rows: int) -> SourceCorpus:
    pq.write_table(table, path, row_group_size=rows)
    return ParquetCorpus(paths=(str(path),), column="body")


def write_arrow_file(path: Path, table: pa.Table, rows: int) -> SourceCorpus:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return ArrowCorpus(paths=(str(path),), column="body")


def write_arrow_stream(path: Path, table: pa.Table, rows: int) -> SourceCorpus:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return ArrowCorpus(paths=(str(path),), column="body")


WRITERS = pytest.mark.parametrize("write", [write_parquet, write_arrow_file, write_arrow_stream])


@WRITERS
@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_rows_are_documents_named_by_their_number(
    tmp_path: Path, write: TableWriter, kind: pa.DataType
) -> None:
    path = tmp_path / "a"
    bodies = pa.array(["one", None, "two", ""])
    bodies = (
        bodies.dictionary_encode() if isinstance(kind, pa.DictionaryType) else bodies.cast(kind)
    )
    table = pa.table({"id": [1, 2, 3, 4], "body": bodies})
    assert read(write(path, table, rows=3)) == [
        Document(f"{path}:0", "one"),
        Skipped(f"{path}:1", EMPTY),
        Document(f"{path}:2", "two"),
        Skipped(f"{path}:3", EMPTY),
    ]


@WRITERS
@pytest.mark.parametrize("body", [pa.nulls(2), pa.array([[], []])])
def test_a_table_whose_rows_are_all_empty_is_skipped(
    tmp_path: Path, write: TableWriter, body: pa.Array
) -> None:
    found = read(write(tmp_path / "a", pa.table({"body": body}), rows=1))
    assert found == [Skipped(f"{tmp_path}/a:{row}", EMPTY) for row in range(2)]


@WRITERS
@pytest.mark.parametrize("part_bytes", [1, 300, 10**6])
def test_how_a_table_is_cut_does_not_matter(
    tmp_path: Path, write: TableWriter, part_bytes: int
) -> None:
    texts = [str(number) * number for number in range(1, 50)]
    corpus = write(tmp_path / "a", pa.table({"body": texts}), rows=4)
    assert read(corpus, part_bytes) == [
        Document(f"{tmp_path}/a:{row}", text) for row, text in enumerate(texts)
    ]
    assert (num_parts(corpus, part_bytes) == 1) == (part_bytes == 10**6)


@WRITERS
@pytest.mark.parametrize(
    "kind", [pa.list_(pa.uint16()), pa.large_list(pa.int64()), pa.list_(pa.int32(), 2)]
)
def test_a_column_of_lists_is_token_ids(
    tmp_path: Path, write: TableWriter, kind: pa.DataType
) -> None:
    table = pa.table({"body": pa.array([[1, 2], [3, 4]], kind)})
    found = read(write(tmp_path / "a", table, rows=1))
    tokens = [item.content for item in found if isinstance(item, Document)]
    assert [np.asarray(ids).tolist() for ids in tokens] == [[1, 2], [3, 4]]
    assert {np.asarray(ids).dtype for ids in tokens} == {np.dtype("int64")}


@WRITERS
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ([1], "a: column 'body' is int64"),
        ([[1.5]], "a: column 'body' is list"),
        ([[1, -2]], "a:0: -2 is not a token id"),
        (pa.array([[2**64 - 1]], pa.list_(pa.uint64())), "a:0: 18,446,744,073,709,551,615 is no"),
        ([[1, None]], "a:0: 1 of its token ids are null"),
    ],
)
def test_a_wrong_column_is_named(
    tmp_path: Path,
    write: TableWriter,
    body: pa.Array | list[Any],
    problem: str,
) -> None:
    with pytest.raises(UserError, match=problem):
        read(write(tmp_path / "a", pa.table({"body": body}), rows=1))


@WRITERS
def test_a_missing_column_is_named_beside_those_present(tmp_path: Path, write: TableWriter) -> None:
    with pytest.raises(UserError, match=r"a: no column 'body'.* 'id', 'text'"):
        read(write(tmp_path / "a", pa.table({"id": [1], "text": ["one"]}), rows=1))


@pytest.mark.parametrize("content", [b"text", b"", b"ARROW1 and no more", b"PAR1 PAR1"])
@pytest.mark.parametrize("kind", [ParquetCorpus, ArrowCorpus])
def test_what_is_of_another_format_is_named(
    tmp_path: Path, kind: type[ParquetCorpus | ArrowCorpus], content: bytes
) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: (not a Parquet|not an Arrow|cannot be read)"):
        read(kind(paths=(str(path),)))


@WRITERS
def test_a_truncated_table_is_named(tmp_path: Path, write: TableWriter) -> None:
    corpus = write(tmp_path / "a", pa.table({"body": ["text"] * 1000}), rows=100)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"^{tmp_path}/a: "):
        read(corpus)
