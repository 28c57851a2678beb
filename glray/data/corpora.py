"""Which files a corpus consists of, and the documents in them.

Files are taken in the order of their absolute paths and documents in the order of their rows, so a
corpus is one sequence of documents. What is read is the text's UTF-8 bytes, unchanged. Files are
streamed; only a document is held whole.
"""

import glob
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from glray.errors import UserError
from glray.spec.corpus import CorpusSpec, JsonlCorpus, ParquetCorpus, StdlibCorpus, TextCorpus

EMPTY = "empty"
NOT_UTF8 = "not UTF-8"

STDLIB_EXCLUDED = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__"})
"""Folders left out: installed packages, and tests, which slim images lack."""

PARQUET_ROWS = 256
"""Rows decoded at once."""


@dataclass(frozen=True)
class Document:
    """A text and where it lies: a path, or ``path:row``."""

    name: str
    text: str


@dataclass(frozen=True)
class Skipped:
    """A place without a usable text, and why: ``EMPTY`` or ``NOT_UTF8``."""

    name: str
    reason: str


def list_files(corpus: CorpusSpec) -> list[Path]:
    """The corpus's files: absolute, sorted, each once.

    Raises UserError for a path that does not exist, and for a folder or glob that matches nothing.
    """
    if isinstance(corpus, StdlibCorpus):
        root = _stdlib()
        modules = (
            path
            for path in root.rglob("*.py")
            if STDLIB_EXCLUDED.isdisjoint(path.relative_to(root).parts) and path.is_file()
        )
        return sorted(modules)
    suffix = {TextCorpus: ".txt", JsonlCorpus: ".jsonl", ParquetCorpus: ".parquet"}[type(corpus)]
    return sorted({file for declared in corpus.paths for file in _matches(declared, suffix)})


def read_documents(path: Path, corpus: CorpusSpec) -> Iterator[Document | Skipped]:
    """The documents of one file of the corpus, in order.

    A text that is empty or not UTF-8 comes as ``Skipped``. Raises UserError for a missing column
    and for what is not JSON Lines or Parquet.
    """
    if isinstance(corpus, JsonlCorpus):
        return _jsonl_documents(path, corpus.column)
    if isinstance(corpus, ParquetCorpus):
        return _parquet_documents(path, corpus.column)
    name = path.relative_to(_stdlib()) if isinstance(corpus, StdlibCorpus) else path
    return iter([_text_document(path, str(name))])


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib")).resolve()


def _matches(declared: str, suffix: str) -> list[Path]:
    """The absolute files that one entry of ``corpus.paths`` stands for."""
    path = Path(declared).expanduser()
    if path.is_file():
        return [path.absolute()]
    if path.is_dir():
        files = [file.absolute() for file in path.rglob(f"*{suffix}") if file.is_file()]
        if not files:
            raise UserError(f"corpus.paths: {declared} holds no *{suffix} file; give another path")
        return files
    if not glob.has_magic(declared):
        raise UserError(f"corpus.paths: {declared} does not exist (looked in {Path.cwd()})")
    matches = (Path(match) for match in glob.glob(str(path), recursive=True))
    files = [match.absolute() for match in matches if match.is_file()]
    if not files:
        raise UserError(f"corpus.paths: {declared} matches no file (looked in {Path.cwd()})")
    return files


def _text_document(path: Path, name: str) -> Document | Skipped:
    try:
        return _document(name, path.read_bytes().decode())
    except UnicodeDecodeError:
        return Skipped(name, NOT_UTF8)


def _jsonl_documents(path: Path, column: str) -> Iterator[Document | Skipped]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            place = f"{path}:{number}"
            try:
                record = json.loads(line.decode())
            except UnicodeDecodeError:
                yield Skipped(place, NOT_UTF8)
                continue
            except ValueError as error:
                raise UserError(f"{place}: not JSON: {error}; mend or remove the line") from None
            if not isinstance(record, dict):
                raise UserError(f"{place}: holds {type(record).__name__}, not a JSON object")
            if column not in record:
                raise UserError(_no_column(place, column, list(record)))
            text = record[column]
            if text is not None and not isinstance(text, str):
                raise UserError(f"{place}: {column!r} is {type(text).__name__}, not a string")
            yield _document(place, text)


def _parquet_documents(path: Path, column: str) -> Iterator[Document | Skipped]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file: {' '.join(str(error).split())}") from None
    with file:
        schema = file.schema_arrow
        if column not in schema.names:
            raise UserError(_no_column(str(path), column, schema.names))
        kind = schema.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: column {column!r} is {kind}, not string")
        row = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=[column]):
            for value in batch.column(0):
                place = f"{path}:{row}"
                try:
                    yield _document(place, value.as_py())
                except UnicodeDecodeError:
                    yield Skipped(place, NOT_UTF8)
                row += 1


def _document(name: str, text: str | None) -> Document | Skipped:
    if not text:
        return Skipped(name, EMPTY)
    try:
        text.encode()  # JSON can escape half of a surrogate pair, which no UTF-8 text holds
    except UnicodeEncodeError:
        return Skipped(name, NOT_UTF8)
    return Document(name, text)


def _no_column(place: str, column: str, present: list[str]) -> str:
    return (
        f"{place}: no column {column!r}, there are {', '.join(map(repr, present)) or 'none'}; "
        "set corpus.column"
    )
