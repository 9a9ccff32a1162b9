"""Who may go the short way: only who was admitted a moment ago, with everything that was decided by the same."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from jupyterlab_clearml_session.proxy import admissions
from jupyterlab_clearml_session.proxy.admissions import Admission, Admissions
from jupyterlab_clearml_session.proxy.services import Service

from .proxy_fixture import NAVIGATION, Asked, Browser, Proxy, proxy
from .proxy_parts import SESSION

__all__ = ["proxy"]  # the fixture


class Connection:
    """One connection of a browser to the local server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cookie: str) -> None:
        self._reader = reader
        self._writer = writer
        self.cookie = cookie

    async def send(self, path: str, *lines: str, method: str = "GET") -> tuple[int, str, bytes]:
        """Return status, head and body of the answer."""
        sent = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines]
        if self.cookie:
            sent.append(f"Cookie: {self.cookie}")
        self._writer.write(("\r\n".join(sent) + "\r\n\r\n").encode())
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
        length = re.search(r"Content-Length: (\d+)", head)
        assert length is not None, head
        body = b"" if method == "HEAD" else await self._reader.readexactly(int(length[1]))
        return int(head.split(" ")[1]), head, body


@asynccontextmanager
async def connected(proxy: Proxy, *, cookie: str | None = None) -> AsyncIterator[Connection]:
    if cookie is None:
        browser = Browser(proxy)
        await browser.login()
        cookie = browser.cookie
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    yield Connection(reader, writer, cookie)
    writer.close()


def service_path(proxy: Proxy) -> str:
    return f"{proxy.base}/port/{proxy.service.port}/x"


