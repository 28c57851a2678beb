"""Places of files: a folder of this machine, or below the URL of an object store.

A place in a store is a ``StorePath``: it has pathlib's names and ways to look, list and read. Its
requests go through obstore, which takes endpoint, region and credentials from the environment
(``AWS_…``, ``GOOGLE_…``, ``AZURE_…``) and asks again while a store answers 5xx or not at all. An
error of a store is an OSError like any other, with the URL as its file.
"""

import errno
import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url
from upath.implementations.cloud import CloudPath
from upath.registry import register_implementation

from glray.errors import UserError

Answer = TypeVar("Answer")
PROTOCOLS = ("s3", "gs", "az")
"""Of the URLs that can be a storage."""
PATIENCE_SECONDS = 270.0
"""How long a request is repeated: stores are away for minutes. From 5 minutes on its signature
would expire."""
QUICK_SECONDS = 5.0
"""The same for a request that must not come late, and for the first one: a wrong address is no
reason to wait."""
CREDENTIAL = re.compile(
    r"://[^/@:]+:(?!\d+/)[^@]*@|[?&]sig=|[?&][^=&]*(secret|signature|token|password|[_-]key)", re.I
)
"""Found in a URL that holds a password or a key."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
REQUEST_BYTES = 8 * 2**20
"""Read or written in one request."""


@dataclass(frozen=True)
class ObjectStat:
    """What a store knows of an object."""

    st_size: int
    """Bytes."""
    st_mtime_ns: int
    e_tag: str | None


class StorePath(CloudPath):
    """A place in an object store, ``s3://bucket/a/b``. A folder is there as long as an object's
    name begins with it; it is neither made nor removed by itself."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """Its name in the bucket."""
        return self.path.partition("/")[2]

    @property
    def store(self) -> ObjectStore:
        """The bucket, asked with patience."""
        return self._store(PATIENCE_SECONDS)

    @property
    def quick_store(self) -> ObjectStore:
        """The bucket, for requests that end, well or not, within twice ``QUICK_SECONDS``."""
        return self._store(QUICK_SECONDS)

    def _store(self, seconds: float) -> ObjectStore:
        prefixes = ("AWS_", "GOOGLE_", "AZURE_")
        environment = frozenset(item for item in os.environ.items() if item[0].startswith(prefixes))
        return _connected(f"{self.protocol}://{self.drive}", seconds, environment)

    # ---- looking

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether an object of this name or below it is there."""
        return self.is_file() or self.is_dir()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether an object of this name is there."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether an object's name begins with this one."""
        with naming_store(self):
            return any(obstore.list(self.store, self.key, chunk_size=1))

    def stat(self, *, follow_symlinks: bool = True) -> ObjectStat:  # type: ignore[override]
        """Size and time of an object. Raises FileNotFoundError."""
        if not self.key:
            raise FileNotFoundError(errno.ENOENT, "a bucket is no object", str(self))
        with naming_store(self):
            meta = obstore.head(self.store, self.key)
        time_ns = round(meta["last_modified"].timestamp() * 1e9)
        return ObjectStat(meta["size"], time_ns, meta["e_tag"])

    def iterdir(self) -> Iterator["StorePath"]:
        """What lies directly below, in no order; nothing if nothing does."""
        with naming_store(self):
            found = obstore.list_with_delimiter(self.store, self.key or None)
        names = [meta["path"] for meta in found["objects"]] + list(found["common_prefixes"])
        for name in {name.rstrip("/").rpartition("/")[2] for name in names}:
            yield self / name

    def glob(self, pattern: str, **_: Any) -> Iterator["StorePath"]:
        """The objects and folders that match, in no order; ``**`` is not known."""
        *folders, last = pattern.split("/")
        places: list[StorePath] = [self]
        for part in folders:
            places = [below for place in places for below in place._matching(part)]
        for place in places:
            yield from (p for p in place._matching(last) if is_magic(last) or p.exists())

    def _matching(self, part: str) -> "list[StorePath]":
        if not is_magic(part):
            return [self / part]
        return [place for place in self.iterdir() if fnmatchcase(place.name, part)]

    def rglob(self, pattern: str, **_: Any) -> Iterator["StorePath"]:
        """All objects below whose last name matches, in no order, and no folders."""
        for name, _size in objects_below(self):
            if fnmatchcase(name.rpartition("/")[2], pattern):
                yield self / name

    # ---- reading

    def read_bytes(self) -> bytes:
        """The whole object. Raises FileNotFoundError."""
        with naming_store(self):
            return obstore.get(self.store, self.key).bytes().to_bytes()

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """The whole object, by default UTF-8; line ends as they are."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(  # type: ignore[override]  # what UPath has more is of no use here
        self, mode: str = "r", buffering: int = -1, encoding: str | None = None
    ) -> IO[Any]:
        """The whole object in memory, to read; ``glray.files.committed`` writes."""
        if mode not in ("r", "rb"):
            raise io.UnsupportedOperation(f"{self}: {mode}")
        content = io.BytesIO(self.read_bytes())
        return content if mode == "rb" else io.TextIOWrapper(content, encoding or "utf-8")

    # ---- changing

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: folders are names."""

    def unlink(self, missing_ok: bool = True) -> None:
        """Not known: ``glray.files.remove`` deletes, as long as the lease is this process's."""
        raise io.UnsupportedOperation(f"{self}: unlink")


for _protocol in PROTOCOLS:
    register_implementation(_protocol, StorePath, clobber=True)

AnyPath = Path | StorePath
"""Of this machine, or of a store."""


