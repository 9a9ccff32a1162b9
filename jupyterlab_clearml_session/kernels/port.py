"""The local end of one kernel: the five ZMQ sockets that Jupyter clients connect to.

Messages pass as they are: the kernel got the signing key of the local kernel manager, so nothing is parsed or
signed again on the way. Heartbeats are answered here, as long as the kernel's process is alive as far as is
known: a link that is down is not a dead kernel.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.session import Session

from ..remote.kernel import receive_parts, send_parts
from ..remote.loop import Loop
from ..remote.messages import CONTROL, IOPUB, SHELL, STDIN, LargeMessage
from .publisher import Publisher
from .subscriber import Subscriber

NAMES = {SHELL: "shell", IOPUB: "iopub", STDIN: "stdin", CONTROL: "control"}
STALL_LIMIT = 10.0
"""Seconds after which a subscriber that takes nothing no longer holds up the others: it loses output."""
RETRY_INTERVAL = 0.005
UNCLAIMED_LIMIT = 16 * 1024 * 1024
"""Bytes of replies that wait for clients which are not connected; the first ones go for what comes beyond it."""
BATCH = 256
HOLD_LIMIT = 10.0
"""Seconds for which the second and later subscribers of an adopted kernel are waited for."""
WELCOME = b'"iopub_welcome"'
"""What tells the header of a welcome from those of a kernel's own messages."""


