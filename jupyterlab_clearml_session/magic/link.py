"""A client of one kernel of the local server, on its ZMQ sockets (Jupyter messaging protocol 5.3).

ZMQ and not the server's websocket: the kernel's connection file lies beside ours, nothing is copied through the
server's JSON and rate limits, and buffers are not copied at all. bench/magic.py has the figures.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.session import Session

from ..errors import KernelFailed

Message = dict[str, Any]
Buffers = Sequence[bytes | bytearray | memoryview]

CHANNELS = {"shell": zmq.DEALER, "stdin": zmq.DEALER, "iopub": zmq.SUB}


class KernelLink:
    """Sockets to one kernel. Belongs to the thread that uses it.

    Raises KernelFailed where the connection file cannot be read.
    """

    def __init__(self, connection_file: Path) -> None:
        try:
            info = json.loads(connection_file.read_text(encoding="utf-8"))
            key = info["key"].encode()
            ports = {name: info[f"{name}_port"] for name in CHANNELS}
        except (OSError, ValueError, KeyError) as error:
            raise KernelFailed(
                f"The kernel's connection file cannot be read: {error}.",
                hint="The Jupyter server must run on this machine, as the same user.",
            ) from None
        self.session = Session(key=key, signature_scheme=info.get("signature_scheme", "hmac-sha256"))
        self._context: zmq.Context[Any] = zmq.Context()
        self._poller = zmq.Poller()
        self.sockets: dict[str, zmq.Socket[Any]] = {}
        for name, kind in CHANNELS.items():
            sock = self.sockets[name] = self._context.socket(kind)
            sock.linger = 0
            # Between two cells nobody may read for hours: what comes then waits here, and stalls nobody else.
            sock.set_hwm(0)
            if kind == zmq.SUB:
                sock.setsockopt(zmq.SUBSCRIBE, b"")
            else:
                # Input is asked of the client whose request it was: same identity on both.
                sock.setsockopt(zmq.IDENTITY, self.session.bsession)
            sock.connect(_endpoint(info["transport"], info["ip"], ports[name]))
            self._poller.register(sock, zmq.POLLIN)

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close(linger=0)
        self._context.term()

    def send(
        self,
        channel: str,
        kind: str,
        content: Mapping[str, Any],
        *,
        buffers: Buffers = (),
        message_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        parent: Message | None = None,
    ) -> str:
        """Send a message and return its id; ``message_id`` takes the place of a fresh one."""
        message = self.session.msg(
            kind, dict(content), parent=parent, metadata=dict(metadata) if metadata else None
        )
        if message_id is not None:
            message["header"]["msg_id"] = message["msg_id"] = message_id
        self.session.send(self.sockets[channel], message, buffers=[memoryview(each) for each in buffers])
        return str(message["header"]["msg_id"])

    def receive(self, timeout: float, wake: int | None = None) -> Iterator[tuple[str, Message]]:
        """Yield what has come within ``timeout`` seconds, by channel; ends early where ``wake`` is readable."""
        if wake is not None:
            self._poller.register(wake, zmq.POLLIN)
        try:
            ready = dict(self._poller.poll(int(timeout * 1000)))
        finally:
            if wake is not None:
                self._poller.unregister(wake)
        # Output first: what the kernel said before its reply is shown before it.
        for name in ("iopub", "stdin", "shell"):
            if self.sockets[name] in ready:
                yield from ((name, message) for message in self.pending(name))

    def pending(self, channel: str) -> Iterator[Message]:
        """Yield the messages that are there; those with a wrong signature are dropped."""
        while True:
            try:
                frames = self.sockets[channel].recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            message = self.parse(frames)
            if message is not None:
                yield message

    def wait_connected(self, timeout: float, alive: Callable[[], object]) -> Mapping[str, Any]:
        """Wait until the kernel answers and its output reaches us; returns its kernel info.

        ``alive`` is called now and then; it raises where there is no hope left. Raises KernelFailed.
        """
        deadline = time.monotonic() + timeout
        info: Mapping[str, Any] | None = None
        asked: set[str] = set()
        while time.monotonic() < deadline:
            # Asked anew until output is seen too: what is published before we are subscribed is lost.
            asked.add(self.send("shell", "kernel_info_request", {}))
            look = time.monotonic() + 1.0
            heard = False
            while time.monotonic() < look and not (info is not None and heard):
                for channel, message in self.receive(0.1):
                    mine = message["parent_header"].get("msg_id") in asked
                    heard = heard or (channel == "iopub" and (mine or message["msg_type"] == "iopub_welcome"))
                    if channel == "shell" and mine and message["msg_type"] == "kernel_info_reply":
                        info = message["content"]
            if info is not None and heard:
                return info
            alive()
        raise KernelFailed(f"The kernel did not answer within {timeout:g} seconds.")

    def parse(self, frames: list[Any]) -> Message | None:
        try:
            _, parts = self.session.feed_identities(frames, copy=False)
            return self.session.deserialize(parts, copy=False)
        except (ValueError, TypeError):
            return None


@contextmanager
def interrupts() -> Iterator[tuple[int | None, Callable[[], int]]]:
    """Count Ctrl-C instead of raising it in the middle of things, where a message could be lost.

    Gives a descriptor that becomes readable, for `KernelLink.receive`, and a function that returns how many came
    since it was asked last. Outside of the main thread there are none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None, lambda: 0
        return
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    count = 0

    def note(signum: int, frame: Any) -> None:
        nonlocal count
        count += 1
        theirs.send(b"!")

    def taken() -> int:
        nonlocal count
        seen, count = count, 0
        if seen:
            ours.recv(4096)
        return seen

    before = signal.signal(signal.SIGINT, note)
    try:
        yield ours.fileno(), taken
    finally:
        signal.signal(signal.SIGINT, before)
        ours.close()
        theirs.close()


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Inside `interrupts`: let Ctrl-C raise KeyboardInterrupt, as whoever waits for input expects it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _endpoint(transport: str, ip: str, port: int) -> str:
    return f"ipc://{ip}-{port}" if transport == "ipc" else f"tcp://{ip}:{port}"
