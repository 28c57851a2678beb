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
from collections import Counter, defaultdict
from collections.abc import Iterable
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

from glray.errors import MissingError, UserError
from glray.files import check_credentials
from glray.spec.corpus import SourceCorpus

STDLIB_EXCLUDED = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__"})
"""Folders left out: installed packages, and tests, which slim images lack."""

COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
"""What texts and lines may be compressed with, by the end of the file's name."""

UNREAD_COMPRESSIONS = (
    *(".7z", ".br", ".bz2", ".lz4", ".lzma", ".lzo", ".rar", ".snappy", ".sz", ".tar", ".tbz2"),
    *(".tgz", ".txz", ".xz", ".z", ".zip", ".zstd"),
)
"""Ends of names that say a file is compressed or an archive, in a way that is not read."""

SUFFIXES = {
    "text": tuple(f".txt{end}" for end in COMPRESSIONS),
    "jsonl": tuple(f"{name}{end}" for name in (".jsonl", ".json") for end in COMPRESSIONS),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}
"""What is taken from a folder, by the corpus's kind; of ``jsonl``, ``*.json`` only from a folder
that has no ``*.jsonl``, as it may as well be a record about those."""

LEFT_OUT = frozenset({"__pycache__", "__MACOSX"})
"""Left out of a folder that is searched, besides what begins with a dot."""

OWN = "in glray's own storage"
"""What is left out of what people declare, files or whole folders."""

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words in names that stand for a split, as the Hugging Face hub reads them."""

SPLIT_WORD = re.compile(rf"(?:^|(?<=[-_. ]))({'|'.join(SPLITS)})(?=[-_. \d]|$)", re.I)

ARROW_SCHEMES = frozenset({"hdfs", "viewfs", "abfs", "abfss"})
"""Of pyarrow's filesystems, beside S3 and GCS."""

S3_OPTIONS = ("endpoint_override", "scheme", "region", "anonymous")
"""What a URI's query may say."""

WEB_VERSIONS = ("ETag", "Content-MD5", "Digest", "Last-Modified")
"""What a web server may name a content's version by."""

REQUEST_SECONDS = 10
"""S3's silence that ends one of three attempts; connecting has AWS's one second."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a corpus as it was when it was listed."""

    uri: str
    """An absolute local path, or the URI."""
    num_bytes: int
    version: str
    """Changes when the content does. Local: mtime and ctime in nanoseconds; elsewhere the store's
    modification time, what fsspec goes by, or the version that a web server names."""


@dataclass(frozen=True)
class Listing:
    """What a corpus's ``paths`` stand for."""

    files: tuple[SourceFile, ...]
    """Sorted by ``uri``, each once."""
    left_out: tuple[str, ...] = ()
    """What was left out of the folders that were searched, in words: ``3 hidden``."""


def list_source(corpus: SourceCorpus, storage: str | None = None) -> tuple[SourceFile, ...]:
    """The files of ``search_source``. Raises UserError."""
    return search_source(corpus, storage).files


def search_source(corpus: SourceCorpus, storage: str | None = None) -> Listing:
    """The corpus's files, and what of its folders was left out: there also glray's own ``storage``,
    an absolute path or a URI, where what is written would be read as text.

    Raises UserError for a folder of several splits and a compression that is not read, MissingError
    for a path that does not exist, a folder or glob that matches nothing, and a store that cannot
    be reached.
    """
    left_out: Counter[str] = Counter()
    if corpus.kind == "stdlib":
        root = stdlib_directory()
        modules = (path for path in root.rglob("*.py") if path.is_file())
        files = [
            _local_file(path)
            for path in modules
            if STDLIB_EXCLUDED.isdisjoint(path.relative_to(root).parts)
        ]
    else:
        search = _Search(corpus.kind, storage, left_out)
        files = [file for declared in corpus.paths for file in search.declared(declared)]
    files = sorted(set(files), key=lambda file: file.uri)
    if corpus.kind != "stdlib":
        files = _each_once(files, left_out)
        for file in files:
            _check_compression(file.uri, corpus.kind)
    counts = sorted((what, count) for what, count in left_out.items() if count)
    return Listing(tuple(files), tuple(f"{count:,} {what}" for what, count in counts))


def corpus_of_files(paths: list[str], column: str) -> SourceCorpus:
    """The corpus of files whose kind their names tell. Raises UserError if they do not."""
    kinds = {
        next((kind for kind, ends in SUFFIXES.items() if _address(path).endswith(ends)), None)
        for path in paths
    }
    kind = kinds.pop()
    if kinds or kind is None:
        for path in paths:
            _check_compression(path, "text")
        raise UserError(
            f"{', '.join(paths)}: not files of one kind; name *.txt, *.jsonl, *.json, *.parquet or "
            "*.arrow"
        )
    columns = {} if kind == "text" else {"column": column}
    adapter: TypeAdapter[SourceCorpus] = TypeAdapter(SourceCorpus)
    return adapter.validate_python({"kind": kind, "paths": paths, **columns})


