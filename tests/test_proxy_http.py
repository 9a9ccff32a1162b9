"""The proxy's HTTP side: what passes, and how."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from dataclasses import replace
from typing import Any

import pytest

from jupyterlab_clearml_session.proxy import jupyter_pages
from jupyterlab_clearml_session.proxy.state import ProxySettings, ProxyState

from .proxy_fixture import BOTH_WAYS, OK, Proxy, head, proxy, raw
from .proxy_parts import REMOTE_TOKEN, canned

__all__ = ["proxy"]  # the fixture


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
@pytest.mark.parametrize("kind", ["jupyter", "vscode", "port"])
async def test_xsrf_value_that_jupyterlab_adds_to_a_download_does_not_arrive(proxy: Proxy, kind: str) -> None:
    page = f"http://127.0.0.1:{proxy.serverapp.port}{proxy.base}/{kind}/x?_xsrf=local-secret"
    await raw(proxy, head(proxy, "GET", "/files/x?a=1&_xsrf=local-secret&b", f"Referer: {page}", kind=kind))
    seen = proxy.service.requests[-1]
    assert seen.target == "/files/x?a=1&b"
    assert b"local-secret" not in seen.raw


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
async def test_path_in_another_encoding_arrives_as_it_is(proxy: Proxy) -> None:
    assert (await raw(proxy, head(proxy, "GET", "/caf%E9/%ff"))).startswith(b"HTTP/1.1 200")
    assert proxy.service.requests[-1].target == "/caf%E9/%ff"


async def test_address_of_a_service_without_its_slash_leads_to_the_one_with_it(proxy: Proxy) -> None:
    for kind in ("jupyter", "vscode", f"port/{proxy.service.port}"):
        answer = await raw(proxy, head(proxy, "GET", "?a=%20b", kind=kind))
        assert answer.startswith(b"HTTP/1.1 302"), kind
        assert f"Location: {proxy.base}/{kind}/?a=%20b\r\n".encode() in answer


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
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-Trailer: 1\r\n"
    chunks += b"X-Long: " + b"1" * 5_000 + b"\r\n\r\n"
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
async def test_length_that_is_told_twice_is_passed_on_once(proxy: Proxy) -> None:
    proxy.service.reply = canned(OK + b"\r\nContent-Length: 2\r\n\r\nok")
    answer = await raw(proxy, head(proxy, "GET", "/api/x"))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b"Content-Length: 2") == 1
    assert answer.endswith(b"\r\n\r\nok")


@BOTH_WAYS
async def test_length_that_an_answer_calls_a_matter_of_its_connection_is_passed_on(proxy: Proxy) -> None:
    body = b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nSet-Cookie: username-x=1; Path=/\r\n\r\n".ljust(1 << 20)
    proxy.service.reply = canned(
        b"HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    answer = await raw(proxy, head(proxy, "GET", "/api/x"))
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in first
    assert b"Content-Length: %d" % len(body) in first
    assert rest == body


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
