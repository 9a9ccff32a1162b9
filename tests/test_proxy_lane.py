"""Lanes: what comes on one connection of a browser is answered right and in order, with tornado and without it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tornado.netutil import bind_unix_socket

from jupyterlab_clearml_session.proxy import admissions
from jupyterlab_clearml_session.proxy import lane as a_lane
from jupyterlab_clearml_session.proxy.lane import MAX_UNREAD, Lane
from jupyterlab_clearml_session.proxy.state import ProxySettings, ProxyState
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

from .proxy_fixture import OK, Asked, Proxy, head, proxy, raw
from .proxy_parts import SMUGGLED, Reply, Request, canned, say_ok

__all__ = ["proxy"]  # the fixture

MOST_UNREAD = MAX_UNREAD + 256 * 1024 + 128 * 1024
"""What may wait in a lane: asyncio reads so much at once, and tornado may have read so much behind a head."""


def in_pieces(go_on: asyncio.Event, *pieces: bytes) -> Reply:
    """Return a reply that waits for `go_on` after each of these pieces, then closes the connection."""

    async def reply(_request: Any, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        for piece in pieces:
            writer.write(piece)
            await go_on.wait()
            go_on.clear()
        return False

    return reply


@dataclass
class Client:
    """A browser's connection."""

    proxy: Proxy
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: bytes = b""
    """Of the answer that was read last."""

    def ask(self, path: str, *lines: str, method: str = "GET", body: bytes = b"") -> None:
        self.writer.write(head(self.proxy, method, path, *lines, close=False) + body)

    async def answer(self, *, has_body: bool = True) -> bytes:
        """Return the next answer's body."""
        self.head = await self.until(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n", self.head)
        if not has_body or length is not None:
            size = int(length[1]) if length is not None and has_body else 0
            return await asyncio.wait_for(self.reader.readexactly(size), 30)
        assert b"\r\nTransfer-Encoding: chunked\r\n" in self.head
        parts = []
        while size := int(await self.until(b"\r\n"), 16):
            parts.append((await asyncio.wait_for(self.reader.readexactly(size + 2), 30))[:-2])
        assert await self.until(b"\r\n") == b"\r\n"
        return b"".join(parts)

    async def fetch(self, path: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
        self.ask(path, *lines, method=method, body=body)
        return await self.answer(has_body=method != "HEAD")

    async def until(self, words: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(words), 10)

    async def until_end(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 10)


class Lanes:
    """Watches the lanes of a test."""

    def __init__(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given_back, self.full, self.lost = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.most_unread = 0
        self._proxy = proxy
        self._asked = Asked(proxy, monkeypatch)
        self._all: list[asyncio.Future[None]] = []
        run = Lane.run

        def watched_run(lane: Lane, *args: Any) -> asyncio.Future[None]:
            self._all.append(asyncio.ensure_future(run(lane, *args)))
            return self._all[-1]

        def watch(name: str, then: Callable[[Lane], None]) -> None:
            was = getattr(Lane, name)

            def watched(lane: Lane, *args: Any) -> Any:
                result = was(lane, *args)
                then(lane)
                return result

            monkeypatch.setattr(Lane, name, watched)

        monkeypatch.setattr(Lane, "run", watched_run)
        watch("_give_back", lambda _: self.given_back.set())
        watch("pause_writing", lambda _: self.full.set())
        watch("connection_lost", lambda _: self.lost.set())
        watch("data_received", self._measure)

    def _measure(self, lane: Lane) -> None:
        self.most_unread = max(self.most_unread, len(lane._unread))

    @property
    def whole_way(self) -> int:
        """How many requests went the whole way, after the first one of the connection."""
        return self._asked.times - 1

    @contextlib.asynccontextmanager
    async def aboard(self, unix: str = "") -> AsyncIterator[Client]:
        """Connect, and let the connection become a lane."""
        if unix:
            streams = await asyncio.open_unix_connection(unix)
        else:
            streams = await asyncio.open_connection("127.0.0.1", self._proxy.serverapp.port, limit=1 << 14)
        client = Client(self._proxy, *streams)
        self._asked.times = 0
        for path in ("/first", "/second"):
            assert path.encode() in await client.fetch(path)
        assert self.whole_way == 0
        yield client
        client.writer.close()

    async def until_ended(self) -> None:
        """Return when all have; raise what one of them raised."""
        await asyncio.wait_for(asyncio.gather(*self._all), 10)


@pytest.fixture
def lanes(
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    jp_asyncio_loop: asyncio.AbstractEventLoop,
) -> Iterator[Lanes]:
    monkeypatch.setattr(admissions, "monotonic", lambda: 0.0)  # no test is late
    watched = Lanes(proxy, monkeypatch)
    yield watched
    jp_asyncio_loop.run_until_complete(watched.until_ended())  # whatever happened: nothing is left running
    gc.collect()
    for words in ("never retrieved", "Uncaught exception", "Exception in callback"):
        assert words not in caplog.text


WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"  # RFC 6455 1.3
)


async def echo_socket(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer as `say_ok`, but a handshake as a WebSocket server that sends back what it gets."""
    if request.get("Sec-WebSocket-Key") is None:
        return await say_ok(request, reader, writer)
    writer.write(ACCEPTED)
    while data := await reader.read(1 << 16):
        writer.write(data)
    return False


# -- requests of all kinds on one connection


async def test_requests_of_all_kinds_on_one_connection(proxy: Proxy, lanes: Lanes) -> None:
    proxy.service.reply = echo_socket
    async with lanes.aboard() as client:
        for path in ("/a", "/b?x=1"):
            assert f"GET {path} ".encode() in await client.fetch(path)
        assert lanes.whole_way == 0
        answer = await client.fetch("/c", "Content-Length: 4", method="POST", body=b"body")
        assert answer.startswith(b"POST /c ")
        assert answer.endswith(b"body")
        assert b"GET /d " in await client.fetch("/d")
        assert b"GET /page " in await client.fetch("/page", "Accept: text/html")
        assert b"GET /e " in await client.fetch("/e")
        assert lanes.whole_way == 2  # the lane of /d had been admitted before, on the same connection
        client.ask("/socket", *WEBSOCKET)
        assert await client.answer(has_body=False) == b""
        assert client.head.startswith(b"HTTP/1.1 101 ")
        client.writer.write(b"frames")
        assert await asyncio.wait_for(client.reader.readexactly(6), 10) == b"frames"


@pytest.mark.parametrize("pad", [1, 8000])
async def test_pipelined_requests_are_answered_in_order(proxy: Proxy, lanes: Lanes, pad: int) -> None:
    kinds = (["GET"] * 30 + ["POST"]) * 8  # up to 250 kB before each one that tornado has to read
    async with lanes.aboard() as client:
        for number, method in enumerate(kinds):
            lines, body = (("Content-Length: 4",), b"body") if method == "POST" else ((), b"")
            client.ask(f"/{number}", f"X-Pad: {'a' * pad}", *lines, method=method, body=body)
        for number, method in enumerate(kinds):
            answer = await client.answer()
            assert answer.startswith(f"{method} /{number} ".encode())
            assert answer.endswith(b"body" if method == "POST" else b"\r\n\r\n")
        assert [request.target for request in proxy.service.requests[2:]] == [f"/{n}" for n in range(248)]
        assert lanes.whole_way == 1 + 8  # the first one with this header; each POST
        assert lanes.most_unread <= MOST_UNREAD


async def test_head_in_two_pieces(proxy: Proxy, lanes: Lanes) -> None:
    async with lanes.aboard() as client:
        whole = head(proxy, "GET", "/x", close=False)
        for cut in (1, 30, len(whole) - 3, len(whole) - 1):
            assert b"GET /y " in await client.fetch("/y")  # it is a lane again
            lanes.given_back.clear()
            client.writer.write(whole[:cut])
            await asyncio.wait_for(lanes.given_back.wait(), 10)
            client.writer.write(whole[cut:])
            assert b"GET /x " in await client.answer()
        assert lanes.whole_way == 0


async def test_other_kinds_of_sockets(proxy: Proxy, lanes: Lanes, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    proxy.serverapp.http_server.add_socket(bind_unix_socket(path))
    async with lanes.aboard(path) as client:
        for method in ("GET", "POST", "GET", "GET"):
            answer = await client.fetch("/x", "Content-Length: 0", method=method)
            assert answer.startswith(f"{method} /x ".encode())


# -- what ends a connection, and what must not get behind that


async def test_ambiguous_heads_are_refused_as_the_whole_way(proxy: Proxy, lanes: Lanes) -> None:
    for lines in [*SMUGGLED, "Host: elsewhere", "Content-Length: 0\r\nTransfer-Encoding: chunked"]:
        behind = head(proxy, "GET", "/smuggled")
        told = await raw(proxy, head(proxy, "GET", "/x", lines, close=False) + behind)
        assert told.startswith(b"HTTP/1.1 400 "), lines[:100]
        async with lanes.aboard() as client:
            seen = len(proxy.service.requests)
            client.ask("/x", lines, body=behind)
            answer = await client.until_end()
            assert answer.startswith(b"HTTP/1.1 400 "), lines[:100]
            assert answer.partition(b"\r\n\r\n")[2] == told.partition(b"\r\n\r\n")[2], lines[:100]
            assert len(proxy.service.requests) == seen


async def test_nothing_gets_behind_the_last_answer(
    proxy: Proxy, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = head(proxy, "GET", "/smuggled", close=False)
    behind += head(proxy, "POST", "/smuggled", "Content-Length: 0", close=False)
    for skip in (0, behind.index(b"POST")):  # what a lane would read, and what tornado would
        for lines, status in ((["Connection: close"], b"200"), ([f"X-{n}: a" for n in range(300)], b"400")):
            async with lanes.aboard() as client:
                with monkeypatch.context() as patch:  # all that is plain is admitted
                    admitted = admissions.Admission("ada", by_token=True, until=1.0)
                    patch.setattr(admissions.Admissions, "find", lambda *_, found=admitted: found)
                    client.ask("/last", *lines, body=behind[skip:])
                    await client.answer()
                    assert client.head.startswith(b"HTTP/1.1 " + status)
                    assert b"\r\nConnection: close\r\n" in client.head
                    assert await client.until_end() == b""
                assert lanes.whole_way == 0
    assert b"smuggled" not in b"".join(request.raw for request in proxy.service.requests)


async def test_answer_that_breaks_off_is_never_complete(proxy: Proxy, lanes: Lanes) -> None:
    behind = head(proxy, "POST", "/smuggled", "Content-Length: 0", close=False)
    for framing, ending in (
        (b"Content-Length: 100\r\n\r\n", b"half"),
        (b"Transfer-Encoding: chunked\r\n\r\n64\r\n", b"half"),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", b"half\r\n"),
    ):
        proxy.service.reply = say_ok
        async with lanes.aboard() as client:
            go_on = asyncio.Event()
            proxy.service.reply = in_pieces(go_on, b"HTTP/1.1 200 OK\r\n" + framing + b"half")
            client.ask("/x", body=behind)
            assert (await client.until(ending)).endswith(ending)
            go_on.set()
            with pytest.raises(ConnectionResetError):
                await client.until_end()
            assert lanes.whole_way == 0
    assert proxy.service.requests[-1].method == "GET"


# -- answers


async def test_answers_are_the_same_both_ways(proxy: Proxy, lanes: Lanes) -> None:
    cookies = b"Set-Cookie: a=1; Path=/b; Domain=x\r\nSet-Cookie: _xsrf=1\r\nSet-Cookie: username-1=x\r\n"
    for method, sent in (
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nAge: 1\r\nContent-Length: 7\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\n" + cookies + b"Location: /c\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", b"HTTP/1.1 200 OK\r\nStrict-Transport-Security: x\r\nContent-Length: 0\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"),
    ):
        proxy.service.reply = say_ok
        async with lanes.aboard() as client:
            await client.fetch("/x", method=method)  # such a one is admitted from now on
            proxy.service.reply = canned(sent, keep_open=True)
            seen = []
            for lines in (("Content-Length: 0",), ()):
                asked = lanes.whole_way
                client.ask("/x", *lines, method=method)
                has_body = method == "GET" and b"HTTP/1.1 200" in sent
                seen.append((await client.answer(has_body=has_body), client.head))
                assert lanes.whole_way == asked + len(lines)
            login = rb"Set-Cookie: username-127-[^\r]+\r\n"  # Jupyter's own, the whole way
            assert (seen[0][0], re.sub(login, b"", seen[0][1])) == seen[1]
            if b"Set-Cookie" in sent:
                path = f"{proxy.base}/port/{proxy.service.port}/b".encode()
                assert re.findall(rb"Set-Cookie: ([^\r]+)", client.head) == [b"a=1; Path=" + path]
            assert (b"Content-Length" in client.head) == (b"Content-Length" in sent and b" 204 " not in sent)
            proxy.service.reply = say_ok
            assert b"GET /next " in await client.fetch("/next")  # and the browser knows where the next begins


@pytest.mark.parametrize("framing", ["length", "chunked", "end"])
async def test_large_answer_to_a_slow_reader(proxy: Proxy, lanes: Lanes, framing: str) -> None:
    body = random.Random(1).randbytes(20_000_000)  # more than the sockets between them hold

    async def large(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if request.target != "/large":
            return await say_ok(request, reader, writer)
        lines = {"length": b"Content-Length: 20000000\r\n", "chunked": b"Transfer-Encoding: chunked\r\n"}
        writer.write(b"HTTP/1.1 200 OK\r\n" + lines.get(framing, b"") + b"\r\n")
        for start in range(0, len(body), 100_000):
            piece = body[start : start + 100_000]
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if framing == "chunked" else piece)
            await writer.drain()
        writer.write(b"0\r\n\r\n" if framing == "chunked" else b"")
        return framing != "end"

    proxy.service.reply = large
    async with lanes.aboard() as client:
        lanes.full.clear()
        client.ask("/large")
        await asyncio.wait_for(lanes.full.wait(), 30)  # nothing is read before
        assert await client.answer() == body
        assert (b"Content-Length" in client.head) == (framing == "length")
        assert b"GET /next " in await client.fetch("/next")
        assert lanes.whole_way == 0


async def test_events_arrive_before_the_answer_ends(proxy: Proxy, lanes: Lanes) -> None:
    go_on = asyncio.Event()
    events = [b"data: %d\n\n" % number for number in range(3)]
    start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    async with lanes.aboard() as client:
        proxy.service.reply = in_pieces(go_on, start, *events)
        client.ask("/events")
        assert b"text/event-stream" in await client.until(b"\r\n\r\n")
        for event in events:
            go_on.set()  # the next one is only sent when this one has arrived
            assert event in await client.until(b"\n\n")
        go_on.set()
        assert await client.until(b"0\r\n\r\n") == b"\r\n0\r\n\r\n"
        proxy.service.reply = say_ok
        assert b"GET /next " in await client.fetch("/next")


# -- the browser goes, the tunnel goes


@pytest.mark.parametrize("said", [b"", OK[:-1] + b"9\r\n\r\nhalf"])
async def test_browser_that_goes_away_is_told_to_the_remote(proxy: Proxy, lanes: Lanes, said: bytes) -> None:
    asked = asyncio.Event()

    async def slow(_request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(said)
        asked.set()
        assert await reader.read() == b""
        return False

    async with lanes.aboard() as client:
        while not proxy.tunnel.bulk_ready:
            await client.fetch("/x")
        await client.fetch("/x")  # leaves a channel that is used again
        seen = proxy.service.connections
        proxy.service.reply = slow
        client.ask("/x")
        await asyncio.wait_for(asked.wait(), 10)
        client.writer.transport.abort()
        await proxy.service.until_closed()
        await lanes.until_ended()
        assert proxy.service.connections == seen  # it was not asked again for nobody


async def test_browser_that_goes_away_while_a_channel_is_opened(
    proxy: Proxy, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on = asyncio.Event(), asyncio.Event()
    open_channel = Tunnel.open_channel

    async def slowly(tunnel: Tunnel, *args: Any, **kwargs: Any) -> Any:
        channel = await open_channel(tunnel, *args, **kwargs)
        opening.set()
        await go_on.wait()
        return channel

    async with lanes.aboard() as client:
        proxy.service.reply = canned(OK + b"\r\nConnection: close\r\n\r\nok")
        await client.fetch("/x")  # nothing is kept alive now
        await proxy.service.until_closed()
        monkeypatch.setattr(Tunnel, "open_channel", slowly)
        client.ask("/nobody")
        await asyncio.wait_for(opening.wait(), 10)
        lanes.lost.clear()
        client.writer.transport.abort()
        await asyncio.wait_for(lanes.lost.wait(), 10)
        proxy.service.closed.clear()
        go_on.set()
        await proxy.service.until_closed()
        assert proxy.service.requests[-1].target == "/x"


async def test_tunnel_that_is_down_is_told_and_the_connection_goes_on(proxy: Proxy, lanes: Lanes) -> None:
    proxy.serverapp.web_app.settings["clearml_session_proxy"] = ProxyState(ProxySettings(tunnel_wait=0.1))
    await proxy.tunnel.wait_up(10)
    async with lanes.aboard() as client:
        await proxy.server.stop()
        for _ in range(2):
            told = json.loads(await client.fetch("/x"))
            assert told["error"]["code"] == "tunnel_down"
            assert client.head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 2\r\n" in client.head
        await proxy.server.start(proxy.server.port)
        await proxy.tunnel.wait_up(10)
        assert b"GET /y " in await client.fetch("/y")
        assert lanes.whole_way == 0


# -- how long


async def test_quiet_lane_is_given_back(proxy: Proxy, lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a_lane, "SECONDS", 0.01)
    async with lanes.aboard() as client:
        for path in ("/a", "/b"):
            await asyncio.wait_for(lanes.given_back.wait(), 10)
            lanes.given_back.clear()
            assert f"GET {path} ".encode() in await client.fetch(path)
        assert lanes.whole_way == 0  # who was admitted has come along


async def test_jupyter_is_asked_again_in_time(
    proxy: Proxy, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lanes.aboard() as client:
        for times in (1, 2):
            monkeypatch.setattr(admissions, "monotonic", lambda now=times * 2 * admissions.SECONDS: now)
            for path in ("/a", "/b"):
                assert f"GET {path} ".encode() in await client.fetch(path)
                assert lanes.whole_way == times
        monkeypatch.setattr(proxy.serverapp.authorizer, "is_authorized", lambda *_: False)
        assert b"GET /c " in await client.fetch("/c")
        monkeypatch.setattr(admissions, "monotonic", lambda: 100 * admissions.SECONDS)
        seen = len(proxy.service.requests)
        await client.fetch("/d")
        assert client.head.startswith(b"HTTP/1.1 403 ")
        assert len(proxy.service.requests) == seen
