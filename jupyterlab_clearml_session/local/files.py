"""The file server: artifacts and uploads, stored below one directory.

``POST`` of a multipart form stores each part under its field name (so the SDK uploads), ``PUT`` stores the body
under the path, ``GET`` and ``DELETE`` take the path. Every call needs the API's credentials. Nothing is held in
memory, whatever its size.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import mimetypes
import re
import shutil
import tempfile
import urllib.parse
from pathlib import Path
from typing import BinaryIO, cast

from tornado.http1connection import HTTP1Connection
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from .api.auth import Authenticator
from .api.errors import ApiError

_CHUNK = 1 << 20
_LARGEST_FILE = 1 << 40
_BOUNDARY = re.compile(r'boundary="?([^";]+)"?')
_PART_NAME = re.compile(rb'[; ]name="([^"]*)"')


class FileServer(Application):
    """The file server as a tornado application; files are kept below ``directory``."""

    def __init__(self, authenticator: Authenticator, directory: Path) -> None:
        self.authenticator = authenticator
        self.directory = directory.resolve()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__([(r"/(.*)", FileHandler)], log_function=lambda handler: None)

    def path_of(self, name: str) -> Path:
        """Where the file of this URL path is kept. 400 where it would lie outside of the directory."""
        path = (self.directory / urllib.parse.unquote(name).lstrip("/")).resolve()
        if path == self.directory or self.directory not in path.parents:
            raise HTTPError(400, reason="Invalid file name")
        return path


@stream_request_body
class FileHandler(RequestHandler):
    """One file."""

    application: FileServer
    _body: BinaryIO | None = None

    def prepare(self) -> None:
        try:
            self.application.authenticator.check(self.request.headers.get("Authorization"))
        except ApiError as error:
            raise HTTPError(401, reason="Unauthorized") from error
        if self.request.method in ("POST", "PUT"):
            # tornado's own limit is meant for bodies that are held in memory.
            cast(HTTP1Connection, self.request.connection).set_max_body_size(_LARGEST_FILE)
            self._body = cast(BinaryIO, tempfile.TemporaryFile(dir=self.application.directory))  # noqa: SIM115

    def data_received(self, chunk: bytes) -> None:
        if self._body is not None:
            self._body.write(chunk)

    async def get(self, name: str) -> None:
        path = self.application.path_of(name)
        if not path.is_file():
            raise HTTPError(404)
        self.set_header("Content-Length", path.stat().st_size)
        self.set_header("Content-Type", mimetypes.guess_type(path.name)[0] or "application/octet-stream")
        # What a session uploaded must never run as a page of this origin.
        self.set_header("Content-Disposition", "attachment")
        self.set_header("X-Content-Type-Options", "nosniff")
        if self.request.method == "HEAD":
            return
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self.write(chunk)
                await self.flush()

    async def head(self, name: str) -> None:
        await self.get(name)

    async def post(self, name: str) -> None:
        match = _BOUNDARY.search(self.request.headers.get("Content-Type", ""))
        if match is None or self._body is None:
            raise HTTPError(400, reason="Expected a multipart form")
        boundary = match.group(1).encode()
        stored = await asyncio.to_thread(_store_parts, self.application, name, self._body, boundary)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(stored))

    async def put(self, name: str) -> None:
        assert self._body is not None
        self._body.seek(0)
        await asyncio.to_thread(_write, self.application.path_of(name), self._body, None)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps([name]))

    def delete(self, name: str) -> None:
        path = self.application.path_of(name)
        if not path.is_file():
            raise HTTPError(404)
        path.unlink()

    def on_finish(self) -> None:
        self._close()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._close()

    def _close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _store_parts(server: FileServer, prefix: str, body: BinaryIO, boundary: bytes) -> list[str]:
    """Write every part of the form to its file; the paths as the real file server answers them.

    The body is read by offsets, in chunks: a part may be larger than the memory.
    """
    stored: list[str] = []
    marks = _find_boundaries(body, b"--" + boundary)
    for start, end in itertools.pairwise(marks):
        body.seek(start + len(boundary) + 4)
        name = ""
        while (line := body.readline(1 << 16).rstrip(b"\r\n")) != b"":
            match = _PART_NAME.search(line)
            if line.lower().startswith(b"content-disposition") and match:
                name = match.group(1).decode("utf-8", "replace")
        if not name:
            raise HTTPError(400, reason="A part has no name")
        path = "/".join(part.strip("/") for part in (urllib.parse.unquote(prefix), name) if part.strip("/"))
        _write(server.path_of(path), body, end - 2 - body.tell())
        stored.append(path)
    if not stored:
        raise HTTPError(400, reason="No part in the form")
    return stored


def _find_boundaries(body: BinaryIO, marker: bytes) -> list[int]:
    """The offsets of the marker on lines of its own, the closing one included."""
    pattern = re.compile(re.escape(b"\r\n" + marker) + rb"(?=\r\n|--)")
    overlap = len(marker) + 3  # one less than a whole match, so that none is seen twice
    found: list[int] = []
    body.seek(0)
    offset, tail = 0, b"\r\n"
    while chunk := body.read(_CHUNK):
        window = tail + chunk
        found += [offset - len(tail) + match.start() + 2 for match in pattern.finditer(window)]
        offset += len(chunk)
        tail = window[-overlap:]
    return found


def _write(path: Path, source: BinaryIO, length: int | None) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as target:
        if length is None:
            shutil.copyfileobj(source, target, _CHUNK)
        else:
            while length > 0 and (chunk := source.read(min(_CHUNK, length))):
                target.write(chunk)
                length -= len(chunk)
    Path(target.name).replace(path)
