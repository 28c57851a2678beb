"""A folder as a bucket on loopback, for reading alone: what S3 answers to HEAD, to GET of a range
and to a listing, each from the file itself without reading the rest of it.

    with served(folder) as server:   # s3://BUCKET/… for this process and those that it starts
        ...
        server.counts()

moto, which the tests use, copies a whole object for each range of it. Requests are neither checked
for their signature nor encrypted.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen
from xml.sax.saxutils import escape

BUCKET = "folder"
PAGE = 1000
"""Names in a page of a listing, as in S3."""
COUNTS = "/counts"


@dataclass(frozen=True)
class FolderServer:
    """A server that runs in a process of its own."""

    url: str

    def counts(self) -> dict[str, int]:
        """Requests so far, and bytes of objects that were sent."""
        with urlopen(self.url + COUNTS) as answer:
            return json.load(answer)


@contextmanager
def served(folder: Path) -> Iterator[FolderServer]:
    """Serve a folder as ``BUCKET``, which the environment of this process names."""
    command = [sys.executable, __file__, str(folder.resolve())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    variables = {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1"}
    variables |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "benchmark")
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield FolderServer(url)
    finally:
        process.kill()
        process.wait()
        for name in variables:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in variables if name in before})


def serve(folder: Path) -> None:
    """Serve until this process is killed; says the port."""
    Handler.folder = folder
    files = (path for path in folder.rglob("*") if path.is_file())
    Handler.names = sorted(str(path.relative_to(folder)) for path in files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


class Handler(BaseHTTPRequestHandler):
    """One connection, on a thread of its own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    lock = threading.Lock()
    num_requests = num_bytes = 0
    names: list[str]

    def do_HEAD(self) -> None:
        """Size and version of an object."""
        self._count(0)
        path = self._path()
        if path is None:
            self._answer(404, b"")
        else:
            self._head(200, path.stat())
            self.end_headers()

    def do_GET(self) -> None:
        """An object, a range of it, or a page of a listing."""
        parts = urlsplit(self.path)
        if parts.path == COUNTS:
            counts = {"requests": Handler.num_requests, "bytes": Handler.num_bytes}
            self._answer(200, json.dumps(counts).encode())
            return
        if "list-type" in (query := parse_qs(parts.query)):
            self._count(0)
            self._answer(200, self._listing(query).encode())
            return
        path = self._path()
        if path is None:
            self._count(0)
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            first, last = 0, stat.st_size - 1
            if span := self.headers.get("Range"):
                begin, end = span.removeprefix("bytes=").split("-")
                first, last = int(begin), min(int(end or last), last)
            self._count(last - first + 1)
            self._head(206 if span else 200, stat, first, last)
            self.end_headers()
            self.connection.sendfile(file, first, last - first + 1)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (its name)
        """Nothing."""

    def _path(self) -> Path | None:
        key = urlsplit(self.path).path.removeprefix(f"/{BUCKET}/")
        path = self.folder / key
        return path if path.is_file() else None

    def _head(self, status: int, stat: os.stat_result, first: int = 0, last: int = -1) -> None:
        self.send_response(status)
        size = stat.st_size if last < 0 else last - first + 1
        self.send_header("Content-Length", str(size))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{stat.st_size}")
        self.send_header("Last-Modified", formatdate(stat.st_mtime, usegmt=True))
        self.send_header("ETag", f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _listing(self, query: dict[str, list[str]]) -> str:
        prefix, after = (query.get(name, [""])[0] for name in ("prefix", "continuation-token"))
        found = [n for n in Handler.names if n.startswith(prefix) and n > after][: PAGE + 1]
        objects = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{(self.folder / name).stat().st_size}"
            "</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for name in found[:PAGE]
        )
        is_cut = len(found) > PAGE
        last = escape(found[:PAGE][-1]) if found else ""
        token = f"<NextContinuationToken>{last}</NextContinuationToken>"
        return (
            f"<ListBucketResult><IsTruncated>{str(is_cut).lower()}</IsTruncated>"
            f"{token if is_cut else ''}{objects}</ListBucketResult>"
        )

    def _count(self, num_bytes: int) -> None:
        with Handler.lock:
            Handler.num_requests += 1
            Handler.num_bytes += num_bytes


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
