"""HTTP exchanges with a remote service over SSH channels: kept alive, and streamed both ways."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import ClearMLSessionError, ConnectionLost, RemoteBadAnswer, RemoteDeadline
from . import http1

if TYPE_CHECKING:
    from ..ssh.channel import ByteStream
    from ..ssh.tunnel import Tunnel

HEAVY = 1024 * 1024
"""Bytes of bodies after which an exchange counts as large."""

MAX_IDLE = 16
"""Idle channels that are kept per remote port and connection."""

IDLE_LIMIT = 60.0
FRESH = 4.0
"""Seconds that a channel may have been idle for a request that cannot be sent twice: servers hang up after 5."""

_GIVEN_UP = "Nobody waits for the answer any more."
_NO_ANSWER = "The remote service closed the connection without an answer."
_BROKEN_OFF = "The remote service broke off in the middle of its answer."

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


@dataclass
class _Idle:
    channel: ByteStream
    since: float = field(default_factory=time.monotonic)


class Pool:
    """What is kept of one tunnel: idle channels, by (port, bulk), and the names of cookies.

    A new channel waits `wait` seconds for a tunnel that breaks.
    """

    def __init__(self, tunnel: Tunnel, wait: float = 0.0) -> None:
        self._tunnel = tunnel
        self._wait = wait
        self.heavy = 0
        """Exchanges on the bulk connection that have proved large and go on."""
        self.cookies: defaultdict[int, set[str]] = defaultdict(set)
        """Names of the cookies that the service at a port has set (it may set at most 200)."""
        self._idle: dict[tuple[int, bool], list[_Idle]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def choose_bulk(self, hinted: bool) -> bool:
        """Say which connection an exchange should use.

        Small requests share the bulk connection while nothing large is on it, as nobody knows beforehand how long
        an answer gets; the interactive one, which WebSockets and kernels use, takes them only beside a large one.
        """
        ready = self._tunnel.bulk_ready
        return hinted or (ready and not self.heavy)

    async def take(self, port: int, *, bulk: bool, max_idle: float = IDLE_LIMIT) -> tuple[ByteStream, bool]:
        """Return a channel, and whether it was used before."""
        idle = self._idle.get((port, bulk), [])
        while idle:
            entry = idle.pop()
            usable = not entry.channel.closed and not entry.channel.readable
            if usable and time.monotonic() - entry.since < max_idle:
                return entry.channel, True
            entry.channel.abort()
        return await self._tunnel.open_channel(port, bulk=bulk, wait=self._wait), False

    async def take_prompt(self, port: int) -> ByteStream:
        """Return a new channel on which what the remote service sends is acknowledged at once."""
        return await self._tunnel.open_prompt_channel(port, wait=self._wait)

    async def take_wide(self, port: int) -> ByteStream:
        """Return a new channel for one large request body."""
        return await self._tunnel.open_wide_channel(port, wait=self._wait)

    def give_back(self, channel: ByteStream, port: int, *, bulk: bool) -> None:
        """Keep a channel on which an exchange has ended cleanly."""
        idle = self._idle.setdefault((port, bulk), [])
        if channel.closed or len(idle) >= MAX_IDLE:
            channel.abort()
            return
        idle.append(_Idle(channel))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_LIMIT, self._sweep)

    def close(self) -> None:
        """Close all idle channels."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for idle in self._idle.values():
            for entry in idle:
                entry.channel.abort()
        self._idle.clear()

    def _sweep(self) -> None:
        self._timer = None
        oldest = time.monotonic() - IDLE_LIMIT
        for key, idle in list(self._idle.items()):
            for entry in idle:
                if entry.since <= oldest or entry.channel.closed:
                    entry.channel.abort()
            self._idle[key] = [entry for entry in idle if not entry.channel.closed]
            if not self._idle[key]:
                del self._idle[key]
        if self._idle:
            self._timer = asyncio.get_running_loop().call_later(IDLE_LIMIT / 2, self._sweep)


