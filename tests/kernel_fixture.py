"""A remote machine for kernel tests: the real helper, reached through a subprocess or a real SSH server."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import KernelConnectionInfo

from jupyterlab_clearml_session.kernels.attach import Handshake
from jupyterlab_clearml_session.kernels.bundle import attach_command
from jupyterlab_clearml_session.kernels.channel import SessionChannel
from jupyterlab_clearml_session.models import Phase, Session
from jupyterlab_clearml_session.remote.machine import Process

SESSION_ID_VARIABLE = "CLEARML_SESSION_TEST_ID"
SESSION_ID = os.environ.get(SESSION_ID_VARIABLE) or uuid.uuid4().hex
"""Of this process, and of those that it tells: a helper looks for its Task among all that runs on the machine."""


class RemoteMachine:
    """A directory that stands for another machine: its helper, its home, and how to get there."""

    def __init__(self, root: Path, **env: str) -> None:
        self.root = root
        self.home = root / "home"
        self.helper_dir = root / "helper"
        self.home.mkdir(exist_ok=True)
        self.prefix: list[str] = []
        """Before each command that runs there."""
        self._attaches: list[subprocess.Popen[bytes]] = []
        self.env = {
            "HOME": str(self.home),
            "CLEARML_SESSION_HELPER_DIR": str(self.helper_dir),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "JUPYTER_PREFER_ENV_PATH": "1",
            **env,
        }

    def dial(self, client_id: str) -> socket.socket:
        """Return a socket to a fresh attach: the channel without SSH."""
        ours, theirs = socket.socketpair()
        ours.settimeout(60)
        with theirs:
            self.spawn(client_id, theirs)
        shake(ours)
        return ours

    def spawn(self, client_id: str, end: socket.socket) -> subprocess.Popen[bytes]:
        """Run attach on one end of a socket pair."""
        process = subprocess.Popen(
            [*self.prefix, "sh", "-c", attach_command(SESSION_ID, client_id)],
            stdin=end.fileno(),
            stdout=end.fileno(),
            env={**os.environ, **self.env},
            cwd=self.home,
            start_new_session=True,
        )
        self._attaches.append(process)
        return process

    def greeting(self) -> dict[str, Any] | None:
        """What the daemon says of itself; None where none runs."""
        return next(self._greetings(), None)

    def connect(self) -> socket.socket:
        """Return a connection to the daemon, which has not said anything yet."""
        (path,) = self.helper_dir.glob("*/socket")
        return _connect(path)

    def _greetings(self) -> Iterator[dict[str, Any]]:
        for path in self.helper_dir.glob("*/socket"):
            with contextlib.suppress(OSError), _connect(path) as connection:
                yield json.loads(connection.recv(65536))

    def stop(self) -> None:
        """End the daemons of all sessions and wait until they and their kernels are gone."""
        # An attach that is on its way may still start a daemon: first they end, then it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self._attaches:
                process.wait(timeout=10)
        for pid in [greeting["pid"] for greeting in self._greetings()]:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
            assert gone(pid), "the helper does not end"
        for process in self._attaches:
            process.wait(timeout=10)
        self._attaches.clear()


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    directory = os.open(path.parent, os.O_RDONLY)  # the path itself may be too long for a socket
    try:
        connection.connect(f"/proc/self/fd/{directory}/socket")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def gone(pid: int, timeout: float = 15.0) -> bool:
    """Wait until a process has ended, reaped or not."""
    deadline = time.monotonic() + timeout
    while Process(pid).start_time is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    return Process(pid).start_time is None


def shake(sock: socket.socket) -> dict[str, Any]:
    """Do the handshake of a fresh attach on a blocking socket; return the helper's greeting."""
    handshake = Handshake()
    while handshake.info is None:
        data = sock.recv(1)  # nothing of the frames may be read too far
        if not data:
            raise OSError("attach has ended")
        sock.sendall(handshake.feed(data))
    return handshake.info


@contextlib.contextmanager
def running(machine: RemoteMachine) -> Iterator[RemoteMachine]:
    """Leave no process of a machine behind."""
    try:
        yield machine
    finally:
        machine.stop()


def remote_machine(root: Path, **env: str) -> contextlib.AbstractContextManager[RemoteMachine]:
    """Make a machine, and leave no process of it behind."""
    return running(RemoteMachine(root, **env))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[RemoteMachine]:
    with remote_machine(tmp_path) as made:
        yield made


