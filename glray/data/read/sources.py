"""Which files a source consists of, on any store, and how each is opened.

Paths are local, or URIs. pyarrow opens ``s3``, ``gs``, ``hdfs`` and ``abfs`` (all but the first are
untested), fsspec any other scheme that it knows. Only strings name files, so that any process can
open them. In a URI ``*``, ``**`` and ``[…]`` are magic, ``?`` begins the query and
``%3F`` is that character.

``s3://bucket/key?endpoint_override=host:port&scheme=http&region=us-east-1``: an endpoint that is
left out is ``AWS_ENDPOINT_URL``, else AWS, and a region ``AWS_REGION``, else the bucket's own;
``anonymous=true`` signs nothing. Credentials come from the environment alone, as a URI is written
into records.
"""

import glob
import json
import os
import re
import sysconfig
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, unquote

import fsspec
import fsspec.core
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.utils import glob_translate
from pydantic import TypeAdapter

from glray.errors import UserError
from glray.spec.corpus import SourceCorpus

STDLIB_EXCLUDED = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__"})
"""Folders left out: installed packages, and tests, which slim images lack."""

SUFFIXES = {
    "text": (".txt", ".txt.gz", ".txt.zst"),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}
"""What is taken from a folder, by the corpus's kind."""

ARROW_SCHEMES = frozenset({"hdfs", "viewfs", "abfs", "abfss"})
"""Of pyarrow's filesystems, beside S3 and GCS."""

S3_OPTIONS = ("endpoint_override", "scheme", "region", "anonymous")
"""What a URI's query may say."""

REQUEST_SECONDS = 10
"""S3's silence that ends one of three attempts; connecting has AWS's one second."""

CREDENTIAL = re.compile(
    r"://[^/@:]+:(?!\d+/)[^@]*@|[?&]sig=|[?&][^=&]*(secret|signature|token|password|[_-]key)", re.I
)


@dataclass(frozen=True)
class SourceFile:
    """A file of a corpus as it was when it was listed."""

    uri: str
    """An absolute local path, or the URI."""
    num_bytes: int
    version: str
    """Changes when the content does. Local: mtime and ctime in nanoseconds; elsewhere the store's
    modification time, or what fsspec goes by."""


def list_source(corpus: SourceCorpus) -> tuple[SourceFile, ...]:
    """The corpus's files, sorted by ``uri``, each once.

    Raises UserError for a path that does not exist, a folder or glob that matches nothing, and a
    store that cannot be reached.
    """
    if corpus.kind == "stdlib":
        root = stdlib_directory()
        modules = (path for path in root.rglob("*.py") if path.is_file())
        files = [
            _local_file(path)
            for path in modules
            if STDLIB_EXCLUDED.isdisjoint(path.relative_to(root).parts)
        ]
    else:
        files = [file for declared in corpus.paths for file in _declared(declared, corpus.kind)]
    return tuple(sorted(set(files), key=lambda file: file.uri))


def corpus_of_files(paths: list[str], column: str) -> SourceCorpus:
    """The corpus of files whose kind their names tell. Raises UserError if they do not."""
    kinds = {
        next((kind for kind, suffixes in SUFFIXES.items() if path.endswith(suffixes)), None)
        for path in paths
    }
    kind = kinds.pop()
    if kinds or kind is None:
        raise UserError(
            f"{', '.join(paths)}: not files of one kind; name *.txt, *.jsonl, *.parquet or *.arrow"
        )
    columns = {} if kind == "text" else {"column": column}
    adapter: TypeAdapter[SourceCorpus] = TypeAdapter(SourceCorpus)
    return adapter.validate_python({"kind": kind, "paths": paths, **columns})


def open_source(uri: str) -> pa.NativeFile:
    """The file, for random access. Raises OSError."""
    filesystem, path = _locate(uri) if is_uri(uri) else (pafs.LocalFileSystem(), uri)
    return filesystem.open_input_file(path)


