"""The daemon of the helper: clients, their requests, and the loop that moves everything.

One thread and one poller; only kernelspecs and metrics, which take time, are gathered in threads. Runs on any
Python from 3.8 on with the standard library and pyzmq.
"""

from __future__ import annotations

import array
import json
import math
import os
import queue
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from . import machine
from .idle import IdleWatch
from .kernel import KernelProcess
from .wire import PROTOCOL, REQUEST, Link, SendLog, Stream, Wire, WireClosed

MEMORY_LIMIT = int(os.environ.get("CLEARML_SESSION_HELPER_MEMORY", "134217728"))
"""Bytes of output of one kernel that wait in memory for a client (128 MiB)."""
DISK_LIMIT = int(os.environ.get("CLEARML_SESSION_HELPER_DISK", "2147483648"))
"""Bytes of it that wait on disk after that (2 GiB). What comes then is dropped, visibly."""
CLIENT_KEPT = 3600.0
"""Seconds for which a client that went away can come back and go on where it was."""
IDLE_EXIT = 600.0
"""Seconds without kernels and clients after which the daemon ends."""
LIFETIME = 14 * 24 * 3600.0
"""Seconds without any client after which it ends, kernels or not."""
CHECK_INTERVAL = 2.0
LAZY = 0.005
"""Seconds for which "busy", the echo of the input, and a reply may wait for what follows them at once. Four
packets for one short cell become one, each of which would cost more time than it takes to wait."""
SHORT = 48
"""Longest name of the folder below which the kernels' folder is made."""


def run(session_id: str, directory: Path, own_hash: str) -> None:
    """Serve until the session has ended. The working directory is the one kernels start in."""
    note = directory / "kernels"
    if note.exists():
        shutil.rmtree(note.read_text(), ignore_errors=True)  # of a daemon that was killed
    with tempfile.TemporaryDirectory(prefix="cs-", dir=_short_place()) as short:
        note.write_text(short)
        daemon = Daemon(session_id, directory, Path(short), own_hash)
        signal.signal(signal.SIGTERM, lambda *_: daemon.stop())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            daemon.serve()
        finally:
            daemon.close()


