"""The frames between the two ends of the kernel relay, and what makes them lossless. Used by both ends.

A *link* joins one local client and the remote helper. It carries *streams*: stream 0 for requests and their
answers, one stream for each kernel. Each direction of a stream is a sequence of bytes counted from 0, kept by
its sender until the receiver has acknowledged them. A link outlives its *wire* (one SSH channel): on a new
wire both ends say in a HELLO how far they have received each stream, and the senders go on from there. So
nothing is lost, and bytes that come twice are recognised by their offset and discarded. docs/protocol.md is
the reference.

Runs on any Python from 3.8 on with the standard library only: it is also sent to the remote machine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROTOCOL = 1
"""Version of the frames and the requests. A helper that has kernels and another version is left alone."""

HELLO, DATA, ACK, PING, PONG = 1, 2, 3, 4, 5
SHELL, IOPUB, STDIN, CONTROL, REQUEST, EVENT = 0, 1, 2, 3, 4, 5
"""Channels of a message: the kernel's own four, requests on stream 0, and events of a kernel's process."""

FRAME_HEADER = struct.Struct("!BxxxIIQ")
"""Kind, payload length, stream, offset."""
FRAME_LIMIT = 256 * 1024
"""Largest payload of a frame in bytes: what one kernel's output may delay another's."""
WINDOW = 8 * 1024 * 1024
"""Bytes of a stream sent and not yet acknowledged: 160 MB/s at 50 ms round trip."""
ACK_BYTES = 512 * 1024
ACK_DELAY = 0.1
"""An acknowledgement is due after this many bytes or seconds, whichever comes first."""
SMALL = 64 * 1024
HUGE = 2 * 1024 * 1024
SEGMENT_FILE_BYTES = 64 * 1024 * 1024
_DELIVERED = struct.Struct("!Q")
_MESSAGE_HEAD = struct.Struct("!BxH")
_F_SETPIPE_SZ = 1031


class WireClosed(Exception):
    """The wire broke or was closed; the link resumes on the next one."""


class ProtocolError(WireClosed):
    """The other end sent something that is not the protocol. The wire is given up and resumed anew."""


# -- messages ----------------------------------------------------------------------------------------------


def pack_message(channel: int, parts: list[Any]) -> list[Any]:
    """Return the bytes of one multipart message as a list of buffers; large parts are not copied."""
    lengths = [len(part) for part in parts]
    head = _MESSAGE_HEAD.pack(channel, len(parts)) + struct.pack(f"!{len(parts)}Q", *lengths)
    if sum(lengths) <= SMALL:
        return [head + b"".join(parts)]
    return [head, *parts]


class MessageReader:
    """Takes the bytes of a stream in any portions and gives whole messages."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._channel = 0
        self._lengths: list[int] | None = None
        self._parts: list[Any] = []
        self._partial: memoryview | None = None
        self._filled = 0
        self.pending = 0
        """Bytes taken of the message that is not whole yet."""

    def feed(self, data: memoryview) -> list[tuple[int, list[Any]]]:
        """Return the messages that ``data`` completes."""
        messages = []
        position, end = 0, len(data)
        while position < end:
            begin = position
            if self._lengths is None:
                position = self._feed_head(data, position)
            if self._lengths is not None:
                position = self._feed_parts(data, position)
            self.pending += position - begin
            if self._lengths is not None and len(self._parts) == len(self._lengths):
                messages.append((self._channel, self._parts))
                self._lengths, self._parts = None, []
                self.pending = 0
        return messages

    def _feed_head(self, data: memoryview, position: int) -> int:
        head = self._head
        needed = _MESSAGE_HEAD.size
        while True:
            if len(head) >= _MESSAGE_HEAD.size:
                self._channel, count = _MESSAGE_HEAD.unpack_from(head)
                needed = _MESSAGE_HEAD.size + 8 * count
                if len(head) == needed:
                    self._lengths = list(struct.unpack_from(f"!{count}Q", head, _MESSAGE_HEAD.size))
                    head.clear()
                    return position
            taken = data[position : position + needed - len(head)]
            if not taken:
                return position
            head += taken
            position += len(taken)

    def _feed_parts(self, data: memoryview, position: int) -> int:
        assert self._lengths is not None
        end = len(data)
        while len(self._parts) < len(self._lengths):
            length = self._lengths[len(self._parts)]
            if self._partial is None:
                if end - position >= length:
                    self._parts.append(bytes(data[position : position + length]))
                    position += length
                    continue
                self._partial, self._filled = _allocate(length), 0
            taken = data[position : position + length - self._filled]
            self._partial[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            position += len(taken)
            if self._filled < length:
                return position
            self._parts.append(self._partial)
            self._partial = None
        return position


def _allocate(length: int) -> memoryview:
    """Return room for a part. Fresh memory is costly page by page, so large parts get huge pages."""
    if length < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(length))
    room = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        room.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(room)


