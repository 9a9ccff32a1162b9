"""A local TCP port that leads to a port of the remote machine, on request only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import ClearMLSessionError, Conflict, ConnectionLost

if TYPE_CHECKING:
    from .channel import ByteStream
    from .tunnel import Tunnel

CHUNK = 128 * 1024
WAIT = 10.0
"""Seconds that a new local connection waits for a tunnel that reconnects."""


class ForwardedPort:
    """Listens on 127.0.0.1 and carries each connection over the tunnel. Made by `Tunnel.forward`."""

    def __init__(self, tunnel: Tunnel, remote_port: int) -> None:
        self.remote_port = remote_port
        self.local_port = 0
        self.on_closed: Callable[[], object] | None = None
        self._tunnel = tunnel
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, local_port: int = 0) -> None:
        """Open the local port (`Conflict` where it is in use)."""
        try:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", local_port)
        except OSError as exc:
            raise Conflict(f"The local port {local_port} is in use.", local_port=local_port) from exc
        self.local_port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the port and its connections."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self.on_closed is not None:
            self.on_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._connections.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            # Here and not in the task: one that is cancelled before its first step runs nothing of it.
            self._connections.discard(task)
            writer.transport.abort()  # the local client sees a closed connection, as with `ssh -L`

        task.add_done_callback(ended)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            channel = await self._tunnel.open_channel(self.remote_port, wait=WAIT)
        except ClearMLSessionError:
            return
        up = asyncio.create_task(_copy_up(reader, channel))
        down = asyncio.create_task(_copy_down(channel, writer))
        try:
            await asyncio.gather(up, down)
            writer.close()
            await writer.wait_closed()
        except (ConnectionLost, OSError):
            return  # one end broke; the other end is cut below, so that it notices
        finally:
            up.cancel()
            down.cancel()
            channel.abort()


async def _copy_up(reader: asyncio.StreamReader, channel: ByteStream) -> None:
    while data := await reader.read(CHUNK):
        channel.write(data)
        await channel.drain()
    channel.write_eof()


async def _copy_down(channel: ByteStream, writer: asyncio.StreamWriter) -> None:
    while data := await channel.read():
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
