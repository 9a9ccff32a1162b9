"""Large answers of known length: past tornado on the browser's connection, complete or visibly broken."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jupyterlab_clearml_session.proxy.lane import Lane
from jupyterlab_clearml_session.proxy.relay import LARGE_BODY
from jupyterlab_clearml_session.proxy.transport import Exchange

from .proxy_fixture import BOTH_WAYS, Proxy, head, proxy, raw
from .proxy_parts import Reply, Request, read_body, say_ok

__all__ = ["proxy"]  # the fixture

BODY = random.Random(4).randbytes(LARGE_BODY + 500_000)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(BODY)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def large(*, more: bytes = b"") -> Reply:
    """Return a reply that sends `BODY`, and `more` behind it; what asks for ``/small`` gets its own head."""

    async def reply(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if request.target.endswith("/small"):
            return await say_ok(request, reader, writer)
        writer.write(HEAD + b"\r\n" + BODY + more)
        await writer.drain()
        await read_body(request, reader)
        return True

    return reply


def held_back(go_on: asyncio.Event) -> Reply:
    """Return a reply that sends half of `BODY`, waits for `go_on`, and hangs up."""

    async def reply(_request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(HEAD + b"\r\n" + BODY[: len(BODY) // 2])
        ended = asyncio.ensure_future(reader.read())
        gone_on = asyncio.ensure_future(go_on.wait())
        await asyncio.wait((ended, gone_on), return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, gone_on):
            task.cancel()
        return False

    return reply


@asynccontextmanager
async def connection(proxy: Proxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.serverapp.port)
    yield reader, writer
    writer.close()


async def answer(reader: asyncio.StreamReader, size: int) -> tuple[bytes, bytes]:
    """Return an answer's head and the `size` bytes behind it."""
    said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    return said, await asyncio.wait_for(reader.readexactly(size), 20)


async def until_reset(reader: asyncio.StreamReader) -> int:
    """Read until the connection is reset, which it has to be; return how many bytes came."""
    size = 0
    try:
        while data := await asyncio.wait_for(reader.read(1 << 16), 10):
            size += len(data)
    except ConnectionResetError:
        return size
    pytest.fail("the connection ended as if the answer were complete")