def open_source(uri: str) -> pa.NativeFile:
    """The file, for random access. Raises OSError."""
    filesystem, path = _locate(uri) if is_uri(uri) else (pafs.LocalFileSystem(), uri)
    return filesystem.open_input_file(path)


def compression(uri: str) -> str | None:
    """What the file is compressed with, as pyarrow calls it; None: nothing."""
    return COMPRESSIONS.get(PurePosixPath(_address(uri)).suffix)


def is_uri(path: str) -> bool:
    """Whether ``path`` begins with ``scheme://``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def stdlib_directory() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib")).resolve()


@dataclass(frozen=True)
class _Search:
    """A search for the files of a corpus."""

    kind: str
    storage: str | None
    """Glray's own, which is left out of folders."""
    left_out: Counter[str]
    """What was left out, counted."""

    def declared(self, declared: str) -> list[SourceFile]:
        """The files that one entry of ``corpus.paths`` stands for."""
        if declared.startswith("file://"):
            declared = unquote(declared.removeprefix("file://"))
        check_credentials(declared, "corpus.paths")
        try:
            return (self._stored if is_uri(declared) else self._local)(declared)
        except (OSError, RuntimeError, ImportError, ValueError) as error:
            problem = " ".join(str(error).split())
            cause = "address and the environment's credentials" if is_uri(declared) else "path"
            raise MissingError(
                f"corpus.paths: {declared} cannot be reached: {problem}; check the {cause}"
            ) from None

    def _local(self, declared: str) -> list[SourceFile]:
        path = Path(declared).expanduser().absolute()
        if path.is_dir():
            return self._local_folder(path, self._names_below(path))
        found = [path] if path.is_file() else self._matches(path)
        files = [_local_file(file) for file in found if file.is_file()]
        if "**" not in path.parts:  # which goes into folders itself
            folders = [path for path in found if path.is_dir()]
            named = [folder for folder in folders if not self._is_own(folder)]
            self.left_out[OWN] += len(folders) - len(named)
            below = ((folder, self._names_below(folder)) for folder in named)
            files += [
                file
                for folder, names in below
                if self._has_any(names)
                for file in self._local_folder(folder, names)
            ]
        if not files:
            problem = "matches no file" if glob.has_magic(declared) else "does not exist"
            raise MissingError(f"corpus.paths: {declared} {problem} (looked in {Path.cwd()})")
        return files

    def _is_own(self, folder: Path) -> bool:
        """Whether it is glray's storage or lies there."""
        own, real = self.storage and os.path.realpath(self.storage), os.path.realpath(folder)
        return own is not None and f"{real}/".startswith(f"{own}/")

    def _local_folder(self, path: Path, names: list[str]) -> list[SourceFile]:
        return [_local_file(path / name) for name in self._of_kind(str(path), names)]

    def _matches(self, pattern: Path) -> list[Path]:
        """What a glob stands for; below ``**``, as in a folder, each linked folder is searched
        once."""
        parts = pattern.parts
        magic = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        rest = parts[magic:]
        if "**" not in rest or any(part.startswith(".") for part in rest):
            return [Path(name) for name in glob.glob(str(pattern), recursive=True)]
        folder = Path(*parts[:magic])
        match = re.compile(glob_translate("/".join(rest))).match
        names = _Search(self.kind, self.storage, Counter())._names_below(folder)
        return [folder / name for name in names if match(name)]

    def _names_below(self, folder: Path) -> list[str]:
        """The names of the files below a folder, without hidden ones; none if it is not there.
        Linked folders are followed, but each folder is searched once, so a link to one that holds
        it ends there."""
        names: list[str] = []
        searched: set[str] = set()
        waiting: list[Path] = [folder] if folder.is_dir() else []
        linked: list[Path] = []
        is_named = self._is_own(folder)
        while waiting or linked:
            below = waiting.pop() if waiting else linked.pop(0)  # links last: real paths come first
            real = os.path.realpath(below)
            if real in searched:
                continue
            searched.add(real)
            if self._is_own(below) and not is_named:
                self.left_out[OWN] += 1
                continue
            try:
                entries = sorted(os.scandir(below), key=lambda entry: entry.name)
            except PermissionError:
                self.left_out["folders that may not be read"] += 1
                continue
            for entry in entries:
                path = below / entry.name
                if _is_hidden(entry.name):
                    self.left_out["hidden"] += 1
                elif path.is_dir() if entry.is_symlink() else entry.is_dir():
                    (linked if entry.is_symlink() else waiting).append(path)
                elif path.is_file() if entry.is_symlink() else entry.is_file():
                    names.append(str(path.relative_to(folder)))
        return names

    def _stored(self, declared: str) -> list[SourceFile]:
        """``_local`` for a URI. Raises OSError too."""
        filesystem, path = _locate(declared)
        info = filesystem.get_file_info(path)
        if info.is_file:
            return [_stored_file(declared, filesystem, info)]
        is_folder = info.type == pafs.FileType.Directory
        address, mark, query = declared.partition("?")
        address = address.rstrip("/")
        folder = address if is_folder else re.split(r"/[^/]*[*[]", address, maxsplit=1)[0]
        # No magic, or in the bucket's name.
        if not is_folder and (folder == address or not is_uri(folder)):
            raise MissingError(f"corpus.paths: {declared} does not exist: no such bucket or object")
        place = folder + mark + query
        root = _locate(place)[1]
        selector = pafs.FileSelector(root, allow_not_found=True, recursive=True)
        infos = (each for each in filesystem.get_file_info(selector) if each.is_file)
        found = {each.path.removeprefix(root).lstrip("/"): each for each in infos}
        own = f"{self.storage}/".removeprefix(f"{folder}/") if self.storage else ""
        if own:  # else the text lies in the storage
            others = {name: each for name, each in found.items() if not name.startswith(own)}
            self.left_out[OWN] += len(found) - len(others)
            found = others
        if is_folder:
            names = self._of_kind(place, self._seen(found))
        else:
            names = self._matching(place, unquote(address.removeprefix(f"{folder}/")), [*found])
        if not names:
            raise MissingError(f"corpus.paths: {declared} matches no file (looked in {folder})")
        return [_stored_file(_inside(place, name), filesystem, found[name]) for name in names]

    def _matching(self, place: str, pattern: str, names: list[str]) -> list[str]:
        """The names below a place that a pattern stands for, and those below folders that it stands
        for."""
        match = re.compile(glob_translate(pattern)).match
        sees_hidden = any(part.startswith(".") for part in pattern.split("/"))
        taken, folders = [], defaultdict[str, list[str]](list)
        for name in names:
            if match(name):
                is_hidden = any(part.startswith(".") for part in name.split("/"))
                taken += [name] if sees_hidden or not is_hidden else []
            elif "**" not in pattern:
                for parent in map(str, PurePosixPath(name).parents):
                    if match(parent) and (sees_hidden or not _is_hidden(parent)):
                        folders[parent].append(name.removeprefix(f"{parent}/"))
        for folder, below in folders.items():
            if self._has_any(below):
                seen = self._seen(below)
                taken += [
                    f"{folder}/{name}" for name in self._of_kind(_inside(place, folder), seen)
                ]
        return taken

    def _seen(self, names: Iterable[str]) -> list[str]:
        """Those that are not hidden."""
        every = list(names)
        seen = [name for name in every if not any(map(_is_hidden, name.split("/")))]
        self.left_out["hidden"] += len(every) - len(seen)
        return seen

    def _has_any(self, names: list[str]) -> bool:
        """Whether any is of the kind; else all are left out."""
        if any(name.endswith(SUFFIXES[self.kind]) for name in names):
            return True
        self.left_out["of other kinds"] += len(names)
        return False

    def _of_kind(self, folder: str, names: list[str]) -> list[str]:
        """A folder's files of the corpus's kind. Raises UserError and OSError."""
        kind, ends = self.kind, SUFFIXES[self.kind]
        if kind == "jsonl":
            lines = tuple(end for end in ends if end.startswith(".jsonl"))
            ends = lines if any(name.endswith(lines) for name in names) else ends
        bare = tuple(end for end in ends if end.count(".") == 1)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if stem.endswith(bare) and suffix and not name.endswith(ends):
                _check_compression(_inside(folder, name), kind)
        taken = {name for name in names if name.endswith(ends)}
        for name in names if kind == "arrow" else ():
            if PurePosixPath(name).name == "dataset_dict.json":
                place = _inside(folder, name).removesuffix("/dataset_dict.json")
                if splits := _described(folder, name, "splits"):
                    raise _splits_found(place, splits, _inside(place, splits[0]))
            if PurePosixPath(name).name == "state.json":  # the rest are caches of what was derived
                place = name.removesuffix("state.json")
                if parts := _described(folder, name, "_data_files"):
                    files = {place + file["filename"] for file in parts}
                    taken = {name for name in taken if not name.startswith(place)} | files
        if not taken:
            wanted = ", ".join(f"*{suffix}" for suffix in SUFFIXES[kind])
            raise MissingError(f"corpus.paths: {folder} holds no file {wanted}; give another path")
        _check_splits(folder, taken)
        self.left_out["of other kinds"] += len(set(names) - taken)
        return sorted(taken)


