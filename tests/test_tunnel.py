"""The tunnel against a real SSH server in this process, through a relay that fails on demand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from jupyterlab_clearml_session.errors import (
    AuthenticationFailed,
    ClearMLUnreachable,
    Conflict,
    ConnectionLost,
    ConnectionRefused,
    ConnectionTimedOut,
    GatewayFailed,
    HostKeyMismatch,
    HostNotFound,
    RemoteDeadline,
    RemoteRefused,
    TooManyChannels,
    TunnelDown,
    TunnelError,
)
from jupyterlab_clearml_session.models import HostKeyTrust, SshTarget, TunnelState
from jupyterlab_clearml_session.ssh import relay
from jupyterlab_clearml_session.ssh.channel import Channel
from jupyterlab_clearml_session.ssh.ports import listening_ports, process_name
from jupyterlab_clearml_session.ssh.settings import TunnelSettings
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

from .sshd_fixture import PASSWORD, Relay, SshServer, ssh_server
from .tunnel_fixture import EAGER, Watched, echo_port

WATCHFUL = TunnelSettings(probe_interval=0.2, probe_deadline=0.4, backoff_initial=0.01, backoff_max=0.05)


# -- what it is for


async def test_channel_carries_both_ways_and_ends(tmp_path: Any) -> None:
    async with ssh_server() as server, echo_port() as port, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        channel = await watched.tunnel.open_channel(port)
        data = bytes(range(256)) * 8192

        async def feed() -> None:
            for start in range(0, len(data), 100_000):
                channel.write(data[start : start + 100_000])
                await channel.drain()
            channel.write_eof()

        feeding = asyncio.create_task(feed())
        assert await channel.readexactly(len(data)) == data
        assert await channel.read() == b""
        await feeding
        channel.close()
        await channel.wait_closed()
        with pytest.raises(ConnectionLost):
            channel.write(b"late")


async def test_reader_that_does_not_read_stops_the_sender() -> None:
    sent = 0
    stopped = asyncio.Event()

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                try:
                    await asyncio.wait_for(writer.drain(), 0.5)
                except asyncio.TimeoutError:
                    stopped.set()
                    break
                sent += 65536
        writer.transport.abort()

    source = await asyncio.start_server(flood, "127.0.0.1", 0)
    port = source.sockets[0].getsockname()[1]
    settings = TunnelSettings(window_max=1 << 20, window_min=1 << 20)
    async with ssh_server() as server, Watched(server.target(), settings) as watched:
        await watched.tunnel.wait_up(5)
        channel = await watched.tunnel.open_channel(port)
        await asyncio.wait_for(stopped.wait(), 20)
        # What the socket buffers of this machine swallow is not the tunnel's: they hold a few megabytes each.
        assert channel._size <= (1 << 20) + 65536
        channel.abort()
    source.close()


async def test_run_returns_status_output_and_errors() -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        result = await watched.tunnel.run("cat; echo sad >&2; exit 3", input=b"x" * 300_000, timeout=10)
        assert result == (3, b"x" * 300_000, b"sad\n")


async def test_run_has_a_deadline_and_ends_the_command() -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        with pytest.raises(RemoteDeadline):
            await watched.tunnel.run("sleep 60", timeout=0.1)


async def test_process_is_a_binary_stream() -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        process = await watched.tunnel.start_process("cat; exit 7")
        process.write(b"\x00\xff\r\n")
        assert await process.readexactly(4) == b"\x00\xff\r\n"
        process.write_eof()
        assert await process.read() == b""
        assert await process.wait() == 7


async def test_sftp_goes_over_the_second_connection(tmp_path: Any) -> None:
    (tmp_path / "a").write_bytes(b"content")
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        assert len(server.connections) == 1
        sftp = await watched.tunnel.sftp()
        async with sftp.open(str(tmp_path / "a"), "rb") as file:
            assert await file.read() == b"content"
        sftp.exit()
        assert len(server.connections) == 2


async def test_prompt_channel_goes_through_a_process_that_ends_with_the_tunnel(tmp_path: Any) -> None:
    async with ssh_server() as server, echo_port() as port, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        channels = [await watched.tunnel.open_prompt_channel(port) for _ in range(2)]
        assert server.channels_opened == 0
        for channel in channels:
            channel.write(b"x" * 500_000)
            channel.write_eof()
            assert await channel.readexactly(500_000) == b"x" * 500_000
            assert await channel.read() == b""
            channel.close()
        with pytest.raises(RemoteRefused):
            await watched.tunnel.open_prompt_channel(1)
        link = watched.tunnel._link
        assert link is not None
        socket = Path(await link._start_relay())
        assert socket.parent.stat().st_mode & 0o077 == 0
        await watched.tunnel.close()
        for _ in range(200):
            if not socket.parent.exists():
                break
            await asyncio.sleep(0.02)
        assert not socket.parent.exists()


@pytest.mark.parametrize("missing", ["unix sockets", "python"])
async def test_prompt_channel_is_an_ordinary_one_where_the_remote_cannot(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "python":
        monkeypatch.setattr(relay, "command", lambda: "exit 127")
    async with ssh_server() as server, echo_port() as port, Watched(server.target()) as watched:
        server.unix_sockets = missing != "unix sockets"
        await watched.tunnel.wait_up(5)
        for _ in range(2):
            channel = await watched.tunnel.open_prompt_channel(port)
            channel.write(b"hello")
            assert await channel.readexactly(5) == b"hello"
            channel.close()
        assert server.channels_opened == 2  # only an ordinary channel is one to a port


FAR = replace(EAGER, upload_rate=1 << 60, max_lanes=3)
"""As over distance, where an upload takes several channels."""


async def test_wide_channel_puts_the_pieces_together() -> None:
    async with ssh_server() as server, echo_port() as port, Watched(server.target(), FAR) as watched:
        await watched.tunnel.wait_up(5)
        channel = await watched.tunnel.open_wide_channel(port)
        assert channel.wide
        data = random.Random(1).randbytes(3_000_000)

        async def feed() -> None:
            for start in range(0, len(data), 70_001):
                channel.write(data[start : start + 70_001])
                await channel.drain()
            channel.write_eof()

        feeding = asyncio.create_task(feed())
        assert await channel.readexactly(len(data)) == data
        await feeding
        channel.close()
        await channel.wait_closed()
        assert server.channels_opened == 0
        with pytest.raises(RemoteRefused):
            await watched.tunnel.open_wide_channel(1)


async def test_wide_channel_that_breaks_cuts_what_listens() -> None:
    got = bytearray()
    ended = asyncio.Event()

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                got.extend(data)
        ended.set()
        writer.close()

    listening = await asyncio.start_server(sink, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with ssh_server() as server, Watched(server.target(), FAR) as watched:
        await watched.tunnel.wait_up(5)
        channel: Any = await watched.tunnel.open_wide_channel(port)
        channel.write(bytes(200_000))
        await channel.drain()
        channel._others[0].abort()
        await asyncio.wait_for(ended.wait(), 10)
        assert len(got) <= 200_000
        with pytest.raises(ConnectionLost):
            channel.write(bytes(200_000))
        assert await channel.read() == b""
    listening.close()


@pytest.mark.parametrize("missing", ["unix sockets", "python", "distance"])
async def test_wide_channel_is_an_ordinary_one_where_it_cannot_be(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "python":
        monkeypatch.setattr(relay, "command", lambda: "exit 127")
    settings = EAGER if missing == "distance" else FAR
    async with ssh_server() as server, echo_port() as port, Watched(server.target(), settings) as watched:
        server.unix_sockets = missing != "unix sockets"
        await watched.tunnel.wait_up(5)
        channel = await watched.tunnel.open_wide_channel(port)
        assert not channel.wide
        channel.write(b"hello")
        assert await channel.readexactly(5) == b"hello"
        channel.close()


async def test_listening_ports_of_the_remote() -> None:
    async with ssh_server() as server, echo_port() as port, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        listening = await listening_ports(watched.tunnel)
        ports = [found.port for found in listening]
        assert port in ports
        assert server.port in ports
        assert ports == sorted(set(ports))
        names = {found.port: found.process for found in listening}
        assert names[port] == names[server.port] == process_name(own_command_line())


def own_command_line() -> list[str]:
    return Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/usr/bin/sshd", "-D"], "sshd"),
        (["nginx: master process /usr/sbin/nginx"], "nginx"),
        (["/opt/env/bin/python3.11", "-m", "tensorboard.main", "--logdir", "x"], "tensorboard.main"),
        (["python", "-u", "/opt/env/bin/jupyter-lab", "--no-browser"], "jupyter-lab"),
        (["python3", "-c", "print('a secret')"], "python3"),
        (["sh"], "sh"),
    ],
)
def test_what_listens_is_named_as_people_call_it(words: list[str], name: str) -> None:
    assert process_name(words) == name


async def test_refused_port_is_typed() -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        with pytest.raises(RemoteRefused):
            await watched.tunnel.open_channel(1)


async def test_number_of_channels_is_bounded() -> None:
    settings = TunnelSettings(max_channels=2)
    async with ssh_server() as server, echo_port() as port, Watched(server.target(), settings) as watched:
        await watched.tunnel.wait_up(5)
        await watched.tunnel.run("true", timeout=5)
        one = await watched.tunnel.open_channel(port)
        await watched.tunnel.open_channel(port)
        with pytest.raises(TooManyChannels, match="2 open channels"):
            await watched.tunnel.open_channel(port)
        one.close()
        await one.wait_closed()
        await watched.tunnel.open_channel(port)


class Hooked(list[str]):
    """Calls `hook` for each new item."""

    def __init__(self, hook: Callable[[], object]) -> None:
        super().__init__()
        self._hook = hook

    def append(self, item: str) -> None:
        super().append(item)
        self._hook()


async def test_channel_that_has_ended_when_it_is_open_is_not_counted_for_ever() -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        await watched.tunnel.run("true", timeout=5)
        link = watched.tunnel._link
        assert link is not None
        while link.channels:
            await asyncio.sleep(0.01)
        transport = link._wire._transport
        assert transport is not None
        server.commands = Hooked(transport.pause_reading)  # as where this process has no time to read
        opening = asyncio.create_task(watched.tunnel.start_process("true"))
        while server._runs or not server.commands:
            await asyncio.sleep(0.01)
        transport.resume_reading()
        process = await opening
        await process.wait()
        assert link.channels == 0


@pytest.mark.parametrize("turns", range(6))
async def test_channel_is_closed_whose_opener_is_cancelled_when_it_is_open(turns: int) -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        closed.set()

    service = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = service.sockets[0].getsockname()[1]
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        link = watched.tunnel._link
        assert link is not None
        stream = Channel()
        opening = asyncio.create_task(
            link._open(
                stream,
                link._connection.create_connection(lambda: stream, "127.0.0.1", port, "127.0.0.1", 0),
                "a port",
            )
        )
        while not stream.opened_at:
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        if opening.done():
            opening.result().close()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await asyncio.wait_for(closed.wait(), 5)
    service.close()


async def test_too_many_channels_say_nothing_of_the_relay() -> None:
    settings = replace(FAR, max_channels=2)
    async with ssh_server() as server, echo_port() as port, Watched(server.target(), settings) as watched:
        await watched.tunnel.wait_up(5)
        await watched.tunnel.run("true", timeout=5)
        plain = [await watched.tunnel.open_channel(port) for _ in range(2)]
        with pytest.raises(TooManyChannels):  # no room for the process that relays
            await watched.tunnel.open_prompt_channel(port)
        for channel in plain:
            channel.close()
            await channel.wait_closed()
        prompt = await watched.tunnel.open_prompt_channel(port)
        with pytest.raises(TooManyChannels):  # it runs, but there is no room for a channel to it
            await watched.tunnel.open_prompt_channel(port)
        prompt.close()
        await prompt.wait_closed()
        await watched.tunnel.open_prompt_channel(port)
        assert server.channels_opened == 2  # only an ordinary channel is one to a port
        assert not (await watched.tunnel.open_wide_channel(port)).wide  # three would be too many


async def test_forwarded_port_survives_a_reconnect_and_ends_with_the_tunnel() -> None:
    async with ssh_server() as server, echo_port() as port, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        forwarded = await watched.tunnel.forward(port)
        with pytest.raises(Conflict):
            await watched.tunnel.forward(port, forwarded.local_port)
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", forwarded.local_port)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
            await server.drop()
        await watched.tunnel.close()
        assert watched.tunnel.forwards == []
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", forwarded.local_port)


async def test_port_that_is_forwarded_while_the_tunnel_closes_is_closed() -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local_port = free.getsockname()[1]
        forwarding = asyncio.create_task(watched.tunnel.forward(80, local_port))
        await asyncio.sleep(0)
        await watched.tunnel.close()
        with pytest.raises(TunnelDown):
            await forwarding
        with pytest.raises(TunnelDown):
            await watched.tunnel.forward(80, local_port)
        assert watched.tunnel.forwards == []
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", local_port)


@pytest.mark.parametrize("waiting", [True, False])
async def test_forwarded_port_that_is_closed_ends_connections_that_wait_for_the_tunnel(waiting: bool) -> None:
    def away() -> SshTarget:
        raise ClearMLUnreachable("The ClearML server is away.")

    async with Watched(away, TunnelSettings(backoff_initial=60.0, backoff_max=60.0)) as watched:
        forwarded = await watched.tunnel.forward(80)
        reader, writer = await asyncio.open_connection("127.0.0.1", forwarded.local_port)
        while not forwarded._connections:
            await asyncio.sleep(0)
        if waiting:
            await asyncio.sleep(0.05)
        await forwarded.close()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


# -- who is at the other end


async def test_another_host_key_is_fatal_and_sends_no_password() -> None:
    async with ssh_server() as server:
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        target = SshTarget("127.0.0.1", server.port, "someone", PASSWORD, (other,), HostKeyTrust.PINNED)
        async with Watched(target) as watched:
            with pytest.raises(HostKeyMismatch):
                await watched.tunnel.wait_up(5)
            assert watched.tunnel.status.state is TunnelState.FAILED
            await asyncio.sleep(0.2)
            assert (watched.asked, server.accepted) == (1, 1)  # not tried again


@pytest.mark.parametrize("host_keys", [(), ("ssh-ed25519 nonsense",)])
async def test_without_a_usable_host_key_nothing_connects(host_keys: tuple[str, ...]) -> None:
    async with ssh_server() as server:
        target = SshTarget("127.0.0.1", server.port, "someone", PASSWORD, host_keys)
        async with Watched(target) as watched:
            with pytest.raises(HostKeyMismatch):
                await watched.tunnel.wait_up(5)
        assert server.accepted == 0


async def test_host_key_of_another_kind_is_a_mismatch() -> None:
    async with ssh_server(key=asyncssh.generate_private_key("ecdsa-sha2-nistp256")) as server:
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        target = SshTarget("127.0.0.1", server.port, "someone", PASSWORD, (other,))
        async with Watched(target) as watched:
            with pytest.raises(HostKeyMismatch):
                await watched.tunnel.wait_up(5)


async def test_any_of_several_pinned_keys_will_do() -> None:
    async with ssh_server() as server:
        other = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key().decode()
        target = SshTarget("127.0.0.1", server.port, "someone", PASSWORD, (other, server.public_key))
        async with Watched(target) as watched:
            await watched.tunnel.wait_up(5)


async def test_wrong_password_is_fatal_and_reconnect_starts_again() -> None:
    async with ssh_server() as server:
        target = server.target(password="wrong")
        async with Watched(lambda: target) as watched:
            with pytest.raises(AuthenticationFailed):
                await watched.tunnel.wait_up(5)
            target = server.target()
            watched.tunnel.reconnect()
            await watched.tunnel.wait_up(5)


async def test_the_users_own_ssh_setup_takes_no_part(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "config").write_text("Host *\n  Port 1\n  User nobody\n  ProxyCommand false\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)


async def test_no_secret_is_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        await watched.tunnel.run("true", timeout=5)
        await server.drop()
        await watched.until(lambda status: status.state is TunnelState.RECONNECTING)
        text = caplog.text + repr(watched.statuses) + repr(watched.tunnel.__dict__)
        assert PASSWORD not in text
        assert "asyncssh" not in {
            record.name for record in caplog.records if record.levelno < logging.WARNING
        }


# -- why it cannot connect


@pytest.mark.parametrize(
    ("address", "port", "cause"),
    [
        ("no-such-host.invalid", 22, HostNotFound),
        ("gw..example.com", 22, HostNotFound),
        ("x" * 64 + ".example.com", 22, HostNotFound),
        ("127.0.0.1", 1, ConnectionRefused),
    ],
)
async def test_cause_before_ssh(address: str, port: int, cause: type[Exception]) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    async with Watched(SshTarget(address, port, "someone", PASSWORD, (key,))) as watched:
        status = await watched.until(lambda status: status.attempt >= 2 and status.cause is not None)
        assert status.cause is not None
        assert status.cause["code"] == cause.code  # type: ignore[attr-defined]
        assert status.state is TunnelState.CONNECTING
        with pytest.raises(TunnelDown) as caught:
            await watched.tunnel.wait_up(0.01)
        assert caught.value.detail["cause"]["code"] == cause.code  # type: ignore[attr-defined]
        with pytest.raises(TunnelDown):
            await watched.tunnel.open_channel(80)


async def test_server_that_never_speaks_is_a_timeout() -> None:
    async with ssh_server() as server, Relay(server.port) as relay:
        relay.freeze()
        settings = TunnelSettings(connect_timeout=0.2, backoff_initial=0.01)
        async with Watched(server.target(port=relay.port), settings) as watched:
            await watched.until(lambda status: status.cause is not None)
            assert watched.causes()[0] == ConnectionTimedOut.code


async def test_gateway_that_hangs_up_is_named() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    gateway = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with ssh_server() as server:
        target = server.target(port=gateway.sockets[0].getsockname()[1])
        async with Watched(target) as watched:
            await watched.until(lambda status: status.cause is not None)
            assert watched.causes()[0] == GatewayFailed.code
    gateway.close()


@pytest.mark.parametrize(
    ("failure", "code", "traceback"),
    [
        pytest.param(ClearMLUnreachable("ClearML is away"), ClearMLUnreachable.code, False, id="known"),
        pytest.param(KeyError("no such thing"), TunnelError.code, True, id="a fault of ours"),
    ],
)
async def test_what_the_target_raises_is_the_attempts_cause_and_the_next_one_is_made(
    failure: Exception, code: str, traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with ssh_server() as server:
        down = True

        def target() -> SshTarget:
            if down:
                raise failure
            return server.target()

        async with Watched(target) as watched:
            await watched.until(lambda status: status.attempt >= 2)
            assert watched.causes()[0] == code
            assert ("Traceback" in caplog.text and "no such thing" in caplog.text) == traceback
            down = False
            await watched.tunnel.wait_up(5)


async def test_one_who_fails_on_hearing_of_a_state_does_not_end_the_tunnel() -> None:
    def fail(_status: object) -> None:
        raise ValueError

    async with ssh_server() as server:
        watched = Watched(server.target())
        watched.tunnel._on_status = fail
        async with watched:
            await watched.tunnel.wait_up(5)
            await server.drop()
            while server.accepted < 2:
                await asyncio.sleep(0.01)
            await watched.tunnel.wait_up(5)


# -- losing it and getting it back


async def test_broken_connection_is_made_again_and_open_streams_tell() -> None:
    async with ssh_server() as server, Relay(server.port) as relay, echo_port() as port:
        async with Watched(server.target(port=relay.port)) as watched:
            await watched.tunnel.wait_up(5)
            channel = await watched.tunnel.open_channel(port)
            process = await watched.tunnel.start_process("cat")
            relay.cut()
            with pytest.raises(ConnectionLost):
                await channel.read()
            with pytest.raises(ConnectionLost):
                await process.read()
            await watched.until(lambda status: status.state is TunnelState.RECONNECTING)
            await watched.tunnel.wait_up(5)
            assert watched.tunnel.status.cause is None
            await watched.tunnel.open_channel(port)
        assert relay.accepted >= 2


@pytest.mark.parametrize("end", ["black hole", "reconnected", "closed"])
async def test_an_open_stream_never_takes_the_end_of_its_connection_for_its_own(end: str) -> None:
    async with (
        ssh_server() as server,
        Relay(server.port) as relay,
        echo_port() as port,
        Watched(server.target(port=relay.port), WATCHFUL) as watched,
    ):
        await watched.tunnel.wait_up(5)
        streams = [await watched.tunnel.open_channel(port), await watched.tunnel.start_process("cat")]
        reads = [asyncio.create_task(stream.read()) for stream in streams]
        await asyncio.sleep(0)
        if end == "black hole":
            relay.freeze()
        elif end == "reconnected":
            watched.tunnel.reconnect()
        else:
            await watched.tunnel.close()
        results = await asyncio.wait_for(asyncio.gather(*reads, return_exceptions=True), 10)
        relay.thaw()
        assert [type(result) for result in results] == [ConnectionLost] * 2


async def test_black_hole_is_noticed_by_the_probe() -> None:
    async with ssh_server() as server, Relay(server.port) as relay:
        target = server.target(port=relay.port)
        async with Watched(target, WATCHFUL) as watched:
            await watched.tunnel.wait_up(5)
            relay.freeze()
            begin = time.monotonic()
            status = await watched.until(lambda status: status.state is TunnelState.RECONNECTING)
            assert 0.4 <= time.monotonic() - begin < 5.0
            assert status.cause is not None
            assert status.cause["code"] == ConnectionLost.code
            relay.thaw()
            await watched.tunnel.wait_up(5)


async def test_quiet_link_stays_up() -> None:
    async with ssh_server() as server, Watched(server.target(), WATCHFUL) as watched:
        await watched.tunnel.wait_up(5)
        await asyncio.sleep(1.3)  # twice the patience: only probes keep it alive
        assert watched.tunnel.status.state is TunnelState.UP
        assert server.accepted == 1


async def test_attempts_go_on_until_the_server_is_back_and_wait_longer_each_time() -> None:
    async with ssh_server() as server, Relay(server.port) as relay:
        settings = TunnelSettings(backoff_initial=0.02, backoff_factor=2.0, backoff_max=0.2)
        async with Watched(server.target(port=relay.port), settings) as watched:
            await watched.tunnel.wait_up(5)
            relay.close()
            await watched.until(lambda status: status.attempt >= 4)
            await relay.open()
            await watched.tunnel.wait_up(5)
            assert watched.tunnel.status.attempt == 0


async def test_reconnect_ends_the_wait_at_once() -> None:
    async with ssh_server() as server, Relay(server.port) as relay:
        settings = TunnelSettings(backoff_initial=60.0, backoff_max=60.0)
        async with Watched(server.target(port=relay.port), settings) as watched:
            await watched.tunnel.wait_up(5)
            relay.close()
            await watched.until(lambda status: "connection_refused" in str(status.cause))
            await relay.open()
            watched.tunnel.reconnect()
            await watched.tunnel.wait_up(5)


async def test_reconnect_during_an_attempt_does_not_end_the_connection_that_it_makes() -> None:
    async with ssh_server() as server, Relay(server.port) as relay:
        relay.freeze()
        async with Watched(server.target(port=relay.port)) as watched:
            while not relay.accepted:
                await asyncio.sleep(0.01)
            watched.tunnel.reconnect()
            relay.thaw()
            await watched.tunnel.wait_up(5)
            link = watched.tunnel._link
            await watched.tunnel.run("true", timeout=5)
            assert watched.tunnel._link is link
            assert TunnelState.RECONNECTING not in [status.state for status in watched.statuses]


async def test_waking_up_ends_the_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ssh_server() as server, Relay(server.port) as relay:
        settings = TunnelSettings(backoff_initial=60.0, backoff_max=60.0, wake_gap=5.0)
        async with Watched(server.target(port=relay.port), settings) as watched:
            await watched.tunnel.wait_up(5)
            relay.close()
            await watched.until(lambda status: "connection_refused" in str(status.cause))
            await relay.open()
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + 3600)
            await watched.tunnel.wait_up(5)


async def test_close_leaves_nothing() -> None:
    before = asyncio.all_tasks()
    async with ssh_server() as server, echo_port() as port:
        watched = Watched(server.target())
        async with watched:
            await watched.tunnel.wait_up(5)
            channel = await watched.tunnel.open_channel(port, bulk=True)
            await watched.tunnel.forward(port)
        assert watched.tunnel.status.state is TunnelState.DOWN
        assert channel.closed
        with pytest.raises(TunnelDown):
            await watched.tunnel.wait_up(1)
        while server.connections:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if not task.done() and "Tunnel" in repr(task)}
    assert left == set()


async def begin_bulk(tunnel: Tunnel, relay: Relay) -> asyncio.Task[Any]:
    """Let a request wait for a bulk connection whose server does not speak yet."""
    relay.freeze()
    asked = relay.accepted
    opening = asyncio.create_task(tunnel.open_channel(80, bulk=True))
    while relay.accepted == asked:
        await asyncio.sleep(0.01)
    return opening


async def test_bulk_connection_that_is_made_while_the_tunnel_closes_is_closed() -> None:
    async with ssh_server() as server, Relay(server.port) as relay:
        async with Watched(server.target(port=relay.port)) as watched:
            await watched.tunnel.wait_up(5)
            opening = await begin_bulk(watched.tunnel, relay)
            await watched.tunnel.close()
            relay.thaw()
            with pytest.raises(TunnelDown):
                await asyncio.wait_for(opening, 5)
        assert server.accepted == 2
        await until_gone(server)


async def test_connection_that_is_made_when_the_tunnel_closes_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect = asyncssh.connect
    closing: list[asyncio.Task[None]] = []
    async with ssh_server() as server:
        watched = Watched(server.target())

        async def connect_and_close(*args: Any, **options: Any) -> asyncssh.SSHClientConnection:
            made = await connect(*args, **options)
            closing.append(asyncio.create_task(watched.tunnel.close()))
            await asyncio.sleep(0)  # the tunnel's task is cancelled in the turn in which this one ends
            return made

        monkeypatch.setattr(asyncssh, "connect", connect_and_close)
        watched.tunnel.start()
        while not closing:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(closing[0], 5)
        assert server.accepted == 1
        await until_gone(server)


async def test_bulk_connection_to_an_old_address_is_closed() -> None:
    async with ssh_server() as old, ssh_server(key=old.key) as new, Relay(old.port) as relay:
        target = old.target(port=relay.port)
        async with Watched(lambda: target) as watched:
            await watched.tunnel.wait_up(5)
            opening = await begin_bulk(watched.tunnel, relay)
            target = new.target()
            watched.tunnel.reconnect()
            while not new.connections:
                await asyncio.sleep(0.01)
            await watched.tunnel.wait_up(5)
            relay.thaw()
            with pytest.raises(TunnelDown):
                await asyncio.wait_for(opening, 5)
            assert old.accepted == 2
            await until_gone(old)


async def test_connection_is_gone_although_whoever_closed_it_was_cancelled() -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        link = watched.tunnel._link
        assert link is not None
        closing = asyncio.create_task(link.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        assert closing.cancelled()
        while server.accepted < 2:
            await asyncio.sleep(0.01)
        await watched.tunnel.close()
        await until_gone(server)


async def until_gone(server: SshServer) -> None:
    """Return when no connection to it is open."""
    for _ in range(200):
        if not server.connections:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{len(server.connections)} connections are open")


async def test_window_grows_with_the_distance() -> None:
    async with ssh_server() as server, Relay(server.port) as relay:
        relay.delay = 0.02
        async with Watched(server.target(port=relay.port), TunnelSettings()) as watched:
            await watched.tunnel.wait_up(10)
            await watched.tunnel.run("true", timeout=5)
            rtt = watched.tunnel.status.rtt_ms
            assert rtt is not None
            assert 35 <= rtt <= 400
            link, bulk = watched.tunnel._link, await watched.tunnel._bulk_link()
            assert link is not None
            assert link.window == 2 * 1024 * 1024  # a keystroke must not wait behind more than that
            assert bulk.window > 16 * 1024 * 1024
