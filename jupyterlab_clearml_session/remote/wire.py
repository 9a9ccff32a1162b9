"""Frames over one wire: a socket, or the two pipes of an SSH channel. docs/protocol.md is the reference.

Runs on any Python from 3.8 on with the standard library only: it is also sent to the remote machine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator

HELLO, DATA, ACK, PING, PONG = 1, 2, 3, 4, 5
FRAME_HEADER = struct.Struct("!BxxxIIQ")
"""Kind, payload length, stream, offset."""
FRAME_LIMIT = 256 * 1024
"""Largest payload of a frame in bytes: what one kernel's output may delay another's."""
_F_SETPIPE_SZ = 1031


class WireClosed(Exception):
    """The wire broke or was closed; the link resumes on the next one."""


class ProtocolError(WireClosed):
    """The other end sent something that is not the protocol. The wire is given up and resumed anew."""


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
