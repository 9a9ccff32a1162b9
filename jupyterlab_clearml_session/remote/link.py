"""The link between one local client and the remote helper: what makes the relay lossless. Used by both ends.

A link carries *streams*: stream 0 for requests and their answers, one stream for each kernel. Each direction of
a stream is a sequence of bytes counted from 0, kept by its sender until the receiver has acknowledged them. A link
outlives its *wire* (one SSH channel): on a new wire both ends say in a HELLO how far they have received each
stream, and the senders go on from there. So nothing is lost, and bytes that come twice are recognised by their
offset and discarded. docs/protocol.md is the reference.

Runs on any Python from 3.8 on with the standard library only: it is also sent to the remote machine.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

from .messages import LargeMessage, MessageReader, pack_message
from .sendlog import SendLog
from .wire import ACK, DATA, FRAME_LIMIT, HELLO, PING, PONG, ProtocolError, Wire

PROTOCOL = 1
"""Version of the frames and the requests. A helper that has kernels and another version is left alone."""
WINDOW = 8 * 1024 * 1024
"""Bytes of a stream sent and not yet acknowledged: 160 MB/s at 50 ms round trip."""
ACK_BYTES = 512 * 1024
ACK_DELAY = 0.1
"""An acknowledgement is due after this many bytes or seconds, whichever comes first."""
_DELIVERED = struct.Struct("!Q")


class Stream:
    """Both directions of one stream, as one end sees them. ``on_large``: see `MessageReader`."""

    def __init__(
        self,
        log: SendLog | None = None,
        on_large: Callable[[int, list[Any]], LargeMessage | None] | None = None,
    ) -> None:
        self.log = SendLog() if log is None else log
        self.received = 0
        """Offset up to which everything was received, perhaps in the middle of a message."""
        self.acknowledged = 0
        self.delivered = 0
        """Offset up to which the owner has dealt with everything; always between two messages."""
        self.paused = False
        """True while the owner only keeps what comes: nothing is acknowledged, so the sender stops soon."""
        self._reader = MessageReader(on_large)
        # From which offset on this stream waits until another one has been sent up to one of its own.
        self._waits: deque[tuple[int, Stream, int]] = deque()

    def receive(self, offset: int, data: memoryview) -> Iterator[tuple[int, list[Any]]]:
        """Give the messages that these bytes complete, one by one; bytes that were here before are discarded."""
        if offset > self.received:
            raise ProtocolError("bytes of a stream are missing")
        fresh = data[self.received - offset :]
        self.received += len(fresh)
        return self._reader.feed(fresh)

    def wait_for(self, other: Stream, offset: int) -> None:
        """Send what is added from now on after what ``other`` has before ``offset``, on each wire."""
        self._waits.append((self.log.end, other, offset))

    def sendable(self, limit: int, streams: Collection[Stream]) -> int:
        """Return how many bytes may be sent now, at most ``limit``; only for ``streams`` is waited."""
        while self._waits and self._waits[0][0] < self.log.start:
            self._waits.popleft()
        for position, other, offset in self._waits:
            if other in streams and other.log.sent < offset:
                return max(0, min(limit, position - self.log.sent))
        return limit

    def settle(self) -> None:
        """All messages given so far are dealt with, unless the stream is paused."""
        if not self.paused:
            self.delivered = self.received - self._reader.pending


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
        """Queue the next frame: requests first, where they need not wait, then the kernels in turn."""
        numbers = list(self.streams)
        for number in [0, *numbers[self._turn :], *numbers[: self._turn]]:
            stream = self.streams[number]
            log = stream.log
            if log.sent < log.end and log.sent - log.received < WINDOW:
                limit = stream.sendable(FRAME_LIMIT, self.streams.values())
                if not limit:
                    continue
                offset, data = log.take(limit)
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
