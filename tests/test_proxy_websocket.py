"""WebSockets through the proxy: a real tornado server on the remote side, a real client, a real tunnel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tornado import web, websocket
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from jupyterlab_clearml_session.models import TunnelState
from jupyterlab_clearml_session.proxy import splice
from jupyterlab_clearml_session.proxy.state import ProxySettings, ProxyState
from jupyterlab_clearml_session.ssh.settings import TunnelSettings
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

from .proxy_parts import REMOTE_TOKEN, SESSION, FakeManager, install
from .sshd_fixture import SshServer, ssh_server


@dataclass
class Remote:
    """What the remote WebSocket server has seen."""

    port: int = 0
    headers: list[Any] = field(default_factory=list)
    opened: list[Any] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    close_code: int | None = None
    close_reason: str | None = None
    pings: list[bytes] = field(default_factory=list)


class Echo(websocket.WebSocketHandler):
    def initialize(self, remote: Remote) -> None:
        self.remote = remote

    @property
    def max_message_size(self) -> int:
        return 1 << 30

    def check_origin(self, origin: str) -> bool:
        return origin == f"http://localhost:{self.remote.port}"

    def get_compression_options(self) -> dict[str, Any] | None:
        return {} if self.request.path == "/deflate" else None

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return "v2" if "v2" in subprotocols else None

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.remote.headers.append(self.request.headers)
        self.remote.opened.append(self)

    def on_message(self, message: str | bytes) -> None:
        if message == "close":
            self.close(4321, "as asked")
        else:
            self.write_message(message, binary=isinstance(message, bytes))

    def on_ping(self, data: bytes) -> None:
        self.remote.pings.append(data)

    def on_close(self) -> None:
        self.remote.close_code, self.remote.close_reason = self.close_code, self.close_reason
        self.remote.closed.set()


class Refuse(web.RequestHandler):
    def get(self) -> None:
        raise web.HTTPError(418)


@dataclass
class Site:
    serverapp: Any
    remote: Remote
    ssh: SshServer
    tunnel: Tunnel

    async def connect(self, path: str = "/echo", *, kind: str = "port", **options: Any) -> Any:
        service = f"port/{self.remote.port}" if kind == "port" else kind
        url = f"ws://127.0.0.1:{self.serverapp.port}{self.serverapp.base_url}"
        headers = {"Authorization": f"token {self.serverapp.identity_provider.token}"} | options.pop(
            "headers", {}
        )
        request = HTTPRequest(f"{url}clearml-session/proxy/{SESSION}/{service}{path}", headers=headers)
        return await websocket.websocket_connect(request, max_message_size=1 << 30, **options)


@pytest.fixture
def site(jp_serverapp: Any, jp_fetch: Any, jp_asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[Site]:
    parts = running(jp_serverapp)
    yield jp_asyncio_loop.run_until_complete(parts.__aenter__())
    jp_asyncio_loop.run_until_complete(parts.__aexit__(None, None, None))


@contextlib.asynccontextmanager
async def running(serverapp: Any) -> AsyncIterator[Site]:
    remote = Remote()
    sockets = bind_sockets(0, "127.0.0.1")
    remote.port = sockets[0].getsockname()[1]
    options = {"remote": remote}
    server = HTTPServer(
        web.Application([("/echo", Echo, options), ("/deflate", Echo, options), ("/refuse", Refuse)])
    )
    server.add_sockets(sockets)
    async with ssh_server() as ssh:

        async def target() -> Any:
            return ssh.target()

        tunnel = Tunnel(target, settings=TunnelSettings(backoff_initial=0.02, backoff_max=0.1))
        tunnel.start()
        install(serverapp, FakeManager(tunnel, {"jupyter": remote.port}))
        yield Site(serverapp, remote, ssh, tunnel)
        await tunnel.close()
    server.stop()
    await server.close_all_connections()


async def test_text_binary_and_subprotocol(site: Site) -> None:
    client = await site.connect(subprotocols=["v1", "v2"])
    assert client.selected_subprotocol == "v2"
    for message in ("", "héllo", b"\x00\xff", b"x" * 70_000):
        await client.write_message(message, binary=isinstance(message, bytes))
        assert await client.read_message() == message
    client.close()


async def test_large_message_comes_back_whole(site: Site) -> None:
    client = await site.connect()
    message = bytes(range(256)) * (100 * 4096)  # 100 MiB
    await client.write_message(message, binary=True)
    assert await client.read_message() == message
    client.close()


@pytest.mark.parametrize("kind", ["port", "jupyter"])
async def test_nothing_large_can_get_before_it(site: Site, kind: str) -> None:
    while not site.tunnel.bulk_ready:
        await asyncio.sleep(0)
    interactive, bulk = site.tunnel._link, site.tunnel._bulk
    assert interactive is not None
    assert bulk is not None
    for link in (interactive, bulk):  # the command that switches Nagle's algorithm off takes a channel
        while sum(not task.done() for task in link._tasks) > 1:
            await asyncio.sleep(0.01)
    before = interactive.channels, bulk.channels
    client = await site.connect(kind=kind)
    assert interactive.channels > before[0]
    assert bulk.channels == before[1]
    client.close()


async def test_frames_that_follow_the_handshake_at_once_are_not_lost(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.serverapp.port)
    path = f"{site.serverapp.base_url}clearml-session/proxy/{SESSION}/port/{site.remote.port}/echo"
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{site.serverapp.port}",
        f"Authorization: token {site.serverapp.identity_provider.token}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    payload = b"x" * 1000
    frame = b"\x82\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload
    writer.write("\r\n".join([*lines, "", ""]).encode() + frame * 200)
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    answer = b"\x82\x7e" + len(payload).to_bytes(2, "big") + payload
    for _ in range(200):
        assert await reader.readexactly(len(answer)) == answer
    writer.close()
    await asyncio.wait_for(site.remote.closed.wait(), 10)


async def test_browser_that_reads_slowly_gets_everything(site: Site) -> None:
    client = await site.connect()
    message = bytes(range(256)) * 40_000
    for _ in range(3):
        await client.write_message(message, binary=True)
    await asyncio.sleep(0.2)  # what the sockets and windows hold is full by then
    for _ in range(3):
        assert await client.read_message() == message
    client.close()


async def test_a_stream_that_is_no_plain_socket_is_spliced_as_well(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a local server that speaks TLS."""
    monkeypatch.setattr(splice, "_splice_socket", splice._splice_stream)
    client = await site.connect()
    message = bytes(range(256)) * 4_000
    await client.write_message(message, binary=True)
    assert await client.read_message() == message
    await client.write_message("close")
    assert await client.read_message() is None
    assert (client.close_code, client.close_reason) == (4321, "as asked")