def session(name: str = "trainer", session_id: str = SESSION_ID, *, mine: bool = True) -> Session:
    """A session that is ready."""
    return Session(
        id=session_id,
        name=name,
        phase=Phase.READY,
        phase_text="ready",
        phase_since="2026-01-01T00:00:00Z",
        status="in_progress",
        mine=mine,
    )


class Cable:
    """A wire that a test can cut after any byte, freeze, or let through; between attach and the channel."""

    def __init__(self, far: socket.socket, cut_after: int | None = None) -> None:
        self.near, self._middle = socket.socketpair()
        self._far = far
        self._left = cut_after
        self.frozen = False
        self.cut_off = threading.Event()
        self._stop_read, self._stop_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Break it now; returns when it is broken."""
        self._stop_write.close()
        self._thread.join(timeout=10)

    def change(self, source: socket.socket, data: bytes) -> bytes:
        """Return what arrives of the bytes that came from a side."""
        return data

    def _run(self) -> None:
        pairs = {self._far: self._middle, self._middle: self._far}
        with contextlib.suppress(OSError):
            while self._left is None or self._left > 0:
                wanted = [self._stop_read] if self.frozen else [self._stop_read, *pairs]
                ready, _, _ = select.select(wanted, [], [], 0.05)
                if self._stop_read in ready:
                    break
                for source in ready:
                    limit = 65536 if self._left is None or source is not self._far else min(65536, self._left)
                    data = source.recv(limit)
                    if not data:
                        raise ConnectionResetError
                    if source is self._far and self._left is not None:
                        self._left -= len(data)
                    pairs[source].sendall(self.change(source, data))
        self._end()

    def _end(self) -> None:
        for sock in (self._far, self._middle, self._stop_read):
            sock.close()
        self.cut_off.set()


class Talk:
    """A Jupyter client of one kernel that notes everything it is told on iopub, in order."""

    def __init__(self, info: dict[str, Any], session: str = "") -> None:
        self.client = BlockingKernelClient()
        if session:
            self.client.session.session = session
        self.client.load_connection_info(cast("KernelConnectionInfo", info))
        self.client.start_channels()
        self.last_id: str | None = None

    def until_idle(self, request: str, timeout: float = 60.0) -> list[dict[str, Any]]:
        """Return the iopub messages of a request, up to and with the kernel being idle again."""
        messages = []
        while True:
            message = self.next(timeout)
            if message["parent_header"].get("msg_id") != request:
                continue
            messages.append(message)
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return messages

    def next(self, timeout: float = 60.0) -> dict[str, Any]:
        """Return the next iopub message."""
        message: dict[str, Any] = self.client.get_iopub_msg(timeout=timeout)
        self.last_id = message["header"]["msg_id"]
        return message

    def run(self, code: str, timeout: float = 60.0) -> str:
        """Run code; return what it wrote to stdout and stderr."""
        return text_of(self.until_idle(self.client.execute(code), timeout))

    def reply(self, request: str, timeout: float = 60.0) -> dict[str, Any]:
        """Return the reply to a request."""
        while True:
            reply: dict[str, Any] = self.client.get_shell_msg(timeout=timeout)
            if reply["parent_header"].get("msg_id") == request:
                return reply["content"]  # type: ignore[no-any-return]

    def close(self) -> None:
        self.client.stop_channels()


def text_of(messages: list[dict[str, Any]]) -> str:
    """Return the stream output of iopub messages."""
    return "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")


def start_kernel(
    channel: SessionChannel, directory: Path, kernel_id: str = "k-1", name: str = "python3", **params: Any
) -> int:
    """Start a kernel on a channel, and give the number of its stream."""
    stream = channel.open_port(directory / kernel_id, b"secret", "hmac-sha256").result(20)
    start = {"env": {}, "folders": [], "meta": {}, "adopt": True, "hold_for": 1, **params}
    hold_for = start.pop("hold_for")
    channel.start_kernel(
        stream,
        hold_for,
        kernel_id=kernel_id,
        name=name,
        key="secret",
        signature_scheme="hmac-sha256",
        **start,
    ).result(60)
    return stream


def talk(channel: SessionChannel, stream: int) -> Talk:
    """Connect a client to a kernel's local sockets."""
    port = channel.port(stream)
    assert port is not None
    return Talk(port.info)
