"""An attachment over a real SSH server; a few lines of HTTP that answer what the test says stand in for Jupyter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncssh

from jupyterlab_clearml_session.attachment import Attachment
from jupyterlab_clearml_session.models import SshTarget, TunnelState
from jupyterlab_clearml_session.phases import Services
from tests.sshd_fixture import SshServer, ssh_server

LOG = logging.getLogger("test")
TOKEN = "0123456789abcdef"


class FakeJupyter:
    """Answers every request with ``status`` and notes the Authorization headers. Not a Jupyter."""

    def __init__(self) -> None:
        self.status = 200
        self.tokens: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.tokens += [line.split()[-1] for line in head.splitlines() if line.startswith("Authorization")]
        writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await writer.drain()
        writer.close()


class Scene:
    """One attachment between a real SSH server and a fake Jupyter, and a way to wait for its changes."""

    def __init__(self, ssh: SshServer, jupyter: FakeJupyter, *, patience: float = 30.0) -> None:
        self.ssh = ssh
        self.jupyter = jupyter
        self.target = ssh.target()
        self.changed = asyncio.Event()
        self.attachment = Attachment(
            self._answer, self._published, self.changed.set, LOG, probe_interval=0.05, patience=patience
        )

    async def until(self, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            while not condition():
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), 20)

    async def _answer(self) -> SshTarget:
        return self.target

    def _published(self) -> Services:
        port = self.ssh.port
        return Services(
            address="127.0.0.1",
            ssh_port=port,
            internal_ssh_port=port,
            stable_ssh_port=None,
            jupyter_port=self.jupyter.port,
            vscode_port=None,
            wants_jupyter=True,
            token=TOKEN,
        )


@asynccontextmanager
async def scene(*, patience: float = 30.0) -> AsyncIterator[Scene]:
    jupyter = FakeJupyter()
    await jupyter.start()
    async with ssh_server() as ssh:
        stage = Scene(ssh, jupyter, patience=patience)
        try:
            yield stage
        finally:
            await stage.attachment.close()
            await jupyter.stop()


async def test_a_jupyter_that_accepts_the_token_makes_it_ready() -> None:
    async with scene() as stage:
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.jupyter)
        assert stage.attachment.status.state is TunnelState.UP
        assert stage.jupyter.tokens[0] == TOKEN


async def test_another_session_s_jupyter_on_our_port_is_found_out() -> None:
    async with scene() as stage:
        stage.jupyter.status = 403
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.trouble)
        assert stage.attachment.trouble is not None
        assert stage.attachment.trouble["code"] == "jupyter_port_clash"
        assert not stage.attachment.jupyter
        # It is looked at again: when the right one answers, all is well.
        stage.jupyter.status = 200
        await stage.until(lambda: stage.attachment.jupyter)
        assert stage.attachment.trouble is None


async def test_a_jupyter_that_goes_away_while_attached_is_noticed() -> None:
    async with scene() as stage:
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.jupyter)
        await stage.jupyter.stop()
        await stage.until(lambda: stage.attachment.trouble)
        assert stage.attachment.trouble is not None
        assert stage.attachment.trouble["code"] == "jupyter_gone"
        assert stage.attachment.status.state is TunnelState.UP, "the tunnel goes on for the kernels"
        await stage.jupyter.start(stage.jupyter.port)
        await stage.until(lambda: stage.attachment.jupyter)


async def test_a_jupyter_that_never_listens_is_trouble_after_the_patience() -> None:
    async with scene(patience=0.0) as stage:
        await stage.jupyter.stop()
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.trouble)
        await stage.jupyter.start(stage.jupyter.port)


async def test_a_jupyter_that_listens_late_is_waited_for() -> None:
    async with scene() as stage:
        await stage.jupyter.stop()
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.status.state is TunnelState.UP)
        assert stage.attachment.trouble is None
        await stage.jupyter.start(stage.jupyter.port)
        await stage.until(lambda: stage.attachment.jupyter)


async def test_a_wrong_host_key_is_fatal_until_somebody_asks_again() -> None:
    async with scene() as stage:
        right = stage.target
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
        stage.target = SshTarget("127.0.0.1", right.port, right.username, right.password, (other,))
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.status.state is TunnelState.FAILED)
        assert stage.attachment.status.cause is not None
        assert stage.attachment.status.cause["code"] == "host_key_mismatch"
        stage.target = right
        stage.attachment.reconnect()
        await stage.until(lambda: stage.attachment.jupyter)
