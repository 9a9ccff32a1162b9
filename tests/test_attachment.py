"""An attachment over a real SSH server; a few lines of HTTP that answer what the test says stand in for Jupyter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import asyncssh
import pytest

from jupyterlab_clearml_session import attachment
from jupyterlab_clearml_session.attachment import Attachment
from jupyterlab_clearml_session.errors import RemoteBadAnswer, TooManyChannels
from jupyterlab_clearml_session.models import SshTarget, TunnelState
from jupyterlab_clearml_session.phases import Services
from jupyterlab_clearml_session.ssh.channel import Channel
from jupyterlab_clearml_session.ssh.probe import jupyter_status
from tests.sshd_fixture import SshServer, ssh_server

LOG = logging.getLogger("test")
TOKEN = "0123456789abcdef"


class FakeJupyter:
    """Answers every request with ``status`` and notes the Authorization headers. Not a Jupyter."""

    def __init__(self) -> None:
        self.status = 200
        self.says: bytes | None = None
        """What it answers instead; nothing where that is empty, and then the connection stays open."""
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
        answer = f"HTTP/1.1 {self.status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        writer.write(answer if self.says is None else self.says)
        if self.says == b"":
            await reader.read()
        writer.close()


class Scene:
    """One attachment between a real SSH server and a fake Jupyter, and a way to wait for its changes."""

    def __init__(self, ssh: SshServer, jupyter: FakeJupyter, *, patience: float = 30.0) -> None:
        self.ssh = ssh
        self.jupyter = jupyter
        self.target = ssh.target()
        self.token = TOKEN
        self.troubles: list[str] = []
        self.changed = asyncio.Event()
        self.attachment = Attachment(
            self._answer, self._published, self._note, LOG, probe_interval=0.05, patience=patience
        )

    async def until(self, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            while not condition():
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), 20)

    def _note(self) -> None:
        if self.attachment.trouble is not None:
            self.troubles.append(self.attachment.trouble["code"])
        self.changed.set()

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
            token=self.token,
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


class Probes:
    """What each probe has found, perhaps with a deadline that a test can wait for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, timeout: float = 5.0) -> None:
        self.found: list[object] = []

        async def probe(*arguments: Any) -> int:
            try:
                status = await jupyter_status(*arguments, timeout=timeout)
            except Exception as error:
                self.found.append(type(error).__name__)
                raise
            self.found.append(status)
            return status

        monkeypatch.setattr(attachment, "jupyter_status", probe)

    async def until(self, found: object, times: int = 1) -> None:
        for _ in range(1000):
            if self.found.count(found) >= times:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(self.found)


BUSY = [(b"", "RemoteDeadline"), (b"nonsense", "RemoteBadAnswer")]


@pytest.mark.parametrize(("says", "error"), BUSY)
async def test_a_jupyter_that_is_busy_for_a_while_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, says: bytes, error: str
) -> None:
    probes = Probes(monkeypatch, 0.2)
    async with scene() as stage:
        stage.jupyter.says = says  # while it warms up
        stage.attachment.start()
        await probes.until(error, 2)
        stage.jupyter.says = None
        await stage.until(lambda: stage.attachment.jupyter)
        stage.jupyter.says = says  # and when it has long been there
        await probes.until(error, 4)
        assert stage.attachment.jupyter
        stage.jupyter.says = None
        await probes.until(200, probes.found.count(200) + 1)
        assert stage.troubles == []


@pytest.mark.parametrize(("says", "error"), BUSY)
async def test_a_jupyter_that_stays_busy_is_trouble_after_the_patience(
    monkeypatch: pytest.MonkeyPatch, says: bytes, error: str
) -> None:
    probes = Probes(monkeypatch, 0.2)
    async with scene(patience=0.6) as stage:
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.jupyter)
        stage.jupyter.says = says
        await stage.until(lambda: stage.attachment.trouble)
        assert probes.found.count(error) >= 2
        assert not stage.attachment.jupyter


async def test_a_connection_that_is_lost_during_a_probe_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probes = Probes(monkeypatch)
    async with scene(patience=0.0) as stage:
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.jupyter)
        stage.jupyter.says = b""
        asked = len(stage.jupyter.tokens)
        while len(stage.jupyter.tokens) == asked:
            await asyncio.sleep(0.001)
        stage.jupyter.says = None
        await stage.ssh.drop()
        await probes.until("ConnectionLost")
        await probes.until(200, probes.found.count(200) + 2)
        assert stage.troubles == []


async def test_too_many_channels_are_no_trouble_of_the_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = Probes(monkeypatch)
    async with scene(patience=0.0) as stage:
        tunnel = stage.attachment.tunnel
        tunnel.settings = replace(tunnel.settings, max_channels=1)
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.jupyter)
        while True:
            try:
                channel = await tunnel.open_channel(stage.jupyter.port)
                break
            except TooManyChannels:  # a probe has it
                await asyncio.sleep(0.01)
        await probes.until("TooManyChannels", 3)
        channel.close()
        await probes.until(200, probes.found.count(200) + 2)
        assert stage.troubles == []


@pytest.mark.parametrize("token", ["t\u00f6ken", "token\r\nX: y"])
async def test_a_token_that_cannot_be_sent_is_named(token: str) -> None:
    async with scene(patience=0.0) as stage:
        stage.token = token
        stage.attachment.start()
        await stage.until(lambda: stage.attachment.trouble)
        assert stage.attachment.trouble is not None
        assert stage.attachment.trouble["code"] == "remote_bad_answer"
        assert token not in str(stage.attachment.trouble)
        assert stage.jupyter.tokens == []


async def test_a_service_that_hangs_up_at_once_is_no_lost_connection() -> None:
    channel = Channel()
    channel.connection_made(mock.Mock())
    channel.connection_lost(None)
    tunnel = mock.Mock(open_channel=mock.AsyncMock(return_value=channel))
    with pytest.raises(RemoteBadAnswer):
        await jupyter_status(tunnel, 80, TOKEN)


async def test_closing_never_raises_what_ended_the_watch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> int:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(attachment, "jupyter_status", fail)
    async with scene() as stage:
        stage.attachment.start()
        while "a fault of ours" not in caplog.text:
            await asyncio.sleep(0.01)
        await stage.attachment.close()
        assert stage.attachment.status.state is TunnelState.DOWN


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