def as_path(text: str) -> AnyPath:
    """The path of a URL or of a file of this machine, ``~`` expanded. Raises UserError for a URL of
    another kind, or with a credential. Touches nothing."""
    if "://" not in text:
        return Path(os.path.expanduser(text))
    check_credentials(text)
    parts = urlsplit(text)
    if parts.scheme not in PROTOCOLS or not parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"{text}: files cannot be kept there: give {', '.join(f'{p}://' for p in PROTOCOLS)}"
            "BUCKET/FOLDER, with endpoint and region from the environment (AWS_ENDPOINT_URL, "
            "AWS_REGION), or a folder that every node sees"
        )
    return StorePath(text.rstrip("/"))


def check_credentials(text: str, field: str = "") -> None:
    """Raises UserError if a URL, of a spec's ``field`` perhaps, has a password or a key in it."""
    if "://" in text and CREDENTIAL.search(text):
        where = f"{field}: " if field else ""
        raise UserError(
            f"{where}a {text.partition(':')[0]}:// URL holds a credential, which would be written "
            "into records; set it in the environment instead (AWS_ACCESS_KEY_ID, …)"
        )


def is_magic(part: str) -> bool:
    """Whether a part of a path is a pattern."""
    return any(character in part for character in "*?[")


def objects_below(folder: StorePath) -> Iterator[tuple[str, int]]:
    """Name, as seen from the folder, and bytes of every object below it, in the order of names."""
    skip = len(folder.key) + 1 if folder.key else 0
    found = []
    with naming_store(folder):
        for page in obstore.list(folder.store, folder.key or None):
            found += [(meta["path"][skip:], meta["size"]) for meta in page]
    # Without the folder's own marker, an object that pyarrow leaves where it makes a folder.
    yield from sorted((name, size) for name, size in found if name)


def read_range(path: AnyPath, start: int, length: int) -> bytes:
    """``length`` bytes of a file from ``start`` on, fewer at its end."""
    if isinstance(path, Path):
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
    with naming_store(path):
        return obstore.get_range(path.store, path.key, start=start, length=length).to_bytes()


@contextmanager
def naming_store(path: StorePath) -> Iterator[None]:
    """Raise an error of a store as an OSError in plain words, with the URL as its file:
    FileNotFoundError, FileExistsError (it has changed, or is there, and must not), PermissionError,
    TimeoutError where the store could not be reached or answered 5xx until the end of patience."""
    try:
        yield
    except (BaseError, FileNotFoundError, ValueError) as error:
        raise _as_os_error(error, path) from None


def asked_again(
    path: StorePath, ask: Callable[[], Answer], seconds: float = QUICK_SECONDS
) -> Answer:
    """The answer to a request that is made again for so long where the store does not answer:
    obstore itself repeats no deletion and no conditional write where the connection broke. Done
    twice it must do no harm. Errors as ``naming_store``."""
    end = time.monotonic() + seconds
    while True:
        try:
            with naming_store(path):
                return ask()
        except TimeoutError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _as_os_error(error: Exception, path: StorePath) -> OSError:
    text = str(error).partition("\n\nDebug source")[0]
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"status code: (\d+)( [A-Z][\w ]*)?", text)
    said = f"{status[1]}{status[2] or ''}" if status else " ".join(text.split())[:200]
    if code and code[1] not in said:
        said += f", {code[1]}"
    if code and code[1] == "NoSuchBucket":
        return OSError(errno.ENOENT, "its bucket does not exist", str(path))
    if isinstance(error, FileNotFoundError):
        return OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return OSError(errno.EEXIST, "another process has written it", str(path))
    if re.search(r"Missing AccessKey|/latest/|169\.254\.|metadata\.google", text):  # of a role
        wanted = "no credentials: neither the environment (AWS_ACCESS_KEY_ID, …) nor a role has any"
        return OSError(errno.EACCES, wanted, str(path))
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return OSError(errno.EACCES, f"the store allows no such request ({said})", str(path))
    if status and (int(status[1]) < 500 or int(status[1]) == HTTPStatus.NOT_IMPLEMENTED):
        return OSError(errno.EIO, f"the store refuses the request ({said})", str(path))
    if status:
        return OSError(errno.ETIMEDOUT, f"the store answers {said}", str(path))
    if reached := re.search(r"performing \w+ (\w+://[^/ ]+)", text):
        return OSError(errno.ETIMEDOUT, f"the store does not answer at {reached[1]}", str(path))
    return OSError(errno.EIO, said, str(path))


@lru_cache(maxsize=32)
def _connected(url: str, seconds: float, environment: frozenset[tuple[str, str]]) -> ObjectStore:
    """The store of a bucket, whose requests are repeated for ``seconds``."""
    own = dict(environment)
    endpoint = own.get("AWS_ENDPOINT_URL_S3") or own.get("AWS_ENDPOINT_URL") or ""
    is_plain = url.startswith("s3:") and endpoint.startswith("http:")
    is_local = urlsplit(endpoint).hostname in LOOPBACK
    if is_plain and not is_local and own.get("AWS_ALLOW_HTTP", "").lower() != "true":
        raise UserError(
            f"AWS_ENDPOINT_URL {endpoint}: is not encrypted, so whoever listens could read and "
            "change weights; give an https:// address, or set AWS_ALLOW_HTTP=true in a network "
            "that you trust"
        )
    options: dict[str, Any] = {"timeout": timedelta(seconds=max(seconds / 3, QUICK_SECONDS))}
    if is_plain:
        options["allow_http"] = True  # given options outweigh AWS_ALLOW_HTTP
    retries: dict[str, Any] = {
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=seconds),
        "backoff": {"max_backoff": timedelta(seconds=max(0.2, min(5.0, seconds / 5)))},
    }
    return from_url(url, client_options=cast(Any, options), retry_config=cast(Any, retries))
