"""ZMTP 3.0 as a publisher speaks it with those who subscribe: bytes only, no socket.

With the NULL mechanism, the one that Jupyter's sockets use. A peer that knows a later 3.x speaks 3.0 with one that
says 3.0, and its subscriptions are then messages. Source of all facts here: https://rfc.zeromq.org/spec/23.
"""

from __future__ import annotations

import struct
from typing import Any

from ..remote.messages import SMALL

MORE, LONG, COMMAND = 1, 2, 4
"""Flags of a frame: another one of the message follows, the length has eight bytes, it is no message."""
LIMIT = 64 * 1024
"""Largest frame in bytes that a subscriber may send: a topic, or a command."""
_GREETING = struct.Struct("!B8sBBB20sB31x")
_LENGTH = struct.Struct("!Q")
_LONG_HEAD = struct.Struct("!BQ")
_PROPERTY_LENGTH = struct.Struct("!I")


class ZmtpError(Exception):
    """The peer is no subscriber that speaks ZMTP 3 without encryption."""


def greeting() -> bytes:
    """Return what a publisher says first: its version and mechanism, and what it is."""
    kind = b"XPUB"
    ready = b"\x05READY\x0bSocket-Type" + _PROPERTY_LENGTH.pack(len(kind)) + kind
    return _GREETING.pack(0xFF, b"", 0x7F, 3, 0, b"NULL", 0) + command(ready)


def command(body: bytes) -> bytes:
    """Return a short command as a frame."""
    return bytes([COMMAND, len(body)]) + body


def frame_head(length: int, more: bool) -> bytes:
    """Return what goes before the bytes of a message's part."""
    if length < 256:
        return bytes([MORE if more else 0, length])
    return _LONG_HEAD.pack(LONG | MORE if more else LONG, length)


def frames(parts: list[Any]) -> list[Any]:
    """Return a whole message as a list of buffers; large ones are not copied."""
    last = len(parts) - 1
    buffers = [
        buffer for index, part in enumerate(parts) for buffer in (frame_head(len(part), index < last), part)
    ]
    return [b"".join(buffers)] if sum(map(len, parts)) <= SMALL else buffers


class Reader:
    """Takes what a peer sends, in any portions."""

    def __init__(self) -> None:
        self._input = b""
        self._greeted = False
        self._ready = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that ``data`` completes: subscriptions, and commands after the handshake.

        A command keeps the length of its name before it, which tells it from a subscription. Raises ZmtpError.
        """
        self._input += data
        if not self._greeted:
            if len(self._input) < _GREETING.size:
                return []
            self._greet()
        bodies = []
        while (frame := self._next()) is not None:
            flags, body = frame
            if self._ready:
                bodies.append(body)
            else:
                _check_ready(flags, body)
                self._ready = True
        return bodies

    def _greet(self) -> None:
        first, _, tenth, major, _, mechanism, _ = _GREETING.unpack_from(self._input)
        if (first, tenth) != (0xFF, 0x7F) or major < 3 or mechanism.rstrip(b"\0") != b"NULL":
            raise ZmtpError("no greeting of ZMTP 3 without encryption")
        self._input = self._input[_GREETING.size :]
        self._greeted = True

    def _next(self) -> tuple[int, bytes] | None:
        data = self._input
        if len(data) < 2:
            return None
        flags, length, start = data[0], data[1], 2
        if flags & LONG:
            start = 1 + _LENGTH.size
            if len(data) < start:
                return None
            (length,) = _LENGTH.unpack_from(data, 1)
        if length > LIMIT:
            raise ZmtpError("larger than any subscription")
        if len(data) < start + length:
            return None
        self._input = data[start + length :]
        return flags, data[start : start + length]


def _check_ready(flags: int, body: bytes) -> None:
    name, rest = b"\x05READY", body[6:]
    if not flags & COMMAND or not body.startswith(name):
        raise ZmtpError("not ready")
    kind = b""
    while rest:
        try:
            name_end = 1 + rest[0]
            (length,) = _PROPERTY_LENGTH.unpack_from(rest, name_end)
        except struct.error as error:
            raise ZmtpError("not a property") from error
        begin = name_end + _PROPERTY_LENGTH.size
        if rest[1:name_end].lower() == b"socket-type":
            kind = rest[begin : begin + length]
        rest = rest[begin + length :]
    if kind not in (b"SUB", b"XSUB"):
        raise ZmtpError("not a subscriber")
