"""What the proxy refuses, and what it says where there is no answer to bring."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from dataclasses import replace
from typing import Any

import pytest

from jupyterlab_clearml_session.proxy.state import ProxySettings, ProxyState

from .proxy_fixture import BOTH_WAYS, NAVIGATION, Proxy, head, proxy, raw
from .proxy_parts import SESSION, SMUGGLED, canned, say_ok, silent

__all__ = ["proxy"]  # the fixture

# -- what is refused


async def test_ambiguous_request_is_refused(proxy: Proxy) -> None:
    for lines in SMUGGLED:
        request = head(proxy, "POST", "/", lines, close=False) + b"abc" + head(proxy, "GET", "/smuggled")
        answer = await raw(proxy, request)
        assert answer.startswith(b"HTTP/1.1 400"), lines[:100]
        assert answer.count(b"HTTP/1.1") == 1, lines[:100]  # and it is closed: `raw` reads until then
    assert proxy.service.requests == []


async def test_coding_of_a_client_whose_protocol_knows_none_is_refused(proxy: Proxy) -> None:
    lines = ("Transfer-Encoding: chunked", "Connection: keep-alive")
    request = head(proxy, "POST", "/", *lines, close=False).replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = await raw(proxy, request + b"3\r\nabc\r\n0\r\n\r\n" + head(proxy, "GET", "/smuggled"))
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
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
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;" + b"a" * 2_000 + b"\r\nabc\r\n0\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"-ERR unknown command\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
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
    proxy.service.reply = silent(asked)
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    writer.write(head(proxy, "GET", "/"))
    await asyncio.wait_for(asked.wait(), 5)
    writer.close()
    await asyncio.wait_for(proxy.service.closed.wait(), 5)
    proxy.service.reply = say_ok
    assert (await raw(proxy, head(proxy, "GET", "/"))).startswith(b"HTTP/1.1 200")
    gc.collect()  # a task's exception that nobody took is told then
    assert "never retrieved" not in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


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
@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 500\r\n\r\n",
        b"Content-Length: 9\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
)
async def test_answer_that_breaks_off_behind_its_head_is_told_in_words_of_ours(
    proxy: Proxy, lines: bytes
) -> None:
    proxy.service.reply = canned(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nETag: x\r\n" + lines)
    try:
        answer = await raw(proxy, head(proxy, "GET", "/api/x"))
    except ConnectionResetError:
        return  # the end came later than the head, which had left already
    first, _, body = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 502")
    assert b"\r\nContent-Length: %d" % len(body) in first
    assert b"gzip" not in first
    assert b"etag" not in first.lower()
    assert json.loads(body)["error"]["code"] == "remote_bad_answer"


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
async def test_too_many_channels_are_a_page_that_says_so(proxy: Proxy) -> None:
    await proxy.tunnel.wait_up(5)
    link = proxy.tunnel._link
    assert link is not None
    proxy.tunnel.settings = link._settings = replace(link._settings, max_channels=0)
    answer = await proxy.get("port", "x")
    assert answer.code == 503
    assert json.loads(answer.body)["error"]["code"] == "too_many_channels"
    page = await proxy.get("port", "x", headers=dict(NAVIGATION))
    assert page.code == 503
    assert b"Too much is open" in page.body
    assert b"Reconnecting" not in page.body


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
    proxy.service.reply = silent(asked)
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
    proxy.service.reply = silent(asyncio.Event())
    answer = await proxy.get("port", "x")
    assert answer.code == 504
    assert json.loads(answer.body)["error"]["code"] == "remote_deadline"
    await asyncio.wait_for(proxy.service.closed.wait(), 5)