def is_uri(path: str) -> bool:
    """Whether ``path`` begins with ``scheme://``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def stdlib_directory() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib")).resolve()


def _declared(declared: str, kind: str) -> list[SourceFile]:
    """The files that one entry of ``corpus.paths`` stands for."""
    if declared.startswith("file://"):
        declared = unquote(declared.removeprefix("file://"))
    if is_uri(declared) and CREDENTIAL.search(declared):
        raise UserError(
            f"corpus.paths: a {declared.partition(':')[0]}:// URI holds a credential, which would "
            "be written into records; set it in the environment instead (AWS_ACCESS_KEY_ID, …)"
        )
    try:
        return (_stored if is_uri(declared) else _local)(declared, kind)
    except (OSError, RuntimeError, ImportError, ValueError) as error:
        problem = " ".join(str(error).split())
        cause = "address and the environment's credentials" if is_uri(declared) else "path"
        raise UserError(
            f"corpus.paths: {declared} cannot be reached: {problem}; check the {cause}"
        ) from None


def _local(declared: str, kind: str) -> list[SourceFile]:
    path = Path(declared).expanduser().absolute()
    if path.is_dir():
        names = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
        return [_local_file(path / name) for name in _of_kind(kind, str(path), names)]
    found = [path] if path.is_file() else map(Path, glob.glob(str(path), recursive=True))
    files = [_local_file(file) for file in found if file.is_file()]
    if not files:
        problem = "matches no file" if glob.has_magic(declared) else "does not exist"
        raise UserError(f"corpus.paths: {declared} {problem} (looked in {Path.cwd()})")
    return files


def _local_file(path: Path) -> SourceFile:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"corpus.paths: {str(path)!r} is not UTF-8; rename the file") from None
    stat = path.stat()
    return SourceFile(str(path), stat.st_size, f"{stat.st_mtime_ns} {stat.st_ctime_ns}")


def _stored(declared: str, kind: str) -> list[SourceFile]:
    """``_local`` for a URI. Raises OSError too."""
    filesystem, path = _locate(declared)
    info = filesystem.get_file_info(path)
    if info.is_file:
        return [_stored_file(declared, filesystem, info)]
    is_folder = info.type == pafs.FileType.Directory
    address, mark, query = declared.partition("?")
    address = address.rstrip("/")
    folder = address if is_folder else re.split(r"/[^/]*[*[]", address, maxsplit=1)[0]
    if not is_folder and (folder == address or not is_uri(folder)):  # no magic, or in the bucket's
        raise UserError(f"corpus.paths: {declared} does not exist: no such bucket or object")
    place = folder + mark + query
    root = _locate(place)[1]
    selector = pafs.FileSelector(root, allow_not_found=True, recursive=True)
    infos = (each for each in filesystem.get_file_info(selector) if each.is_file)
    found = {each.path.removeprefix(root).lstrip("/"): each for each in infos}
    if is_folder:
        names = _of_kind(kind, place, list(found))
    else:
        pattern = glob_translate(unquote(address.removeprefix(f"{folder}/")))
        names = [name for name in found if re.match(pattern, name)]
    if not names:
        raise UserError(f"corpus.paths: {declared} matches no file (looked in {folder})")
    return [_stored_file(_inside(place, name), filesystem, found[name]) for name in names]


def _stored_file(uri: str, filesystem: pafs.FileSystem, info: pafs.FileInfo) -> SourceFile:
    is_fsspec = isinstance(filesystem, pafs.PyFileSystem)
    version = filesystem.handler.fs.ukey(info.path) if is_fsspec else info.mtime_ns
    return SourceFile(uri, info.size, str(version))


def _of_kind(kind: str, folder: str, names: list[str]) -> list[str]:
    """A folder's files of the corpus's kind. Raises OSError too."""
    taken = {name for name in names if name.endswith(SUFFIXES[kind])}
    for name in names if kind == "arrow" else ():
        if PurePosixPath(name).name == "dataset_dict.json":
            place = _inside(folder, name).removesuffix("/dataset_dict.json")
            splits = _read_json(folder, name)["splits"]
            raise UserError(
                f"corpus.paths: {place} holds the splits {', '.join(splits)}; give one, "
                f"{_inside(place, splits[0])}"
            )
        if PurePosixPath(name).name == "state.json":  # the rest are caches of what was derived
            place = name.removesuffix("state.json")
            files = {place + file["filename"] for file in _read_json(folder, name)["_data_files"]}
            taken = {name for name in taken if not name.startswith(place)} | files
    if not taken:
        wanted = ", ".join(f"*{suffix}" for suffix in SUFFIXES[kind])
        raise UserError(f"corpus.paths: {folder} holds no file {wanted}; give another path")
    return sorted(taken)


def _read_json(folder: str, name: str) -> Any:
    with open_source(_inside(folder, name)) as file:
        return json.loads(file.read())


def _inside(folder: str, name: str) -> str:
    """The file of that name from ``folder``; a URI's query stays last."""
    if not is_uri(folder):
        return f"{folder}/{name}"
    address, mark, query = folder.partition("?")
    return f"{address}/{name.replace('%', '%25').replace('?', '%3F')}{mark}{query}"


# ---- stores


def _locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI, and the path in it. Raises OSError, ImportError and ValueError."""
    scheme, _, rest = uri.partition("://")
    if scheme == "s3":
        path, _, query = rest.partition("?")
        return _s3(path.partition("/")[0], query), unquote(path)
    if scheme in ("gs", "gcs"):
        limit = timedelta(seconds=3 * REQUEST_SECONDS)  # of its own 15 minutes
        return pafs.GcsFileSystem(retry_time_limit=limit), unquote(rest)
    if scheme in ARROW_SCHEMES:
        return pafs.FileSystem.from_uri(uri)
    filesystem, path = fsspec.core.url_to_fs(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


@lru_cache
def _s3(bucket: str, query: str) -> pafs.S3FileSystem:
    """The S3 store that holds a bucket, as a URI's query and the environment have it."""
    options = dict(parse_qsl(query))
    unknown = options.keys() - S3_OPTIONS
    if unknown:
        known = ", ".join(S3_OPTIONS)
        raise ValueError(f"unknown S3 option {', '.join(sorted(unknown))}; known: {known}")
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL", "")
    scheme, _, host = endpoint.rpartition("://")
    region = options.get("region") or os.environ.get("AWS_REGION")
    return pafs.S3FileSystem(
        anonymous=options.get("anonymous") == "true",
        endpoint_override=host.rstrip("/") or None,
        scheme=options.get("scheme") or scheme or "https",
        region=region or (None if endpoint else pafs.resolve_s3_region(bucket)),
        request_timeout=REQUEST_SECONDS,
    )