def _is_hidden(name: str) -> bool:
    """Whether this file or folder is there for a program, not as content."""
    return name.startswith(".") or name in LEFT_OUT


def _each_once(files: list[SourceFile], left_out: Counter[str]) -> list[SourceFile]:
    """The sorted files without links to others of them."""
    kept: dict[str, SourceFile] = {}
    for file in files:
        real = file.uri if is_uri(file.uri) else os.path.realpath(file.uri)
        if real not in kept or real == file.uri:
            kept[real] = file
    if len(kept) < len(files):
        left_out["links to others"] += len(files) - len(kept)
    return sorted(kept.values(), key=lambda file: file.uri)


def _local_file(path: Path) -> SourceFile:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"corpus.paths: {str(path)!r} is not UTF-8; rename the file") from None
    stat = path.stat()
    return SourceFile(str(path), stat.st_size, f"{stat.st_mtime_ns} {stat.st_ctime_ns}")


def _stored_file(uri: str, filesystem: pafs.FileSystem, info: pafs.FileInfo) -> SourceFile:
    if not isinstance(filesystem, pafs.PyFileSystem):
        return SourceFile(uri, info.size, str(info.mtime_ns))
    fs = filesystem.handler.fs
    if not uri.startswith(("http://", "https://")):
        return SourceFile(uri, info.size, str(fs.ukey(info.path)))
    told = fs.info(info.path)  # for fsspec an address alone tells one content from another
    version = next((told[name] for name in WEB_VERSIONS if told.get(name)), None)
    if version is None or info.size is None:
        what = "how large it is" if info.size is None else "when it changes (ETag, Last-Modified)"
        raise MissingError(
            f"corpus.paths: {uri}: its server does not say {what}, so it could change unseen while "
            "it is read in parts; download it and give the file"
        )
    return SourceFile(uri, info.size, str(version))


