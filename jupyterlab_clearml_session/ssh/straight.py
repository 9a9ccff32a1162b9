"""Writing to a connection of asyncio's from a buffer that is used again at once."""

from __future__ import annotations

import asyncio
import socket


class Straight:
    """Sends on a transport's own socket, without a copy, what that takes now; the transport sends the rest.

    `close` once the transport has lost its connection: until then the other end does not see the end of it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        own = transport.get_extra_info("socket")
        self._socket = socket.fromfd(own.fileno(), own.family, own.type)
        self._socket.setblocking(False)

    def write(self, data: bytes | memoryview) -> None:
        """As the transport's, but `data` may change once this returns."""
        transport = self._transport
        sent = 0
        if not transport.get_write_buffer_size() and not transport.is_closing():
            try:
                sent = self._socket.send(data)
            except OSError:
                sent = 0  # it takes nothing now, or is broken: the transport sees to either
        if sent < len(data):
            transport.write(bytes(data[sent:]))

    def close(self) -> None:
        """Give the socket up."""
        self._socket.close()
