"""An upgraded connection (WebSocket): bytes between the browser's socket and an SSH channel, both ways.

Frames are not parsed. Pings, close codes, compression and messages of any size pass as they are, and nothing waits
for the end of a message.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import TYPE_CHECKING

from tornado.iostream import IOStream, StreamClosedError

from ..errors import ConnectionLost, RemoteBadAnswer
from .http1 import ResponseHead

if TYPE_CHECKING:
    from ..ssh.channel import ByteStream

CHUNK = 64 * 1024
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

    def deliver(data: bytes) -> None:
        nonlocal paused
        try:
            written = stream.write(data)
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
        while data := await channel.read():
            await stream.write(data)
        await stream.write(b"")  # what was delivered leaves before the end does
    except (StreamClosedError, ConnectionLost):
        return
