"""The clients of the helper: who is there, over which wire, and how they come in.

Runs on any Python from 3.8 on with the standard library and pyzmq: it is sent to the remote machine.
"""

from __future__ import annotations

import array
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from .kernel import KernelProcess
from .link import Link
from .loop import Loop
from .wire import Wire, WireClosed

CLIENT_KEPT = 3600.0
"""Seconds for which a client without kernels that went away is remembered. One with kernels can always come back
and go on where it was: a laptop may sleep for days."""
SILENCE_LIMIT = 60.0
"""Seconds without a byte after which a client counts as away. One that lives asks for a sign of life every few
seconds, and comes back if its wire is closed. Of one whose machine lost its power nothing else tells for hours."""
LAZY = 0.001
"""Seconds for which "busy", the echo of the input, and a reply may wait for what follows them at once: a packet
costs more time than that. Not for longer: what they bring is then dealt with while the cell still runs."""


class Client:
    """Somebody who uses kernels: one process on the other side, known by the id it chose."""

    def __init__(self, client_id: str, on_message: Callable[[Client, int, int, list[Any]], None]) -> None:
        self.id = client_id
        self.kernels: dict[int, KernelProcess] = {}
        """The kernels that this client has, by the number of their stream."""
        self.last_seen = time.monotonic()
        self.link = Link(lambda *message: on_message(self, *message), lambda hello: None)
        self.connection: socket.socket | None = None
        self.lazy_since: float | None = None

    def may_wait(self, now: float) -> bool:
        """True while all that could be sent is better sent together with what follows."""
        logs = [kernel.output.log for kernel in self.kernels.values()]
        requests = self.link.streams[0].log
        if (
            requests.sent < requests.end
            or any(kernel.output.urgent for kernel in self.kernels.values())
            or not any(log.sent < log.end for log in logs)
            or self.link.wants_write
        ):
            return False
        if self.lazy_since is None:
            self.lazy_since = now
        return now - self.lazy_since < LAZY

    def sent(self) -> None:
        """What could be sent was."""
        self.lazy_since = None
        for kernel in self.kernels.values():
            kernel.output.urgent = False


class Clients:
    """All clients, and the Unix socket at which ``attach`` hands a channel over for one.

    Parameters
    ----------
    directory:
        Where the socket is made.
    greeting:
        Returns what each newcomer is told first.
    about:
        What a HELLO says beside the protocol's own.
    on_message:
        Called with ``(client, stream, channel, parts)`` for each message.
    """

    def __init__(
        self,
        loop: Loop,
        directory: Path,
        *,
        greeting: Callable[[], dict[str, Any]],
        about: dict[str, Any],
        on_message: Callable[[Client, int, int, list[Any]], None],
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._greeting = greeting
        self._about = about
        self._on_message = on_message
        self._known: dict[str, Client] = {}
        self._listener = self._listen()
        loop.watch(self._listener.fileno(), self._on_accept)

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._known.values()))

    def check(self, now: float) -> bool:
        """Forget those who went away long ago; True while one is here."""
        here = False
        for client in self:
            if client.link.wire is not None and now - client.link.last_received > SILENCE_LIMIT:
                self._close_wire(client)
            if client.link.wire is not None:
                client.last_seen, here = now, True
            elif not client.kernels and now - client.last_seen > CLIENT_KEPT:
                del self._known[client.id]
        return here

    def write(self, now: float) -> None:
        """Send what is to be sent, as much as goes."""
        for client in self:
            wire = client.link.wire
            if wire is None or client.may_wait(now):
                continue
            client.sent()
            try:
                client.link.write(now)
            except WireClosed:
                self._close_wire(client)
                continue
            if wire.pending:
                self._loop.watch(wire.write_fd, lambda: None, zmq.POLLOUT)
            else:
                self._loop.unwatch(wire.write_fd)

    def deadlines(self) -> Iterator[float]:
        """When `write` is due although nothing happens."""
        for client in self._known.values():
            if client.link.deadline is not None:
                yield client.link.deadline
            if client.lazy_since is not None:
                yield client.lazy_since + LAZY

    def close(self) -> None:
        """Let go of all of them."""
        for client in self:
            self._close_wire(client)
        (self._directory / "socket").unlink(missing_ok=True)
        self._listener.close()

    # -- a newcomer ----------------------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        cwd = Path.cwd()
        os.chdir(self._directory)
        try:
            Path("socket").unlink(missing_ok=True)
            # Bound under another name first: whoever can see it can connect.
            listener.bind("socket.new")
            listener.listen(16)
            Path("socket.new").rename("socket")
        finally:
            os.chdir(cwd)
        listener.setblocking(False)
        return listener

    def _on_accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # there is none, or no room for one now
        try:
            connection.sendall(json.dumps(self._greeting()).encode() + b"\n")
        except OSError:
            connection.close()  # it went away meanwhile: we were busy for long
            return
        connection.setblocking(False)
        self._loop.watch(connection.fileno(), lambda: self._on_hand_over(connection))

    def _on_hand_over(self, connection: socket.socket) -> None:
        self._loop.unwatch(connection.fileno())
        fds = array.array("i")
        try:
            data, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(2 * fds.itemsize))
            for level, kind, packed in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(packed[: len(packed) - len(packed) % fds.itemsize])
            client_id = str(json.loads(data)["client"])
        except (OSError, ValueError, KeyError, TypeError):
            client_id = ""
        if not client_id or len(fds) != 2:
            for fd in fds:
                os.close(fd)
            connection.close()
            return
        self._open_wire(client_id, connection, fds[0], fds[1])

    def _open_wire(self, client_id: str, connection: socket.socket, read_fd: int, write_fd: int) -> None:
        client = self._known.get(client_id)
        if client is None:
            client = self._known[client_id] = Client(client_id, self._on_message)
        self._close_wire(client)

        def closed() -> None:
            self._loop.unwatch(read_fd)
            self._loop.unwatch(write_fd)
            os.close(read_fd)
            os.close(write_fd)

        client.connection = connection
        client.link.open(Wire(read_fd, write_fd, closed), self._about, time.monotonic())
        self._loop.watch(read_fd, lambda: self._on_readable(client))
        # attach says nothing more; when it ends, the channel is gone.
        self._loop.watch(connection.fileno(), lambda: self._close_wire(client))

    def _on_readable(self, client: Client) -> None:
        if client.link.wire is None:
            return
        try:
            client.link.read(time.monotonic())
        except WireClosed:
            self._close_wire(client)

    def _close_wire(self, client: Client) -> None:
        client.link.close()
        client.lazy_since = None
        if client.connection is not None:
            self._loop.unwatch(client.connection.fileno())
            client.connection.close()
            client.connection = None
