"""The daemon of the helper: what clients can ask of it, and when it ends.

One thread and one poller; only kernelspecs and metrics, which take time, are gathered in threads. Runs on any
Python from 3.8 on with the standard library and pyzmq.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import machine
from .clients import Client, Clients
from .idle import IdleWatch
from .kernels import Kernels
from .link import PROTOCOL
from .loop import Loop
from .messages import REQUEST

IDLE_EXIT = 600.0
"""Seconds without kernels and clients after which the daemon ends."""
LIFETIME = 14 * 24 * 3600.0
"""Seconds without any client after which it ends, kernels or not."""
CHECK_INTERVAL = 2.0
REPLACE_WAIT = 3.0
"""Seconds in which a daemon that was told to end makes room for the next one."""
SHORT = 48
"""Longest name of the folder below which the kernels' folder is made."""


def run(session_id: str, directory: Path, own_hash: str) -> None:
    """Serve until the session has ended. The working directory is the one kernels start in."""
    if not alone(directory):
        return  # an attach gave a slow one up and started another; it would hide the first one's kernels
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


def alone(directory: Path) -> bool:
    """Return whether this is the session's only daemon, from now on until the process ends."""
    fd = os.open(directory / "daemon", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + REPLACE_WAIT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                return False
            time.sleep(0.02)
        except OSError:
            return True  # a file system without locks, as a cluster's can be: as well as it goes there
        else:
            return True


def _short_place() -> str:
    """Return a folder whose name leaves room for the kernels' sockets: 107 bytes are all a socket's may have."""
    places = (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp")  # noqa: S108 - made 0700 below
    usable = [place for place in places if place and len(place) <= SHORT and os.access(place, os.W_OK)]
    return usable[0] if usable else places[0]


class Daemon:
    """See the module."""

    def __init__(self, session_id: str, directory: Path, short: Path, own_hash: str) -> None:
        self._session_id = session_id
        self._instance = uuid.uuid4().hex
        self._hash = own_hash
        self._done = False
        self._last_client = self._last_use = time.monotonic()
        task = machine.find_task(session_id)
        self._task = None if task is None else machine.Process(task)
        self._idle: IdleWatch | None = None
        self._next_look = math.inf
        self._loop = Loop(on_wake=self._on_wake)
        signal.set_wakeup_fd(self._loop.wake_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._clients = Clients(
            self._loop,
            directory,
            greeting=self._greeting,
            about={"instance": self._instance, "hash": own_hash},
            on_message=self._on_message,
        )
        self._kernels = Kernels(self._loop, self._clients, directory, short)
        self._meter = machine.Meter(str(self._kernels.folder))
        self._methods: dict[str, Callable[..., Any]] = {
            "kernelspecs": self._kernelspecs,
            "start": self._kernels.start,
            "signal": self._signal,
            "forget": self._forget,
            "kernels": self._list,
            "metrics": self._metrics,
            "idle_limit": self._idle_limit,
        }

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
            due = min([next_check, *self._clients.deadlines()])
            self._loop.turn(max(0, math.ceil((due - now) * 1000)))
            self._clients.write(time.monotonic())

    def close(self) -> None:
        """Kill the kernels and leave nothing behind."""
        self._kernels.close()
        self._clients.close()
        signal.set_wakeup_fd(-1)
        self._loop.close()

    def _on_wake(self) -> None:
        self._kernels.reap()

    def _check(self, now: float) -> None:
        """Look whether there is a reason to end, and tidy up."""
        self._kernels.expire(now)
        if self._clients.check(now):
            self._last_client = now
        if self._kernels or self._last_client == now:
            self._last_use = now
        if now >= self._next_look and self._idle is not None:
            self._look(self._idle, now)
        gone = self._task is not None and not self._task.alive
        if gone or now - self._last_use > IDLE_EXIT or now - self._last_client > LIFETIME:
            self._done = True

    def _look(self, idle: IdleWatch, now: float) -> None:
        def work() -> None:
            if idle is self._idle and idle.look():
                idle.end_session()

        self._next_look = now + idle.interval
        threading.Thread(target=work, daemon=True).start()

    def _greeting(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "hash": self._hash,
            "pid": os.getpid(),
            "instance": self._instance,
            "python": sys.version.split()[0],
            "kernels": len(self._kernels),
        }

    # -- messages and requests -----------------------------------------------------------------------------

    def _on_message(self, client: Client, stream: int, channel: int, parts: list[Any]) -> None:
        """Deal with a client's message: a request on stream 0, else one for the kernel of that stream."""
        if stream:
            kernel = client.kernels.get(stream)
            if kernel is not None:
                kernel.send(channel, parts)
            return
        request = json.loads(bytes(parts[0]))
        method = self._methods.get(request["method"])
        if method is None:
            _answer(client, request["id"], error=f"this helper cannot do {request['method']!r}")
            return
        try:
            result = method(client, **request["params"])
        except Exception as error:  # noqa: BLE001 -- one client's mistake must not end everybody's kernels
            _answer(client, request["id"], error=f"{type(error).__name__}: {error}")
            return
        if isinstance(result, _Later):
            self._in_thread(client, request["id"], result.work)
        else:
            _answer(client, request["id"], result)

    def _in_thread(self, client: Client, number: int, work: Callable[[], Any]) -> None:
        def answer_later() -> None:
            try:
                result, error = work(), None
            except Exception as problem:  # noqa: BLE001 -- whatever it is, the client has to learn it
                result, error = None, f"{type(problem).__name__}: {problem}"
            self._loop.call(lambda: _answer(client, number, result, error))

        threading.Thread(target=answer_later, daemon=True).start()

    def _kernelspecs(self, client: Client) -> _Later:
        def work() -> Any:
            specs = self._kernels.specs = machine.kernelspecs()
            return {name: {**spec, "resources": machine.resources(spec)} for name, spec in specs.items()}

        return _Later(work)

    def _metrics(self, client: Client) -> _Later:
        idle_s = round(time.monotonic() - self._kernels.last_activity(), 1)
        return _Later(lambda: {**self._meter.measure(), "idle_s": idle_s})

    def _signal(self, client: Client, kernel_id: str, signum: int) -> dict[str, Any]:
        self._kernels.signal(kernel_id, signum)
        return {}

    def _forget(self, client: Client, kernel_id: str) -> dict[str, Any]:
        return {"known": self._kernels.forget(kernel_id)}

    def _list(self, client: Client) -> list[dict[str, Any]]:
        return [self._kernels.describe(kernel) for kernel in self._kernels]

    def _idle_limit(self, client: Client, minutes: float) -> dict[str, Any]:
        """End the session after so many minutes without work; 0: never."""
        if self._idle is None or self._idle.minutes != minutes:
            self._idle, self._next_look = None, math.inf
            if minutes > 0:
                self._idle = IdleWatch(self._session_id, minutes, self._kernels.last_activity)
                self._next_look = time.monotonic() + self._idle.interval
        return {}


class _Later:
    """The answer takes time: it comes from a thread."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work


def _answer(client: Client, number: int, result: Any = None, error: str | None = None) -> None:
    body: dict[str, Any] = {"id": number, "result": result}
    if error is not None:
        body = {"id": number, "error": error}
    client.link.send(0, REQUEST, [json.dumps(body).encode()])
