"""One kernel on the remote machine: its process and its ZMQ sockets. What it says is kept by its output.

Runs on any Python from 3.8 on with the standard library and pyzmq: it is sent to the remote machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections import deque
from pathlib import Path
from string import Template
from typing import Any

import zmq
import zmq.backend

from .messages import CONTROL, IOPUB, SHELL, STDIN
from .output import KernelOutput, now
from .sendlog import SendLog

CHANNELS = {SHELL: "shell", IOPUB: "iopub", STDIN: "stdin", CONTROL: "control"}
RECEIVE_BATCH = 256
"""Messages taken from one socket in a turn, so that one kernel's flood does not starve the rest."""
TAIL_BYTES = 64 * 1024
DRAIN_SECONDS = 1.0
EMPTY_READS = 3
"""How often in a row nothing may come of a process that has ended until that was all: ZMQ reads in a thread of its
own, which is late on a busy machine."""
KILL_SECONDS = 2.0
"""For which a killed process is waited for. One that hangs in a driver goes when that lets go of it."""
UNLIMITED = """\
try:
    (lambda t: t.schedule(lambda: setattr(t.socket, "sndhwm", 0)))(get_ipython().kernel.iopub_thread)
except (AttributeError, NameError):
    pass  # another kernel or version: it stays as it is
"""
"""ipykernel drops output when more than 1000 messages wait to be read: what it says while a busy machine keeps us
from reading for some hundredths of a second."""
_PR_SET_PDEATHSIG = 1
_NOBLOCK = _LAST = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


