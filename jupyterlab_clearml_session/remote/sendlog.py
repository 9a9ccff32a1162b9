"""What one end of a stream has sent, or will send, and the other end has not dealt with: in memory, then on disk.

Runs on any Python from 3.8 on with the standard library only: it is also sent to the remote machine.
"""

from __future__ import annotations

import math
import os
import time
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
    keep_behind:
        Bytes kept although they were delivered, for a receiver that takes the stream over (`reopen`). Whatever
        the limit says, what the newest acknowledgement was for stays. See `expire`.
    """

    def __init__(
        self,
        memory_limit: int = 1 << 62,
        disk_limit: int = 0,
        directory: Path | None = None,
        keep_behind: int = 0,
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
        self.keep_behind = keep_behind
        self.cut_short = -math.inf
        """When something was last forgotten because of the limit on what is kept behind."""
        self._directory = directory
        self._behind: deque[_Segment] = deque()
        # Up to where, and when, it was delivered; the first one is where that which is kept begins.
        self._deliveries: deque[tuple[int, float]] = deque([(0, 0.0)])
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
            if self._file is None or self._file.closed or self._file.size >= SEGMENT_FILE_BYTES:
                self._file = _SpillFile(self._directory / os.urandom(8).hex())
            position, length = self._file.append(buffers)
        except OSError:
            return False
        last = self._waiting[-1] if self._waiting else None
        if last is not None and last.file is self._file and last.position + last.length == position:
            last.length += length  # an object for each message would take more memory than there is disk
        else:
            self._file.use()
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
        """The receiver has everything before ``received``, and has dealt with what lies before ``delivered``."""
        if not delivered <= received <= self.sent:
            raise ProtocolError("acknowledged more than was sent")
        self.received = max(self.received, received)
        if delivered <= self.start:
            return
        now = time.monotonic() if self.keep_behind else 0.0
        self.start = delivered
        self._deliveries.append((delivered, now))
        while self._transmitted and self._transmitted[0].end <= delivered:
            segment = self._transmitted.popleft()
            self._behind.append(segment)
            self._count(segment, -1)
        while (
            self._old(2 if self.keep_behind else 1) and delivered - self._deliveries[0][0] > self.keep_behind
        ):
            self.cut_short = now
            self._forget_oldest()

    def expire(self, before: float) -> None:
        """Forget what was delivered before a point of the monotonic clock, but for the newest of it."""
        while self._old(2) and self._deliveries[1][1] < before:
            self._forget_oldest()

    def _old(self, groups: int) -> bool:
        return len(self._deliveries) > groups

    def _forget_oldest(self) -> None:
        self._deliveries.popleft()
        while self._behind and self._behind[0].end <= self._deliveries[0][0]:
            _drop(self._behind.popleft())

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

    def reopen(self) -> tuple[int, int]:
        """Begin anew with all that is kept, counted from 0: another receiver takes the stream over.

        Returns up to where it was delivered to the former one, and up to where it was sent.
        """
        kept = self._deliveries[0][0]
        delivered, sent = self.start - kept, self.sent - kept
        for segment in self._behind:
            self._count(segment, 1)
        self._waiting.extendleft(reversed(self._transmitted))
        self._waiting.extendleft(reversed(self._behind))
        self._transmitted.clear()
        self._behind.clear()
        while self._waiting and self._waiting[0].offset < kept:
            segment = self._waiting.popleft()
            if segment.end > kept:
                segment, rest = segment.split(kept - segment.offset)
                self._waiting.appendleft(rest)
            self._count(segment, -1)
            _drop(segment)
        self._renumber()
        return delivered, sent

    def withdraw(self, limit: int) -> memoryview:
        """Take at most ``limit`` bytes away from the beginning. Only between `reopen` and `put_back`."""
        segment = self._waiting.popleft()
        if segment.length > limit:
            segment, rest = segment.split(limit)
            self._waiting.appendleft(rest)
        data = segment.read()
        self._count(segment, -1)
        _drop(segment)
        return data

    def put_back(self, buffers: list[Any]) -> None:
        """Put bytes before what is left after `withdraw`, and count from 0 again."""
        for buffer in reversed(buffers):
            view = memoryview(buffer).cast("B")
            if view:
                self._waiting.appendleft(_Segment(0, len(view), view))
                self.memory += len(view)
        self._renumber()

    def clear(self) -> None:
        """Forget everything."""
        for segment in [*self._transmitted, *self._waiting]:
            self._count(segment, -1)
        for segments in (self._behind, self._transmitted, self._waiting):
            while segments:
                _drop(segments.popleft())
        if self._file is not None:
            self._file.discard()
        self.start = self.received = self.sent = self.end
        self._deliveries = deque([(self.end, 0.0)])

    def _renumber(self) -> None:
        self.end = 0
        for segment in self._waiting:
            segment.offset = self.end
            self.end += segment.length
        self.start = self.received = self.sent = 0
        self._deliveries = deque([(0, 0.0)])

    def _count(self, segment: _Segment, sign: int) -> None:
        if segment.file is None:
            self.memory += sign * segment.length
        else:
            self.disk += sign * segment.length


def _drop(segment: _Segment) -> None:
    """Nobody needs a segment any more."""
    if segment.file is not None:
        segment.file.release()


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
        return self.file.read(self.position, self.length)

    def split(self, length: int) -> tuple[_Segment, _Segment]:
        if self.data is not None:
            head = _Segment(self.offset, length, self.data[:length])
            return head, _Segment(self.offset + length, self.length - length, self.data[length:])
        assert self.file is not None
        self.file.use()
        head = _Segment(self.offset, length, None, self.file, self.position)
        rest_length = self.length - length
        return head, _Segment(self.offset + length, rest_length, None, self.file, self.position + length)


class _SpillFile:
    """One file of overflow; gone when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self.closed = False
        self._users = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # Nobody else needs the name, and a helper that is killed leaves no file behind.
        path.unlink()

    def use(self) -> None:
        """One more refers to it."""
        self._users += 1

    def release(self) -> None:
        """One fewer refers to it."""
        self._users -= 1
        if self._users == 0:
            self.closed = True
            os.close(self._fd)

    def discard(self) -> None:
        """Close it where nothing was ever kept in it."""
        if not self.closed and self._users == 0:
            self.closed = True
            os.close(self._fd)

    def append(self, buffers: list[Any]) -> tuple[int, int]:
        """Return position and length; raises OSError where the disk is full, with nothing kept."""
        position = self.size
        try:
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                while view:
                    written = os.pwrite(self._fd, view, self.size)
                    self.size += written
                    view = view[written:]
        except OSError:
            self.size = position
            raise
        return position, self.size - position

    def read(self, position: int, length: int) -> memoryview:
        return memoryview(os.pread(self._fd, length, position))
