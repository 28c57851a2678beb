"""The documents in a source's files, a part of a file at a time.

Documents come in the order of their rows, so a source, whose files are sorted, is one sequence of
documents. What is read is the text's UTF-8 bytes, unchanged but for a byte order mark at the start
of a file. A document is named by its place in its file, however that was cut into parts. Files are
streamed; only a document is held whole, or a row group's column where Parquet stores it so.

A text longer than ``TEXT_BYTES`` is several documents: pieces of whole lines, each of at most
``PIECE_BYTES``. So memory is bounded by these, whatever the size of a file, and what is cut depends
on the text alone.
"""

import codecs
import hashlib
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glray.data.read.sources import (
    SourceFile,
    compression,
    is_uri,
    open_source,
    stdlib_directory,
)
from glray.errors import UserError
from glray.spec.corpus import SourceCorpus

Item = TypeVar("Item")

EMPTY = "empty"
NOT_UTF8 = "not UTF-8"
NO_COLUMN = "without the column"

TEXT_BYTES = 8 * 2**20
"""A longer text is cut into documents."""
PIECE_BYTES = 2**20
"""Of each at most, as whole lines; a longer line is cut between characters."""
SEPARATOR = b"<|endoftext|>"
"""A line of a text file that consists of it ends a document."""
COLUMN_ROWS = 100_000
"""Rows without the corpus's column before it is taken for wrong."""

TEXT_TYPES = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),  # as writers that know no text leave it
    pa.null(),  # a file whose rows are all empty
)
"""Of a table's column, itself or as a dictionary's values."""
PARQUET_ROWS = 256
"""Rows decoded at once."""
BUFFER_BYTES = 2**20
"""Read ahead of lines."""
MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
"""How compressed files begin."""


@dataclass(frozen=True)
class Document:
    """A document and its name: ``path``, ``path:row`` or, of JSON Lines and of a text file with
    several, ``path@byte``; with another ``@byte`` where a long text of a row is cut."""

    name: str
    content: str | np.ndarray
    """Its text; or token ids that were given, int64[n], none negative."""

    @property
    def sha256(self) -> bytes:
        """The hash that stands for it: of its UTF-8 text, or of its ids as little-endian uint32."""
        text = self.content
        encoded = text.encode() if isinstance(text, str) else text.astype("<u4").tobytes()
        return hashlib.sha256(encoded).digest()

    def given_ids(self, num_ids: int) -> np.ndarray:
        """The ids that were given. Raises UserError if a tokenizer of ``num_ids`` lacks one."""
        assert not isinstance(self.content, str), "a text has no ids yet"
        highest = int(self.content.max())
        if highest >= num_ids:
            raise UserError(
                f"{self.name}: token id {highest:,}, but the tokenizer has {num_ids:,} ids: "
                "another one made these tokens; give its tokenizer.json"
            )
        return self.content


@dataclass(frozen=True)
class Skipped:
    """A place without a usable text, and why: ``EMPTY``, ``NOT_UTF8`` or ``NO_COLUMN``."""

    name: str
    reason: str
    keys: tuple[str, ...] = ()
    """Of a row without the column, those that it has."""


@dataclass(frozen=True)
class FilePart:
    """A part of a file that can be read by itself."""

    file: SourceFile
    first: int = 0
    """First byte (lines, or texts, that begin in the part are its), row group or record batch."""
    last: int | None = None
    """Past the last one; None: to the end."""


def split_file(file: SourceFile, corpus: SourceCorpus, part_bytes: int) -> list[FilePart]:
    """The file as parts of about ``part_bytes`` where its format allows; whole if it is smaller.

    Raises UserError for a damaged file.
    """
    firsts = [0]
    with _problems_named(file.uri):
        if file.num_bytes <= part_bytes:
            pass
        elif corpus.kind in ("text", "jsonl") and not compression(file.uri):
            firsts = list(range(0, file.num_bytes, part_bytes))
        elif corpus.kind == "parquet":
            with pq.ParquetFile(open_source(file.uri)) as parquet:
                groups = map(parquet.metadata.row_group, range(parquet.num_row_groups))
                firsts = _firsts((group.total_byte_size for group in groups), part_bytes)
        elif corpus.kind == "arrow" and not is_uri(file.uri):
            firsts = _firsts((batch.nbytes for batch in _arrow_batches(file.uri)), part_bytes)
    return [FilePart(file, *ends) for ends in zip(firsts, [*firsts[1:], None], strict=True)]


def read_source(files: Iterable[SourceFile], corpus: SourceCorpus) -> Iterator[Document | Skipped]:
    """What ``read_part`` finds in whole files, in order. Raises UserError."""
    for file in files:
        yield from read_part(FilePart(file), corpus)