def _short_place() -> str:
    """Return a folder whose name leaves room for the kernels' sockets: 107 bytes are all a socket's may have."""
    places = (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp")  # noqa: S108 - made 0700 below
    usable = [place for place in places if place and len(place) <= SHORT and os.access(place, os.W_OK)]
    return usable[0] if usable else places[0]


class Client:
    """Somebody who uses kernels: one process on the other side, known by the id it chose."""

    def __init__(self, client_id: str, daemon: Daemon) -> None:
        self.id = client_id
        self.kernels: dict[int, KernelProcess] = {}
        self.last_seen = time.monotonic()
        self.link = Link(lambda *message: daemon.on_message(self, *message), lambda hello: None)
        self.connection: socket.socket | None = None
        self.lazy_since: float | None = None

    def may_wait(self, now: float) -> bool:
        """True while all that could be sent is better sent together with what follows."""
        logs = [kernel.log for kernel in self.kernels.values()]
        requests = self.link.streams[0].log
        if (
            requests.sent < requests.end
            or any(kernel.urgent for kernel in self.kernels.values())
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
            kernel.urgent = False


class Daemon:
    """See the module."""

    def __init__(self, session_id: str, directory: Path, short: Path, own_hash: str) -> None:
        self.session_id = session_id
        self.instance = uuid.uuid4().hex
        self.hash = own_hash
        self.folder = Path.cwd()
        self.kernels: dict[str, KernelProcess] = {}
        self.clients: dict[str, Client] = {}
        self._directory = directory
        self._short = short
        self._context: zmq.Context[Any] = zmq.Context()
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Callable[[int], Any]] = {}
        self._done = False
        self._started = self._last_client = self._last_use = time.monotonic()
        self._specs: dict[str, dict[str, Any]] | None = None
        self._meter = machine.Meter(str(self.folder))
        self._anchor = _anchor(session_id)
        self._idle: IdleWatch | None = None
        self._next_look = math.inf
        self._results: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._watch(self._wake_read, self._on_wake)
        self._listener = self._listen()
        self._watch(self._listener.fileno(), self._on_accept)

    def stop(self) -> None:
        """End soon, with all kernels. Called from a signal handler."""
        self._done = True

    # -- the loop ------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Move messages until there is a reason to end."""
        next_check = 0.0
        while not self._done:
            now = time.monotonic()
            if now >= next_check:
                next_check = now + CHECK_INTERVAL
                self._check(now)
            for target, events in self._poller.poll(self._wait(now, next_check)):
                handler = self._handlers.get(target)
                if handler is not None:
                    handler(events)
            self._write_all()

    def _wait(self, now: float, next_check: float) -> int:
        """Milliseconds until something is due."""
        deadlines = [client.link.deadline for client in self.clients.values()]
        deadlines += [client.lazy_since + LAZY for client in self.clients.values() if client.lazy_since]
        due = min([next_check, *(deadline for deadline in deadlines if deadline is not None)])
        return max(0, math.ceil((due - now) * 1000))

    def _write_all(self) -> None:
        now = time.monotonic()
        for client in list(self.clients.values()):
            wire = client.link.wire
            if wire is None or client.may_wait(now):
                continue
            client.sent()
            try:
                client.link.write(now)
            except WireClosed:
                self._close_wire(client)
                continue
            reading = zmq.POLLIN
            if wire.read_fd == wire.write_fd:
                self._poller.register(wire.read_fd, reading | (zmq.POLLOUT if wire.pending else 0))
            elif wire.pending:
                self._watch(wire.write_fd, lambda events: None, zmq.POLLOUT)
            else:
                self._unwatch(wire.write_fd)

    def _watch(self, target: Any, handler: Callable[[int], Any], events: int = zmq.POLLIN) -> None:
        self._handlers[target] = handler
        self._poller.register(target, events)

    def _unwatch(self, target: Any) -> None:
        if self._handlers.pop(target, None) is not None:
            self._poller.unregister(target)

    def _on_wake(self, events: int) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return
        while not self._results.empty():
            self._results.get()()
        for kernel in list(self.kernels.values()):
            if kernel.process is not None and kernel.poll() is not None:
                self._finish(kernel)

    def _finish(self, kernel: KernelProcess) -> None:
        self._unwatch_kernel(kernel)
        kernel.finish()

    def _check(self, now: float) -> None:
        if any(client.link.wire is not None for client in self.clients.values()):
            self._last_client = now
        if self.kernels or self._last_client == now:
            self._last_use = now
        for client in list(self.clients.values()):
            if client.link.wire is not None:
                client.last_seen = now
            elif now - client.last_seen > CLIENT_KEPT:
                del self.clients[client.id]
        if now >= self._next_look and self._idle is not None:
            self._look(self._idle, now)
        gone = self._anchor is not None and not self._anchor.alive
        if gone or now - self._last_use > IDLE_EXIT or now - self._last_client > LIFETIME:
            self._done = True

    def _look(self, idle: IdleWatch, now: float) -> None:
        def work() -> None:
            if idle is self._idle and idle.look():
                idle.end_session()

        self._next_look = now + idle.interval
        threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """Kill the kernels and leave nothing behind."""
        for kernel in self.kernels.values():
            self._unwatch_kernel(kernel)
            kernel.remove()
        for client in self.clients.values():
            self._close_wire(client)
        (self._directory / "socket").unlink(missing_ok=True)
        self._listener.close()
        signal.set_wakeup_fd(-1)
        self._context.destroy(linger=0)

    # -- clients -------------------------------------------------------------------------------------------

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

    def _on_accept(self, events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        greeting = {
            "protocol": PROTOCOL,
            "hash": self.hash,
            "pid": os.getpid(),
            "instance": self.instance,
            "python": sys.version.split()[0],
            "kernels": len(self.kernels),
        }
        connection.sendall(json.dumps(greeting).encode() + b"\n")
        connection.setblocking(False)
        self._watch(connection.fileno(), lambda events: self._on_hand_over(connection))

    def _on_hand_over(self, connection: socket.socket) -> None:
        self._unwatch(connection.fileno())
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
        client = self.clients.get(client_id)
        if client is None:
            client = self.clients[client_id] = Client(client_id, self)
        self._close_wire(client)

        def closed() -> None:
            self._unwatch(read_fd)
            self._unwatch(write_fd)
            os.close(read_fd)
            os.close(write_fd)

        wire = Wire(read_fd, write_fd, closed)
        client.connection = connection
        client.link.open(wire, {"instance": self.instance, "hash": self.hash}, time.monotonic())
        self._watch(read_fd, lambda events: self._on_readable(client))
        # attach says nothing more; when it ends, the channel is gone.
        self._watch(connection.fileno(), lambda events: self._close_wire(client))

    def _on_readable(self, client: Client) -> None:
        if client.link.wire is None:
            return
        try:
            client.link.read(time.monotonic())
        except WireClosed:
            self._close_wire(client)

    def _close_wire(self, client: Client) -> None:
        client.link.close()
        if client.connection is not None:
            self._unwatch(client.connection.fileno())
            client.connection.close()
            client.connection = None

    # -- messages and requests -----------------------------------------------------------------------------

    def on_message(self, client: Client, stream: int, channel: int, parts: list[Any]) -> None:
        """Deal with a client's message: a request on stream 0, else one for the kernel of that stream."""
        if stream:
            kernel = client.kernels.get(stream)
            if kernel is not None:
                kernel.send(channel, parts)
            return
        request = json.loads(bytes(parts[0]))
        number = request["id"]
        method = getattr(self, "_do_" + str(request["method"]), None)
        if method is None:
            self._answer(client, number, error=f"this helper cannot do {request['method']!r}")
            return
        try:
            result = method(client, number, **request["params"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._answer(client, number, error=f"{type(error).__name__}: {error}")
            return
        if result is not None:
            self._answer(client, number, result)

    def _answer(self, client: Client, number: int, result: Any = None, error: str | None = None) -> None:
        body: dict[str, Any] = {"id": number, "result": result}
        if error is not None:
            body = {"id": number, "error": error}
        client.link.send(0, REQUEST, [json.dumps(body).encode()])

    def _in_thread(self, client: Client, number: int, work: Callable[[], Any]) -> None:
        def answer_later() -> None:
            try:
                result, error = work(), None
            except Exception as problem:  # noqa: BLE001 -- whatever it is, the client has to learn it
                result, error = None, f"{type(problem).__name__}: {problem}"
            self._results.put(lambda: self._answer(client, number, result, error))
            os.write(self._wake_write, b"r")

        threading.Thread(target=answer_later, daemon=True).start()

    def _do_kernelspecs(self, client: Client, number: int) -> None:
        def work() -> Any:
            self._specs = machine.kernelspecs()
            return {
                name: {**spec, "resources": machine.resources(spec)} for name, spec in self._specs.items()
            }

        self._in_thread(client, number, work)

    def _do_metrics(self, client: Client, number: int) -> None:
        idle_s = round(time.monotonic() - self._last_activity(), 1)
        self._in_thread(client, number, lambda: {**self._meter.measure(), "idle_s": idle_s})

    def _do_idle_limit(self, client: Client, number: int, minutes: float) -> dict[str, Any]:
        """End the session after so many minutes without work; 0: never."""
        if self._idle is None or self._idle.minutes != minutes:
            self._idle = IdleWatch(self.session_id, minutes, self._last_activity) if minutes > 0 else None
            self._next_look = time.monotonic() + self._idle.interval if self._idle else math.inf
        return {}

    def _last_activity(self) -> float:
        if any(kernel.state == "busy" for kernel in self.kernels.values()):
            return time.monotonic()
        return max([self._started, *(kernel.last_activity for kernel in self.kernels.values())])

    def _do_start(
        self,
        client: Client,
        number: int,
        *,
        kernel_id: str,
        stream: int,
        name: str,
        key: str,
        signature_scheme: str,
        env: dict[str, str],
        folders: list[str],
        meta: dict[str, Any],
        adopt: bool,
        after: str | None = None,
    ) -> dict[str, Any]:
        """Start a kernel; with ``adopt``, one of this id that lives here already is taken over instead.

        Its output is then replayed from the message with the id ``after``, see `KernelProcess.replay_after`.
        """
        if adopt and kernel_id in self.kernels and self.kernels[kernel_id].poll() is None:
            return self._adopt(client, kernel_id, stream, after)
        if self._specs is None:
            self._specs = machine.kernelspecs()
        if name not in self._specs:
            raise ValueError(f"there is no kernel {name!r} on the remote machine any more")
        kernel = self.kernels.get(kernel_id)
        if kernel is None:
            log = SendLog(MEMORY_LIMIT, DISK_LIMIT, self._directory)
            kernel = self.kernels[kernel_id] = KernelProcess(self._context, kernel_id, self._short, log)
        elif kernel.process is not None:
            kernel.signal(signal.SIGKILL)
            kernel.process.wait()
            self._finish(kernel)
        if client.kernels.get(stream) is not kernel:
            self._give(kernel, client, stream)
        kernel.name, kernel.meta = name, meta
        try:
            kernel.start(self._specs[name], self._environment(env), self._cwd(folders), key, signature_scheme)
        except OSError:
            kernel.close_sockets()
            raise
        self._watch_kernel(kernel)
        return self._describe(kernel)

    def _environment(self, env: dict[str, str]) -> dict[str, str]:
        own = {
            name: value for name, value in os.environ.items() if not name.startswith("CLEARML_SESSION_HELPER")
        }
        return {**own, **env}

    def _cwd(self, folders: list[str]) -> str:
        for folder in folders:
            path = (self.folder / folder).resolve()
            if path.is_dir():
                return str(path)
        return str(self.folder)

    def _give(self, kernel: KernelProcess, client: Client, stream: int, after: str | None = None) -> None:
        """Make ``client`` the one that ``kernel`` talks to; the former one is told."""
        for other in self.clients.values():
            for number, held in list(other.kernels.items()):
                if held is kernel:
                    del other.kernels[number]
                    del other.link.streams[number]
                    event = {"event": "taken", "kernel_id": kernel.id}
                    other.link.send(0, REQUEST, [json.dumps(event).encode()])
        kernel.replay_after(after)
        client.kernels[stream] = kernel
        client.link.streams[stream] = Stream(kernel.log)

    def _watch_kernel(self, kernel: KernelProcess) -> None:
        for channel, sock in kernel.sockets.items():
            self._watch(sock, partial(_receive, kernel, channel))
        fd = kernel.stderr_fd
        if fd is not None:
            self._watch(fd, lambda events: None if kernel.read_stderr() else self._unwatch(fd))

    def _unwatch_kernel(self, kernel: KernelProcess) -> None:
        for sock in kernel.sockets.values():
            self._unwatch(sock)
        if kernel.stderr_fd is not None:
            self._unwatch(kernel.stderr_fd)

    def _adopt(self, client: Client, kernel_id: str, stream: int, after: str | None) -> dict[str, Any]:
        kernel = self.kernels[kernel_id]
        self._give(kernel, client, stream, after)
        secrets = {"key": kernel.key, "signature_scheme": kernel.signature_scheme}
        return {**self._describe(kernel), "adopted": secrets}

    def _do_signal(self, client: Client, number: int, kernel_id: str, signum: int) -> dict[str, Any]:
        self._kernel(kernel_id).signal(signum)
        return {}

    def _do_forget(self, client: Client, number: int, kernel_id: str) -> dict[str, Any]:
        """Kill a kernel if it runs and forget its output."""
        kernel = self.kernels.pop(kernel_id, None)
        if kernel is None:
            return {"known": False}
        self._unwatch_kernel(kernel)
        for other in self.clients.values():
            for held in [number for number, owned in other.kernels.items() if owned is kernel]:
                del other.kernels[held]
                del other.link.streams[held]
        kernel.remove()
        return {"known": True}

    def _do_kernels(self, client: Client, number: int) -> list[dict[str, Any]]:
        return [self._describe(kernel) for kernel in self.kernels.values()]

    def _kernel(self, kernel_id: str) -> KernelProcess:
        if kernel_id not in self.kernels:
            raise KeyError(f"no kernel {kernel_id} lives there")
        return self.kernels[kernel_id]

    def _describe(self, kernel: KernelProcess) -> dict[str, Any]:
        return {
            "id": kernel.id,
            "name": kernel.name,
            "state": kernel.state,
            "started": kernel.started,
            "pid": kernel.process.pid if kernel.process is not None else None,
            "exit_status": kernel.exit_status,
            "waiting_bytes": kernel.log.end - kernel.log.start,
            "meta": kernel.meta,
            "idle_s": round(time.monotonic() - kernel.last_activity, 1),
            # Whether somebody talks to it now.
            "connected": any(
                client.link.up and kernel in client.kernels.values() for client in self.clients.values()
            ),
        }


def _receive(kernel: KernelProcess, channel: int, events: int) -> None:
    kernel.receive(channel)


def _anchor(session_id: str) -> machine.Process | None:
    pid = machine.find_task(session_id)
    return None if pid is None else machine.Process(pid)
