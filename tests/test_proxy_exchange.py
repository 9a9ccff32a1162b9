"""An exchange by itself, where the order of events in one turn of the loop matters."""

from __future__ import annotations

import asyncio
import gc
import weakref
from unittest import mock

import pytest

from jupyterlab_clearml_session.errors import ConnectionLost, RemoteBadAnswer, TunnelDown
from jupyterlab_clearml_session.models import TunnelState
from jupyterlab_clearml_session.proxy.state import ProxyState
from jupyterlab_clearml_session.proxy.transport import Exchange
from jupyterlab_clearml_session.ssh.channel import Channel

from .sshd_fixture import ssh_server
from .tunnel_fixture import Watched, echo_port

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_a_browser_that_goes_while_the_answer_arrives() -> None:
    channel = Channel()
    channel.connection_made(mock.Mock())
    pool = mock.Mock(choose_bulk=lambda _hinted: False, take=mock.AsyncMock(return_value=(channel, True)))
    exchange = Exchange(pool, 80, "GET")
    await exchange.start(HEAD, chunked=False, has_body=False)
    answer = asyncio.ensure_future(exchange.response())
    await asyncio.sleep(0)
    channel.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None)
    exchange.close()
    with pytest.raises(ConnectionLost):
        await answer
    pool.give_back.assert_not_called()


async def test_nothing_is_kept_of_a_tunnel_that_was_closed() -> None:
    state = ProxyState()
    async with ssh_server() as server, echo_port() as port:
        watched = Watched(server.target())
        async with watched:
            await watched.tunnel.wait_up(5)
            pool = state.pool(watched.tunnel)
            assert state.pool(watched.tunnel) is pool
            pool.cookies[port].add("sid")
            channel, _ = await pool.take(port, bulk=False)
            pool.give_back(channel, port, bulk=False)
            await server.drop()
            await watched.until(lambda status: status.state is TunnelState.RECONNECTING)
            await watched.tunnel.wait_up(5)
            assert state.pool(watched.tunnel).cookies[port] == {"sid"}
            other = state.pool(Watched(server.target()).tunnel)
        assert set(state._pools.values()) == {other}
        assert pool._timer is None
        late = state.pool(watched.tunnel)  # as for a request that found the tunnel just before
        with pytest.raises(TunnelDown):
            await late.take(port, bulk=False)
        assert set(state._pools.values()) == {other}
        kept = weakref.ref(watched.tunnel)
        del watched, pool, late, channel
        gc.collect()
        assert kept() is None


@pytest.mark.parametrize("data", [b"the beginning", b""])
async def test_a_body_that_begins_while_a_channel_is_replaced_is_not_sent_without_its_beginning(
    data: bytes,
) -> None:
    kept, new = Channel(), Channel()
    for channel in (kept, new):
        channel.connection_made(mock.Mock())
    replaced, opened = asyncio.Event(), asyncio.Event()

    async def take(*_: object, max_idle: float, **__: object) -> tuple[Channel, bool]:
        if max_idle:
            return kept, True
        replaced.set()
        await opened.wait()
        return new, False

    pool = mock.Mock(choose_bulk=lambda _hinted: False, take=take)
    exchange = Exchange(pool, 80, "PUT")
    await exchange.start(HEAD, chunked=True, has_body=True)
    answer = asyncio.ensure_future(exchange.response())
    await asyncio.sleep(0)
    kept.eof_received()  # the service hangs up before a byte of the body has come
    await asyncio.wait_for(replaced.wait(), 5)

    async def all_of_it() -> None:
        await exchange.send(data)
        exchange.end_request()

    with pytest.raises(ConnectionLost):
        await all_of_it()
    opened.set()
    with pytest.raises(RemoteBadAnswer):
        await asyncio.wait_for(answer, 5)
    with pytest.raises(ConnectionLost):
        await exchange.send(b"the rest")
    new._channel.write.assert_not_called()
    exchange.close()


@pytest.mark.parametrize(("method", "times"), [("POST", 1), ("PATCH", 1), ("GET", 2), ("PUT", 2)])
async def test_what_cannot_be_done_twice_is_not_sent_twice(method: str, times: int) -> None:
    kept, new = Channel(), Channel()
    for channel in (kept, new):
        channel.connection_made(mock.Mock())
    pool = mock.Mock(
        choose_bulk=lambda _hinted: False, take=mock.AsyncMock(side_effect=[(kept, True), (new, False)])
    )
    exchange = Exchange(pool, 80, method)
    await exchange.start(HEAD, chunked=False, has_body=False)
    exchange.end_request()
    kept.eof_received()  # perhaps it did what it was asked to, and crashed then
    new.eof_received()
    with pytest.raises(RemoteBadAnswer):
        await asyncio.wait_for(exchange.response(), 5)
    assert pool.take.await_count == times
    exchange.close()
