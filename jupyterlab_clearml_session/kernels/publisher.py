"""The iopub socket of a kernel's local end: what the kernel publishes goes to everybody who subscribes.

A ZMQ publisher takes a message when it is whole. One of 100 MB then lies in memory before its first byte reaches a
client. This one sends the parts of such a message on while they come (docs/reliability.md, Speed). Its clients are
ordinary ZMQ sockets.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from ..remote.loop import Loop
from ..remote.messages import HUGE, allocate
from . import zmtp
from .subscriber import Subscriber

LINGER = 1.0
"""Seconds for which what waits for a subscriber is still sent after the publisher was closed."""
ACCEPT_AGAIN = 0.1
"""Seconds after which newcomers are let in again where no descriptor was left for one."""


class Publisher:
    """Belongs to the thread of its loop.

    Parameters
    ----------
    path:
        Where its socket is bound by `bind`.
    on_subscribe:
        Called with a subscriber and its topic, for each topic it asks for.
    on_cancel:
        Called for each topic that somebody gives up, or had when it goes.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        on_subscribe: Callable[[Subscriber, bytes], None],
        on_cancel: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._on_subscribe = on_subscribe
        self._on_cancel = on_cancel
        self._listener: socket.socket | None = None
        self._subscribers: list[Subscriber] = []
        self._passing: list[Subscriber] = []
        """Those who are in the middle of a large message."""
        self._room = memoryview(b"")
        """Where the next copy of its bytes goes."""

    def bind(self) -> None:
        """Make the socket's file, where it is not there. Raises OSError."""
        if self._path.exists():
            return
        self._unlisten()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(str(self._path))
        self._listener.listen(socket.SOMAXCONN)
        self._listen(self._listener)

    def close(self) -> None:
        """Let everybody go, with what waits for them sent on for a moment, and remove the file."""
        self._unlisten()
        self._path.unlink(missing_ok=True)
        for subscriber in list(self._subscribers):
            self._drop(subscriber, LINGER)

    def publish(self, parts: list[Any], *, drop: bool = False) -> bool:
        """Send a message to all who want it; False where one of them is full, and then to nobody.

        With ``drop`` only those who are full do not get it.
        """
        wanting = self._wanting(parts)
        if not drop and any(subscriber.full for subscriber in wanting):
            return False
        buffers = zmtp.frames(parts)
        for subscriber in wanting:
            if not subscriber.full:
                self._send(subscriber, buffers)
        return True

    def tell(self, subscriber: Subscriber, parts: list[Any]) -> None:
        """Send a message to one subscriber, unless it is full or in the middle of a large one."""
        if not subscriber.full and subscriber not in self._passing:
            self._send(subscriber, zmtp.frames(parts))

    # -- a large message, while it comes -------------------------------------------------------------------

    def begin(self, parts: list[Any]) -> bool:
        """Begin a message with these parts; `part` and `data` follow, then `end`.

        False where somebody is full, or would not wait for the rest.
        """
        wanting = self._wanting(parts)
        if any(subscriber.full or subscriber.impatient for subscriber in wanting):
            return False
        self._passing = wanting
        for part in parts:
            self.part(len(part), True)
            self.data(part)
        return True

    def part(self, length: int, more: bool) -> None:
        """Begin the next part of so many bytes; ``more``: another one follows it."""
        self.data(zmtp.frame_head(length, more))

    def data(self, data: bytes | memoryview) -> None:
        """Send bytes of the part; they are only lent."""
        lent = not any(subscriber.pending for subscriber in self._passing)
        if not lent:
            data = self._copy(data)  # one for all who do not keep up
        for subscriber in list(self._passing):
            self._send(subscriber, [data], lent=lent)

    def end(self) -> None:
        """All of the message has been given."""
        for subscriber in self._passed():
            self._send(subscriber, subscriber.answers())

    def abandon(self) -> None:
        """The rest of the message will not come: who has its beginning is let go, and connects again.

        What waited for it before is still sent on for a moment.
        """
        for subscriber in self._passed():
            self._drop(subscriber, LINGER)

    def _passed(self) -> list[Subscriber]:
        passing, self._passing, self._room = self._passing, [], memoryview(b"")
        return passing

    def _copy(self, data: bytes | memoryview) -> memoryview:
        """Many small copies would leave the process as large as it was, long after they were read."""
        if len(self._room) < len(data):
            self._room = allocate(max(HUGE, len(data)))
        copy, self._room = self._room[: len(data)], self._room[len(data) :]
        copy[:] = data
        return copy

    # -- subscribers ---------------------------------------------------------------------------------------

    def _wanting(self, parts: list[Any]) -> list[Subscriber]:
        topic = bytes(parts[0])
        return [subscriber for subscriber in self._subscribers if subscriber.wants(topic)]

    def _send(self, subscriber: Subscriber, buffers: list[Any], *, lent: bool = False) -> None:
        if subscriber not in self._subscribers:
            return  # it was let go because of what was sent to it just before
        try:
            subscriber.send(buffers, lent=lent)
        except OSError:
            self._drop(subscriber)
            return
        events = zmq.POLLIN | (zmq.POLLOUT if subscriber.pending else 0)
        self._loop.want(subscriber.fileno(), events)

    def _listen(self, listener: socket.socket) -> None:
        if listener is self._listener:
            self._loop.watch(listener.fileno(), lambda: self._accept(listener))

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:
            # No descriptor is left. The newcomer waits, and would wake us without a pause.
            self._loop.unwatch(listener.fileno())
            again = threading.Timer(ACCEPT_AGAIN, self._loop.call, [lambda: self._listen(listener)])
            again.daemon = True
            again.start()
            return
        try:
            subscriber = Subscriber(sock)
        except OSError:  # macOS, where it has gone already: its socket has no options any more
            sock.close()
            return
        self._subscribers.append(subscriber)
        self._loop.watch(subscriber.fileno(), lambda: self._on_ready(subscriber))
        self._send(subscriber, [zmtp.greeting()])

    def _on_ready(self, subscriber: Subscriber) -> None:
        try:
            changes = subscriber.receive()
        except (OSError, zmtp.ZmtpError):
            self._drop(subscriber)
            return
        for subscribes, topic in changes:
            if subscribes:
                self._on_subscribe(subscriber, topic)
            else:
                self._on_cancel()
        self._send(subscriber, [] if subscriber in self._passing else subscriber.answers())

    def _drop(self, subscriber: Subscriber, linger: float = 0.0) -> None:
        self._subscribers.remove(subscriber)
        if subscriber in self._passing:
            self._passing.remove(subscriber)
        self._loop.unwatch(subscriber.fileno())
        subscriber.close(linger)
        for _ in subscriber.topics.elements():
            self._on_cancel()
