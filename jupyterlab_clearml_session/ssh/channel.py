"""One SSH channel as a pair of byte streams with backpressure: to a remote port, or to a remote process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import asyncssh
from asyncssh import EXTENDED_DATA_STDERR

from ..errors import ConnectionLost, RemoteBadAnswer
from .shortcut import PACKET, Shortcut

if TYPE_CHECKING:
    from .wire import Wire

PIECE = 256 * 1024
"""What one read returns at most. Handing on a piece costs more than joining packets to a large one."""

READ_LIMIT = 256 * 1024
"""Received bytes that may wait here for a reader before the channel is told to stop reading."""

WRITE_LIMIT = 256 * 1024
STDOUT_LIMIT = 64 * 1024 * 1024
STDERR_LIMIT = 64 * 1024


class ByteStream:
    """The two directions of a channel. One reader and one writer at a time.

    Reading after the end gives ``b""``. When the SSH connection breaks, what had arrived can still be read,
    and then `ConnectionLost` is raised: a broken stream never looks like a finished one.
    """

    takes_loans = True
    """Tells `shortcut` that `data_received` may be given a view that is good only until it returns."""

    wide = False
    """True where `write_eof` ends what is sent, and the stream is good for one exchange only (`lanes`)."""

    def __init__(self) -> None:
        self.opened_at = 0.0
        """When the other end said that the channel is open (monotonic clock)."""
        self._channel: Any = None
        self._chunks: deque[bytes | memoryview] = deque()
        self._size = 0
        self._eof = False
        self._lost: BaseException | None = None
        self._closed = False
        self._reading_paused = False
        self._delivery_paused = False
        self._writing_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes | memoryview], None] | None = None
        self._gone = asyncio.Event()
        self.shortcut: Shortcut | None = None
        """What sends data faster than asyncssh, where there is one."""
        self.wire: Wire | None = None
        """What carries the connection, where it can be told to send at once."""
        self.on_gone: Callable[[ByteStream], None] | None = None
        """Called once when the channel is gone on both sides."""

    # -- for the user of the stream

    @property
    def at_eof(self) -> bool:
        """True when the other end has finished and all it sent has been read."""
        return self._eof and not self._chunks

    @property
    def readable(self) -> bool:
        """True when a read would return at once: data, the end, or an error."""
        return bool(self._chunks) or self._eof

    @property
    def closed(self) -> bool:
        """True when nothing more can be written."""
        return self._closed or self._gone.is_set()

    @property
    def gone(self) -> bool:
        """True when the channel is gone on both sides; what arrived can still be read."""
        return self._gone.is_set()

    async def read(self, limit: int = -1) -> bytes:
        """Return what has arrived, at most `limit` bytes (by default 256 KiB); ``b""`` at the end.

        Raises
        ------
        ConnectionLost
            The SSH connection broke before the other end had finished.
        """
        chunks = self._chunks
        while not chunks:
            if self._finished():
                return b""
            await self._wait_readable()
        if limit < 0:
            limit = PIECE
        parts: list[bytes | memoryview] = []
        size = 0
        while chunks and size + len(chunks[0]) <= limit:
            parts.append(chunks.popleft())
            size += len(parts[-1])
        if not parts:
            first = memoryview(chunks.popleft())
            parts.append(first[:limit])
            chunks.appendleft(first[limit:])
        data = b"".join(parts)
        self._taken(len(data))
        return data

    def take(self, size: int) -> bytes:
        """Return exactly `size` bytes where they have arrived in one piece, otherwise nothing."""
        if not self._chunks or len(self._chunks[0]) < size:
            return b""
        first = memoryview(self._chunks.popleft())
        if len(first) > size:
            self._chunks.appendleft(first[size:])
        self._taken(size)
        return bytes(first[:size])

    async def readexactly(self, size: int) -> bytes:
        """Return exactly `size` bytes.

        Raises
        ------
        asyncio.IncompleteReadError
            The other end finished before.
        ConnectionLost
            The SSH connection broke before.
        """
        parts: list[bytes] = []
        missing = size
        while missing:
            part = await self.read(missing)
            if not part:
                raise asyncio.IncompleteReadError(b"".join(parts), size)
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def deliver_to(self, sink: Callable[[bytes | memoryview], None]) -> None:
        """Hand to `sink` what has arrived, and from now on all that arrives, at once. A view is lent for the call.

        `read` returns only at the end then. For where a turn of the event loop counts.
        """
        self._sink = sink
        while self._chunks and self._sink is sink:
            chunk = self._chunks.popleft()
            self._size -= len(chunk)
            sink(chunk)
        self._taken(0)

    def pause_delivery(self) -> None:
        """Ask the other end to stop; what is on its way is kept, and comes after `resume_delivery`."""
        self._delivery_paused = True
        self._channel.pause_reading()

    def resume_delivery(self) -> None:
        """Undo `pause_delivery`."""
        self._delivery_paused = False
        self._resume_reading()

    async def pour(
        self, size: int, sink: Callable[[bytes | memoryview], asyncio.Future[None] | None]
    ) -> None:
        """Hand the next `size` bytes to `sink`, each piece at once when it arrives; a view is lent for the call.

        `sink` may return what is to be waited for before it takes more. Raises as `readexactly`.
        """
        left = size

        def deliver(data: bytes | memoryview) -> None:
            nonlocal left
            piece, rest = data[:left], data[left:]
            left -= len(piece)
            full = sink(piece)
            if not left:
                self._sink = None
                self.unread(bytes(rest))
                self.resume_delivery()
                self._wake_reader()
            elif full is not None:
                self.pause_delivery()
                full.add_done_callback(go_on)

        def go_on(_: asyncio.Future[None]) -> None:
            if self._sink is deliver:
                self.resume_delivery()

        try:
            self.deliver_to(deliver)
            with self.wire.gathering() if self.wire is not None else contextlib.nullcontext():
                while left and not self._finished():
                    await self._wait_readable()
        finally:
            self._sink = None
        if left:
            raise asyncio.IncompleteReadError(b"", left)

    def unread(self, data: bytes) -> None:
        """Give back bytes that were read too far; the next read returns them first."""
        if data:
            self._chunks.appendleft(data)
            self._size += len(data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes for the other end. Await `drain` before writing much more.

        Raises
        ------
        ConnectionLost
            The channel is closed.
        """
        if self.closed:
            raise ConnectionLost("The SSH channel is closed.") from self._lost
        try:
            view = memoryview(data)
            sent = self.shortcut.send(self._channel, view) if self.shortcut is not None else 0
            for start in range(sent, len(view), PACKET):
                self._channel.write(view[start : start + PACKET])
        except OSError as exc:
            raise ConnectionLost("The SSH channel is closed.") from exc

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """As `write`, but the bytes leave now and not at the end of this turn of the event loop."""
        if self.wire is None:
            self.write(data)
            return
        self.wire.hold()
        try:
            self.write(data)
        finally:
            self.wire.flush()

    @property
    def writing_paused(self) -> bool:
        """True when `drain` would wait."""
        return self._writing_paused

    async def drain(self) -> None:
        """Wait until the other end has taken most of what was written (`ConnectionLost` if it never will)."""
        while self._writing_paused and not self.closed:
            if self._writer is None:
                self._writer = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._writer)
        if self.closed:
            raise ConnectionLost("The SSH channel is closed.") from self._lost

    def write_eof(self) -> None:
        """Tell the other end that nothing more will be written; reading goes on."""
        if not self.closed:
            self._channel.write_eof()

    def close(self) -> None:
        """Close after what was written is sent; what was not read is dropped."""
        if not self._closed:
            self._closed = True
            self._channel.close()
            self._wake()

    def abort(self) -> None:
        """Close now; what was not sent yet is dropped."""
        self._closed = True
        self._channel.abort()
        self._wake()

    def break_off(self) -> None:
        """As `abort`, where the SSH connection is closed under it: who reads is told that it is not the end."""
        self._broke(ConnectionLost("The SSH connection was closed."))
        self.abort()

    async def wait_closed(self) -> None:
        """Wait until the channel is gone on both sides."""
        await self._gone.wait()

    # -- called by asyncssh

    def connection_made(self, chan: Any) -> None:
        self._channel = chan
        self.opened_at = time.monotonic()
        chan.set_write_buffer_limits(high=WRITE_LIMIT)

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is None and self.wire is not None and self.wire.is_closing():
            # asyncssh tells of a connection that was aborted as of a channel that was closed.
            exc = ConnectionLost("The SSH connection was closed.")
        if exc is not None:
            self._broke(exc)
        self._eof = True
        self._gone.set()
        self._wake()
        if self.on_gone is not None:
            self.on_gone(self)

    def data_received(self, data: bytes | memoryview, datatype: int | None) -> None:
        if self._sink is not None and not self._chunks:
            self._sink(data)
            return
        self._chunks.append(bytes(data))
        self._size += len(data)
        if self._size > READ_LIMIT and not self._reading_paused:
            self._reading_paused = True
            self._channel.pause_reading()
        if self._reader is not None:
            self._wake_reader()

    def eof_received(self) -> bool:
        self._eof = True
        self._wake_reader()
        return True

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._writer is not None:
            self._writer.set_result(None)
            self._writer = None

    # -- helpers

    def _broke(self, exc: BaseException) -> None:
        """The SSH connection broke, or was closed."""
        if not self._eof:
            self._lost = exc

    def _finished(self) -> bool:
        """Whether nothing more comes. Raises ConnectionLost where the connection broke."""
        if self._lost is not None:
            raise ConnectionLost("The SSH connection broke.") from self._lost
        return self._eof or self._closed

    def _taken(self, size: int) -> None:
        self._size -= size
        if self._reading_paused and self._size <= READ_LIMIT // 2:
            self._reading_paused = False
            self._resume_reading()

    def _resume_reading(self) -> None:
        if not (self._reading_paused or self._delivery_paused or self.closed):
            self._channel.resume_reading()

    async def _wait_readable(self) -> None:
        if self._reader is not None:
            raise RuntimeError("two readers on one channel")
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake(self) -> None:
        self._wake_reader()
        self.resume_writing()