class Exchange:
    """One request and its response on one channel.

    With `interactive` it never uses the bulk connection: for a WebSocket, beside which something large may begin.
    With `prompt` it takes a new channel of `Tunnel.open_prompt_channel` there: for one of Jupyter's. With `wide` it
    takes one of `Tunnel.open_wide_channel`: for a large body.

    Call `start`, then `send` for each piece of the body, `end_request`, `response`, iterate over `body`. `close` in
    every case: a channel whose exchange did not end cleanly is aborted, so that the remote notices.
    """

    def __init__(
        self,
        pool: Pool,
        port: int,
        method: str,
        *,
        bulk: bool = False,
        interactive: bool = False,
        prompt: bool = False,
        wide: bool = False,
    ) -> None:
        self.head: http1.ResponseHead | None = None
        self._pool = pool
        self._port = port
        self._method = method
        self._bulk = not interactive and pool.choose_bulk(bulk)
        self._moved = 0
        self._prompt = prompt
        self._wide = wide
        self._channel: ByteStream | None = None
        self._reused = False
        self._sent = b""
        self._chunked = False
        self._body_sent = False
        self._request_done = False
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None
        self._response_done = False
        self._closed = False

    @property
    def channel(self) -> ByteStream:
        """The channel; for whoever takes the exchange over (an upgraded connection).

        Raises ConnectionLost once the exchange is closed: what had arrived for it may wake its reader after that.
        """
        if self._channel is None:
            raise ConnectionLost(_GIVEN_UP)
        return self._channel

    async def start(self, head: bytes, *, chunked: bool, has_body: bool) -> None:
        """Take a channel and send the request head. Raises what `Tunnel.open_channel` raises."""
        max_idle = IDLE_LIMIT if self._method in IDEMPOTENT and not has_body else FRESH
        if self._prompt:
            self._use(await self._pool.take_prompt(self._port))
        elif self._wide:
            self._use(await self._pool.take_wide(self._port))
        else:
            channel, self._reused = await self._pool.take(self._port, bulk=self._bulk, max_idle=max_idle)
            self._use(channel)
        self._sent = head
        self._chunked = chunked
        try:
            if has_body:
                self.channel.write(head)  # leaves with the body's first piece
            else:
                self.channel.send(head)
        except ConnectionLost:
            if not self._reused:
                raise
            await self._start_again()

    async def send(self, data: bytes) -> None:
        """Send a piece of the request body; returns when the channel can take more."""
        if not data:
            return
        self._body_sent = True
        self._count(len(data))
        if self._chunked:
            self.channel.write(b"%x\r\n" % len(data))
            self.channel.write(data)
            self.channel.write(b"\r\n")
        else:
            self.channel.write(data)
        await self.channel.drain()

    def end_request(self) -> None:
        """Tell that the body is complete."""
        if self._chunked:
            self._body_sent = True  # its end, that is
            self.channel.write(http1.LAST_CHUNK)
        if self.channel.wide:
            self.channel.write_eof()
        self._request_done = True

    async def response(self, on_continue: Callable[[], None] | None = None) -> http1.ResponseHead:
        """Read the response head; interim responses (1xx) are passed over, 101 is final.

        A kept-alive channel that the remote closed before it answered is replaced once, where nothing can be
        done twice by that.

        Raises
        ------
        RemoteBadAnswer
            What came is no HTTP, or the remote closed the channel.
        RemoteDeadline
            It did not come within the time that `expire_after` set.
        ConnectionLost
            The tunnel broke.
        """
        try:
            return await self._response(on_continue)
        except ClearMLSessionError as exc:
            if self._expired:
                raise RemoteDeadline("The remote service did not answer in time.") from exc
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def expire_after(self, seconds: float) -> None:
        """From now on, wait for the response head for this long; then the channel is cut.

        A timer, because `asyncio.wait_for` makes a task of each wait, which small requests feel.
        """
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the response body as it arrives, decoded from chunks.

        Raises
        ------
        RemoteBadAnswer
            The body ended too early or is malformed.
        ConnectionLost
            The tunnel broke in the middle of it.
        """
        assert self.head is not None
        if self.head.chunked:
            async for data in self._chunks():
                self._count(len(data))
                yield data
        elif self.head.length is None:
            while data := await self.channel.read():
                self._count(len(data))
                yield data
        else:
            left = self.head.length
            while left:
                data = await self.channel.read(left)
                if not data:
                    raise RemoteBadAnswer(_BROKEN_OFF)
                left -= len(data)
                self._count(len(data))
                yield data
        self._response_done = True

    async def pour(self, sink: Callable[[bytes | memoryview], asyncio.Future[None] | None]) -> None:
        """Hand a body of known length to `sink`, as `ByteStream.pour` does. Raises as `body`."""
        assert self.head is not None
        assert self.head.length is not None

        def pass_on(data: bytes | memoryview) -> asyncio.Future[None] | None:
            self._count(len(data))
            return sink(data)

        try:
            await self.channel.pour(self.head.length, pass_on)
        except asyncio.IncompleteReadError as exc:
            raise RemoteBadAnswer(_BROKEN_OFF) from exc
        self._response_done = True

    def short_body(self) -> bytes:
        """Return the body where it came together with its head; otherwise nothing: iterate over it then."""
        length = self.head.length if self.head is not None else None
        data = self.channel.take(length) if length else b""
        self._response_done = self._response_done or bool(data)
        return data

    def close(self) -> None:
        """Give the channel back where the exchange ended cleanly; abort it otherwise."""
        channel, self._channel = self._channel, None
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if channel is None:
            return
        if self._bulk and self._moved >= HEAVY:
            self._pool.heavy -= 1
        clean = self._request_done and self._response_done and self.head is not None and self.head.keep_alive
        if clean and not channel.wide:
            self._pool.give_back(channel, self._port, bulk=self._bulk)
        else:
            channel.abort()

    # -- helpers

    def _use(self, channel: ByteStream) -> None:
        """Go on with a channel, unless the exchange was closed while that was being opened."""
        if self._closed:
            channel.abort()
            raise ConnectionLost(_GIVEN_UP)
        self._channel = channel

    def _count(self, size: int) -> None:
        light = self._moved < HEAVY
        self._moved += size
        if light and self._moved >= HEAVY and self._bulk:
            self._pool.heavy += 1

    def _expire(self) -> None:
        if self.head is None and self._channel is not None:
            self._expired = True
            self._channel.abort()

    async def _response(self, on_continue: Callable[[], None] | None) -> http1.ResponseHead:
        while True:
            head = http1.response_head(await self._read_head(), self._method)
            if head.status == 100 and on_continue is not None:
                on_continue()
            if head.status >= 200 or head.status == 101:
                self.head = head
                return head

    async def _start_again(self) -> None:
        self.channel.abort()
        channel, self._reused = await self._pool.take(self._port, bulk=self._bulk, max_idle=0.0)
        if self._body_sent:  # meanwhile: what was sent is lost, and the rest alone would look like all of it
            channel.abort()
            raise RemoteBadAnswer(_NO_ANSWER)
        self._use(channel)
        channel.write(self._sent)

    async def _read_head(self) -> bytes:
        buffer = b""
        while True:
            try:
                data = await self.channel.read()
            except ConnectionLost:
                if not self._can_start_again(buffer):
                    raise
                data = b""
            if not data:
                if self._can_start_again(buffer):
                    await self._start_again()
                    continue
                raise RemoteBadAnswer(_NO_ANSWER)
            buffer = buffer + data if buffer else data
            end = buffer.find(http1.END_OF_HEAD)
            if (len(buffer) if end < 0 else end) > http1.MAX_HEAD:
                raise RemoteBadAnswer("The remote service sent a head that is too long.")
            if end >= 0:
                self.channel.unread(buffer[end + 4 :])
                return buffer[:end]
            if not http1.may_begin_head(buffer):
                raise RemoteBadAnswer("The remote service does not speak HTTP.")

    def _can_start_again(self, buffer: bytes) -> bool:
        given_up = self._closed or self._expired
        # The service may have done what it was asked to. Not so where the body it waits for has not come.
        harmless = self._method in IDEMPOTENT or not self._request_done
        return self._reused and harmless and not buffer and not self._body_sent and not given_up

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := http1.chunk_size(await self._line()):
            left = size
            while left:
                data = await self.channel.read(left)
                if not data:
                    raise RemoteBadAnswer(_BROKEN_OFF)
                left -= len(data)
                yield data
            if await self._line():
                raise RemoteBadAnswer("The remote service sent a malformed chunk.")
        trailers = 0
        while line := await self._line(http1.MAX_HEAD):
            trailers += len(line)
            if trailers > http1.MAX_HEAD:
                raise RemoteBadAnswer("The remote service sent trailers that are too long.")

    async def _line(self, limit: int = http1.MAX_CHUNK_LINE) -> bytes:
        buffer = b""
        while (end := buffer.find(b"\r\n")) < 0 and len(buffer) <= limit:
            data = await self.channel.read()
            if not data:
                raise RemoteBadAnswer(_BROKEN_OFF)
            buffer = buffer + data if buffer else data
        if (len(buffer) if end < 0 else end) > limit:
            raise RemoteBadAnswer("The remote service sent a line that is too long.")
        self.channel.unread(buffer[end + 2 :])
        return buffer[:end]