class KernelPort:
    """Belongs to the thread of its channel; only `exit_status`, `exit_tail` and `info` are for others to read.

    Parameters
    ----------
    base:
        Path to which ``-1`` to ``-5`` are added: the files of the sockets.
    key, signature_scheme:
        With which the kernel signs; used for the welcome message only.
    """

    def __init__(
        self, context: zmq.Context[Any], loop: Loop, base: Path, key: bytes, signature_scheme: str
    ) -> None:
        self.info: dict[str, Any] = {
            "transport": "ipc",
            "ip": str(base),
            "key": key,
            "signature_scheme": signature_scheme,
            **{f"{name}_port": number for number, name in enumerate([*NAMES.values(), "hb"], start=1)},
        }
        self.pid: int | None = None
        """The kernel's process over there."""
        self.exit_status: int | None = None
        self.exit_tail: list[str] = []
        self.on_pause: Callable[[bool], None] = lambda paused: None
        self._base = base
        self._session = Session(key=key, signature_scheme=signature_scheme)
        self.hold_for = 0
        """Subscribers for whom the output of an adopted kernel waits."""
        self._holding = False
        self._hold_until = math.inf
        self._subscribers = 0
        self._backlog: deque[list[Any]] = deque()
        self._stalled_since: float | None = None
        # Replies by channel and client that is not connected: it went away, or comes back after a restart of the
        # server, perhaps to all cells of a notebook.
        self._unclaimed: dict[tuple[int, bytes], deque[list[Any]]] = {}
        self._unclaimed_bytes = 0
        self.publisher = Publisher(loop, self._path("iopub"), self._subscribed, self._cancelled)
        self.sockets: dict[int, zmq.Socket[Any]] = {}
        for channel in (SHELL, STDIN, CONTROL):
            sock = self.sockets[channel] = context.socket(zmq.ROUTER)
            sock.linger = 0
            # A client that reconnects under its old name takes the place of its dead connection.
            sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
            sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
            sock.set_hwm(0)
        self.heartbeat = context.socket(zmq.ROUTER)
        self.heartbeat.linger = 0
        try:
            self.bind()
        except (zmq.ZMQError, OSError):
            self.close()
            raise

    def bind(self) -> None:
        """Bind the sockets whose files are not there (jupyter_client removes them at a restart).

        Raises zmq.ZMQError, OSError.
        """
        self.publisher.bind()
        for path, sock in self._bound():
            if path.exists():
                continue
            if sock.getsockopt(zmq.LAST_ENDPOINT):
                sock.unbind(f"ipc://{path}")
            sock.bind(f"ipc://{path}")

    def close(self) -> None:
        """Close the sockets, with what is in them sent on, and remove their files."""
        self.publisher.close()
        for path, sock in self._bound():
            sock.close(linger=1000)
            path.unlink(missing_ok=True)

    def _bound(self) -> list[tuple[Path, zmq.Socket[Any]]]:
        bound = [(self._path(NAMES[channel]), sock) for channel, sock in self.sockets.items()]
        return [*bound, (self._path("hb"), self.heartbeat)]

    def _path(self, name: str) -> Path:
        return Path(f"{self._base}-{self.info[name + '_port']}")

    def started(self, pid: int, adopted: dict[str, Any] | None) -> None:
        """The kernel is there; an adopted one signs with the key that it got at its birth."""
        self.pid, self.exit_status = pid, None
        if adopted is None:
            return
        key, scheme = adopted["key"].encode(), adopted["signature_scheme"]
        self.info.update(key=key, signature_scheme=scheme)
        self._session = Session(key=key, signature_scheme=scheme)
        self._holding, self._hold_until = self._subscribers < self.hold_for, math.inf

    # -- from the kernel -----------------------------------------------------------------------------------

    def deliver(self, channel: int, parts: list[Any]) -> None:
        """Give a message of the kernel to the clients."""
        if channel != IOPUB:
            if self._unclaimed:
                self._retry_replies()
            waits = bool(self._unclaimed) and (channel, bytes(parts[0])) in self._unclaimed
            if waits or not self._reply(channel, parts):
                self._leave(channel, parts)
            return
        if self._holding or self._backlog or not self._publish(parts):
            self._backlog.append(parts)
            self.on_pause(True)

    def begin(self, channel: int, parts: list[Any]) -> LargeMessage | None:
        """Give a large message to the clients while it comes, if that can be: see `MessageReader`."""
        if channel != IOPUB or not parts or self._holding or self._backlog:
            return None
        return self.publisher if self.publisher.begin(parts) else None

    @property
    def stalled(self) -> bool:
        """True while output waits for a subscriber that does not keep up: `retry` is due soon."""
        return bool(self._backlog) and not (self._holding and time.monotonic() < self._hold_until)

    def retry(self) -> None:
        """Publish what was kept back, as far as it goes."""
        self._holding = False
        while self._backlog:
            if not self._publish(self._backlog[0]):
                return
            self._backlog.popleft()
        self.on_pause(False)

    def _reply(self, channel: int, parts: list[Any]) -> bool:
        try:
            send_parts(self.sockets[channel], parts)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def _retry_replies(self) -> None:
        """A reply to a client that was not there: it may have come back under its old name by now."""
        for (channel, client), waiting in list(self._unclaimed.items()):
            while waiting and self._reply(channel, waiting[0]):
                self._drop_reply((channel, client))

    def _leave(self, channel: int, parts: list[Any]) -> None:
        self._unclaimed.setdefault((channel, bytes(parts[0])), deque()).append(parts)
        self._unclaimed_bytes += sum(map(len, parts))
        while self._unclaimed_bytes > UNCLAIMED_LIMIT:
            self._drop_reply(next(iter(self._unclaimed)))

    def _drop_reply(self, client: tuple[int, bytes]) -> None:
        waiting = self._unclaimed[client]
        self._unclaimed_bytes -= sum(map(len, waiting.popleft()))
        if not waiting:
            del self._unclaimed[client]

    def _publish(self, parts: list[Any]) -> bool:
        if self.publisher.publish(parts):
            self._stalled_since = None
            return True
        now = time.monotonic()
        if self._stalled_since is None:
            self._stalled_since = now
        return now - self._stalled_since >= STALL_LIMIT and self.publisher.publish(parts, drop=True)

    # -- from the clients ----------------------------------------------------------------------------------

    def receive(self, channel: int) -> list[list[Any]]:
        """Return the messages that clients have sent on a channel, at most `BATCH`."""
        messages = []
        sock = self.sockets[channel]
        for _ in range(BATCH):
            try:
                messages.append(receive_parts(sock))
            except zmq.Again:
                break
        if self._unclaimed:
            self._retry_replies()
        return messages

    def _subscribed(self, subscriber: Subscriber, topic: bytes) -> None:
        """Deal with a newcomer: it is welcomed, which tells it that it is connected."""
        self._subscribers += 1
        content = {"subscription": topic.decode(errors="replace")}
        message = self._session.msg("iopub_welcome", content)
        self.publisher.tell(subscriber, self._session.serialize(message, topic or None))
        if self._holding and self._subscribers >= self.hold_for:
            self.retry()
        elif self._holding and self._subscribers >= 2 and self._hold_until == math.inf:
            self._hold_until = time.monotonic() + HOLD_LIMIT

    def _cancelled(self) -> None:
        self._subscribers -= 1

    def beat(self) -> None:
        """Answer heartbeats."""
        for _ in range(BATCH):
            try:
                frames = self.heartbeat.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if self.exit_status is None:
                self.heartbeat.send_multipart(frames, zmq.NOBLOCK)
        if self._unclaimed:
            self._retry_replies()
