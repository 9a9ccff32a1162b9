"""The TCP connection under an SSH connection, with the socket handling that asyncssh leaves to the defaults.

asyncssh can be given an object that opens the connection it runs over (its `tunnel` option). Standing in that
place lets us use only its public interface and still decide how bytes meet the socket:

- every received byte is seen, so that "is the other end alive" and the round trip are measured on the wire;
- acknowledgements are sent at once (Linux: TCP_QUICKACK, which does not stick and is set after each read): a
  server with Nagle's algorithm on otherwise waits 40 ms for them;
- packets written in one turn of the event loop leave in one system call and one segment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .shortcut import READ_BUFFER, Shortcut, shortcut
from .straight import Straight

QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
WRITE_BUFFER = 256 * 1024
WRITE_AT_ONCE = 128 * 1024
GATHERED = 256 * 1024
"""Bytes that are worth a read where only the rate counts."""

GATHERING = 0.0005
"""Seconds until the next read after a smaller one. Event loops that count in milliseconds make it one."""

RTT_SAMPLES = 5
QUIET = 0.5
"""Seconds without a received byte after which the answer to our next packet is taken as a round trip."""


class Wire(asyncio.BufferedProtocol):
    """A TCP connection to the SSH server: to asyncssh the tunnel that it goes through, and its transport."""

    def __init__(self) -> None:
        self.logger = logging.getLogger(__name__)
        self.opened = False
        self.received = 0
        """Bytes that have arrived."""
        self.last_received = time.monotonic()
        self._ssh: Any = None
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._buffer = memoryview(bytearray(READ_BUFFER))
        self._held = 0
        """Bytes at the beginning of the buffer that wait for the rest of their packet."""
        self._shortcut: Shortcut | None = None
        self._straight: Straight | None = None
        self._out = memoryview(bytearray(WRITE_BUFFER))
        self._out_size = 0
        """Bytes at the beginning of that buffer that are to be sent."""
        self._flush_scheduled = False
        self._will_flush = False
        self._gathering = 0
        self._asked_at: float | None = None
        self._rtts: deque[float] = deque(maxlen=RTT_SAMPLES)

    @property
    def rtt(self) -> float | None:
        """The median of the last few round trips in seconds; None before the first one."""
        return statistics.median(self._rtts) if self._rtts else None

    def observe_rtt(self, seconds: float) -> None:
        """Take a round trip that was measured elsewhere (opening a channel takes one)."""
        self._rtts.append(seconds)

    def take_shortcut(self, connection: Any) -> Shortcut | None:
        """Let channel data past asyncssh from now on, where that is known to work; return what sends it."""
        self._shortcut = shortcut(connection, self)
        return self._shortcut

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """For the length of a `with` block, let more arrive before it is read.

        Whoever reads faster than the other end sends wakes up for each packet, and so does whoever gets it next:
        that takes the CPU time which the other end would use on the same machine, and the battery's on another.
        """
        self._gathering += 1
        try:
            yield
        finally:
            self._gathering -= 1

    # -- what asyncssh calls on a tunnel

    async def create_connection(
        self, session_factory: Callable[[], Any], remote_host: str, remote_port: int
    ) -> tuple[Any, Any]:
        """Open the TCP connection (RFC 8305: addresses of both families raced) and put SSH on it."""
        self._ssh = session_factory()
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self, remote_host, remote_port, happy_eyeballs_delay=0.25
            )
        except ValueError as exc:  # a label that is empty or too long: no name that could be asked for
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from exc
        return self, self._ssh

    # -- what asyncssh calls on its transport

    def write(self, data: bytes) -> None:
        size = len(data)
        if size <= WRITE_BUFFER:
            self.room(size)[:] = data
            self.written(size)
        elif self._straight is not None:
            self.flush()
            self._straight.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self.flush()
            self._transport.abort()
            self._transport = None

    def close(self) -> None:
        self.abort()

    async def wait_closed(self) -> None:
        """There is nothing to wait for: an aborted connection is gone."""

    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default) if self._transport else default

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._socket = transport.get_extra_info("socket")
        self._straight = Straight(transport)
        self.opened = True
        self.last_received = time.monotonic()
        self._ssh.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._held :]

    def buffer_updated(self, nbytes: int) -> None:
        now = time.monotonic()
        self.last_received = now
        self.received += nbytes
        if self._asked_at is not None:
            self._rtts.append(now - self._asked_at)
            self._asked_at = None
        if QUICKACK is not None and self._socket is not None and self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
        if self._shortcut is None:
            self._ssh.data_received(bytes(self._buffer[:nbytes]), None)
            return
        end = self._held + nbytes
        taken = self._shortcut.receive(self._buffer[:end])
        self._held = end - taken
        if self._held and taken:
            self._buffer[: self._held] = self._buffer[taken:end]
        if self._gathering and nbytes < GATHERED and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(GATHERING, self._read_on)

    def eof_received(self) -> bool:
        self._ssh.eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._socket = None
        if self._straight is not None:
            self._straight.close()
            self._straight = None
        self._ssh.connection_lost(exc)

    # -- for whoever has packets to send

    def room(self, size: int) -> memoryview:
        """Return where to put the next bytes for the wire, at most 256 KiB; tell `written` then."""
        if self._out_size + size > WRITE_BUFFER:
            self.flush()
        return self._out[self._out_size : self._out_size + size]

    def written(self, size: int) -> None:
        """Send what was put where `room` said: at the end of this turn of the event loop, or before."""
        if self._transport is None:
            return
        if self._asked_at is None:
            now = time.monotonic()
            if now - self.last_received > QUIET:
                self._asked_at = now
        self._out_size += size
        if self._out_size >= WRITE_AT_ONCE:
            self.flush()
        elif not self._flush_scheduled and not self._will_flush:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_scheduled_now)

    def hold(self) -> None:
        """Leave it to the caller, who calls `flush` in this turn of the event loop, to send what is written now."""
        self._will_flush = True

    def flush(self) -> None:
        """Send now what would be sent at the end of this turn of the event loop."""
        self._will_flush = False
        size, self._out_size = self._out_size, 0
        if size and self._straight is not None:
            self._straight.write(self._out[:size])

    # -- helpers

    def _read_on(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def _flush_scheduled_now(self) -> None:
        self._flush_scheduled = False
        self.flush()
