"""Ask a remote Jupyter, over the tunnel, whether it is this session's own and alive."""

from __future__ import annotations

import asyncio

from ..deadlines import within
from ..errors import RemoteBadAnswer, RemoteDeadline
from .tunnel import Tunnel

_HEAD_LIMIT = 4096


async def jupyter_status(tunnel: Tunnel, port: int, token: str, *, timeout: float = 5.0) -> int:
    """Return the HTTP status of ``GET /api/status`` with ``token`` on the remote loopback's ``port``.

    200 means: a Jupyter that accepts this session's token. Raises RemoteRefused where nothing listens,
    RemoteDeadline after ``timeout`` seconds, RemoteBadAnswer where it is no HTTP or the token cannot be sent,
    TooManyChannels, and TunnelDown or ConnectionLost without tunnel.
    """
    if not (token.isascii() and token.isprintable()):
        raise RemoteBadAnswer(
            "The session's Jupyter token holds characters that HTTP does not allow", port=port
        )
    try:
        return await within(_ask(tunnel, port, token), timeout)
    except asyncio.TimeoutError:
        raise RemoteDeadline(f"The remote Jupyter did not answer within {timeout:g} s", port=port) from None


async def _ask(tunnel: Tunnel, port: int, token: str) -> int:
    channel = await tunnel.open_channel(port)
    if channel.closed:  # writing would say that the connection is lost, but only the channel is
        raise RemoteBadAnswer("What listens on the session's Jupyter port hangs up at once", port=port)
    try:
        channel.write(
            f"GET /api/status HTTP/1.1\r\nHost: localhost:{port}\r\n"
            f"Authorization: token {token}\r\nConnection: close\r\n\r\n".encode("ascii")
        )
        head = await channel.read(_HEAD_LIMIT)
    finally:
        channel.close()
    parts = head.split(b" ", 2)
    if len(parts) < 3 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise RemoteBadAnswer("What listens on the session's Jupyter port does not speak HTTP", port=port)
    return int(parts[1])
