"""One client of a publisher: which topics it wants, and what waits for it to read."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter, deque
from itertools import islice
from typing import Any

from . import zmtp

OUTPUT_QUEUE = 20_000
"""Messages (or pieces of large ones) that wait for a slow subscriber before it counts as full."""
SEND_BUFFER = 1024 * 1024
"""Bytes (Linux grants less) that the system takes of a large message before the subscriber has to read."""
_BATCH = 64
_READ = 64 * 1024
_PING, _PONG = b"\4PING", b"\4PONG"
_CONTEXT = slice(len(_PING) + 2, len(_PING) + 2 + 16)
"""Of a PING, what its PONG has to carry: 16 bytes at most, after two that say how long it may take."""


class Subscriber:
    """A connection that was accepted. Nothing here waits; a broken one raises OSError."""

    def __init__(self, sock: socket.socket) -> None:
        self.topics: Counter[bytes] = Counter()
        self.impatient = False
        """True once it has asked for a sign of life: in the middle of a message it gets none, and would go."""
        self._socket = sock
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._reader = zmtp.Reader()
        self._waiting: deque[memoryview] = deque()
        self._answers: list[bytes] = []

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """True while something waits for it to read."""
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """True where so much waits that it should get no more."""
        return len(self._waiting) >= OUTPUT_QUEUE

    def wants(self, topic: bytes) -> bool:
        """Return whether it has subscribed to what this topic begins with."""
        return any(map(topic.startswith, self.topics))

    def receive(self) -> list[tuple[bool, bytes]]:
        """Read once; give the topics that it asks for (True) or gives up (False), one entry each time.

        What it has to be answered is left for `answers`. Raises OSError, ZmtpError.
        """
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError("the subscriber has gone")
        changes = []
        for body in self._reader.feed(data):
            name, topic = body[:1], body[1:]
            if name == b"\1":
                self.topics[topic] += 1
                changes.append((True, topic))
            elif name == b"\0" and self.topics[topic]:
                self.topics[topic] -= 1
                self.topics += Counter()  # forgets those that are not wanted any more
                changes.append((False, topic))
            elif body.startswith(_PING):
                self.impatient = True
                self._answers.append(zmtp.command(_PONG + body[_CONTEXT]))
        return changes

    def answers(self) -> list[bytes]:
        """Return the answers that are due as soon as it is not in the middle of a message."""
        answers, self._answers = self._answers, []
        return answers

    def send(self, buffers: list[Any], *, lent: bool = False) -> None:
        """Send after what waits already, as much as goes; of a lent buffer, what has to wait is copied."""
        self._waiting.extend(map(memoryview, buffers))
        self._flush()
        if lent and self._waiting:
            self._waiting[-1] = memoryview(bytes(self._waiting[-1]))

    def close(self, linger: float = 0.0) -> None:
        """Close; what waits is still sent for ``linger`` seconds, by a thread of its own, if there can be one."""
        if linger and self._waiting:
            with contextlib.suppress(RuntimeError):  # no thread is left, or the interpreter ends
                threading.Thread(target=self._finish, args=[time.monotonic() + linger]).start()
                return
        self._socket.close()

    def _flush(self) -> None:
        while self._waiting:
            batch = list(islice(self._waiting, _BATCH))
            try:
                sent = self._socket.sendmsg(batch)
            except BlockingIOError:
                return
            for buffer in batch:
                if sent < len(buffer):
                    self._waiting[0] = buffer[sent:]
                    break
                sent -= len(buffer)
                self._waiting.popleft()

    def _finish(self, deadline: float) -> None:
        with self._socket, contextlib.suppress(OSError):  # it went away, or reads too slowly
            while self._waiting and (left := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left)
                self._socket.sendall(self._waiting.popleft())
