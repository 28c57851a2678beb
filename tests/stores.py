"""A real S3 server on loopback, whose conditional writes are atomic and which can be made to
fail."""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from werkzeug.datastructures import EnvironHeaders
from werkzeug.serving import BaseWSGIServer, make_server

from glray.files import StorePath

BUCKET = "storage"


Headers = EnvironHeaders


def _nothing(request: str, headers: Headers) -> bool:
    return False


class StoreServer:
    """moto's S3, one request at a time: it looks whether an object is there, and then writes it."""

    def __init__(self) -> None:
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        server: BaseWSGIServer | None = self._moto._server
        assert server is not None
        self._app, self._lock = server.app, threading.Lock()
        server.app = self._answer
        self.requests: list[str] = []
        """``PUT /storage/a`` and so on."""
        self.ranges: list[str] = []
        """``bytes=0-99`` and so on, of the requests that name one."""
        self._status = ""
        self._refuses: Callable[[str, Headers], bool] = _nothing
        self._is_breaking = False

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._moto.get_host_and_port()
        return f"http://{host}:{port}"

    def listen(self, listening: socket.socket) -> str:
        """Listen at a further socket too, as long as this process lives; the URL."""
        host, port = listening.getsockname()
        server = make_server(host, port, self._answer, threaded=True, fd=listening.detach())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://{host}:{port}"

    def stop(self) -> None:
        """End it."""
        self._moto.stop()

    @contextmanager
    def refusing(
        self, status: str, refuses: Callable[[str, Headers], bool] = lambda *_: True
    ) -> Iterator[None]:
        """Answer some requests, by default all, with a status like ``503 Slow Down``, within the
        block."""
        self.refuse(status, refuses)
        try:
            yield
        finally:
            self.recover()

    def refuse(
        self, status: str, refuses: Callable[[str, Headers], bool] = lambda *_: True
    ) -> None:
        """The same from now on."""
        self._status, self._refuses = status, refuses

    def recover(self) -> None:
        """Refuse nothing any more."""
        self._refuses = _nothing

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Reset the connection of the next request within the block."""
        self._is_breaking = True
        yield
        assert not self._is_breaking, "there was no request"

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        query = environ.get("QUERY_STRING")
        self.requests.append(request)
        if self._is_breaking:
            self._is_breaking = False
            connection: socket.socket = environ["werkzeug.socket"]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(connection.detach())
            raise ConnectionResetError
        headers = EnvironHeaders(environ)
        if "Range" in headers:
            self.ranges.append(headers["Range"])
        if self._refuses(f"{request}?{query}" if query else request, headers):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(self._status, [("Content-Length", "0")])
            return [b""]
        with self._lock:
            return self._app(environ, start_response)


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "glray",
    "AWS_SECRET_ACCESS_KEY": "glray",
    "AWS_REGION": "us-east-1",
}


@contextmanager
def serving() -> Iterator[StoreServer]:
    """A server with an empty bucket ``BUCKET``, which the environment of this process names."""
    server = StoreServer()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": server.url}).items():
            patch.setenv(name, value)
        boto3.resource("s3").create_bucket(Bucket=BUCKET)
        yield server
    server.stop()


def emptied() -> StorePath:
    """The bucket's root, without objects."""
    boto3.resource("s3").Bucket(BUCKET).objects.delete()
    return StorePath(f"s3://{BUCKET}")