class Channel(ByteStream, asyncssh.SSHTCPSession[bytes]):
    """A byte stream to a TCP port of the remote machine's loopback."""


class UnixChannel(ByteStream, asyncssh.SSHUNIXSession[bytes]):
    """A byte stream to a Unix socket of the remote machine."""


class Process(ByteStream, asyncssh.SSHClientSession[bytes]):
    """A process on the remote machine: reading is its stdout, writing its stdin."""

    def __init__(self) -> None:
        super().__init__()
        self._stderr = bytearray()
        self._exit_status: int | None = None

    @property
    def stderr(self) -> bytes:
        """The last 64 KiB of its stderr so far."""
        return bytes(self._stderr)

    @property
    def exit_status(self) -> int | None:
        """None while it runs (or where it ended without one); minus one where a signal ended it."""
        return self._exit_status

    async def wait(self) -> int | None:
        """Wait until the process and its channel are gone; return its exit status.

        What it writes to stdout must be read meanwhile: a full pipe keeps a process from ending.
        """
        await self.wait_closed()
        return self._exit_status

    async def communicate(self, data: bytes | None = None) -> tuple[int | None, bytes, bytes]:
        """Write `data` to stdin, close it, and return (exit status, stdout, stderr).

        Raises
        ------
        RemoteBadAnswer
            It wrote more than `STDOUT_LIMIT` bytes to stdout.
        ConnectionLost
            The SSH connection broke before it had ended.
        """
        feeding = asyncio.create_task(self._feed(data)) if data else None
        if feeding is None:
            self.write_eof()
        try:
            parts: list[bytes] = []
            size = 0
            while part := await self.read():
                size += len(part)
                if size > STDOUT_LIMIT:
                    raise RemoteBadAnswer(f"The remote command wrote more than {STDOUT_LIMIT} bytes.")
                parts.append(part)
            await self.wait_closed()
        finally:
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
        if self._lost is not None:
            raise ConnectionLost("The SSH connection broke.") from self._lost
        return self._exit_status, b"".join(parts), self.stderr

    # -- called by asyncssh

    def data_received(self, data: bytes | memoryview, datatype: int | None) -> None:
        if datatype == EXTENDED_DATA_STDERR:
            self._stderr += data
            del self._stderr[:-STDERR_LIMIT]
            return
        super().data_received(data, datatype)

    def exit_status_received(self, status: int) -> None:
        self._exit_status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._exit_status = -1

    # -- helpers

    def _broke(self, exc: BaseException) -> None:
        self._lost = exc  # also behind the end of its output: how it ended is not known then

    async def _feed(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), WRITE_LIMIT):
                self.write(data[start : start + WRITE_LIMIT])
                await self.drain()
            self.write_eof()
        except ConnectionLost:
            return  # a process may end without reading its input