class KernelProcess:
    """A kernel: started from a kernelspec, reached over its own ZMQ sockets, killed with the helper.

    Parameters
    ----------
    kernel_id:
        The Jupyter kernel id; the same over restarts.
    directory:
        A short directory of mode 0700 for its connection file and sockets.
    log:
        Where its messages are kept until they are acknowledged.
    """

    def __init__(self, context: zmq.Context[Any], kernel_id: str, directory: Path, log: SendLog) -> None:
        self.id = kernel_id
        self.output = KernelOutput(log)
        self.name = ""
        self.started = ""
        self.meta: dict[str, Any] = {}
        self.exit_status: int | None = None
        self.sockets: dict[int, zmq.Socket[Any]] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._context = context
        self._directory = directory
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0

    # -- the process ---------------------------------------------------------------------------------------

    def start(
        self, spec: dict[str, Any], env: dict[str, str], cwd: str, key: str, signature_scheme: str
    ) -> None:
        """Start the process. Raises OSError where the command cannot be run.

        ``env`` is the whole environment, to which the kernelspec's own is added.
        """
        self.close_sockets()
        self.output.begin(key, signature_scheme)
        self.exit_status = None
        self.started = now()
        self._tail.clear()
        self._tail_bytes = 0
        connection_file = self._write_connection_file(spec)
        substitutes = {
            "connection_file": str(connection_file),
            "resource_dir": spec["resource_dir"],
            "prefix": spec["prefix"],
        }
        argv = [
            re.sub(r"\{([A-Za-z0-9_]+)\}", lambda match: substitutes.get(match[1], match[0]), arg)
            for arg in spec["argv"]
        ]
        env = dict(env)
        env.update({name: Template(value).safe_substitute(env) for name, value in spec["env"].items()})
        env["JPY_PARENT_PID"] = str(os.getpid())
        try:
            self.process = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # One call into libc, nothing that could need a lock another thread holds.
                preexec_fn=_die_with_helper,  # noqa: PLW1509
            )
        except OSError:
            self.close_sockets()
            self.output.state, self.exit_status = "dead", 127
            raise
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        if spec["language"] == "python" and _is_ipykernel(spec):
            send_parts(self.sockets[SHELL], self.output.request(UNLIMITED))

    def _write_connection_file(self, spec: dict[str, Any]) -> Path:
        # A file socket in a private directory cannot be read by other users, has no port to clash, and no
        # Nagle delay. Every kernel that builds on ipykernel takes it; for others TCP is the safe choice.
        ipc = _is_ipykernel(spec)
        ip = str(self._directory / self.id[:8]) if ipc else "127.0.0.1"
        names = ["shell", "iopub", "stdin", "control", "hb"]
        ports = list(range(1, 6)) if ipc else _free_ports(5)
        info: dict[str, Any] = {
            "transport": "ipc" if ipc else "tcp",
            "ip": ip,
            "key": self.output.key,
            "signature_scheme": self.output.signature_scheme,
            "kernel_name": spec["name"],
        }
        # One routing id for the three request channels: a kernel sends an input request to the stdin socket
        # of the client whose shell request it works on.
        identity = secrets.token_hex(8).encode()
        for index, name in enumerate(names):
            info[name + "_port"] = ports[index]
            address = f"ipc://{ip}-{ports[index]}" if ipc else f"tcp://{ip}:{ports[index]}"
            if ipc:
                Path(address[6:]).unlink(missing_ok=True)
            if name != "hb":
                self._connect(name, address, identity)
        path = self._directory / f"kernel-{self.id}.json"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(info, file)
        return path

    def _connect(self, name: str, address: str, identity: bytes) -> None:
        channel = next(number for number, known in CHANNELS.items() if known == name)
        sock = self._context.socket(zmq.SUB if channel == IOPUB else zmq.DEALER)
        sock.linger = 0
        sock.set_hwm(0)
        sock.setsockopt(zmq.RECONNECT_IVL, 15)
        if channel == IOPUB:
            sock.setsockopt(zmq.SUBSCRIBE, b"")
        else:
            sock.setsockopt(zmq.ROUTING_ID, identity)
        sock.connect(address)
        self.sockets[channel] = sock

    def poll(self) -> int | None:
        """Return the exit status (negative: the signal), None while the process runs."""
        return self.process.poll() if self.process is not None else self.exit_status

    def signal(self, signum: int) -> None:
        """Send a signal to the kernel and the processes it started."""
        if self.process is None or self.process.poll() is not None:
            return
        try:
            os.killpg(self.process.pid, signum)
        except ProcessLookupError:
            return  # it ended just now

    def kill(self) -> None:
        """Kill the process, if it runs, and wait for its end for a moment."""
        if self.process is None:
            return
        self.signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_SECONDS)

    @property
    def stderr_fd(self) -> int | None:
        """What the process writes outside of Jupyter's protocol."""
        return self.process.stdout.fileno() if self.process is not None and self.process.stdout else None

    def read_stderr(self) -> bool:
        """Keep the last lines; False at the end of the output."""
        fd = self.stderr_fd
        if fd is None:
            return False
        try:
            data = os.read(fd, TAIL_BYTES)
        except BlockingIOError:
            return True
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())
        return bool(data)

    def finish(self) -> None:
        """The process has ended, or was killed: keep its last messages, then say so on the stream, once."""
        assert self.process is not None
        status = self.process.poll()
        self.exit_status = -signal.SIGKILL if status is None else status
        deadline = time.monotonic() + DRAIN_SECONDS
        empty = 0
        while empty < EMPTY_READS and time.monotonic() < deadline:
            came = self.receive(IOPUB) + self.receive(SHELL) + self.receive(CONTROL)
            empty = 0 if came else empty + 1
            time.sleep(0.01)
        self.read_stderr()
        tail = b"".join(self._tail).decode(errors="replace").splitlines()[-20:]
        if self.process.stdout is not None:
            self.process.stdout.close()
        pid, self.process = self.process.pid, None
        self.close_sockets()
        self.output.end(pid, self.exit_status, tail)

    def close_sockets(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self.sockets.clear()

    def remove(self) -> None:
        """Kill the process if there is one and leave nothing behind."""
        self.kill()
        if self.process is not None:
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None
        self.close_sockets()
        self.output.log.clear()
        for path in [*self._directory.glob(self.id[:8] + "-*"), self._directory / f"kernel-{self.id}.json"]:
            path.unlink(missing_ok=True)

    # -- messages ------------------------------------------------------------------------------------------

    def send(self, channel: int, parts: list[Any]) -> None:
        """Give a client's message to the kernel. Where the kernel is dead it is lost, as with a local one."""
        sock = self.sockets.get(channel)
        if sock is None:
            return
        send_parts(sock, parts)
        self.output.asked(channel, parts)

    def receive(self, channel: int) -> int:
        """Take what a socket has into the log; return how many messages that were."""
        sock = self.sockets.get(channel)
        if sock is None:
            return 0
        for count in range(RECEIVE_BATCH):
            try:
                parts = receive_parts(sock)
            except zmq.Again:
                return count
            self.output.keep(channel, parts)
        return RECEIVE_BATCH


def send_parts(sock: zmq.Socket[Any], parts: list[Any]) -> None:
    """Send a message without waiting; zmq.Again where the socket is full.

    As ``send_multipart``, which spends more time on its flags than on sending the small parts of a message.
    """
    last = len(parts) - 1
    for index, part in enumerate(parts):
        # Only the first part can find the socket full: ZMQ sends messages whole.
        zmq.backend.Socket.send(sock, part, _MORE if index < last else _LAST, copy=len(part) < 65536)


def receive_parts(sock: zmq.Socket[Any]) -> list[Any]:
    """Take a message without waiting; zmq.Again where there is none.

    As ``recv_multipart``, which asks the socket after each part whether there is more, in twice the time.
    """
    parts = []
    while True:
        frame = zmq.backend.Socket.recv(sock, _NOBLOCK, copy=False)
        # Large buffers are not copied out of libzmq.
        parts.append(frame.bytes if len(frame) < 65536 else frame.buffer)
        if not frame.more:
            return parts


def _is_ipykernel(spec: dict[str, Any]) -> bool:
    return any("ipykernel" in arg for arg in spec["argv"])


def _free_ports(count: int) -> list[int]:
    socks = [socket.socket() for _ in range(count)]
    for sock in socks:
        sock.bind(("127.0.0.1", 0))
    ports = [int(sock.getsockname()[1]) for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def _die_with_helper() -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _load_libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "prctl") else None


_libc = _load_libc()
