"""The proxy's HTTP side: a real Jupyter server, a real tunnel, a remote service that reflects or misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import html
import json
import logging
import math
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from jupyter_server.auth.identity import User
from tornado.httpserver import HTTPServer

from jupyterlab_clearml_session.proxy import jupyter_pages, trust
from jupyterlab_clearml_session.proxy.admissions import Admission, Admissions
from jupyterlab_clearml_session.proxy.state import ProxySettings, ProxyState
from jupyterlab_clearml_session.ssh.settings import TunnelSettings
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

from .proxy_parts import REMOTE_TOKEN, SESSION, FakeManager, RemoteService, canned, install, say_ok
from .sshd_fixture import SshServer, ssh_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2"


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


# -- what passes


async def test_nothing_of_the_local_server_arrives(proxy: Proxy) -> None:
    token = proxy.serverapp.identity_provider.token
    answer = await raw(
        proxy,
        head(
            proxy,
            "GET",
            f"/a%2Fb/%C3%A9?x=1&token={token}&y=%20",
            "Cookie: username-127-0-0-1=local-secret; _xsrf=local-secret; foreign=local-secret",
            "X-XSRFToken: local-secret",
            "X-Forwarded-Host: local-secret",
            f"Referer: http://127.0.0.1:{proxy.serverapp.port}/lab?token={token}",
        ),
    )
    assert b"200 OK" in answer
    seen = proxy.service.requests[-1]
    assert seen.target == "/a%2Fb/%C3%A9?x=1&y=%20"
    assert seen.get("Host") == f"localhost:{proxy.service.port}"
    for secret in (token, "local-secret", "Referer", "Cookie", "Authorization"):
        assert secret.encode() not in seen.raw


@BOTH_WAYS
async def test_remote_token_goes_in_and_never_out(proxy: Proxy) -> None:
    proxy.service.reply = canned(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\n\r\nok", keep_open=True
    )
    answer = await raw(proxy, head(proxy, "GET", "/api/status", kind="jupyter"))
    assert proxy.service.requests[-1].get("Authorization") == f"token {REMOTE_TOKEN}"
    assert REMOTE_TOKEN.encode() not in answer
    assert b"Path=" + proxy.base.encode() + b"/jupyter/" in answer
    await raw(proxy, head(proxy, "GET", "/", kind="vscode"))
    assert proxy.service.requests[-1].get("Authorization") is None


@BOTH_WAYS
async def test_remote_token_is_not_in_pages_that_tell_an_error_either(proxy: Proxy) -> None:
    page = f'<body data-jupyter-api-token="{REMOTE_TOKEN}"><a href="/lab?token={REMOTE_TOKEN}">x</a>'.encode()
    for body, coding in ((page, ""), (gzip.compress(page), "Content-Encoding: gzip\r\n")):
        for status, path in (
            ("404 Not Found", "/files/x"),
            ("404 Not Found", "/static/x"),
            ("200 OK", "/tree"),
        ):
            answer = (
                f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\n{coding}Content-Length: {len(body)}\r\n\r\n"
            )
            proxy.service.reply = canned(answer.encode() + body, keep_open=True)
            got = await raw(proxy, head(proxy, "GET", path, kind="jupyter"))
            assert got.startswith(f"HTTP/1.1 {status}\r\n".encode())
            assert got.endswith(f'"><a href="{proxy.base}/jupyter/lab">x</a>'.encode())
            assert REMOTE_TOKEN.encode() not in got
            if path == "/tree":
                assert proxy.service.requests[-1].get("Accept-Encoding") == "identity"


@BOTH_WAYS
async def test_files_and_large_pages_pass_untouched(proxy: Proxy) -> None:
    body = b'<body data-base-url="/">' + b"x" * (jupyter_pages.MAX_PAGE + 1)
    proxy.service.reply = canned(
        OK[:-1] + b"24\r\nContent-Type: text/html\r\n\r\n" + body[:24], keep_open=True
    )
    assert (await raw(proxy, head(proxy, "GET", "/files/x", kind="jupyter"))).endswith(body[:24])
    for framing in (f"Content-Length: {len(body)}\r\n\r\n", "\r\n"):
        answer = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{framing}".encode()
        proxy.service.reply = canned(answer + body)
        assert (await proxy.get("jupyter", "x")).body == body


async def test_broken_compression_of_a_page_is_a_502(proxy: Proxy) -> None:
    proxy.service.reply = canned(OK + b"\r\nContent-Type: text/html\r\nContent-Encoding: br\r\n\r\n{}")
    answer = await proxy.get("jupyter", "x")
    assert answer.code == 502
    assert json.loads(answer.body)["error"]["code"] == "remote_bad_answer"


@BOTH_WAYS
async def test_cookies_of_the_service_come_back_to_it(proxy: Proxy) -> None:
    proxy.service.reply = canned(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: sid=1\r\n\r\n", keep_open=True
    )
    await raw(proxy, head(proxy, "GET", "/", "Cookie: sid=early"))
    assert proxy.service.requests[-1].get("Cookie") is None
    await raw(proxy, head(proxy, "GET", "/", "Cookie: sid=1; other=2"))
    assert proxy.service.requests[-1].get("Cookie") == "sid=1"


@BOTH_WAYS
async def test_prefix_is_kept_for_services_that_know_it(proxy: Proxy) -> None:
    path = f"{proxy.base}/port-absolute/{proxy.service.port}/x"
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    request += f"Authorization: token {proxy.serverapp.identity_provider.token}\r\n\r\n"
    assert b"200 OK" in await raw(proxy, request.encode())
    assert proxy.service.requests[-1].target == path


async def test_decoded_base_url_leads_to_the_real_one(proxy: Proxy) -> None:
    assert "%40" in proxy.serverapp.base_url
    request = head(proxy, "GET", "/x%40y?a=%40").replace(b"/a%40b/", b"/a@b/", 1)
    answer = await raw(proxy, request)
    assert answer.startswith(b"HTTP/1.1 307")
    assert f"Location: {proxy.base}/port/{proxy.service.port}/x%40y?a=%40\r\n".encode() in answer
    assert proxy.service.requests == []


# Here as further down, a table is one test: each would set up a Jupyter server of its own.
async def test_methods_and_bodies(proxy: Proxy) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT"):
        answer = await raw(proxy, head(proxy, method, "/x", "Content-Length: 5") + b"hello")
        assert answer.endswith(b"hello")
        assert proxy.service.requests[-1].method == method


async def test_chunked_request(proxy: Proxy) -> None:
    answer = await raw(
        proxy, head(proxy, "POST", "/", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    assert answer.endswith(b"abcde")


def far_away(proxy: Proxy) -> None:
    """Have large uploads use several channels, as over distance."""
    proxy.tunnel.settings = replace(proxy.tunnel.settings, upload_rate=1 << 60, max_lanes=3)


@pytest.mark.parametrize("far", [False, True])
async def test_large_upload(proxy: Proxy, far: bool) -> None:
    if far:
        far_away(proxy)
    body = random.Random(1).randbytes(9_000_000)
    answer = await proxy.get("port", "x", method="PUT", body=body)
    assert answer.body.endswith(body)
    opened = proxy.server.channels_opened
    assert (opened == 0) == far  # those to the relay lead to no port


@BOTH_WAYS
async def test_head_and_empty_answers(proxy: Proxy) -> None:
    answer = await raw(proxy, head(proxy, "HEAD", "/"))
    length = len(proxy.service.requests[-1].raw) + 4
    assert f"Content-Length: {length}".encode() in answer
    assert answer.endswith(b"\r\n\r\n")
    for status in (b"204 No Content", b"304 Not Modified"):
        proxy.service.reply = canned(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n", keep_open=True)
        answer = await raw(proxy, head(proxy, "GET", "/"))
        assert status in answer
        assert answer.endswith(b"\r\n\r\n")


@BOTH_WAYS
async def test_body_until_close_and_trailers(proxy: Proxy) -> None:
    proxy.service.reply = canned(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    assert b"d\r\nuntil the end\r\n0\r\n\r\n" in await raw(proxy, head(proxy, "GET", "/"))
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n"
    proxy.service.reply = canned(chunks, keep_open=True)
    answer = await raw(proxy, head(proxy, "GET", "/"))
    assert b"3\r\nabc\r\n0\r\n\r\n" in answer
    assert b"X-Trailer" not in answer


@BOTH_WAYS
async def test_range_and_status_reason(proxy: Proxy) -> None:
    proxy.service.reply = canned(
        b"HTTP/1.1 206 Some of it\r\nContent-Range: bytes 0-1/5\r\nContent-Length: 2\r\n\r\nab",
        keep_open=True,
    )
    answer = await raw(proxy, head(proxy, "GET", "/", "Range: bytes=0-1"))
    assert answer.startswith(b"HTTP/1.1 206 Some of it\r\n")
    assert b"Content-Range: bytes 0-1/5" in answer
    assert proxy.service.requests[-1].get("Range") == "bytes=0-1"


@BOTH_WAYS
async def test_interim_answers_are_passed_over(proxy: Proxy) -> None:
    hints = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\n"
    proxy.service.reply = canned(hints + OK + b"\r\n\r\nok", keep_open=True)
    answer = await raw(proxy, head(proxy, "GET", "/"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"ok")
    assert b"Link" not in answer


async def test_old_client_knows_the_end_by_the_end_of_the_connection(proxy: Proxy) -> None:
    proxy.service.reply = canned(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", keep_open=True
    )
    answer = await raw(proxy, head(proxy, "GET", "/").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert b"Transfer-Encoding" not in answer
    assert answer.endswith(b"\r\n\r\nabc")


@BOTH_WAYS
async def test_events_are_passed_on_at_once(proxy: Proxy) -> None:
    go_on = asyncio.Event()

    async def events(_request: Any, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        await writer.drain()
        for number in range(3):
            await go_on.wait()
            go_on.clear()
            writer.write(b"data: %d\n\n" % number)
            await writer.drain()
        return False

    proxy.service.reply = events
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    writer.write(head(proxy, "GET", "/"))
    assert b"text/event-stream" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    for number in range(3):
        go_on.set()  # the next one is only sent when this one was asked for: each must arrive by itself
        assert b"data: %d" % number in await asyncio.wait_for(reader.readuntil(b"\n\n"), 5)
    writer.close()


@BOTH_WAYS
async def test_channels_are_kept_alive(proxy: Proxy) -> None:
    for _ in range(8):
        await raw(proxy, head(proxy, "GET", "/"))
    assert (
        proxy.service.connections <= 2
    )  # one on each SSH connection: the first ones come before the second is up


@BOTH_WAYS
async def test_kept_alive_channel_that_the_remote_closed_is_replaced(proxy: Proxy) -> None:
    async def once(request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await canned(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(request, reader, writer)
        # It hangs up when the next request has come, as a server does whose patience ends at that moment.
        await reader.readuntil(b"\r\n\r\n")
        return False

    proxy.service.reply = once
    for _ in range(2):
        assert (await raw(proxy, head(proxy, "GET", "/"))).endswith(b"ok")
    assert proxy.service.connections == 2


# -- waiting for the remote's word


async def test_continue_is_asked_of_the_remote(proxy: Proxy) -> None:
    async def willing(request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await canned(OK + b"\r\n\r\nok", keep_open=True)(request, reader, writer)

    proxy.service.reply = willing
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    writer.write(head(proxy, "PUT", "/", "Expect: 100-continue", "Content-Length: 3"))
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100")
    writer.write(b"abc")
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"ok")
    assert proxy.service.requests[-1].body == b"abc"
    writer.close()


async def test_remote_that_says_nothing_to_an_expectation_gets_the_body(proxy: Proxy) -> None:
    proxy.serverapp.web_app.settings["clearml_session_proxy"] = ProxyState(ProxySettings(continue_wait=0.05))
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    writer.write(head(proxy, "PUT", "/", "Expect: 100-continue", "Content-Length: 3"))
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100")
    writer.write(b"abc")
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"abc")
    writer.close()


async def test_body_that_the_remote_does_not_want_is_not_asked_for(proxy: Proxy) -> None:
    async def unwilling(_request: Any, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        return False

    proxy.service.reply = unwilling
    answer = await raw(proxy, head(proxy, "PUT", "/", "Expect: 100-continue", "Content-Length: 3"))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 " not in answer


@pytest.mark.parametrize("far", [False, True])
async def test_early_answer_to_an_upload_arrives(proxy: Proxy, far: bool) -> None:
    if far:
        far_away(proxy)

    async def unwilling(_request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await reader.read()  # a server that closes with unread data resets, and its answer may be lost
        return False

    proxy.service.reply = unwilling
    answer = await proxy.get("port", "x", method="PUT", body=bytes(9_000_000))
    assert (answer.code, answer.body) == (413, b"no")


# -- what is refused


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


async def test_ambiguous_request_is_refused(proxy: Proxy) -> None:
    for lines in SMUGGLED:
        request = head(proxy, "POST", "/", lines, close=False) + b"abc" + head(proxy, "GET", "/smuggled")
        answer = await raw(proxy, request)
        assert answer.startswith(b"HTTP/1.1 400"), lines[:100]
        assert answer.count(b"HTTP/1.1") == 1, lines[:100]  # and it is closed: `raw` reads until then
    assert proxy.service.requests == []


async def test_ambiguous_request_line_or_end_is_refused(proxy: Proxy) -> None:
    first, _, lines = head(proxy, "GET", "/").partition(b"\r\n")
    target = first.split(b" ")[1]
    starts = [b"GET %s  HTTP/1.1", b"GET\t%s HTTP/1.1", b"GET %s\n", b"GET %s HTTP/2.0", b"GET %s"]
    requests = [start % target + b"\r\n" + lines for start in starts]
    whole = head(proxy, "GET", "/").removesuffix(b"\r\n\r\n")
    requests += [whole + end for end in (b"\n\n", b"\r\n\n", b"\n\r\n")]
    for request in requests:
        answer = await raw(proxy, request)
        assert answer.startswith(b"HTTP/1.1 400"), request
    assert proxy.service.requests == []


async def test_head_without_an_end_is_cut_off(proxy: Proxy) -> None:
    with contextlib.suppress(ConnectionResetError):  # Tornado closes it with the rest unread
        assert await raw(proxy, head(proxy, "GET", "/", "X: " + "a" * 200_000)) == b""
    assert proxy.service.requests == []


async def test_other_routes_take_what_they_took_before(proxy: Proxy) -> None:
    request = f"GET {proxy.serverapp.base_url}api HTTP/1.1\r\nHost: 127.0.0.1\nConnection: close\r\n\r\n"
    answer = await raw(proxy, request.encode())
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))  # as this release of Tornado has it


BROKEN_BODIES = [
    b"3\r\nabcX\r\n0\r\n\r\n",
    b"3\nabc\n0\n\n",
    b"+3\r\nabc\r\n0\r\n\r\n",
    b"0x3\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n",
    b"3" + b" " * 100 + b"\r\nabc\r\n0\r\n\r\n",
    b"fffffffffffffffffff\r\nabc",
]


async def test_malformed_chunks_never_become_a_complete_request(proxy: Proxy) -> None:
    arrived: list[bytes] = []

    async def reads(_request: Any, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> bool:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                arrived.append(data)
        return False

    proxy.service.reply = reads
    for body in BROKEN_BODIES:
        request = head(proxy, "POST", "/", "Transfer-Encoding: chunked", close=False) + body
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # Tornado closes it with the rest unread
            answer = await raw(proxy, request + head(proxy, "GET", "/smuggled"))
        assert answer in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"), body
        await proxy.service.until_closed()
        assert b"".join(arrived) in (b"", b"3\r\nabc\r\n"), body
        arrived.clear()
    assert {request.target for request in proxy.service.requests} == {"/"}


BROKEN = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length : 4\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\nX: a\n\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK" + b"\r\nX: a" * 10_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
]


@BOTH_WAYS
async def test_remote_that_breaks_http_is_a_502_and_its_channel_is_closed(proxy: Proxy) -> None:
    for data in BROKEN:
        proxy.service.reply = canned(data, keep_open=True)  # it is we who hang up
        answer = await proxy.get("port", "x")
        assert answer.code == 502, data[:100]
        assert json.loads(answer.body)["error"]["code"] == "remote_bad_answer"
        await proxy.service.until_closed()


TRUNCATED = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
]


@BOTH_WAYS
async def test_truncated_answer_is_never_a_complete_one(proxy: Proxy) -> None:
    for data in TRUNCATED:
        proxy.service.reply = canned(data)
        with contextlib.suppress(ConnectionResetError):
            answer = await raw(proxy, head(proxy, "GET", "/"))
            assert not answer.endswith(b"0\r\n\r\n"), data[:100]
            assert len(answer) < 100_000, data[:100]


@BOTH_WAYS
async def test_tunnel_that_breaks_in_the_middle_is_never_a_complete_answer(proxy: Proxy) -> None:
    async def half(_request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")  # ends with the connection: only the tunnel can tell
        await writer.drain()
        await reader.read()
        return False

    proxy.service.reply = half
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    writer.write(head(proxy, "GET", "/"))
    await reader.readuntil(b"half")
    await proxy.server.drop()
    with contextlib.suppress(ConnectionResetError):
        assert not (await asyncio.wait_for(reader.read(), 5)).endswith(b"0\r\n\r\n")
    writer.close()


@BOTH_WAYS
async def test_browser_that_goes_away_is_told_to_the_remote(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Event()

    async def slow(_request: Any, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> bool:
        asked.set()
        await reader.read()
        return False

    proxy.service.reply = slow
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    writer.write(head(proxy, "GET", "/"))
    await asyncio.wait_for(asked.wait(), 5)
    writer.close()
    await asyncio.wait_for(proxy.service.closed.wait(), 5)
    proxy.service.reply = say_ok
    assert (await raw(proxy, head(proxy, "GET", "/"))).startswith(b"HTTP/1.1 200")
    gc.collect()  # a task's exception that nobody took is told then
    assert "never retrieved" not in caplog.text


@BOTH_WAYS
async def test_browser_that_goes_away_in_the_middle_is_told_to_the_remote(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    full = asyncio.Event()

    async def endless(_request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(asyncio.TimeoutError):
            while True:
                writer.write(bytes(1 << 16))
                await asyncio.wait_for(writer.drain(), 0.3)  # until nobody takes any more
        full.set()
        await reader.read()
        return False

    proxy.service.reply = endless
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    writer.write(head(proxy, "GET", "/"))
    await asyncio.wait_for(full.wait(), 30)
    writer.transport.abort()
    await proxy.service.until_closed()

    async def sink(_request: Any, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> bool:
        while await reader.read(1 << 16):
            pass
        return False

    proxy.service.reply = sink
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    writer.write(head(proxy, "PUT", "/", f"Content-Length: {1 << 30}") + bytes(1 << 20))
    await writer.drain()
    writer.transport.abort()
    await proxy.service.until_closed()
    assert "Uncaught exception" not in caplog.text


# -- failures with a name


NAVIGATION = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}


@BOTH_WAYS
async def test_unknown_session(proxy: Proxy) -> None:
    for ident in ("unknown", "..", "%2e%2e%2fx", "0" * 32, "%C3%A9", "a%00b"):
        request = head(proxy, "GET", "/").replace(SESSION.encode(), ident.encode())
        assert (await raw(proxy, request)).startswith(b"HTTP/1.1 404"), ident


@BOTH_WAYS
async def test_nothing_listens(proxy: Proxy) -> None:
    answer = await proxy.fetch("clearml-session", "proxy", SESSION, "port", "1", "/", raise_error=False)
    assert answer.code == 502
    assert json.loads(answer.body)["error"]["code"] == "remote_refused"
    page = await proxy.fetch(
        "clearml-session", "proxy", SESSION, "port", "1", "/", raise_error=False, headers=dict(NAVIGATION)
    )
    assert page.code == 502
    assert page.headers["Content-Type"].startswith("text/html")
    assert b"http-equiv" not in page.body


@BOTH_WAYS
async def test_no_port(proxy: Proxy) -> None:
    for port in ("0", "65536", "99999"):
        answer = await proxy.fetch("clearml-session", "proxy", SESSION, "port", port, "/", raise_error=False)
        assert answer.code == 400
        assert json.loads(answer.body)["error"]["detail"]["field"] == "port"


@BOTH_WAYS
async def test_tunnel_that_is_down_is_a_page_that_tries_again(proxy: Proxy) -> None:
    proxy.serverapp.web_app.settings["clearml_session_proxy"] = ProxyState(ProxySettings(tunnel_wait=0.1))
    await proxy.server.stop()
    answer = await proxy.get("port", "x")
    assert answer.code == 503
    assert answer.headers["Retry-After"] == "2"
    assert json.loads(answer.body)["error"]["code"] == "tunnel_down"
    page = await proxy.get("port", "x", headers=dict(NAVIGATION))
    assert page.code == 503
    assert b'http-equiv="refresh"' in page.body
    assert page.headers["Cache-Control"] == "no-store"


@BOTH_WAYS
async def test_session_that_is_not_attached_is_a_page_that_waits_for_it(proxy: Proxy) -> None:
    proxy.serverapp.web_app.settings["clearml_session_manager"].is_attached = False
    answer = await proxy.get("port", "x")
    assert answer.code == 409
    assert json.loads(answer.body)["error"]["code"] == "not_attached"
    page = await proxy.get("port", "x", headers=dict(NAVIGATION))
    assert page.code == 409
    assert b'http-equiv="refresh"' in page.body
    assert proxy.service.requests == []


async def test_tunnel_that_breaks_before_the_answer_is_a_page_that_tries_again(proxy: Proxy) -> None:
    asked = asyncio.Event()

    async def mute(_request: Any, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> bool:
        asked.set()
        await reader.read()
        return False

    proxy.service.reply = mute
    for method, body in (("GET", None), ("POST", "abc")):
        asked.clear()
        waiting = asyncio.ensure_future(
            proxy.get("port", "x", method=method, body=body, headers=dict(NAVIGATION))
        )
        await asyncio.wait_for(asked.wait(), 10)
        await proxy.server.drop()
        answer = await asyncio.wait_for(waiting, 10)
        assert answer.code == 503
        assert (b'http-equiv="refresh"' in answer.body) == (method == "GET")


@BOTH_WAYS
async def test_requests_wait_for_a_tunnel_that_comes_back(proxy: Proxy) -> None:
    await proxy.server.drop()
    assert (await proxy.get("port", "x")).code == 200


@BOTH_WAYS
async def test_service_that_does_not_answer(proxy: Proxy) -> None:
    proxy.serverapp.web_app.settings["clearml_session_proxy"] = ProxyState(ProxySettings(first_byte=0.2))

    async def mute(_request: Any, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> bool:
        await reader.read()
        return False

    proxy.service.reply = mute
    answer = await proxy.get("port", "x")
    assert answer.code == 504
    assert json.loads(answer.body)["error"]["code"] == "remote_deadline"
    await asyncio.wait_for(proxy.service.closed.wait(), 5)


# -- who may


async def test_without_a_login_nothing_is_contacted(proxy: Proxy) -> None:
    for kind in ("jupyter/", "vscode/", "port/80/", "port-absolute/80/"):
        for headers, status in ((NAVIGATION, b"302"), ({}, b"403")):
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            request = (
                f"GET {proxy.base}/{kind} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{lines}\r\n"
            )
            answer = await raw(proxy, request.encode())
            assert answer.startswith(b"HTTP/1.1 " + status), kind
    assert proxy.service.requests == []


async def test_unauthorised_user_is_refused(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def is_authorized(_handler: Any, _user: Any, action: str, resource: str) -> bool:
        asked.append((action, resource))
        return False

    monkeypatch.setattr(proxy.serverapp.authorizer, "is_authorized", is_authorized)
    assert (await proxy.get("port", "x")).code == 403
    assert asked == [("execute", "clearml_session")]
    assert proxy.service.requests == []


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


async def test_someone_elses_session_opens_after_a_warning_only(proxy: Proxy) -> None:
    proxy.serverapp.web_app.settings["clearml_session_manager"].mine = False
    browser = Browser(proxy)
    await browser.login()
    port, cookies = proxy.serverapp.port, browser.cookie
    path = f"{proxy.base}/port/{proxy.service.port}/x?y=1"
    assert "foreign_session" in await visit(port, path, cookies, navigates=False)
    page = await visit(port, path, cookies)
    assert page.startswith("HTTP/1.1 403")
    assert "Ada &lt;Lovelace&gt;" in page
    assert "http-equiv" not in page
    assert proxy.service.requests == []
    _, link = (html.unescape(found) for found in re.findall(r'<a href="([^"]+)"', page))
    forged = re.sub(r"[0-9a-f]{8}$", "00000000", link)
    assert (await visit(port, forged, cookies)).startswith("HTTP/1.1 403")

    agreed = await visit(port, link, cookies)
    assert agreed.startswith("HTTP/1.1 302")
    assert f"Location: {path}\r\n" in agreed
    (cookie,) = re.findall(r"Set-Cookie: (clearml-session-trust=[^\r]+)", agreed)
    assert "HttpOnly" in cookie
    assert f"Path={proxy.base}" in cookie
    assert "200 OK" in await visit(port, path, f"{cookies}; {cookie.partition(';')[0]}")
    assert proxy.service.requests[-1].get("Cookie") is None


async def warned(proxy: Proxy, kind: str) -> tuple[str, str]:
    """Visit someone else's session; return the login cookie and the warning's link to an own address."""
    proxy.serverapp.web_app.settings["clearml_session_manager"].mine = False
    browser = Browser(proxy)
    await browser.login()
    page = await visit(proxy.serverapp.port, f"{proxy.base}/{kind}/x?y=1", browser.cookie)
    assert page.startswith("HTTP/1.1 403")
    apart, _ = re.findall(r'<a href="([^"]+)"', page)
    return browser.cookie, html.unescape(apart)


async def visit(
    port: int,
    target: str,
    cookie: str = "",
    *more: str,
    host: str = "",
    method: str = "GET",
    navigates: bool = True,
) -> str:
    """Make a navigation as a browser does; return the answer."""
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {host or '127.0.0.1'}",
        "Connection: close",
        *more,
    ]
    lines += [f"{name}: {value}" for name, value in NAVIGATION.items()] if navigates else []
    lines += [f"Cookie: {cookie}"] if cookie else []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.decode("latin-1")


async def test_someone_elses_session_at_an_address_of_its_own(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = proxy.serverapp.web_app.settings
    login, link = await warned(proxy, "jupyter")
    forged = re.sub(r"[0-9a-f]{8}$", "00000000", link)
    assert (await visit(proxy.serverapp.port, forged, login)).startswith("HTTP/1.1 403")
    assert not (await visit(proxy.serverapp.port, link)).startswith("HTTP/1.1 200")  # nobody is logged in
    led = await visit(proxy.serverapp.port, link, login)
    assert led.startswith("HTTP/1.1 302")
    (found,) = re.findall(r"Location: http://localhost:(\d+)(/x\?y=1&clearml-session-token=\S+)\r\n", led)
    port, invitation = int(found[0]), found[1]
    host = f"localhost:{port}"

    # Not without the invitation, which works once; not by another name; the local login counts for nothing.
    for target, cookie, name in (
        ("/x", "", host),
        ("/x", login, host),
        (invitation, "", f"evil.example:{port}"),
    ):
        assert (await visit(port, target, cookie, host=name)).startswith("HTTP/1.1 403")
    assert proxy.service.requests == []
    entered = await visit(port, invitation, host=host)
    assert entered.startswith("HTTP/1.1 302")
    assert "Location: /x?y=1\r\n" in entered
    (key,) = re.findall(r"Set-Cookie: (clearml-session-apart-[^;]+);.*HttpOnly.*SameSite=Lax", entered)
    assert (await visit(port, invitation, host=host)).startswith("HTTP/1.1 403")

    # The service is at "/" there: its token goes in, and neither that nor a cookie of ours comes out or goes in.
    page = f'<body data-jupyter-api-token="{REMOTE_TOKEN}" data-base-url="/"><a href="/lab">x</a>'.encode()
    proxy.service.reply = canned(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: a=1\r\nSet-Cookie: _xsrf=1\r\n"
        b"Location: /lab\r\nContent-Length: %d\r\n\r\n" % len(page) + page
    )
    answer = await visit(port, "/x?y=1", f"{key}; {login}", host=host)
    assert answer.endswith('<body data-jupyter-api-token="" data-base-url="/"><a href="/lab">x</a>')
    assert "Set-Cookie: a=1; Path=/\r\n" in answer
    assert "Location: /lab\r\n" in answer
    assert answer.count("Set-Cookie") == 1
    (seen,) = proxy.service.requests
    assert seen.target == "/x?y=1"
    assert seen.get("Cookie") is None
    assert seen.get("Authorization") == f"token {REMOTE_TOKEN}"

    # A page from elsewhere, the local JupyterLab's too, cannot act there.
    local = f"http://127.0.0.1:{proxy.serverapp.port}"
    for origin, status in ((local, 403), ("null", 403), (f"http://{host}", 200)):
        empty = ("Content-Length: 0", f"Origin: {origin}")
        answer = await visit(port, "/x", key, *empty, host=host, method="POST", navigates=False)
        assert answer.startswith(f"HTTP/1.1 {status}")
    socket = ("Upgrade: websocket", "Connection: Upgrade", f"Origin: {local}")
    assert (await visit(port, "/x", key, *socket, host=host, navigates=False)).startswith("HTTP/1.1 403")
    assert (await visit(port, "/x", key, "X: a\n b", host=host)).startswith("HTTP/1.1 400")
    assert len(proxy.service.requests) == 2
    token = invitation.partition("clearml-session-token=")[2]
    for secret in (token, key.partition("=")[2], REMOTE_TOKEN):
        assert secret not in caplog.text

    await settings["clearml_session_aparts"].forget(SESSION)
    with pytest.raises(ConnectionRefusedError):
        await visit(port, "/x", key, host=host)


async def test_own_address_of_a_port_and_where_there_can_be_none(proxy: Proxy) -> None:
    login, link = await warned(proxy, f"port-absolute/{proxy.service.port}")
    led = await visit(proxy.serverapp.port, link, login)
    assert (
        f"{proxy.base}/port-absolute/{proxy.service.port}/x?y=1&" in led
    )  # such a service knows the whole path
    assert trust.other_loopback("jupyter.example") is None  # the browser is on another machine
    await proxy.serverapp.web_app.settings["clearml_session_aparts"].forget(SESSION)


FROM_SITES: list[tuple[str, list[str], int]] = [
    ("POST", ["Origin: http://127.0.0.1"], 200),
    ("POST", ["Sec-Fetch-Site: same-origin"], 200),
    ("POST", ["Origin: http://evil.example"], 403),
    ("POST", ["Origin: null"], 403),
    ("POST", ["Origin: http://evil.example", "Sec-Fetch-Site: same-origin"], 403),
    ("POST", ["Sec-Fetch-Site: cross-site"], 403),
    ("POST", ["Sec-Fetch-Site: same-site"], 403),
    ("POST", [], 403),
    ("GET", ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], 403),
    ("GET", ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"], 200),
    ("GET", ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"], 200),
    ("GET", [], 200),
]


async def test_cross_site_requests(proxy: Proxy) -> None:
    browser = Browser(proxy)
    await browser.login()
    for method, headers, status in FROM_SITES:
        assert await browser.send(method, *headers) == status, (method, headers)
        assert len(proxy.service.requests) == (1 if status == 200 else 0)
        while proxy.service.requests:
            assert proxy.service.requests.pop().get("Cookie") is None


@BOTH_WAYS
async def test_no_secret_in_the_log(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await raw(proxy, head(proxy, "GET", "/api/x", kind="jupyter"))
    proxy.service.reply = canned(b"nonsense\r\n\r\n")
    await raw(proxy, head(proxy, "GET", "/api/x", kind="jupyter"))
    assert REMOTE_TOKEN not in caplog.text