async def test_close_code_and_reason_pass_both_ways(site: Site) -> None:
    client = await site.connect()
    await client.write_message("close")
    assert await client.read_message() is None
    assert (client.close_code, client.close_reason) == (4321, "as asked")
    await asyncio.wait_for(site.remote.closed.wait(), 5)
    site.remote.closed.clear()
    client = await site.connect()
    client.close(4001, "had enough")
    await asyncio.wait_for(site.remote.closed.wait(), 5)
    assert (site.remote.close_code, site.remote.close_reason) == (4001, "had enough")


async def test_pings_reach_the_remote(site: Site) -> None:
    client = await site.connect()
    client.ping(b"are you there")
    await client.write_message("after the ping")
    assert await client.read_message() == "after the ping"
    assert site.remote.pings == [b"are you there"]
    client.close()


async def test_compression_is_agreed_on_by_the_two_ends(site: Site) -> None:
    client = await site.connect("/deflate", compression_options={})
    await client.write_message("x" * 100_000)
    assert await client.read_message() == "x" * 100_000
    assert "permessage-deflate" in client.headers["Sec-WebSocket-Extensions"]
    client.close()
    client = await site.connect("/echo", compression_options={})
    assert "Sec-WebSocket-Extensions" not in client.headers
    client.close()


async def test_headers_are_those_of_the_policy(site: Site) -> None:
    local = f"http://127.0.0.1:{site.serverapp.port}"
    client = await site.connect(
        headers={"Origin": local, "Cookie": "username-127-0-0-1=secret"}, kind="jupyter"
    )
    (seen,) = site.remote.headers
    assert seen["Origin"] == f"http://localhost:{site.remote.port}"
    assert seen["Authorization"] == f"token {REMOTE_TOKEN}"
    assert "Cookie" not in seen
    client.close()


