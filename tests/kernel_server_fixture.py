"""A Jupyter server whose kernels come from a machine behind a real SSH server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from jupyterlab_clearml_session.errors import ClearMLSessionError
from jupyterlab_clearml_session.kernels.manager import SessionKernelManager
from jupyterlab_clearml_session.models import Session, SshTarget
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

from .kernel_fixture import SESSION_ID, RemoteMachine, session
from .sshd_fixture import SshServer, ssh_server

NAME = f"clearml-{SESSION_ID[:8]}-python3"


class OneSession:
    """The session manager as far as kernels need it: one session with a real tunnel."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self.names: list[str] = []
        self.kernels_error: ClearMLSessionError | None = None
        self.on_ready: Callable[[Session, Any], Awaitable[None]] | None = None
        self.on_gone: Callable[[str], Awaitable[None]] | None = None
        self.on_reconnect: Callable[[str], None] | None = None

    async def get(self, session_id: str) -> Session:
        return session(session_id=session_id)

    async def tunnel(self, session_id: str, wait: float = 0.0) -> Tunnel:
        await self._tunnel.wait_up(wait)
        return self._tunnel

    def set_kernelspecs(self, session_id: str, names: Iterable[str]) -> None:
        self.names = list(names)

    def set_kernels_error(self, session_id: str, error: ClearMLSessionError | None) -> None:
        self.kernels_error = error

    def add_hook(self, on_ready: Any = None, on_gone: Any = None, on_reconnect: Any = None) -> None:
        self.on_ready, self.on_gone, self.on_reconnect = on_ready, on_gone, on_reconnect


class Setup:
    """A Jupyter server whose kernels come from the machine behind the SSH server."""

    def __init__(self, server: SshServer, tunnel: Tunnel, app: Any) -> None:
        self.server = server
        self.tunnel = tunnel
        self.app = app
        self.session_id = SESSION_ID
        self.sessions = OneSession(tunnel)
        self.kernels = SessionKernelManager(
            self.sessions,
            app.kernel_spec_manager,
            log=app.log,
            runtime_dir=Path(app.runtime_dir),
        )
        app.web_app.settings["clearml_session_kernels"] = self.kernels
        app.web_app.settings["clearml_session_manager"] = self.sessions

    async def attach(self, *, mine: bool = True) -> None:
        assert self.sessions.on_ready is not None
        await self.sessions.on_ready(session(mine=mine), self.tunnel)


@contextlib.asynccontextmanager
async def attached(machine: RemoteMachine, app: Any) -> AsyncIterator[Setup]:
    """Attach the server to the machine over a real SSH server."""
    async with ssh_server(cwd=machine.home) as server:
        tunnel = Tunnel(lambda: _target(server))
        tunnel.start()
        setup = Setup(server, tunnel, app)
        setup.kernels.start()
        try:
            await setup.attach()
            yield setup
            await app.kernel_manager.shutdown_all(now=True)
        finally:
            await setup.kernels.close()
            await tunnel.close()


async def _target(server: SshServer) -> SshTarget:
    return server.target()


@pytest.fixture
def app(machine: RemoteMachine, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server's application; what sshd runs gets the machine's environment."""
    for name, value in machine.env.items():
        monkeypatch.setenv(name, value)
    return jp_serverapp
