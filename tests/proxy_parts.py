"""Parts for the proxy's tests: a manager around a real tunnel, and a remote service that does as it is told.

The session manager is the only fake: it holds one real `Tunnel` to the real SSH server of `sshd_fixture`. All
traffic goes through SSH channels to a service that is a plain socket server, so that it can also break HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_server.utils import url_path_join

from jupyterlab_clearml_session.errors import NotAttached, TunnelDown, UnknownSession
from jupyterlab_clearml_session.models import Endpoint, Phase, Ref, Session
from jupyterlab_clearml_session.proxy import apart, strict
from jupyterlab_clearml_session.proxy import handlers as proxy
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

SESSION = "0123456789abcdef0123456789abcdef"
REMOTE_TOKEN = "remote-secret-token"

SMUGGLED = [
    "Content-Length: 3\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 3",
    "Content-Length: 3\r\nContent-Length: 4",
    "Content-Length: 3, 3",
    "Content-Length: -1",
    "Content-Length: 0x3",
    "Content-Length: 3\r\nContent-Length : 4",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding:\x0bchunked",
    "Content-Length: 3\r\nX: a\r\n folded: b",
    "Content-Length: 3\r\nX: a\r\n\tTransfer-Encoding: chunked",
    "Content-Length: 3\r\nX: a\nY: b",
    "Content-Length: 3\nTransfer-Encoding: chunked",
    "Content-Length: 3\r\nX: a\rY: b",
    "Content-Length: 3\n",
    "X: a\x00b",
    "X : a",
    "no colon",
    "X: " + "a" * 20_000,
    "\r\n".join(["X: a"] * 10_000),
]
"""Lines of a head that two servers could read in two ways."""

Reply = Callable[["Request", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


class FakeManager:
    """What the proxy asks of the session manager, for one session."""

    def __init__(self, tunnel: Tunnel, ports: dict[str, int], token: str = REMOTE_TOKEN) -> None:
        self._tunnel = tunnel
        self._token = token
        self.mine = True
        self.is_attached = True
        self.ports = ports

    async def held_tunnel(self, session_id: str) -> Tunnel:
        if session_id != SESSION:
            raise UnknownSession(f"There is no session {session_id[:40]!r}.")
        if not self.is_attached:
            raise NotAttached("The session is not attached (it is services_up)")
        return self._tunnel

    async def tunnel(self, session_id: str, wait: float = 0.0) -> Tunnel:
        tunnel = await self.held_tunnel(session_id)
        await tunnel.wait_up(wait)
        return tunnel

    def attached(self) -> list[Session]:
        if not self.is_attached:
            return []
        owner = Ref("u1", "Ada <Lovelace>")
        return [Session(SESSION, "a session", Phase.READY, "", "", "in_progress", user=owner, mine=self.mine)]

    async def endpoint(self, session_id: str, kind: str, wait: float = 0.0) -> Endpoint:
        if kind not in self.ports:
            raise TunnelDown(f"The session has no {kind}.")
        return Endpoint(kind, self.ports[kind], self._token if kind == "jupyter" else "")


class Request:
    """A request as it arrived at the remote service, byte for byte in `raw`."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        first, *lines = raw.decode("latin-1").split("\r\n")
        self.method, self.target, self.version = first.split(" ")
        self.headers = [tuple(line.split(": ", 1)) for line in lines if line]
        self.body = b""

    def get(self, name: str) -> str | None:
        values = [header[1] for header in self.headers if header[0].lower() == name.lower()]
        return values[0] if values else None


class RemoteService:
    """A socket server on a loopback port. `reply` decides what it does with each request."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.open_connections = 0
        self.closed = asyncio.Event()
        self.reply: Reply = reply or say_ok
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> RemoteService:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def until_closed(self) -> None:
        """Return when a connection has ended that was open, or had not been counted yet."""
        await asyncio.wait_for(self.closed.wait(), 10)
        self.closed.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        try:
            while True:
                request = Request((await reader.readuntil(b"\r\n\r\n"))[:-4])
                self.requests.append(request)
                if not await self.reply(request, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open_connections -= 1
            writer.close()
            self.closed.set()


async def read_body(request: Request, reader: asyncio.StreamReader) -> bytes:
    """Read a request's body in either framing."""
    if request.get("Transfer-Encoding") == "chunked":
        parts = []
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            parts.append(await reader.readexactly(size))
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
        return b"".join(parts)
    return await reader.readexactly(int(request.get("Content-Length") or 0))


async def say_ok(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer with the request's head and body in the body."""
    request.body = await read_body(request, reader)
    body = b"" if request.method == "HEAD" else request.raw + b"\r\n\r\n" + request.body
    length = len(request.raw) + 4 + len(request.body)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % length + body)
    await writer.drain()
    return True


def canned(data: bytes, *, keep_open: bool = False) -> Reply:
    """Return a reply that reads the body and sends these bytes."""

    async def reply(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request.body = await read_body(request, reader)
        writer.write(data)
        await writer.drain()
        return keep_open

    return reply


def silent(asked: asyncio.Event) -> Reply:
    """Return a reply that sets `asked`, and says nothing until the other end has gone."""

    async def reply(_request: Request, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> bool:
        asked.set()
        await reader.read()
        return False

    return reply


def install(serverapp: Any, manager: FakeManager) -> None:
    """Put the proxy's routes into a running Jupyter server."""
    serverapp.web_app.settings["clearml_session_manager"] = manager
    serverapp.web_app.settings["clearml_session_aparts"] = apart.Aparts()
    strict.guard(serverapp.web_app)
    base_url = serverapp.base_url
    routes = [(url_path_join(base_url, pattern), handler) for pattern, handler in apart.handlers]
    serverapp.web_app.add_handlers(".*$", routes)
    proxy.install(serverapp.web_app, base_url)