@pytest.mark.parametrize(("path", "status"), [("/refuse", 418), ("/nothing", 404)])
async def test_handshake_that_the_remote_refuses_is_refused_here(site: Site, path: str, status: int) -> None:
    with pytest.raises(HTTPClientError) as caught:
        await site.connect(path)
    assert caught.value.code == status


async def test_without_login_or_from_another_origin_nothing_is_contacted(site: Site) -> None:
    url = f"ws://127.0.0.1:{site.serverapp.port}{site.serverapp.base_url}clearml-session/proxy/{SESSION}/port/1/x"
    with pytest.raises(HTTPClientError) as caught:
        await websocket.websocket_connect(url)
    assert caught.value.code == 403
    assert site.ssh.channels_opened == 0


async def test_nothing_listens_is_told_in_the_handshake(site: Site) -> None:
    site.remote.port, port = 1, site.remote.port
    with pytest.raises(HTTPClientError) as caught:
        await site.connect()
    site.remote.port = port
    assert caught.value.code == 502


async def test_remote_that_breaks_off_is_an_abnormal_closure(site: Site) -> None:
    client = await site.connect()
    site.remote.opened[0].ws_connection.stream.close()
    assert await asyncio.wait_for(client.read_message(), 5) is None
    assert client.close_code is None  # a browser calls it 1006


async def test_tunnel_that_breaks_is_an_abnormal_closure(site: Site) -> None:
    client = await site.connect()
    await site.ssh.drop()
    assert await asyncio.wait_for(client.read_message(), 5) is None
    assert client.close_code is None
    again = await site.connect()
    await again.write_message("back")
    assert await again.read_message() == "back"
    again.close()


async def test_tunnel_that_is_down_is_told_in_the_handshake(site: Site) -> None:
    site.serverapp.web_app.settings["clearml_session_proxy"] = ProxyState(ProxySettings(tunnel_wait=0.1))
    await site.ssh.stop()
    with pytest.raises(HTTPClientError) as caught:
        await asyncio.wait_for(site.connect(), 10)
    assert caught.value.code == 503


async def test_browser_that_vanishes_closes_the_remote_end(site: Site) -> None:
    client = await site.connect()
    await client.write_message("x")
    assert await client.read_message() == "x"
    client.protocol.stream.close()
    await asyncio.wait_for(site.remote.closed.wait(), 5)


async def test_what_is_open_at_an_own_address_ends_with_it(site: Site) -> None:
    """Not only with the tunnel, which lives on here."""
    settings = site.serverapp.web_app.settings
    apart = settings["clearml_session_aparts"].open(
        SESSION, f"port/{site.remote.port}", "localhost", settings
    )
    headers = {"Cookie": f"{apart.cookie}={apart.secret}", "Origin": f"http://{apart.host}"}
    client = await websocket.websocket_connect(HTTPRequest(f"ws://{apart.host}/echo", headers=headers))
    await client.write_message("x")
    assert await client.read_message() == "x"
    await settings["clearml_session_aparts"].forget(SESSION)
    assert await asyncio.wait_for(client.read_message(), 5) is None
    await asyncio.wait_for(site.remote.closed.wait(), 5)
    assert site.tunnel.status.state is TunnelState.UP