def _check_splits(folder: str, names: Iterable[str]) -> None:
    """Raises UserError if a folder or one below it holds more than one split: as folders of such
    names, or as files that all bear one."""
    folders: defaultdict[PurePosixPath, set[str]] = defaultdict(set)
    files: defaultdict[PurePosixPath, list[str]] = defaultdict(list)
    for path in map(PurePosixPath, names):
        files[path.parent].append(path.name)
        for parent in list(path.parents)[:-1]:
            folders[parent.parent].add(parent.name)
    for place in sorted(folders.keys() | files.keys()):
        found = {  # by split, its name there and what to give for it
            SPLITS[name.lower()]: (name, name)
            for name in sorted(folders[place])
            if name.lower() in SPLITS
        }
        words = [[*SPLIT_WORD.finditer(name)][-1:] for name in sorted(files[place])]
        if all(words):
            for name, (word,) in zip(sorted(files[place]), words, strict=True):
                alike = sum(other[1] == word[1] for (other,) in words)
                one = name if alike == 1 else f"{name[: word.end()]}*"
                found.setdefault(SPLITS[word[1].lower()], (word[1], one))
        if len(found) > 1:
            splits = [found[split] for split in dict.fromkeys(SPLITS.values()) if split in found]
            where = folder if str(place) == "." else _inside(folder, str(place))
            raise _splits_found(where, [name for name, _ in splits], _inside(where, splits[0][1]))


def _splits_found(place: str, splits: Iterable[str], one: str) -> UserError:
    return UserError(
        f"corpus.paths: {place} holds the splits {', '.join(splits)}, which would be mixed; give "
        f"one, {one}"
    )


def _check_compression(uri: str, kind: str) -> None:
    """Raises UserError for a file whose name says it is compressed in a way that is not read."""
    end = PurePosixPath(_address(uri)).suffix.lower()
    is_table = kind in ("parquet", "arrow")
    if end in UNREAD_COMPRESSIONS or (is_table and COMPRESSIONS.get(end)):
        better = "decompress it" if is_table else "decompress it, or compress it as .gz or .zst"
        raise UserError(
            f"corpus.paths: {uri} is compressed as {end}, which is not read: its bytes are "
            f"not text; {better}"
        )


def _address(path: str) -> str:
    """A path, or a URI without its query."""
    return path.partition("?")[0] if is_uri(path) else path


def _described(folder: str, name: str, field: str) -> Any:
    """What a dataset's record says in a field; None if this is no such record."""
    with open_source(_inside(folder, name)) as file:
        content = json.loads(file.read())
    return content.get(field) if isinstance(content, dict) else None


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