def check_column(files: Iterable[SourceFile], corpus: SourceCorpus) -> None:
    """Raises UserError if no row of JSON Lines has the corpus's column: none of all, or of the
    first ``COLUMN_ROWS``. Reads up to one that has."""
    if corpus.kind != "jsonl":
        return  # the others are read whole, or have a schema
    rows = (item for file in files for item in read_part(FilePart(file), corpus))
    lacking = None
    for row in islice(rows, COLUMN_ROWS):
        if isinstance(row, Document) or row.reason == EMPTY:
            return
        lacking = lacking or (row if row.reason == NO_COLUMN else None)
    if lacking:
        raise UserError(f"{lacking.name}: {_no_column(corpus.column, list(lacking.keys))}")


def read_part(part: FilePart, corpus: SourceCorpus) -> Iterator[Document | Skipped]:
    """The documents of a part, in order.

    A text that is empty or not UTF-8 comes as ``Skipped``, and so does a line of JSON Lines
    without the column. Raises UserError for a table without it, for what is not of the corpus's
    format, and for a file that cannot be read.
    """
    uri = part.file.uri
    with _problems_named(uri):
        if corpus.kind == "stdlib":
            with _opened(uri) as stream:
                name = str(Path(uri).relative_to(stdlib_directory()))
                yield from _documents(name, stream.read())
        elif corpus.kind == "text":
            yield from _text_documents(part)
        elif corpus.kind == "jsonl":
            yield from _jsonl_documents(part, corpus.column)
        elif corpus.kind == "parquet":
            yield from _parquet_documents(part, corpus.column)
        else:
            yield from _arrow_documents(part, corpus.column)


@contextmanager
def _problems_named(uri: str) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a UserError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        problem = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(
            f"{uri}: cannot be read: {problem}; fix that, and the same command goes on"
        ) from None


