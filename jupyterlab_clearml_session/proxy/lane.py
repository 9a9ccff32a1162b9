"""A browser's connection on which requests are answered without tornado, one after the other.

It is taken from tornado with a request that may go the short way (`express`) or whose answer is large, and given
back with the first one that may not, or when nothing has come for a while. Requests that differ only in their
target, which is most of what a page asks, are read by comparing bytes. What is done with them and with their
headers is decided by `Relay`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPServerRequest, RequestStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.log import access_log

from ..errors import ClearMLSessionError, InvalidInput
from ..ssh.straight import Straight
from . import answers, http1, sockets
from .admissions import SECONDS, Admission
from .relay import LargeAnswer, Relay
from .services import Service
from .state import ProxyState

MAX_UNREAD = 64 * 1024
"""Bytes that may wait behind a request that is being answered."""

MAX_SHAPES = 16
"""How many heads are remembered that differ in more than their target."""

WRITE_LIMIT = 256 * 1024
_LINE = re.compile(rb"(GET|HEAD) (/[\x21-\x7e]*) HTTP/1\.1")


@dataclass(frozen=True)
class Passage:
    """A request that may go the short way, and where to."""

    request: HTTPServerRequest
    service: Service
    path: str
    admission: Admission


Known = dict[tuple[str, Service], Admission]
"""Admissions of requests with the same headers, by method and service."""


@dataclass(frozen=True)
class _Shape:
    """All of a request's head but its first line, and what was found out about requests with it."""

    headers: HTTPHeaders
    known: Known


class Lane(asyncio.Protocol):
    """`find` says whether a request may go this way. Await `run` once."""

    def __init__(
        self,
        server: HTTPServer,
        settings: dict[str, Any],
        find: Callable[[HTTPServerRequest, Known], Passage | None],
    ) -> None:
        self._server = server
        self._settings = settings
        self._find = find
        self._transport: asyncio.Transport
        self._first: HTTPServerRequest
        self._shapes: dict[bytes, _Shape] = {}
        self._unread = b""
        self._relay: Relay | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._straight: Straight | None = None
        self._timer: asyncio.TimerHandle
        self._quiet = False

    @property
    def _ended(self) -> bool:
        """True from when nothing more is read: the browser has gone, or its connection ends with what was sent."""
        return self._transport.is_closing()

    async def run(self, stream: IOStream, first: Passage) -> None:
        """Answer `first` and what follows on its connection; return when that has ended or was given back."""
        try:
            await self._take(stream, first.request)
        except StreamClosedError:
            return
        await self.go_on(first)

    async def lead(self, stream: IOStream, relay: Relay, request: HTTPServerRequest) -> LargeAnswer:
        """Take the connection of a request that `relay` is answering; await `go_on` when it has.

        Raises StreamClosedError where that has ended.
        """
        self._relay = relay
        await self._take(stream, request)
        return _Answer(self, request)

    async def go_on(self, first: Passage | None = None) -> None:
        """Answer what comes on the connection; return when that has ended or was given back."""
        self._relay = None
        try:
            passage = first or await self._next()
            while passage is not None:
                await self._answer(passage)
                passage = await self._next()
            if not self._ended:
                await self._give_back()
        except StreamClosedError:
            return
        finally:
            self._timer.cancel()
            self._transport.close()

    async def _take(self, stream: IOStream, request: HTTPServerRequest) -> None:
        self._first = request
        self._unread, own = sockets.take_over(stream)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: self, own)
        if len(self._unread) > MAX_UNREAD:
            self._transport.pause_reading()
        self._timer = loop.call_later(SECONDS, self._look)

    # -- one request

    async def _next(self) -> Passage | None:
        """Wait for a request; None where tornado has to read it, or the connection has ended."""
        while not self._unread:
            if self._ended or self._quiet:
                return None
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
            self._waiting = None
        head, end, rest = self._unread.partition(http1.END_OF_HEAD)
        passage = self._passage(head) if end and not self._ended else None
        if passage is not None:
            self._unread = rest
            if len(rest) <= MAX_UNREAD:
                self._transport.resume_reading()
        return passage

    def _passage(self, head: bytes) -> Passage | None:
        """Return how the request may go whose head this is; None where there is anything to it."""
        if len(head) > http1.MAX_HEAD:
            return None
        line, _, rest = head.partition(b"\r\n")
        match = _LINE.fullmatch(line)
        shape = self._shape(rest) if match is not None else None
        if match is None or shape is None:
            return None
        try:
            request = HTTPServerRequest(
                start_line=RequestStartLine(match[1].decode(), match[2].decode(), "HTTP/1.1"),
                headers=shape.headers,
                connection=self._first.connection,
                server_connection=self._first.server_connection,
            )
        except HTTPInputError:
            return None
        return self._find(request, shape.known)

    def _shape(self, head: bytes) -> _Shape | None:
        """Return what the head's other lines say; None where two servers could read them differently."""
        shape = self._shapes.get(head)
        if shape is not None:
            return shape
        fields = http1.fields(head.split(b"\r\n"))
        if fields is None or len({name.lower() for name, _ in fields}) < len(fields):
            return None
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes.clear()
        shape = self._shapes[head] = _Shape(HTTPHeaders(), {})
        for name, value in fields:
            shape.headers.add(name, value)
        return shape

    async def _answer(self, passage: Passage) -> None:
        request = passage.request
        answer = _Answer(self, request)
        relay = self._relay = Relay(
            request,
            answer,
            ProxyState.of(self._settings),
            service=passage.service,
            path=passage.path,
            by_token=passage.admission.by_token,
            log=access_log,
        )
        try:
            await relay.start(self._settings["clearml_session_manager"])
            await relay.run()
        except ClearMLSessionError as exc:
            answer.last |= isinstance(exc, InvalidInput)  # nothing more is read after it, as the whole way
            await answer.finish_failed(exc)
        except BaseException:
            self.reset()
            raise
        finally:
            self._relay = None
            relay.close()
        if answer.status >= 400 and "log_function" in self._settings:
            user = passage.admission.user
            self._settings["log_function"](_Logged(request, self._settings, user, answer.status))

    # -- for the answer

    def write(self, data: bytes) -> None:
        """Send bytes to the browser. Raises StreamClosedError where it has gone."""
        if self._ended:
            raise StreamClosedError
        self._transport.write(data)

    def lend(self, data: bytes | memoryview) -> asyncio.Future[None] | None:
        """Send bytes, which may change afterwards; return what to wait for before more is sent, if anything."""
        if not self._ended:
            self._straight = self._straight or Straight(self._transport)
            self._straight.write(data)
        return self._writable

    def end(self) -> None:
        """End the connection when what was sent has arrived."""
        self._transport.close()

    async def drain(self) -> None:
        """Wait until the browser takes more. Raises StreamClosedError where it has gone."""
        if self._writable is not None:
            await self._writable
        if self._ended:
            raise StreamClosedError

    def reset(self) -> None:
        """End the connection so that what was sent does not look complete."""
        if not self._ended:
            sockets.reset_on_close(self._transport.get_extra_info("socket"))
        self._transport.abort()

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_LIMIT)

    def data_received(self, data: bytes) -> None:
        self._quiet = False
        self._unread = self._unread + data if self._unread else data
        if len(self._unread) > MAX_UNREAD:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._straight is not None:
            self._straight.close()
        if self._relay is not None:
            self._relay.close()
        self.resume_writing()
        self._wake()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # -- helpers

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _look(self) -> None:
        """Give the connection back where nothing has come since the last look."""
        if self._quiet:
            self._wake()
        self._quiet = True
        self._timer = asyncio.get_running_loop().call_later(SECONDS, self._look)

    async def _give_back(self) -> None:
        """Let tornado go on with the connection, and with what was read from it."""
        self._transport.pause_reading()
        self._transport.set_write_buffer_limits(high=0)
        await self.drain()
        own = self._transport.get_extra_info("socket").dup()
        stream = sockets.Resumed(
            own,
            self._unread,
            max_buffer_size=self._server.max_buffer_size,
            read_chunk_size=self._server.read_chunk_size,
        )
        ProxyState.of(self._settings).admissions.move(self._first, stream)
        accepted: Any = self._first.connection
        self._server.handle_stream(stream, accepted.context.address)


