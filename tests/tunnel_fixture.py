"""A tunnel that is watched, and a service at the other end of it that says what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from jupyterlab_clearml_session.models import SshTarget, TunnelStatus
from jupyterlab_clearml_session.ssh.settings import TunnelSettings
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

EAGER = TunnelSettings(connect_timeout=5.0, backoff_initial=0.01, backoff_max=0.05)


class Watched:
    """A tunnel with all the statuses it went through."""

    def __init__(self, target: SshTarget | Callable[[], SshTarget], settings: TunnelSettings = EAGER) -> None:
        self.statuses: list[TunnelStatus] = []
        self.asked = 0
        self._target = target
        self._changed = asyncio.Event()
        self.tunnel = Tunnel(self._ask, on_status=self._note, settings=settings)

    async def _ask(self) -> SshTarget:
        self.asked += 1
        return self._target if isinstance(self._target, SshTarget) else self._target()

    def _note(self, status: TunnelStatus) -> None:
        self.statuses.append(status)
        self._changed.set()

    async def until(self, condition: Callable[[TunnelStatus], bool]) -> TunnelStatus:
        """Wait for a status; the ones before count as well."""
        while True:
            for status in self.statuses:
                if condition(status):
                    return status
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 10)

    def causes(self) -> list[str]:
        return [status.cause["code"] for status in self.statuses if status.cause is not None]

    async def __aenter__(self) -> Watched:
        self.tunnel.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.tunnel.close()


@contextlib.asynccontextmanager
async def echo_port() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