@BOTH_WAYS
async def test_the_connection_goes_on_after_it(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    lent = 0
    lend = Lane.lend

    def watched(lane: Lane, data: bytes | memoryview) -> Any:
        nonlocal lent
        lent += len(data)
        return lend(lane, data)

    monkeypatch.setattr(Lane, "lend", watched)
    proxy.service.reply = large()
    async with connection(proxy) as (reader, writer):
        for _ in range(2):
            writer.write(head(proxy, "GET", "/large", close=False))
            said, body = await answer(reader, len(BODY))
            assert said.startswith(HEAD)
            assert body == BODY
        writer.write(
            head(proxy, "PUT", "/small", "Content-Length: 3", close=False)
            + b"abc"
            + head(proxy, "GET", "/small")
        )
        rest = await asyncio.wait_for(reader.read(), 10)
    assert rest.count(b"HTTP/1.1 200 OK") == 2
    assert b"\r\n\r\nabc" in rest
    assert [request.method for request in proxy.service.requests] == ["GET", "GET", "PUT", "GET"]
    assert lent == 2 * len(BODY)


@BOTH_WAYS
async def test_requests_that_came_with_it_are_answered_behind_it(proxy: Proxy) -> None:
    proxy.service.reply = large()
    request = head(proxy, "GET", "/large", close=False) + head(proxy, "GET", "/small")
    said = await raw(proxy, request)
    first, _, rest = said.partition(b"\r\n\r\n")
    assert first.startswith(HEAD.rstrip())
    assert rest[: len(BODY)] == BODY
    assert rest[len(BODY) :].startswith(b"HTTP/1.1 200 OK")
    assert b"/small" in rest[len(BODY) :]


@BOTH_WAYS
async def test_the_connection_ends_with_it_where_that_was_asked(proxy: Proxy) -> None:
    proxy.service.reply = large()
    said = await raw(proxy, head(proxy, "GET", "/large"))
    assert b"\r\nConnection: close\r\n" in said[:1000]
    assert said.endswith(b"\r\n\r\n" + BODY)


@BOTH_WAYS
async def test_what_comes_behind_its_end_is_nobodys_answer(proxy: Proxy) -> None:
    proxy.service.reply = large(more=b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil" * 3000)
    async with connection(proxy) as (reader, writer):
        writer.write(head(proxy, "GET", "/large", close=False))
        assert (await answer(reader, len(BODY)))[1] == BODY
        writer.write(head(proxy, "GET", "/small"))
        assert b"evil" not in await asyncio.wait_for(reader.read(), 10)
    assert proxy.service.connections == 2


@BOTH_WAYS
async def test_a_slow_reader_gets_all_of_it(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    paused, pause = asyncio.Event(), Lane.pause_writing

    def watched(lane: Lane) -> None:
        pause(lane)
        paused.set()

    monkeypatch.setattr(Lane, "pause_writing", watched)
    blocks = [random.Random(seed).randbytes(1 << 20) for seed in range(24)]

    async def reply(_request: Any, _reader: Any, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % sum(map(len, blocks)))
        for block in blocks:
            writer.write(block)
            await writer.drain()
        return True

    proxy.service.reply = reply
    async with connection(proxy) as (reader, writer):
        writer.write(head(proxy, "GET", "/large", close=False))
        await reader.readuntil(b"\r\n\r\n")
        for block in blocks:
            await asyncio.wait_for(paused.wait(), 10)
            assert await asyncio.wait_for(reader.readexactly(len(block)), 10) == block


@BOTH_WAYS
@pytest.mark.parametrize("what", ["service", "tunnel"])
async def test_what_breaks_off_is_never_a_complete_answer(proxy: Proxy, what: str) -> None:
    go_on = asyncio.Event()
    proxy.service.reply = held_back(go_on)
    async with connection(proxy) as (reader, writer):
        writer.write(head(proxy, "GET", "/large", close=False))
        await reader.readuntil(b"\r\n\r\n")
        if what == "service":
            go_on.set()
        else:
            await proxy.server.drop()
        assert await until_reset(reader) <= len(BODY) // 2


@BOTH_WAYS
async def test_a_browser_that_goes_away_is_told_to_the_service(proxy: Proxy) -> None:
    go_on = asyncio.Event()
    proxy.service.reply = held_back(go_on)
    async with connection(proxy) as (reader, writer):
        writer.write(head(proxy, "GET", "/large", close=False))
        await reader.readuntil(b"\r\n\r\n")
    await proxy.service.until_closed()
    assert not go_on.is_set()


@BOTH_WAYS
async def test_a_mistake_of_ours_is_never_a_complete_answer(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mistake(Exception):
        pass

    async def pour(_exchange: Exchange, sink: Any) -> None:
        sink(BODY[:1000])
        raise Mistake

    monkeypatch.setattr(Exchange, "pour", pour)
    proxy.service.reply = large()
    async with connection(proxy) as (reader, writer):
        writer.write(head(proxy, "GET", "/large", close=False))
        await reader.readuntil(b"\r\n\r\n")
        assert await until_reset(reader) <= 1000


async def test_it_is_in_the_log(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    proxy.service.reply = large()
    with caplog.at_level("DEBUG"):
        await raw(proxy, head(proxy, "GET", "/large"))
    logged = [record.getMessage() for record in caplog.records if "/large" in record.getMessage()]
    assert len(logged) == 1
    assert logged[0].startswith("200 GET ")


async def test_what_is_not_sure_to_end_where_it_should_stays_with_tornado(proxy: Proxy) -> None:
    """A request whose body is not read yet, an old client, and an answer without its body."""
    proxy.service.reply = large()
    early = (
        head(proxy, "POST", "/large", "Content-Length: 40")
        + b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    for request in (early, head(proxy, "GET", "/large").replace(b"HTTP/1.1", b"HTTP/1.0", 1)):
        assert (await raw(proxy, request)).endswith(b"\r\n\r\n" + BODY)
    assert len(proxy.service.requests) == 2
    said = await raw(proxy, head(proxy, "HEAD", "/large"))
    assert said.startswith(HEAD)
    assert said.endswith(b"\r\n\r\n")
