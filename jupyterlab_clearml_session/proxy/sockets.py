"""A browser's connection, taken from tornado and given back. Only for plain sockets: TLS belongs to its stream."""

from __future__ import annotations

import socket
import struct
from typing import Any

from tornado.concurrent import Future
from tornado.iostream import IOStream


def take_over(stream: IOStream) -> tuple[bytes, socket.socket]:
    """Take a connection from its stream: what that had read from it already, and the socket.

    Raises StreamClosedError where it has ended.
    """
    read: Future[bytes] = stream.read_bytes(stream.max_buffer_size, partial=True)  # type: ignore[assignment]
    data = read.result() if read.done() else b""
    own: socket.socket = stream.socket.dup()
    stream.close()  # a read that waits ends; it has taken nothing from the socket
    read.exception()
    return data + stream.unread() if isinstance(stream, Resumed) else data, own


class Resumed(IOStream):
    """The stream of a socket of which some bytes, which it begins with, had been read already."""

    def __init__(self, own: socket.socket, first: bytes, **options: Any) -> None:
        self._first = memoryview(first)
        super().__init__(own, **options)

    def unread(self) -> bytes:
        """Return what it has not got round to reading of those bytes."""
        return bytes(self._first)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """As tornado's."""
        if not self._first:
            return super().read_from_fd(buf)
        size = min(len(buf), len(self._first))
        buf[:size] = self._first[:size]
        self._first = self._first[size:]
        return size


def reset_on_close(own: socket.socket) -> None:
    """Let the browser see a reset instead of an end: what it got must not look like a complete answer."""
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