async def test_the_same_request_is_not_asked_again_who_it_is(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(proxy) as connection:
        asked = Asked(proxy, monkeypatch)
        path = service_path(proxy)
        answers = [await connection.send(path) for _ in range(3)]
        assert asked.times == 1
        assert [status for status, _, _ in answers] == [200] * 3
        assert len({head for _, head, _ in answers}) == 1  # whichever way: the same answer
        assert len({request.raw for request in proxy.service.requests}) == 1  # and the same request
        await connection.send(f"{path}/y?z=1", "If-None-Match: a", "Range: bytes=0-1")
        await connection.send(path, method="HEAD")
        await connection.send(path, method="HEAD")
        assert asked.times == 2  # HEAD is a method of its own
        for kind in ("jupyter/api/status", "jupyter/files/a", "vscode/a"):
            for _ in range(2):
                await connection.send(f"{proxy.base}/{kind}")
        assert asked.times == 4  # each service is


async def test_what_is_out_of_the_ordinary_goes_the_whole_way(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = proxy.serverapp.identity_provider.token
    path = service_path(proxy)
    async with connected(proxy) as connection, connected(proxy, cookie=connection.cookie) as other:
        await connection.send(path)
        asked = Asked(proxy, monkeypatch)
        same_origin = "Sec-Fetch-Site: same-origin"
        for lines, method in (
            (("Accept: text/html",), "GET"),
            (tuple(f"{name}: {value}" for name, value in NAVIGATION.items()), "GET"),
            (("Content-Length: 0",), "GET"),
            ((same_origin, "Content-Length: 0"), "POST"),
            ((same_origin, "Content-Length: 0"), "DELETE"),
        ):
            for _ in range(2):
                before = asked.times
                assert (await connection.send(path, *lines, method=method))[0] == 200, lines
                assert asked.times == before + 1, lines
        for page in (f"{proxy.base}/jupyter/lab", f"{proxy.base}/jupyter/api/kernelspecs"):
            for _ in range(2):
                before = asked.times
                assert (await connection.send(page))[0] == 200
                assert asked.times == before + 1, page
        for query in (f"?token={token}", f"?%74oken={token}"):
            before = asked.times
            assert (await connection.send(path + query))[0] == 200
            assert asked.times == before + 1
            assert token not in proxy.service.requests[-1].target
        before = asked.times
        await other.send(path)  # another connection is somebody else
        assert asked.times == before + 1


async def test_other_credentials_are_no_credentials(proxy: Proxy) -> None:
    path = service_path(proxy)
    browser = Browser(proxy)
    await browser.login()
    good = browser.cookie
    elsewhere = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site")
    refused = [(cookie, ()) for cookie in ("", good.replace("=", "=x", 1))]
    for cookie, lines in [*refused, *((good, (line,)) for line in elsewhere)]:
        async with connected(proxy, cookie=good) as connection:  # a refusal ends a connection
            assert [(await connection.send(path))[0] for _ in range(2)] == [200, 200]
            seen = len(proxy.service.requests)
            connection.cookie = cookie
            assert (await connection.send(path, *lines))[0] == 403, (cookie, lines)
            assert len(proxy.service.requests) == seen


async def test_a_query_that_let_somebody_in_lets_nobody_else_in(proxy: Proxy) -> None:
    path = service_path(proxy)
    token = proxy.serverapp.identity_provider.token
    for other in (path, f"{path}?x=1"):
        async with connected(proxy, cookie="") as connection:
            assert (await connection.send(f"{path}?token={token}"))[0] == 200
            assert (await connection.send(other))[0] == 403


async def test_nothing_more_is_read_after_a_request_that_is_refused(proxy: Proxy) -> None:
    path = service_path(proxy)
    lines = [f"X-{number}: a" for number in range(300)]  # tornado takes that many, the proxy does not
    async with connected(proxy) as connection:
        assert (await connection.send(path))[0] == 200
        seen = len(proxy.service.requests)
        proxy.serverapp.web_app.settings["clearml_session_proxy"].admissions.find = lambda *_: Admission(
            "ada", by_token=False, until=0.0
        )
        assert (await connection.send(path, *lines))[0] == 400
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await connection.send(path)
        assert len(proxy.service.requests) == seen


async def test_an_admission_is_soon_forgotten(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = service_path(proxy)
    async with connected(proxy) as connection:
        assert (await connection.send(path))[0] == 200
        monkeypatch.setattr(proxy.serverapp.authorizer, "is_authorized", lambda *_: False)
        monkeypatch.setattr(admissions, "monotonic", lambda: 0.0)
        assert (await connection.send(path))[0] == 200  # the clock has not moved on
        monkeypatch.setattr(admissions, "monotonic", lambda: float("inf"))
        assert (await connection.send(path))[0] == 403


async def test_a_refusal_is_not_remembered_and_a_failure_is_told_each_time(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = service_path(proxy)
    manager = proxy.serverapp.web_app.settings["clearml_session_manager"]
    async with connected(proxy) as connection:
        assert (await connection.send(path))[0] == 200
        asked = Asked(proxy, monkeypatch)
        manager.is_attached = False
        status, head, body = await connection.send(path)
        assert (status, json.loads(body)["error"]["code"], asked.times) == (409, "not_attached", 0)
        manager.is_attached = True
        assert (await connection.send(path))[0] == 200
        manager.is_attached = False
        whole_way = await connection.send(path, "Content-Length: 0")
        assert asked.times == 1
        assert whole_way[2] == body
        for name in ("Content-Type", "Cache-Control", "Retry-After", "X-Content-Type-Options"):
            told = [re.findall(rf"^{name}: [^\r]+", text, re.MULTILINE) for text in (head, whole_way[1])]
            assert told[0] == told[1] != [], name


def asking(server_connection: object, *, query: str = "", **headers: str) -> HTTPServerRequest:
    lines = HTTPHeaders({"Host": "127.0.0.1", **headers})
    start = RequestStartLine("GET", f"/x{query}", "HTTP/1.1")
    return HTTPServerRequest(start_line=start, headers=lines, server_connection=server_connection)


class Somebody:
    """Stands for a connection of tornado's, and for its stream."""

    @property
    def stream(self) -> object:
        return self


def test_memory_is_bounded_and_ends_with_the_connection() -> None:
    known = Admissions()
    service = Service(SESSION, "port", "80", "/x")
    one = Somebody()
    for number in range(admissions.MOST + 1):
        known.remember(asking(one, Cookie=f"a={number}"), service, user="ada", by_token=False)
    assert known.find(asking(one, Cookie="a=0"), service) is None
    found = known.find(asking(one, Cookie=f"a={admissions.MOST}"), service)
    assert found is not None
    assert (found.user, found.by_token) == ("ada", False)
    assert known.find(asking(one, Cookie="a=1"), Service(SESSION, "port", "81", "/x")) is None
    assert known.find(asking(Somebody(), Cookie="a=1"), service) is None
    del one
    assert len(known) == 0


def test_secrets_are_not_kept() -> None:
    known = Admissions()
    one = Somebody()
    request = asking(one, Authorization="token abc")
    known.remember(request, Service(SESSION, "port", "80", "/x"), user="ada", by_token=True)
    assert "abc" not in repr(vars(known)["_known"][one])
