"""The kernels of this machine, and which client each of them talks to.

Runs on any Python from 3.8 on with the standard library and pyzmq: it is sent to the remote machine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from . import machine
from .clients import Client, Clients
from .kernel import KernelProcess
from .link import Stream
from .loop import Loop
from .messages import REQUEST
from .sendlog import SendLog

MEMORY_LIMIT = int(os.environ.get("CLEARML_SESSION_HELPER_MEMORY", "134217728"))
"""Bytes of output of one kernel that wait in memory for a client (128 MiB)."""
DISK_LIMIT = int(os.environ.get("CLEARML_SESSION_HELPER_DISK", "2147483648"))
"""Bytes of it that wait on disk after that (2 GiB). What comes then is dropped, visibly."""
KEEP_BEHIND = 16 * 1024 * 1024
KEEP_SECONDS = 30.0
"""What is remembered of a kernel's output after it was delivered, for a client that takes over from one that was
killed: at most so many bytes, and not longer than this while the client lives."""
TUNABLES = "CLEARML_SESSION_HELPER_TUNABLES"
"""The machine's own GLIBC_TUNABLES, where the helper was started with others."""


class Kernels:
    """Starts kernels, gives them to clients, and notices their end.

    Parameters
    ----------
    directory:
        Where output goes that memory has no room for.
    short:
        A directory with a short name for the kernels' own sockets.
    """

    def __init__(self, loop: Loop, clients: Clients, directory: Path, short: Path) -> None:
        self.folder = Path.cwd()
        """Where kernels start if nothing else is asked for."""
        self.specs: dict[str, dict[str, Any]] | None = None
        self._loop = loop
        self._clients = clients
        self._directory = directory
        self._short = short
        self._context: zmq.Context[Any] = zmq.Context()
        self._known: dict[str, KernelProcess] = {}
        self._began = time.monotonic()

    def __iter__(self) -> Iterator[KernelProcess]:
        return iter(list(self._known.values()))

    def __len__(self) -> int:
        return len(self._known)

    def last_activity(self) -> float:
        """When one was last in use, by the monotonic clock."""
        if any(kernel.output.state == "busy" for kernel in self):
            return time.monotonic()
        return max([self._began, *(kernel.output.last_activity for kernel in self)])

    def expire(self, now: float) -> None:
        """Forget output that was delivered to clients which live, some time ago."""
        for client in self._clients:
            if client.link.up:
                for kernel in client.kernels.values():
                    kernel.output.log.expire(now - KEEP_SECONDS)

    def reap(self) -> None:
        """Deal with those whose process has ended."""
        for kernel in self:
            if kernel.process is not None and kernel.poll() is not None:
                self._finish(kernel)

    def close(self) -> None:
        """Kill them all and leave nothing behind."""
        for kernel in self:
            self._unwatch(kernel)
            kernel.remove()
        self._context.destroy(linger=0)

    # -- what clients ask for ------------------------------------------------------------------------------

    def start(
        self,
        client: Client,
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
        after: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Start a kernel; with ``adopt``, one of this id that lives here already is taken over instead.

        Its output is then replayed from the messages with the ids ``after``, see `KernelOutput.replay_after`.
        Raises ValueError, OSError.
        """
        if adopt and kernel_id in self._known and self._known[kernel_id].poll() is None:
            return self._adopt(client, self._known[kernel_id], stream, after)
        if self.specs is None:
            self.specs = machine.kernelspecs()
        if name not in self.specs:
            raise ValueError(f"there is no kernel {name!r} on the remote machine any more")
        kernel = self._known.get(kernel_id)
        fresh = kernel is None
        if kernel is None:
            log = SendLog(MEMORY_LIMIT, DISK_LIMIT, self._directory, KEEP_BEHIND)
            kernel = self._known[kernel_id] = KernelProcess(self._context, kernel_id, self._short, log)
        elif kernel.process is not None:
            kernel.kill()
            self._finish(kernel)
        if client.kernels.get(stream) is not kernel:
            self._give(kernel, client, stream)
        kernel.name, kernel.meta = name, meta
        try:
            kernel.start(self.specs[name], _environment(env), self._cwd(folders), key, signature_scheme)
        except Exception:  # a kernelspec can be wrong in many ways, and descriptors can run out
            if fresh:
                self.forget(kernel_id)
            raise
        self._watch(kernel)
        return self.describe(kernel)

    def signal(self, kernel_id: str, signum: int) -> None:
        """Send a signal to a kernel. Raises KeyError."""
        if kernel_id not in self._known:
            raise KeyError(f"no kernel {kernel_id} lives there")
        self._known[kernel_id].signal(signum)

    def forget(self, kernel_id: str) -> bool:
        """Kill a kernel if it runs and forget its output; False where there is none of this id."""
        kernel = self._known.pop(kernel_id, None)
        if kernel is None:
            return False
        self._unwatch(kernel)
        self._take_away(kernel)
        kernel.remove()
        return True

    def describe(self, kernel: KernelProcess) -> dict[str, Any]:
        """Return what clients are told about a kernel; no secret."""
        return {
            "id": kernel.id,
            "name": kernel.name,
            "state": kernel.output.state,
            "started": kernel.started,
            "pid": kernel.process.pid if kernel.process is not None else None,
            "exit_status": kernel.exit_status,
            "waiting_bytes": kernel.output.log.end - kernel.output.log.start,
            "meta": kernel.meta,
            "idle_s": round(time.monotonic() - kernel.output.last_activity, 1),
            # Whether somebody talks to it now.
            "connected": any(
                client.link.up and kernel in client.kernels.values() for client in self._clients
            ),
        }

    # -- helpers -------------------------------------------------------------------------------------------

    def _adopt(
        self, client: Client, kernel: KernelProcess, stream: int, after: Sequence[str]
    ) -> dict[str, Any]:
        again = self._give(kernel, client, stream, after)
        adopted = {
            "key": kernel.output.key,
            "signature_scheme": kernel.output.signature_scheme,
            "again": again,
        }
        return {**self.describe(kernel), "adopted": adopted}

    def _give(
        self, kernel: KernelProcess, client: Client, stream: int, after: Sequence[str] = ()
    ) -> dict[int, list[str]]:
        """Make ``client`` the one that ``kernel`` talks to; the former one is told. Returns what comes again."""
        for other in self._take_away(kernel):
            event = {"event": "taken", "kernel_id": kernel.id}
            other.link.send(0, REQUEST, [json.dumps(event).encode()])
        again = kernel.output.replay_after({message.encode() for message in after})
        client.kernels[stream] = kernel
        client.link.streams[stream] = Stream(kernel.output.log)
        return again

    def _take_away(self, kernel: KernelProcess) -> list[Client]:
        """Take a kernel from those who have it; return them."""
        holders = []
        for client in self._clients:
            for stream in [stream for stream, held in client.kernels.items() if held is kernel]:
                del client.kernels[stream]
                del client.link.streams[stream]
                holders.append(client)
        return holders

    def _cwd(self, folders: list[str]) -> str:
        for folder in folders:
            path = (self.folder / folder).resolve()
            if path.is_dir():
                return str(path)
        return str(self.folder)

    def _finish(self, kernel: KernelProcess) -> None:
        self._unwatch(kernel)
        kernel.finish()

    def _watch(self, kernel: KernelProcess) -> None:
        for channel, sock in kernel.sockets.items():
            self._loop.watch(sock, _receiver(kernel, channel))
        fd = kernel.stderr_fd
        if fd is not None:
            self._loop.watch(fd, lambda: None if kernel.read_stderr() else self._loop.unwatch(fd))

    def _unwatch(self, kernel: KernelProcess) -> None:
        for sock in kernel.sockets.values():
            self._loop.unwatch(sock)
        if kernel.stderr_fd is not None:
            self._loop.unwatch(kernel.stderr_fd)


def _receiver(kernel: KernelProcess, channel: int) -> Any:
    return lambda: kernel.receive(channel)


def _environment(env: dict[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CLEARML_SESSION_HELPER")}
    if TUNABLES in os.environ:
        own["GLIBC_TUNABLES"] = os.environ[TUNABLES]
    return {**own, **env}
