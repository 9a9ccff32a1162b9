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
from typing import Any

SHELL, IOPUB, STDIN, CONTROL, REQUEST, EVENT = 0, 1, 2, 3, 4, 5
"""Channels of a message: the kernel's own four, requests on stream 0, and events of a kernel's process."""
SMALL = 64 * 1024
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
