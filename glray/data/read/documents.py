"""The documents in a source's files, a part of a file at a time.

Documents come in the order of their rows, so a source, whose files are sorted, is one sequence of
documents. What is read is the text's UTF-8 bytes, unchanged. A document is named by its place in
its file, however that was cut into parts. Files are streamed; only a document is held whole, or a
row group's column where Parquet stores it so.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glray.data.read.sources import SourceFile, is_uri, open_source, stdlib_directory
from glray.errors import UserError
from glray.spec.corpus import SourceCorpus

Item = TypeVar("Item")

EMPTY = "empty"
NOT_UTF8 = "not UTF-8"

PARQUET_ROWS = 256
"""Rows decoded at once."""
BUFFER_BYTES = 2**20
"""Read ahead of lines."""


@dataclass(frozen=True)
class Document:
    """A document and its name: ``path``, ``path:row`` or, of JSON Lines, ``path@byte``."""

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
    """A place without a usable text, and why: ``EMPTY`` or ``NOT_UTF8``."""

    name: str
    reason: str


@dataclass(frozen=True)
class FilePart:
    """A part of a file that can be read by itself."""

    file: SourceFile
    first: int = 0
    """First byte (lines that begin in the part are its), row group or record batch."""
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
        elif corpus.kind == "jsonl" and not _compression(file.uri):
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


def read_part(part: FilePart, corpus: SourceCorpus) -> Iterator[Document | Skipped]:
    """The documents of a part, in order.

    A text that is empty or not UTF-8 comes as ``Skipped``. Raises UserError for a missing column,
    for what is not of the corpus's format, and for a file that cannot be read.
    """
    uri = part.file.uri
    with _problems_named(uri):
        if corpus.kind == "stdlib":
            yield _whole_file(uri, str(Path(uri).relative_to(stdlib_directory())))
        elif corpus.kind == "text":
            yield _whole_file(uri, uri)
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


def _whole_file(uri: str, name: str) -> Document | Skipped:
    with _opened(uri) as stream:
        return _document(name, stream.read())


def _jsonl_documents(part: FilePart, column: str) -> Iterator[Document | Skipped]:
    uri = part.file.uri
    for start, line in _lines(part):
        if line.isspace():
            continue
        name = f"{uri}@{start}"
        try:
            content = _jsonl_content(line.decode(), column)
        except UnicodeDecodeError:
            yield Skipped(name, NOT_UTF8)
        except ValueError as error:
            lines = enumerate(_lines(FilePart(part.file)), start=1)
            number = next(number for number, (begin, _) in lines if begin == start)
            raise UserError(f"{uri}:{number}: {error}") from None
        else:
            yield _document(name, content)


def _jsonl_content(line: str, column: str) -> str | np.ndarray | None:
    """Raises ValueError for a line that is no document."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}; fix or remove the line") from None
    if not isinstance(record, dict):
        raise ValueError(f"holds {type(record).__name__}, not a JSON object")
    if column not in record:
        raise ValueError(_no_column(column, list(record)))
    value = record[column]
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 2**32 for item in value):
        return np.array(value, dtype=np.int64)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{column!r} is {type(value).__name__}, neither text nor token ids")
    return value


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
            yield start, line
            start += len(line)


def _opened(uri: str) -> pa.NativeFile:
    """The file as a stream of what it holds, decompressed."""
    source = open_source(uri)
    compression = _compression(uri)
    return pa.CompressedInputStream(source, compression) if compression else source


def _compression(uri: str) -> str | None:
    path = uri.partition("?")[0] if is_uri(uri) else uri
    return {".gz": "gzip", ".zst": "zstd"}.get(Path(path).suffix)


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
    for row, value in enumerate(values, start=first_row):
        name = f"{uri}:{row}"
        if not value.is_valid:
            yield Skipped(name, EMPTY)
        elif isinstance(value, pa.ListScalar):  # large and fixed-size ones too
            yield _document(name, _token_ids(name, value.values))
        else:
            yield _document(name, value.as_buffer().to_pybytes())


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
    is_ids = is_list and pa.types.is_integer(kind.value_type)
    if not is_ids and kind not in (pa.string(), pa.large_string(), pa.string_view()):
        raise UserError(f"{uri}: column {column!r} is {kind}, neither text nor token ids")


# ---- documents


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