# -- what is sent and not acknowledged ---------------------------------------------------------------------


class _SpillFile:
    """One file of overflow; deleted when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # Nobody else needs the name, and a helper that is killed leaves no file behind.
        path.unlink()
        self.size = 0
        self.users = 0

    def append(self, buffers: list[Any]) -> tuple[int, int]:
        """Return position and length; raises OSError where the disk is full, with nothing kept."""
        position = self.size
        try:
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                while view:
                    written = os.pwrite(self.fd, view, self.size)
                    self.size += written
                    view = view[written:]
        except OSError:
            self.size = position
            raise
        return position, self.size - position


class SendLog:
    """The bytes of one direction of a stream that the receiver has not acknowledged.

    Parameters
    ----------
    memory_limit:
        Bytes kept in memory before what follows goes to files.
    disk_limit:
        Bytes kept in files; 0 means that nothing ever goes to disk.
    directory:
        Where the files are made.
    """

    def __init__(
        self, memory_limit: int = 1 << 62, disk_limit: int = 0, directory: Path | None = None
    ) -> None:
        self.memory_limit = memory_limit
        self.disk_limit = disk_limit
        self.start = 0
        """Offset up to which everything was delivered; always between two messages."""
        self.received = 0
        """Offset up to which the receiver has everything, perhaps in the middle of a message."""
        self.sent = 0
        """Offset up to which everything was handed to the present wire."""
        self.end = 0
        self.memory = 0
        self.disk = 0
        self._directory = directory
        self._transmitted: deque[_Segment] = deque()
        self._waiting: deque[_Segment] = deque()
        self._file: _SpillFile | None = None

    def append(self, buffers: list[Any]) -> None:
        """Add bytes at the end, in memory whatever the limit says. See `offer` for the bounded way."""
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            if view:
                self._waiting.append(_Segment(self.end, len(view), view))
                self.end += len(view)
                self.memory += len(view)

    def offer(self, buffers: list[Any]) -> bool:
        """Add bytes at the end if memory or disk has room for them; False where neither has.

        A lone message may be larger than the limit: it was in memory anyway.
        """
        length = sum(len(memoryview(buffer).cast("B")) for buffer in buffers)
        if self.memory + length <= self.memory_limit or self.start == self.end:
            self.append(buffers)
            return True
        if self.disk + length > self.disk_limit or self._directory is None:
            return False
        try:
            if self._file is None or self._file.size >= SEGMENT_FILE_BYTES:
                self._file = _SpillFile(self._directory / os.urandom(8).hex())
            position, length = self._file.append(buffers)
        except OSError:
            return False
        self._file.users += 1
        self._waiting.append(_Segment(self.end, length, None, self._file, position))
        self.end += length
        self.disk += length
        return True

    def take(self, limit: int) -> tuple[int, list[memoryview]]:
        """Return the offset and the next bytes to transmit, at most ``limit`` of them."""
        offset, taken = self.sent, []
        while limit > 0 and self._waiting:
            segment = self._waiting[0]
            if segment.length > limit:
                segment, rest = segment.split(limit)
                self._waiting[0] = rest
            else:
                self._waiting.popleft()
            self._transmitted.append(segment)
            taken.append(segment.read())
            self.sent += segment.length
            limit -= segment.length
        return offset, taken

    def acknowledge(self, received: int, delivered: int) -> None:
        """The receiver has everything before ``received``; forget what lies before ``delivered``."""
        if not delivered <= received <= self.sent:
            raise ProtocolError("acknowledged more than was sent")
        self.received = max(self.received, received)
        self.start = max(self.start, delivered)
        while self._transmitted and self._transmitted[0].end <= self.start:
            self._forget(self._transmitted.popleft())

    def rewind(self, offset: int) -> None:
        """Make ``offset`` the next byte to transmit: a new wire begins there."""
        if not self.start <= offset <= self.end:
            raise ProtocolError("the other end resumes at an offset that is not kept")
        self._waiting.extendleft(reversed(self._transmitted))
        self._transmitted.clear()
        self.sent = self.received = offset
        while self._waiting and self._waiting[0].offset < offset:
            segment = self._waiting.popleft()
            if segment.end > offset:
                segment, rest = segment.split(offset - segment.offset)
                self._waiting.appendleft(rest)
            self._transmitted.append(segment)

    def rebase(self) -> None:
        """Count from 0 again at the first byte that is kept: a new receiver takes the stream over."""
        self.rewind(self.start)
        shift = self.start
        for segment in self._waiting:
            segment.offset -= shift
        self.end -= shift
        self.start = self.sent = self.received = 0

    def skip(self, offset: int) -> None:
        """Forget what lies before ``offset``, delivered or not. Only between two wires."""
        self.rewind(offset)
        self.start = offset
        while self._transmitted:
            self._forget(self._transmitted.popleft())

    def put_back(self, buffers: list[Any]) -> None:
        """Add bytes before the first one that is kept. Only between `rebase` and the next wire."""
        for buffer in reversed(buffers):
            view = memoryview(buffer).cast("B")
            self.start -= len(view)
            self._waiting.appendleft(_Segment(self.start, len(view), view))
            self.memory += len(view)
        self.sent = self.received = self.start

    def clear(self) -> None:
        """Forget everything."""
        self.rewind(self.start)
        self._transmitted.clear()
        while self._waiting:
            self._forget(self._waiting.popleft())
        self.start = self.received = self.sent = self.end

    def _forget(self, segment: _Segment) -> None:
        if segment.file is None:
            self.memory -= segment.length
            return
        self.disk -= segment.length
        segment.file.users -= 1
        if segment.file.users == 0:
            os.close(segment.file.fd)
            if segment.file is self._file:
                self._file = None


class _Segment:
    """A run of bytes of a stream, in memory or in a file."""

    __slots__ = ("data", "file", "length", "offset", "position")

    def __init__(
        self,
        offset: int,
        length: int,
        data: memoryview | None,
        file: _SpillFile | None = None,
        position: int = 0,
    ) -> None:
        self.offset = offset
        self.length = length
        self.data = data
        self.file = file
        self.position = position

    @property
    def end(self) -> int:
        return self.offset + self.length

    def read(self) -> memoryview:
        if self.data is not None:
            return self.data
        assert self.file is not None
        return memoryview(os.pread(self.file.fd, self.length, self.position))

    def split(self, length: int) -> tuple[_Segment, _Segment]:
        if self.data is not None:
            head = _Segment(self.offset, length, self.data[:length])
            return head, _Segment(self.offset + length, self.length - length, self.data[length:])
        assert self.file is not None
        self.file.users += 1
        head = _Segment(self.offset, length, None, self.file, self.position)
        rest_length = self.length - length
        return head, _Segment(self.offset + length, rest_length, None, self.file, self.position + length)


class Stream:
    """Both directions of one stream, as one end sees them."""

    def __init__(self, log: SendLog | None = None) -> None:
        self.log = SendLog() if log is None else log
        self.received = 0
        """Offset up to which everything was received, perhaps in the middle of a message."""
        self.acknowledged = 0
        self.delivered = 0
        """Offset up to which the owner has dealt with everything; always between two messages."""
        self.paused = False
        """True while the owner only keeps what comes: nothing is acknowledged, so the sender stops soon."""
        self._reader = MessageReader()

    def receive(self, offset: int, data: memoryview) -> list[tuple[int, list[Any]]]:
        """Return the messages that these bytes complete; bytes that were here before are discarded."""
        if offset > self.received:
            raise ProtocolError("bytes of a stream are missing")
        fresh = data[self.received - offset :]
        self.received += len(fresh)
        return self._reader.feed(fresh) if fresh else []

    def settle(self) -> None:
        """All messages given so far are dealt with, unless the stream is paused."""
        if not self.paused:
            self.delivered = self.received - self._reader.pending


# -- one wire ----------------------------------------------------------------------------------------------


class Wire:
    """Frames over a pair of file descriptors (a socket, or the two pipes of an SSH channel), non-blocking."""

    def __init__(self, read_fd: int, write_fd: int, on_close: Callable[[], None]) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self._on_close = on_close
        self._closed = False
        self._input = bytearray(FRAME_LIMIT * 2)
        self._filled = 0
        self._out: deque[memoryview] = deque()
        # A DATA frame may be longer than what has arrived of it: its bytes are passed on as they come.
        self._data: tuple[int, int, int] | None = None
        for fd in {read_fd, write_fd}:
            os.set_blocking(fd, False)
            try:
                fcntl.fcntl(fd, _F_SETPIPE_SZ, 1 << 20)
            except OSError:
                continue  # a socket, or another system than Linux: its buffer stays as it is

    @property
    def pending(self) -> bool:
        """True where bytes wait to be written."""
        return bool(self._out)

    def put(self, kind: int, stream: int, offset: int, payload: list[memoryview] | None = None) -> None:
        """Queue a frame."""
        payload = payload or []
        length = sum(map(len, payload))
        self._out.append(memoryview(FRAME_HEADER.pack(kind, length, stream, offset)))
        self._out.extend(payload)

    def write(self) -> None:
        """Write as much of the queue as the descriptor takes now. Raises WireClosed."""
        while self._out:
            batch = [self._out[index] for index in range(min(len(self._out), 64))]
            try:
                written = os.writev(self.write_fd, batch)
            except BlockingIOError:
                return
            except OSError as error:
                raise WireClosed(_reason(error)) from error
            while written:
                first = self._out[0]
                if written < len(first):
                    self._out[0] = first[written:]
                    return
                written -= len(first)
                self._out.popleft()

    def read(self) -> Iterator[tuple[int, int, int, memoryview]]:
        """Read once and give ``(kind, stream, offset, payload)``; DATA in portions. Raises WireClosed."""
        try:
            count = os.readv(self.read_fd, [memoryview(self._input)[self._filled :]])
        except BlockingIOError:
            return
        except OSError as error:
            raise WireClosed(_reason(error)) from error
        if count == 0:
            raise WireClosed("end of file")
        self._filled += count
        view = memoryview(self._input)
        position = 0
        try:
            while True:
                if self._data is not None:
                    stream, offset, missing = self._data
                    portion = view[position : min(position + missing, self._filled)]
                    if not portion:
                        break
                    position += len(portion)
                    missing -= len(portion)
                    self._data = (stream, offset + len(portion), missing) if missing else None
                    yield DATA, stream, offset, portion
                    continue
                if self._filled - position < FRAME_HEADER.size:
                    break
                kind, length, stream, offset = FRAME_HEADER.unpack_from(view, position)
                if not HELLO <= kind <= PONG or length > FRAME_LIMIT:
                    raise ProtocolError("not a frame")
                if kind == DATA:
                    position += FRAME_HEADER.size
                    if length:
                        self._data = (stream, offset, length)
                    continue
                if self._filled - position - FRAME_HEADER.size < length:
                    break
                position += FRAME_HEADER.size
                yield kind, stream, offset, view[position : position + length]
                position += length
        finally:
            rest = bytes(view[position : self._filled])
            view[: len(rest)] = rest
            self._filled = len(rest)

    def close(self) -> None:
        """Close once, whoever asks."""
        if not self._closed:
            self._closed = True
            self._out.clear()
            self._on_close()


def _reason(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


# -- the link ----------------------------------------------------------------------------------------------


class Link:
    """The streams between two ends, over one wire after another.

    Parameters
    ----------
    on_message:
        Called with ``(stream, channel, parts)`` for each message, in order, once.
    on_hello:
        Called with the other end's HELLO (a dict) before anything else of a new wire is dealt with. May raise
        WireClosed.
    """

    def __init__(
        self, on_message: Callable[[int, int, list[Any]], None], on_hello: Callable[[dict[str, Any]], None]
    ) -> None:
        self.streams: dict[int, Stream] = {0: Stream()}
        self.wire: Wire | None = None
        self.last_received = 0.0
        """When bytes last came in, by the caller's clock."""
        self._on_message = on_message
        self._on_hello = on_hello
        self._greeted = False
        self._ack_due: float | None = None
        self._turn = 0

    @property
    def up(self) -> bool:
        """True while a wire is there on which both ends have greeted."""
        return self.wire is not None and self._greeted

    def open(self, wire: Wire, hello: dict[str, Any], now: float) -> None:
        """Go on over a new wire; the old one, if any, is closed."""
        self.close()
        self.wire = wire
        self.last_received = now
        received = {str(number): stream.received for number, stream in self.streams.items()}
        body = json.dumps({"protocol": PROTOCOL, "received": received, **hello}).encode()
        wire.put(HELLO, 0, 0, [memoryview(body)])

    def close(self) -> None:
        """Give the wire up. Nothing of the streams is lost."""
        if self.wire is not None:
            self.wire.close()
        self.wire = None
        self._greeted = False
        self._ack_due = None

    def send(self, stream: int, channel: int, parts: list[Any]) -> None:
        """Queue a message on a stream; it leaves with the next `write`."""
        self.streams[stream].log.append(pack_message(channel, parts))

    def read(self, now: float) -> None:
        """Deal with what has arrived. Raises WireClosed, after which `close` is due."""
        assert self.wire is not None
        wire = self.wire
        for kind, number, offset, payload in wire.read():
            self.last_received = now
            if kind == HELLO:
                self._receive_hello(payload)
            elif kind == PING:
                wire.put(PONG, 0, offset)
            elif kind == DATA:
                self._receive_data(number, offset, payload, now)
            elif kind == ACK and number in self.streams:
                self._receive_ack(self.streams[number], offset, payload)
            if self.wire is not wire:
                return  # a callback went over to another wire

    def _receive_hello(self, payload: memoryview) -> None:
        try:
            hello = json.loads(bytes(payload))
            received = {int(number): int(offset) for number, offset in hello["received"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProtocolError("not a greeting") from error
        self._on_hello(hello)
        for number, stream in self.streams.items():
            stream.log.rewind(received.get(number, stream.log.start))
        self._greeted = True

    def _receive_data(self, number: int, offset: int, payload: memoryview, now: float) -> None:
        stream = self.streams.get(number)
        if stream is None:
            return  # of a kernel that was given up or taken over: stale
        for channel, parts in stream.receive(offset, payload):
            self._on_message(number, channel, parts)
        stream.settle()
        if self._ack_due is None:
            self._ack_due = now + ACK_DELAY

    @staticmethod
    def _receive_ack(stream: Stream, offset: int, payload: memoryview) -> None:
        if len(payload) != _DELIVERED.size:
            raise ProtocolError("not an acknowledgement")
        stream.log.acknowledge(offset, _DELIVERED.unpack(payload)[0])

    def write(self, now: float) -> None:
        """Write acknowledgements and data, as much as the wire takes now. Raises WireClosed."""
        wire = self.wire
        if wire is None:
            return
        if self._greeted:
            self._acknowledge(now)
        while True:
            wire.write()
            if wire.pending or not self._greeted or not self._put_next(wire):
                return

    def _acknowledge(self, now: float) -> None:
        assert self.wire is not None
        due = self._ack_due is not None and now >= self._ack_due
        left = False
        for number, stream in self.streams.items():
            fresh = 0 if stream.paused else stream.received - stream.acknowledged
            if fresh >= ACK_BYTES or (due and fresh):
                stream.acknowledged = stream.received
                self.wire.put(ACK, number, stream.received, [memoryview(_DELIVERED.pack(stream.delivered))])
            elif fresh:
                left = True
        if due or not left:
            self._ack_due = None

    def _put_next(self, wire: Wire) -> bool:
        """Queue the next frame: requests first, then the kernels in turn."""
        numbers = list(self.streams)
        for number in [0, *numbers[self._turn :], *numbers[: self._turn]]:
            log = self.streams[number].log
            if log.sent < log.end and log.sent - log.received < WINDOW:
                offset, data = log.take(FRAME_LIMIT)
                wire.put(DATA, number, offset, data)
                self._turn = (numbers.index(number) + 1) % len(numbers)
                return True
        return False

    def resume(self, number: int, now: float) -> None:
        """The owner of a paused stream can take messages again and has dealt with all it was given."""
        stream = self.streams[number]
        stream.paused = False
        stream.settle()
        self._ack_due = now

    @property
    def wants_write(self) -> bool:
        """True where the wire has to become writable before everything that may go is gone."""
        return self.wire is not None and self.wire.pending

    @property
    def deadline(self) -> float | None:
        """When `write` is due although nothing happens."""
        return self._ack_due

    def ping(self) -> None:
        """Ask for a sign of life."""
        if self.up and self.wire is not None:
            self.wire.put(PING, 0, 0)
