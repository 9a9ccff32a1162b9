"""What one end of a stream has sent, or will send, and the other end has not dealt with: in memory, then on disk.

Runs on any Python from 3.8 on with the standard library only: it is also sent to the remote machine.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

from .wire import ProtocolError

SEGMENT_FILE_BYTES = 64 * 1024 * 1024


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
