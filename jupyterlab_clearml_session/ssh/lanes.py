"""One byte stream to a remote port whose upward direction travels on several channels.

sshd grants a channel 2 MB of window, whatever the client does: no more than that can be on its way, so one channel
carries 2 MB in a round trip. Several channels to the relay on the remote machine carry as many times more; the
relay puts the pieces together (see `relay`). What comes back uses the first one alone: that window is ours to set.

Upwards each packet is a piece with its length before it, and the channels take turns. A piece of length zero is the
end. A channel that ends before that breaks the whole: what listens sees its connection cut, never a complete body.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConnectionLost
from .channel import UnixChannel
from .shortcut import PACKET

LENGTH = 4
PIECE = PACKET - LENGTH
"""Bytes of a piece: with its length it fills a packet."""


class WideChannel(UnixChannel):
    """The first of the channels, and for its user all of them."""

    wide = True

    def __init__(self, others: Sequence[UnixChannel]) -> None:
        super().__init__()
        self._others = others
        self._turn = 0

    @property
    def closed(self) -> bool:
        """True when nothing more can be written."""
        return super().closed or any(lane.closed for lane in self._others)

    def introduce(self, port: int, name: str) -> None:
        """Tell the relay what the channels are: `name` is what they have in common."""
        count = len(self._others) + 1
        lines = [f"{port} {name} {index} {count}\n".encode() for index in range(count)]
        super().write(lines[0])
        for lane, line in zip(self._others, lines[1:], strict=True):
            lane.write(line)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As `ByteStream.write`."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            self._send(view[start : start + PIECE])

    def write_eof(self) -> None:
        """Tell that what was written is complete."""
        if not self.closed:
            self._send(b"")

    async def drain(self) -> None:
        """As `ByteStream.drain`, for the fullest of the channels."""
        for lane in self._others:
            await lane.drain()
        await super().drain()

    def close(self) -> None:
        """Close after what was written is sent."""
        for lane in self._others:
            lane.close()
        super().close()

    def abort(self) -> None:
        """Close now."""
        for lane in self._others:
            if lane.opened_at:
                lane.abort()
        if self.opened_at:
            super().abort()

    def _send(self, piece: bytes | memoryview) -> None:
        if self.closed:
            raise ConnectionLost("The SSH channel is closed.")
        packet = b"".join((len(piece).to_bytes(LENGTH, "big"), piece))
        if self._turn:
            self._others[self._turn - 1].write(packet)
        else:
            super().write(packet)
        self._turn = (self._turn + 1) % (len(self._others) + 1)