def runs(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """The items as runs of consecutive ones, as many as add up to no more than ``limit``; a larger
    one is a run of its own."""
    run: list[Item] = []
    filled = 0
    for item in items:
        if run and filled + size(item) > limit:
            yield run
            run, filled = [], 0
        run.append(item)
        filled += size(item)
    if run:
        yield run


# ---- texts and lines


def _text_documents(part: FilePart) -> Iterator[Document | Skipped]:
    """Separator lines end documents; a file without any is one, named by the file alone."""
    uri, last = part.file.uri, part.last
    text = None if part.first else _Text(0)  # None: what comes began in the part before
    is_only = text is not None
    for place, line, begins_line in _bounded_lines(part):
        if begins_line and line.removesuffix(b"\n").removesuffix(b"\r") == SEPARATOR:
            is_only = False
            if text is not None:
                yield from _text_end(uri, text, is_separated=True)
            start = place + len(line)
            if last is not None and start >= last:
                return
            text = _Text(start) if start >= part.first else None
        elif text is not None:
            for start, piece in text.add(place, line):
                is_only = False
                yield _document(f"{uri}@{start}", piece)
        elif last is not None and place >= last:
            return
    if text is not None and is_only:
        yield _document(uri, text.rest()[1])
    elif text is not None:
        yield from _text_end(uri, text, is_separated=False)


def _text_end(uri: str, text: "_Text", *, is_separated: bool) -> Iterator[Document | Skipped]:
    """What is left of a text where a separator, whose line break is not the text's, or the file
    ends it."""
    start, rest = text.rest()
    if is_separated:
        rest = rest.removesuffix(b"\n").removesuffix(b"\r")
    if rest.strip() or (text.is_cut and rest):
        yield _document(f"{uri}@{start}", rest)
    elif is_separated and not text.is_cut:
        yield Skipped(f"{uri}@{start}", EMPTY)


class _Text:
    """A text as its lines come: whole, or in pieces once there is more than ``TEXT_BYTES``."""

    def __init__(self, start: int) -> None:
        self.is_cut = False
        self._start = start  # of the lines that are held
        self._lines: deque[bytes] = deque()
        self._num_bytes = 0

    def add(self, place: int, line: bytes) -> Iterator[tuple[int, bytes]]:
        """Adds a line, or a part of a long one, that begins at the byte ``place``; gives pieces
        that are complete now, each after the byte at which it begins."""
        self._start = self._start if self._lines else place
        self._num_bytes += len(line)
        tail = self._lines[-1] if self._lines else b"\n"
        if len(tail) < 4 and not tail.endswith(b"\n"):  # the beginning of a character
            line = self._lines.pop() + line
        self._lines.append(line)
        self.is_cut |= self._num_bytes > TEXT_BYTES
        while self.is_cut and self._num_bytes > PIECE_BYTES:
            yield self._take(PIECE_BYTES, is_end=False)

    def rest(self) -> tuple[int, bytes]:
        """What is left at its end, after the byte at which it begins."""
        return self._take(self._num_bytes, is_end=True)

    def _take(self, limit: int, *, is_end: bool) -> tuple[int, bytes]:
        """As many lines as have up to ``limit`` bytes, but one at least."""
        taken: list[bytes] = []
        size = 0
        while self._lines and (not taken or size + len(self._lines[0]) <= limit):
            taken.append(self._lines.popleft())
            size += len(taken[-1])
        piece = b"".join(taken)
        if not is_end and not piece.endswith(b"\n"):  # within a line: not within a character
            whole = _whole_characters(piece)
            self._lines.appendleft(piece[whole:] + (self._lines.popleft() if self._lines else b""))
            piece = piece[:whole]
        start = self._start
        self._start += len(piece)
        self._num_bytes -= len(piece)
        return start, piece


def _whole_characters(piece: bytes) -> int:
    """Bytes of UTF-8 before the character that the end cuts, if it cuts one."""
    for back in range(1, min(4, len(piece)) + 1):
        if piece[-back] >= 0xC0:  # the first byte of a character, which says how many follow
            length = 2 if piece[-back] < 0xE0 else 3 if piece[-back] < 0xF0 else 4
            return len(piece) - back if length > back and len(piece) > back else len(piece)
    return len(piece)


def _bounded_lines(part: FilePart) -> Iterator[tuple[int, bytes, bool]]:
    """The lines from the part's first byte, or a little before it, to the end of the file: the byte
    at which each begins, and whether it is the beginning of a line. Longer ones than
    ``PIECE_BYTES`` come in parts."""
    with io.BufferedReader(_opened(part.file.uri), BUFFER_BYTES) as stream:
        start, begins_line = 0, True
        if part.first:  # what ends right before it may be a separator's line
            start = max(part.first - len(SEPARATOR) - len(b"\n\r\n"), 0)
            stream.seek(start)
            begins_line = start == 0
        while line := stream.readline(PIECE_BYTES):
            if start == 0 and line.startswith(codecs.BOM_UTF8):
                start, line = len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
            yield start, line, begins_line
            start += len(line)
            begins_line = line.endswith(b"\n")


def _jsonl_documents(part: FilePart, column: str) -> Iterator[Document | Skipped]:
    uri = part.file.uri
    for start, line in _lines(part):
        if line.isspace():
            continue
        name = f"{uri}@{start}"
        try:
            record = _json_object(line.decode())
            content = _json_content(record, column) if column in record else None
        except UnicodeDecodeError:
            yield Skipped(name, NOT_UTF8)
        except ValueError as error:
            lines = enumerate(_lines(FilePart(part.file)), start=1)
            number = next(number for number, (begin, _) in lines if begin == start)
            advice = _json_advice(line, uri) if number == 1 else None
            raise UserError(f"{uri}:{number}: {advice or error}") from None
        else:
            if column in record:
                yield from _documents(name, content)
            else:
                yield Skipped(name, NO_COLUMN, tuple(record))


def _json_object(line: str) -> dict[str, Any]:
    """Raises ValueError for a line that is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}; fix or remove the line") from None
    if not isinstance(record, dict):
        raise ValueError(f"holds {type(record).__name__}, not a JSON object")
    return record


def _json_content(record: dict[str, Any], column: str) -> str | np.ndarray | None:
    """Raises ValueError if it is no document."""
    value = record[column]
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 2**32 for item in value):
        return np.array(value, dtype=np.int64)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{column!r} is {type(value).__name__}, neither text nor token ids")
    return value


def _json_advice(line: bytes, uri: str) -> str | None:
    """What to do about a file whose first line shows that it is JSON, but not JSON Lines."""
    if line.lstrip().startswith(b"["):
        found, command = "a JSON array", "jq -c '.[]'"
    elif line.strip() == b"{":
        found, command = "a JSON object over several lines", "jq -c ."
    else:
        return None
    name = Path(uri).name
    converted = re.sub(r"(\.jsonl?)?(\.gz|\.zst)?$", "", name) + "-lines.jsonl"
    cat = {"gzip": "gzip -dc", "zstd": "zstd -dc", None: "cat"}[compression(uri)]
    return (
        f"holds {found}, not JSON Lines with an object on each line; convert it with "
        f"{cat} {name} | {command} > {converted} and give that file"
    )


def _lines(part: FilePart) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in the part, after the byte at which each does."""
    with io.BufferedReader(_opened(part.file.uri), BUFFER_BYTES) as stream:
        start = part.first
        if start:  # that byte may lie within a line, which is then the part before's
            stream.seek(start - 1)
            start += len(stream.readline()) - 1
        for line in stream:
            if part.last is not None and start >= part.last:
                return
            yield start, line if start else line.removeprefix(codecs.BOM_UTF8)
            start += len(line)


def _opened(uri: str) -> pa.NativeFile:
    """The file as a stream of what it holds, decompressed. Raises UserError if it is compressed but
    its name does not say so."""
    source = open_source(uri)
    known = compression(uri)
    if known:
        return pa.CompressedInputStream(source, known)
    head = source.read(8)
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            raise UserError(
                f"{uri}: holds {name} data, not text, but its name does not end in .gz or .zst; "
                "decompress it, or rename it if it is one of these"
            )
    source.seek(0)
    return source


# ---- tables


def _parquet_documents(part: FilePart, column: str) -> Iterator[Document | Skipped]:
    uri = part.file.uri
    with pq.ParquetFile(open_source(uri)) as file:
        _check_column(uri, file.schema_arrow, column)
        row = sum(file.metadata.row_group(group).num_rows for group in range(part.first))
        groups = list(range(file.num_row_groups))[part.first : part.last]
        for batch in file.iter_batches(PARQUET_ROWS, row_groups=groups, columns=[column]):
            yield from _row_documents(uri, row, batch.column(0))
            row += batch.num_rows


def _arrow_documents(part: FilePart, column: str) -> Iterator[Document | Skipped]:
    uri = part.file.uri
    row = 0
    for index, batch in enumerate(islice(_arrow_batches(uri), part.last)):
        if index >= part.first:
            _check_column(uri, batch.schema, column)
            yield from _row_documents(uri, row, batch.column(column))
        row += batch.num_rows


def _arrow_batches(uri: str) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow IPC file or stream; of a local one they are mapped."""
    with open_source(uri) if is_uri(uri) else pa.memory_map(uri) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            file = pa.ipc.open_file(source)
            yield from map(file.get_batch, range(file.num_record_batches))
        else:
            yield from pa.ipc.open_stream(source)


def _row_documents(uri: str, first_row: int, values: pa.Array) -> Iterator[Document | Skipped]:
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    for row, value in enumerate(values, start=first_row):
        name = f"{uri}:{row}"
        if not value.is_valid:
            yield Skipped(name, EMPTY)
        elif isinstance(value, pa.ListScalar):  # large and fixed-size ones too
            yield from _documents(name, _token_ids(name, value.values))
        else:
            yield from _documents(name, value.as_buffer().to_pybytes())


def _token_ids(name: str, values: pa.Array) -> np.ndarray:
    if values.null_count:
        raise UserError(f"{name}: {values.null_count:,} of its token ids are null; fix the row")
    ids = values.to_numpy(zero_copy_only=False).astype(np.int64)
    if len(ids) and ids.min() < 0:  # or beyond 2^63
        wrong = values[int(ids.argmin())].as_py()
        raise UserError(f"{name}: {wrong:,} is not a token id; fix the row")
    return ids


def _check_column(uri: str, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise UserError(f"{uri}: {_no_column(column, schema.names)}")
    if schema.names.count(column) > 1:
        raise UserError(f"{uri}: {schema.names.count(column)} columns are named {column!r}")
    kind = schema.field(column).type
    is_list = isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)
    is_ids = is_list and (pa.types.is_integer(kind.value_type) or kind.value_type == pa.null())
    text = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    if not is_ids and text not in TEXT_TYPES:
        raise UserError(f"{uri}: column {column!r} is {kind}, neither text nor token ids")


# ---- documents


def _documents(name: str, content: str | bytes | np.ndarray | None) -> Iterator[Document | Skipped]:
    """A row's content, or that of a text file, as documents: more than one if it is long."""
    if isinstance(content, str) and 4 * len(content) > TEXT_BYTES:
        content = content.encode(errors="surrogatepass")
    if not isinstance(content, bytes) or len(content) <= TEXT_BYTES:
        yield _document(name, content)
        return
    text, stream = _Text(0), io.BytesIO(content)
    while line := stream.readline(PIECE_BYTES):
        for start, piece in text.add(stream.tell() - len(line), line):
            yield _document(f"{name}@{start}", piece)
    start, piece = text.rest()
    yield _document(f"{name}@{start}", piece)


def _document(name: str, content: str | bytes | np.ndarray | None) -> Document | Skipped:
    try:
        content = content.decode() if isinstance(content, bytes) else content
        if isinstance(content, str):
            content.encode()  # JSON can escape half of a surrogate pair, which no UTF-8 text holds
    except UnicodeError:
        return Skipped(name, NOT_UTF8)
    if content is None or len(content) == 0:
        return Skipped(name, EMPTY)
    return Document(name, content)


def _no_column(column: str, present: list[str]) -> str:
    return (
        f"no column {column!r}, there are {', '.join(map(repr, present)) or 'none'}; "
        "set corpus.column"
    )


def _firsts(sizes: Iterable[int], part_bytes: int) -> list[int]:
    """Where runs of consecutive items begin that are each about ``part_bytes``."""
    starts = [run[0][0] for run in runs(enumerate(sizes), lambda item: item[1], part_bytes)]
    return starts or [0]
