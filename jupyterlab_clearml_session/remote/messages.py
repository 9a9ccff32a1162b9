"""The messages of a stream: how they become bytes, and bytes messages again. Used by both ends.

Runs on any Python from 3.8 on with the standard library only: it is also sent to the remote machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import mmap
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol

SHELL, IOPUB, STDIN, CONTROL, REQUEST, EVENT = 0, 1, 2, 3, 4, 5
"""Channels of a message: the kernel's own four, requests on stream 0, and events of a kernel's process."""
SMALL = 64 * 1024
LARGE = 256 * 1024
"""Bytes of a part that may be passed on while it comes."""
HUGE = 2 * 1024 * 1024
DELIMITER = b"<IDS|MSG>"
_HEAD = struct.Struct("!BxH")
_MESSAGE_ID = re.compile(rb'"msg_id"\s*:\s*"([^"\\]+)"')


def pack_message(channel: int, parts: list[Any]) -> list[Any]:
    """Return the bytes of one multipart message as a list of buffers; large parts are not copied."""
    lengths = [len(part) for part in parts]
    head = _HEAD.pack(channel, len(parts)) + struct.pack(f"!{len(parts)}Q", *lengths)
    if sum(lengths) <= SMALL:
        return [head + b"".join(parts)]
    return [head, *parts]


def packed_size(parts: list[Any]) -> int:
    """Return how many bytes `pack_message` makes of a message."""
    return _HEAD.size + sum(8 + len(part) for part in parts)


class LargeMessage(Protocol):
    """Where the rest of a message goes while it comes, from its first large part on."""

    def part(self, length: int, more: bool) -> None:
        """Begin the next part of so many bytes; ``more``: another one follows it."""
        ...

    def data(self, data: memoryview) -> None:
        """Take bytes of the part; they are only lent."""
        ...

    def end(self) -> None:
        """All of the message has been given."""
        ...


class MessageReader:
    """Takes the bytes of a stream in any portions and gives whole messages.

    Parameters
    ----------
    on_large:
        Called with channel and parts so far where a large part begins; returns where it goes while it comes, or
        None if it shall be kept until the message is whole.
    """

    def __init__(self, on_large: Callable[[int, list[Any]], LargeMessage | None] | None = None) -> None:
        self._on_large = on_large
        self._head = bytearray()
        self._channel = 0
        self._lengths: list[int] | None = None
        self._parts: list[Any] = []
        self._begun = False
        self._room: memoryview | None = None
        self._filled = 0
        self._large: LargeMessage | None = None
        self.pending = 0
        """Bytes taken of the message that is not whole yet."""

    def feed(self, data: memoryview) -> Iterator[tuple[int, list[Any]]]:
        """Give the messages that ``data`` completes, without those that were passed on while they came.

        Each is given before a large one that follows it begins.
        """
        position, end = 0, len(data)
        while position < end:
            begin = position
            if self._lengths is None:
                position = self._feed_head(data, position)
            if self._lengths is not None:
                position = self._feed_parts(data, position)
            self.pending += position - begin
            if self._lengths is not None and len(self._parts) == len(self._lengths):
                parts, large = self._parts, self._large
                self._lengths, self._parts, self._large = None, [], None
                self.pending = 0
                if large is None:
                    yield self._channel, parts
                else:
                    large.end()

    def _feed_head(self, data: memoryview, position: int) -> int:
        head = self._head
        needed = _HEAD.size
        while True:
            if len(head) >= _HEAD.size:
                self._channel, count = _HEAD.unpack_from(head)
                needed = _HEAD.size + 8 * count
                if len(head) == needed:
                    self._lengths = list(struct.unpack_from(f"!{count}Q", head, _HEAD.size))
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
            if not self._begun and self._large is None and end - position >= length:
                self._parts.append(bytes(data[position : position + length]))
                position += length
                continue
            if not self._begun:
                self._begin_part(length, more=len(self._parts) + 1 < len(self._lengths))
            taken = data[position : position + length - self._filled]
            if self._large is not None:
                self._large.data(taken)
            elif self._room is not None:
                self._room[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            position += len(taken)
            if self._filled < length:
                return position
            self._parts.append(self._room)
            self._begun, self._room, self._filled = False, None, 0
        return position

    def _begin_part(self, length: int, *, more: bool) -> None:
        self._begun = True
        if self._large is None and length >= LARGE and self._on_large is not None:
            self._large = self._on_large(self._channel, self._parts)
        if self._large is None:
            self._room = allocate(length)
        else:
            self._large.part(length, more)


def allocate(length: int) -> memoryview:
    """Return room for a part. Fresh memory is costly page by page, so large parts get huge pages."""
    if length < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(length))
    room = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        room.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(room)


# -- Jupyter's own messages --------------------------------------------------------------------------------


def signed_frames(parts: list[Any]) -> list[Any] | None:
    """Return header, parent header, metadata and content: what follows the delimiter and the signature."""
    for index in range(min(len(parts), 4)):
        if parts[index] == DELIMITER and len(parts) >= index + 6:
            return parts[index + 2 : index + 6]
    return None


def message_id(parts: list[Any]) -> bytes:
    """Return the id that a message's header gives it; empty where there is none."""
    frames = signed_frames(parts)
    return b"" if frames is None else header_id(frames[0])


def header_id(header: Any) -> bytes:
    """Return the id of the message with this header; empty where there is none."""
    found = _MESSAGE_ID.search(header)
    return b"" if found is None else bytes(found[1])


def sign(key: str, scheme: str, frames: list[bytes]) -> bytes:
    """Return the signature of a message, as Jupyter's messaging protocol defines it; empty without a key."""
    if not key:
        return b""
    digest = hmac.new(key.encode(), digestmod=getattr(hashlib, scheme.replace("hmac-", "", 1)))
    for frame in frames:
        digest.update(frame)
    return digest.hexdigest().encode()