class _Answer:
    """A `relay.Answer` on the browser's connection itself."""

    def __init__(self, lane: Lane, request: HTTPServerRequest) -> None:
        self.status = 200
        self.last = request.headers.get("Connection", "").lower() == "close"
        """Whether the connection ends with this answer."""
        self._lane = lane
        self._has_body = request.method != "HEAD"
        self._chunked = False
        self._head: http1.Headers | None = None
        self._reason = ""
        self._chunks: list[bytes] = []

    def begin(self, status: int, reason: str, headers: http1.Headers) -> None:
        self.status = status
        self._reason = reason
        self._head = headers

    def offer_xsrf(self) -> None:
        """Pages get it the whole way."""

    def write(self, chunk: bytes) -> None:
        if self._has_body:
            self._chunks.append(chunk)

    async def flush(self) -> None:
        self._send()
        await self._lane.drain()

    async def finish(self, chunk: bytes | None = None) -> None:
        if chunk:
            self.write(chunk)
        self._send(last=True)
        await self._lane.drain()
        if self.last:
            self._lane.end()

    async def finish_failed(self, exc: ClearMLSessionError) -> None:
        """Say why there is no answer of the service."""
        status, headers, body = answers.failure(exc, page=False)
        self._chunks.clear()
        self.begin(status, answers.reason(status), headers)
        await self.finish(body)

    async def straight(self) -> LargeAnswer | None:
        return self

    def lend(self, data: bytes | memoryview) -> asyncio.Future[None] | None:
        return self._lane.lend(data)

    def reset(self) -> None:
        self._lane.reset()

    def detach(self) -> IOStream:
        raise NotImplementedError("only plain requests go this way")

    def _send(self, *, last: bool = False) -> None:
        """Put what there is on the wire, framed; with `last`, also the body's end."""
        parts = self._chunks
        self._chunks = []
        if self._chunked:
            parts = http1.chunk(parts)
        if self._head is not None:
            headers, self._head = self._head, None
            has_length = any(name.lower() == "content-length" for name, _ in headers)
            if self._has_body and not has_length and self.status not in (204, 304):
                if last:
                    headers = [*headers, ("Content-Length", str(sum(map(len, parts))))]
                else:
                    self._chunked = True
                    headers = [*headers, ("Transfer-Encoding", "chunked")]
                    parts = http1.chunk(parts)
            if self.last:
                headers = [*headers, ("Connection", "close")]
            parts = [http1.answer_head(self.status, self._reason, headers), *parts]
        if last and self._chunked:
            parts = [*parts, http1.LAST_CHUNK]
        if parts:
            self._lane.write(parts[0] if len(parts) == 1 else b"".join(parts))


@dataclass(frozen=True)
class _Logged:
    """What Jupyter's log asks of a handler."""

    request: HTTPServerRequest
    settings: dict[str, Any]
    current_user: Any
    status: int

    def get_status(self) -> int:
        return self.status
