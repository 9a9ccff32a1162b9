"""An upgraded connection (WebSocket): bytes between the browser's socket and an SSH channel, both ways.

Frames are not parsed. Pings, close codes, compression and messages of any size pass as they are, and nothing waits
for the end of a message.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from typing import TYPE_CHECKING

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from ..errors import ConnectionLost, RemoteBadAnswer
from ..ssh.straight import Straight
from .http1 import ResponseHead
from .sockets import take_over

if TYPE_CHECKING:
    from ..ssh.channel import ByteStream

CHUNK = 64 * 1024
READ_BUFFER = 256 * 1024
WRITE_LIMIT = 256 * 1024

_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def check_handshake(head: ResponseHead, key: str) -> None:
    """Check that the remote service accepted this WebSocket handshake (RFC 6455 4.1), or `RemoteBadAnswer`."""
    digest = hashlib.sha1(key.encode("latin-1") + _WEBSOCKET_GUID).digest()  # noqa: S324 -- the RFC's, no secret
    accepted = base64.b64encode(digest).decode("ascii")
    if head.get("upgrade").lower() != "websocket" or head.get("sec-websocket-accept") != accepted:
        raise RemoteBadAnswer("The remote service answered the WebSocket handshake with nonsense.")


async def splice(stream: IOStream, channel: ByteStream) -> None:
    """Carry bytes until one side ends, then end the other.

    A side that breaks instead of ending is passed on as a break: the browser sees an abnormal closure (1006), never
    a clean one.
    """
    stream.set_nodelay(True)
    if isinstance(stream, SSLIOStream):  # TLS belongs to its stream
        await _splice_stream(stream, channel)
    else:
        await _splice_socket(stream, channel)


# -- a plain socket, without tornado: its futures take longer than the bytes


async def _splice_socket(stream: IOStream, channel: ByteStream) -> None:
    browser = _Browser(channel)
    try:
        early, own = take_over(stream)
    except StreamClosedError:
        channel.close()
        return
    if early:
        browser.pass_on(memoryview(early))
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: browser, own)
    remote_end = asyncio.ensure_future(browser.until_remote_ends())
    try:
        await asyncio.wait((remote_end, browser.gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        remote_end.cancel()
        await asyncio.gather(remote_end, return_exceptions=True)
        transport.close()
        channel.close()


class _Browser(asyncio.BufferedProtocol):
    """The browser's socket: what arrives goes into the channel, what the channel delivers goes out."""

    def __init__(self, channel: ByteStream) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._channel = channel
        self._transport: asyncio.Transport | None = None
        self._straight: Straight | None = None
        self._buffer = memoryview(bytearray(READ_BUFFER))
        self._draining: asyncio.Task[None] | None = None

    async def until_remote_ends(self) -> None:
        """Deliver what the remote service sends; return when it has ended or the tunnel broke."""
        self._channel.deliver_to(self._deliver)
        with contextlib.suppress(ConnectionLost):
            await self._channel.read()

    def pass_on(self, data: memoryview) -> None:
        """Write to the channel, and stop reading from the browser while that takes no more."""
        try:
            self._channel.send(data)
        except ConnectionLost:
            if self._transport is not None:
                self._transport.close()
            return
        if self._channel.writing_paused and self._transport is not None:
            self._transport.pause_reading()
            self._draining = asyncio.ensure_future(self._read_on())

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._straight = Straight(transport)
        transport.set_write_buffer_limits(high=WRITE_LIMIT)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.pass_on(self._buffer[:nbytes])

    def pause_writing(self) -> None:
        self._channel.pause_delivery()

    def resume_writing(self) -> None:
        self._channel.resume_delivery()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._straight is not None:
            self._straight.close()
            self._straight = None
        if self._draining is not None:
            self._draining.cancel()
        if not self.gone.done():
            self.gone.set_result(None)

    # -- helpers

    async def _read_on(self) -> None:
        with contextlib.suppress(ConnectionLost):
            await self._channel.drain()
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _deliver(self, data: bytes | memoryview) -> None:
        if self._straight is not None:
            self._straight.write(data)


# -- a stream of tornado's


async def _splice_stream(stream: IOStream, channel: ByteStream) -> None:
    up = asyncio.ensure_future(_up(stream, channel))
    down = asyncio.ensure_future(_down(channel, stream))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        channel.close()
        stream.close()


async def _up(stream: IOStream, channel: ByteStream) -> None:
    try:
        while True:
            channel.write(await stream.read_bytes(CHUNK, partial=True))
            await channel.drain()
    except (StreamClosedError, ConnectionLost):
        return


async def _down(channel: ByteStream, stream: IOStream) -> None:
    paused = False

    def deliver(data: bytes | memoryview) -> None:
        nonlocal paused
        try:
            written = stream.write(bytes(data))
        except StreamClosedError:
            return  # `_up` meets it as well, and ends the splice
        if not paused and stream.writing():
            paused = True
            channel.pause_delivery()
            written.add_done_callback(resume)

    def resume(_written: object) -> None:
        nonlocal paused
        paused = False
        channel.resume_delivery()

    channel.deliver_to(deliver)
    try:
        await channel.read()
        await stream.write(b"")  # what was delivered leaves before the end does
    except (StreamClosedError, ConnectionLost):
        return
