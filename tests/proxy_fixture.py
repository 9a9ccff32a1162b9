"""The proxy in a real Jupyter server, over a real tunnel, before a remote service that reflects or misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from jupyter_server.auth.identity import User
from tornado.httpserver import HTTPServer

from jupyterlab_clearml_session.proxy.admissions import Admission, Admissions
from jupyterlab_clearml_session.ssh.settings import TunnelSettings
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

from .proxy_parts import SESSION, FakeManager, RemoteService, install
from .sshd_fixture import SshServer, ssh_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2"
NAVIGATION = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}


@dataclass
class Proxy:
    serverapp: Any
    service: RemoteService
    tunnel: Tunnel
    server: SshServer
    fetch: Callable[..., Awaitable[Any]]

    @property
    def base(self) -> str:
        return f"{self.serverapp.base_url}clearml-session/proxy/{SESSION}"

    async def get(self, kind: str, path: str = "", **kwargs: Any) -> Any:
        prefix = f"port/{self.service.port}" if kind == "port" else kind
        return await self.fetch(
            "clearml-session", "proxy", SESSION, prefix, path, raise_error=False, **kwargs
        )


BOTH_WAYS = pytest.mark.parametrize("proxy", ["whole way", "short way"], indirect=True)
"""Also as `express` passes requests on; that they were admitted a moment ago is made up then."""


@pytest.fixture
def proxy(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    jp_serverapp: Any,
    jp_fetch: Any,
    http_server: HTTPServer,
    jp_asyncio_loop: asyncio.AbstractEventLoop,
) -> Iterator[Proxy]:
    jp_serverapp._http_server = http_server  # as a server has it that starts by itself
    short = getattr(request, "param", "whole way") == "short way"
    passed = []

    def find(_self: object, asked: Any, _service: object) -> Admission:
        passed.append(asked)
        return Admission(User("somebody"), by_token=True, until=math.inf)

    if short:
        monkeypatch.setattr(Admissions, "find", find)
    parts = running(jp_serverapp, jp_fetch)
    yield jp_asyncio_loop.run_until_complete(parts.__aenter__())
    jp_asyncio_loop.run_until_complete(parts.__aexit__(None, None, None))
    assert bool(passed) == short


@contextlib.asynccontextmanager
async def running(jp_serverapp: Any, jp_fetch: Any) -> AsyncIterator[Proxy]:
    async with ssh_server() as server, RemoteService() as service:

        async def target() -> Any:
            return server.target()

        tunnel = Tunnel(target, settings=TunnelSettings(backoff_initial=0.02, backoff_max=0.1))
        tunnel.start()
        install(jp_serverapp, FakeManager(tunnel, {"jupyter": service.port, "vscode": service.port}))
        yield Proxy(jp_serverapp, service, tunnel, server, jp_fetch)
        await tunnel.close()


async def raw(proxy: Proxy, request: bytes, *, shut: bool = False) -> bytes:
    """Send bytes to the local server as they are; return all it says until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    writer.write(request)
    if shut:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def head(proxy: Proxy, method: str, path: str, *more: str, kind: str = "port", close: bool = True) -> bytes:
    """Return a request head with the local token."""
    prefix = f"port/{proxy.service.port}" if kind == "port" else kind
    lines = [
        f"{method} {proxy.base}/{prefix}{path} HTTP/1.1",
        f"Host: 127.0.0.1:{proxy.serverapp.port}",
        f"Authorization: token {proxy.serverapp.identity_provider.token}",
        *(["Connection: close"] if close else []),
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass
class Browser:
    """Requests of a logged-in browser: with the login cookie instead of the token."""

    proxy: Proxy
    cookie: str = ""

    async def login(self) -> None:
        token = self.proxy.serverapp.identity_provider.token
        request = f"GET {self.proxy.serverapp.base_url}tree?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        answer = (await raw(self.proxy, f"{request}Connection: close\r\n\r\n".encode())).decode("latin-1")
        self.cookie = "; ".join(re.findall(r"Set-Cookie: ([^;]+)", answer))
        assert self.cookie

    async def send(self, method: str, *more: str) -> int:
        port = self.proxy.service.port
        lines = [f"{method} {self.proxy.base}/port/{port}/ HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        lines += [f"Cookie: {self.cookie}", "Content-Length: 0", *more]
        answer = await raw(self.proxy, ("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(answer.split(b" ")[1])


class Asked:
    """Counts how often Jupyter was asked who somebody is."""

    def __init__(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        provider = proxy.serverapp.identity_provider
        get_user = provider.get_user

        def counted(handler: Any) -> Any:
            self.times += 1
            return get_user(handler)

        monkeypatch.setattr(provider, "get_user", counted)
