"""An exchange by itself, where the order of events in one turn of the loop matters."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from jupyterlab_clearml_session.errors import ConnectionLost
from jupyterlab_clearml_session.proxy.transport import Exchange
from jupyterlab_clearml_session.ssh.channel import Channel

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
