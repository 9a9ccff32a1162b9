"""Channel data on its way: past asyncssh's packet code, and handed on as it arrives."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from jupyterlab_clearml_session.errors import ConnectionLost
from jupyterlab_clearml_session.ssh import shortcut
from jupyterlab_clearml_session.ssh.channel import READ_LIMIT, ByteStream
from jupyterlab_clearml_session.ssh.settings import TunnelSettings
from jupyterlab_clearml_session.ssh.straight import Straight

from .sshd_fixture import Relay, ssh_server
from .tunnel_fixture import EAGER, Watched, echo_port

DATA = random.Random(7).randbytes(3_000_000)

# -- the shortcut past asyncssh's packet code


class _OlderAESGCM:
    """As `cryptography` has it before it could write into a buffer."""

    def __init__(self, key: bytes) -> None:
        own = AESGCM(key)
        self.encrypt = own.encrypt
        self.decrypt = own.decrypt


@pytest.fixture(params=["shortcut", "older cryptography", "other version", "other cipher"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TunnelSettings:
    """Settings of a tunnel with the shortcut, in two ways, and of two where all is left to asyncssh."""
    if request.param == "older cryptography":
        monkeypatch.setattr(shortcut, "AESGCM", _OlderAESGCM)
    if request.param == "other version":
        monkeypatch.setattr(shortcut, "TESTED", ((99, 0), (99, 0)))
    encryption = ("aes256-ctr",) if request.param == "other cipher" else EAGER.encryption
    return replace(EAGER, encryption=encryption)


async def test_channels_survive_key_exchanges_and_slow_readers(
    settings: TunnelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    step = shortcut._Cipher.step

    def count(cipher: Any) -> None:
        nonlocal steps
        steps += 1
        step(cipher)

    monkeypatch.setattr(shortcut._Cipher, "step", count)
    async with ssh_server() as server, echo_port() as port, Watched(server.target(), settings) as watched:
        await watched.tunnel.wait_up(5)
        link = watched.tunnel._link
        assert link is not None
        exchanged = _count_key_exchanges(link, server)

        async def carry(seed: int) -> None:
            numbers = random.Random(seed)
            data = numbers.randbytes(1_500_000)
            channel = await watched.tunnel.open_channel(port)

            async def feed() -> None:
                at = 0
                while at < len(data):
                    size = numbers.choice((1, 100, 5_000, 40_000, 200_000))
                    channel.write(data[at : at + size])
                    at += size
                    await channel.drain()
                channel.write_eof()

            feeding = asyncio.create_task(feed())
            got = bytearray()
            while piece := await channel.read(numbers.choice((7_000, 300_000))):
                got += piece
                if numbers.random() < 0.2:
                    await asyncio.sleep(0)
            await feeding
            assert got == data
            channel.close()

        await asyncio.gather(*(carry(seed) for seed in range(4)))
        assert exchanged() >= 4
        if link._shortcut is None:
            assert steps == 0
        else:
            assert steps > 50  # the others are for asyncssh: empty packets, key exchanges
        assert link.alive


async def test_a_changed_byte_breaks_the_connection(settings: TunnelSettings) -> None:
    async with (
        ssh_server() as server,
        Relay(server.port) as between,
        echo_port() as port,
        Watched(server.target(port=between.port), settings) as watched,
    ):
        await watched.tunnel.wait_up(5)
        channel = await watched.tunnel.open_channel(port)
        channel.write(b"a" * 1000)
        assert await channel.readexactly(1000) == b"a" * 1000
        between.spoil = lambda data: data[:20] + bytes((data[20] ^ 1,)) + data[21:]
        channel.write(b"b" * 1000)
        with pytest.raises(ConnectionLost):
            await channel.readexactly(1000)


async def test_shortcut_is_taken_only_where_it_fits(settings: TunnelSettings) -> None:
    async with ssh_server() as server, Watched(server.target(), settings) as watched:
        await watched.tunnel.wait_up(5)
        assert watched.tunnel._link is not None
        fits = settings.encryption == EAGER.encryption and shortcut.TESTED[0] < (99, 0)
        assert (watched.tunnel._link._shortcut is not None) == fits


def _count_key_exchanges(link: Any, server: Any) -> Callable[[], int]:
    """Have either end exchange keys after each 500 kB that it sends; return what counts the exchanges."""
    count = 0
    connection = link._connection
    ends = [connection, *server.connections]
    before = connection.send_newkeys

    def send_newkeys(*args: Any) -> None:
        nonlocal count
        count += 1
        before(*args)

    connection.send_newkeys = send_newkeys
    for end in ends:
        end._rekey_bytes = 500_000
    return lambda: count


# -- handed on as it arrives


async def _filled(channel: ByteStream) -> asyncio.Task[None]:
    """Have `DATA` sent back, and wait until so much of it has come that the other end was told to stop."""
    feeding = asyncio.create_task(_feed(channel))
    while not channel._reading_paused:
        await asyncio.sleep(0.001)
    assert channel._size > READ_LIMIT
    return feeding


async def _feed(channel: ByteStream) -> None:
    for start in range(0, len(DATA), 100_000):
        channel.write(DATA[start : start + 100_000])
        await channel.drain()
    channel.write_eof()


async def test_delivery_begins_with_what_had_arrived(settings: TunnelSettings) -> None:
    got = bytearray()
    async with ssh_server() as server, echo_port() as port, Watched(server.target(), settings) as watched:
        await watched.tunnel.wait_up(5)
        channel = await watched.tunnel.open_channel(port)
        feeding = await _filled(channel)
        channel.deliver_to(got.extend)
        assert len(got) > READ_LIMIT
        assert await asyncio.wait_for(channel.read(), 10) == b""
        assert got == DATA
        await feeding


async def test_pouring_ends_where_it_should(settings: TunnelSettings) -> None:
    got = bytearray()
    async with ssh_server() as server, echo_port() as port, Watched(server.target(), settings) as watched:
        await watched.tunnel.wait_up(5)
        channel = await watched.tunnel.open_channel(port)
        feeding = await _filled(channel)
        size = 0
        for more in (1, 100_000, 1_700_000):  # had arrived, or is still to come
            size += more
            await asyncio.wait_for(channel.pour(more, got.extend), 10)
            assert got == DATA[:size]
        assert await channel.readexactly(200_000) == DATA[size : size + 200_000]
        with pytest.raises(asyncio.IncompleteReadError):
            await asyncio.wait_for(channel.pour(len(DATA), got.extend), 10)
        assert got == DATA[:size] + DATA[size + 200_000 :]
        await feeding


async def test_pouring_waits_for_its_sink(settings: TunnelSettings) -> None:
    got = bytearray()
    taken: asyncio.Future[None] | None = None

    def sink(data: bytes | memoryview) -> asyncio.Future[None]:
        nonlocal taken
        assert taken is None or taken.done(), "it was full"
        got.extend(data)
        taken = asyncio.get_running_loop().create_future()
        return taken

    async with ssh_server() as server, echo_port() as port, Watched(server.target(), settings) as watched:
        await watched.tunnel.wait_up(5)
        channel = await watched.tunnel.open_channel(port)
        feeding = asyncio.create_task(_feed(channel))
        pouring = asyncio.ensure_future(channel.pour(2_000_000, sink))
        while not pouring.done():
            await asyncio.sleep(0.001)
            if taken is not None and not taken.done():
                taken.set_result(None)
        assert got == DATA[:2_000_000]
        rest = b"".join([piece async for piece in _pieces(channel)])  # reading was not left paused
        assert rest == DATA[2_000_000:]
        await feeding


async def test_pouring_from_a_tunnel_that_breaks_is_an_error(settings: TunnelSettings) -> None:
    async with ssh_server() as server, echo_port() as port, Watched(server.target(), settings) as watched:
        await watched.tunnel.wait_up(5)
        channel = await watched.tunnel.open_channel(port)
        channel.write(b"a" * 1000)
        some = asyncio.Event()
        pouring = asyncio.ensure_future(channel.pour(2000, lambda _: some.set()))
        await asyncio.wait_for(some.wait(), 5)
        await server.drop()
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(pouring, 5)


async def _pieces(channel: ByteStream) -> Any:
    while piece := await asyncio.wait_for(channel.read(), 10):
        yield piece


async def test_a_buffer_may_change_once_it_was_written() -> None:
    near, far = socket.socketpair()
    for end in (near, far):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, near)
    straight = Straight(transport)
    buffer = bytearray(50_000)
    expected = b""
    for number in range(40):
        buffer[:] = bytes((number,)) * len(buffer)
        expected += buffer
        straight.write(memoryview(buffer))
    assert transport.get_write_buffer_size() > 0
    got = b""
    while len(got) < len(expected):
        got += await asyncio.wait_for(loop.sock_recv(far, 1 << 20), 10)
    assert got == expected
    transport.close()
    await asyncio.sleep(0)
    straight.close()
    assert await asyncio.wait_for(loop.sock_recv(far, 1), 10) == b""
    straight.write(b"nobody gets this")
    far.close()
