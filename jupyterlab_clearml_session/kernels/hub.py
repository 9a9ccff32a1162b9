"""What a provisioner needs to reach a session: inside the server that holds the tunnel, or outside of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import ClearMLSessionError, TunnelDown
from .channel import SessionChannel
from .gate import dial
from .shown import ShownKernel
from .specs import gates, short_directory


class Hub(Protocol):
    """Gives a provisioner the channel of a session, and says how kernels are treated here."""

    closing: bool
    """True when the server ends: then its kernels are left alone, not shut down."""
    hold_for: int
    """Subscribers that an adopted kernel's output waits for."""

    async def channel(self, session_id: str) -> SessionChannel:
        """Return the channel. Raises NotAttached."""
        ...

    @property
    def sockets(self) -> Path:
        """Directory of mode 0700 with a short path."""
        ...

    def meta(self, cwd: str | None, env: Mapping[str, str]) -> dict[str, Any]:
        """Return what the helper shall remember about a kernel, to offer it again."""
        ...

    def folders(self, cwd: str | None) -> list[str]:
        """Return the folders to start a kernel in, relative to the remote user folder, best first."""
        ...

    def shown(self, kernel_id: str) -> ShownKernel | None:
        """Return what is noted about the browsers that watch a kernel; None where there are none here."""
        ...


class OutsideHub:
    """For a process that is not the server: ``jupyter console``, papermill. One for each server."""

    closing = False
    hold_for = 1

    def __init__(self, server_directory: Path) -> None:
        self._server_directory = server_directory
        self._channels: dict[str, SessionChannel] = {}
        self._sockets: Path | None = None

    async def channel(self, session_id: str) -> SessionChannel:
        channel = self._channels.get(session_id)
        if channel is None or channel.closed:
            channel = SessionChannel(lambda client_id: self._dial(session_id, client_id))
            self._channels[session_id] = channel
            channel.start()
        return channel

    @property
    def sockets(self) -> Path:
        if self._sockets is None or not self._sockets.is_dir():
            self._sockets = short_directory()
        return self._sockets

    async def leave(self, session_id: str, channel: SessionChannel) -> None:
        """A kernel of this process was shut down; with the last one its channel ends."""
        if channel.has_ports:
            return
        self._channels.pop(session_id, None)
        await asyncio.to_thread(channel.finish)
        if self._sockets is not None and not any(self._sockets.iterdir()):
            self._sockets.rmdir()
            self._sockets = None

    def meta(self, cwd: str | None, env: Mapping[str, str]) -> dict[str, Any]:
        return {"notebook": env.get("JPY_SESSION_NAME", "")}

    def folders(self, cwd: str | None) -> list[str]:
        return relative_folders(cwd, Path.home())

    def shown(self, kernel_id: str) -> ShownKernel | None:
        return None  # this process reaches the helper again by itself; if it is killed, so is who watched

    def _dial(self, session_id: str, client_id: str) -> socket.socket:
        error: ClearMLSessionError = TunnelDown(
            "No JupyterLab server of yours holds a tunnel to the session.",
            hint="Start JupyterLab and attach to the session there.",
        )
        for gate in gates(self._server_directory):
            try:
                return dial(gate, session_id, client_id)
            except TunnelDown as problem:
                error = problem
        raise error


_outside: dict[Path, OutsideHub] = {}


def outside_hub(server_directory: Path) -> OutsideHub:
    """Return this process's hub for the kernelspecs of a server."""
    return _outside.setdefault(server_directory, OutsideHub(server_directory))


def relative_folders(cwd: str | None, root: Path) -> list[str]:
    """Return the folder of a notebook as seen from its root, if it lies under it."""
    if cwd is None:
        return []
    try:
        return [str(Path(cwd).resolve().relative_to(root.resolve()))]
    except ValueError:
        return []
