"""The processes that `bench/proxy.py` measures between: a remote service, a delaying relay, a local Jupyter server.

Each is run as ``python -m bench._proxy_parts <part> ...`` and prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from tornado import web, websocket
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

BLOCK = os.urandom(1 << 20)


def listening() -> tuple[list[socket.socket], int]:
    sockets = bind_sockets(0, "127.0.0.1")
    return sockets, sockets[0].getsockname()[1]


class Echo(websocket.WebSocketHandler):
    """Returns each message."""

    @property
    def max_message_size(self) -> int:
        return 1 << 30

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message, binary=isinstance(message, bytes))


async def serve_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """``GET /<n>``: n bytes; ``PUT``: take a body and say how long it was; ``PUT /stall``: never take it."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if head.startswith("GET"):
                left = int(head.split(" ")[1].strip("/"))
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n".encode())
                while left:
                    piece = BLOCK if left >= len(BLOCK) else BLOCK[:left]
                    writer.write(piece)
                    left -= len(piece)
                    await writer.drain()
                continue
            if head.startswith("PUT /stall "):
                await asyncio.Event().wait()
            length = next(
                int(line.split(":")[1])
                for line in head.split("\r\n")
                if line.lower().startswith("content-length")
            )
            left = length
            while left:
                left -= len(await reader.read(min(left, 1 << 20)))
            body = str(length).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def remote() -> None:
    """The remote service: bytes on one port, WebSocket echo on another."""
    server = await asyncio.start_server(serve_bytes, "127.0.0.1", 0, limit=1 << 20)
    sockets, port = listening()
    HTTPServer(web.Application([("/ws", Echo)])).add_sockets(sockets)
    print(server.sockets[0].getsockname()[1], port, flush=True)
    await asyncio.Event().wait()


class _Delayed(asyncio.Protocol):
    def __init__(self, delay: float, connected: Callable[[_Delayed], None] | None = None) -> None:
        self.delay = delay
        self.connected = connected
        self.peer: _Delayed | None = None
        self.transport: asyncio.Transport | None = None
        self.early: list[tuple[float, bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.connected is not None:
            self.connected(self)

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self.delay
        if self.peer is None:
            self.early.append((due, data))
        else:
            loop.call_at(due, self.peer.send, data)

    def send(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            asyncio.get_running_loop().call_later(self.delay, self.peer.transport.close)


async def relay(port: int, delay: float) -> None:
    """A TCP relay that holds each byte back for `delay` seconds, each way, without limiting the rate."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def accepted(near: _Delayed) -> None:
        async def connect() -> None:
            _, far = await loop.create_connection(lambda: _Delayed(delay), "127.0.0.1", port)
            far.peer = near
            near.peer = far
            for due, data in near.early:
                loop.call_at(due, far.send, data)

        task = asyncio.create_task(connect())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await loop.create_server(lambda: _Delayed(delay, accepted), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


def local(config: dict[str, Any]) -> None:
    """A Jupyter server with our proxy (to `ports`, over SSH to `ssh_port`) and with jupyter-server-proxy."""
    from jupyter_server.serverapp import ServerApp

    from jupyterlab_clearml_session.models import SshTarget
    from jupyterlab_clearml_session.ssh.tunnel import Tunnel
    from tests.proxy_parts import FakeManager, install

    sockets, port = listening()
    for sock in sockets:
        sock.close()
    app = ServerApp.instance()
    app.initialize(
        [
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--ServerApp.ip=127.0.0.1",
            "--IdentityProvider.token=bench",
            "--ServerApp.log_level=40",
            f"--ServerApp.root_dir={config['root']}",
            "--ServerApp.jpserver_extensions={'jupyter_server_proxy': True}",
        ],
        find_extensions=False,
    )

    async def start() -> None:
        async def target() -> SshTarget:
            return SshTarget(
                "127.0.0.1", config["ssh_port"], "root", config["password"], (config["host_key"],)
            )

        tunnel = Tunnel(target)
        tunnel.start()
        await tunnel.wait_up(10)
        install(app, FakeManager(tunnel, config["ports"], token=config["token"]))
        print(port, flush=True)

    app.io_loop.add_callback(start)
    app.start()


def main() -> None:
    """Run one part."""
    part, *args = sys.argv[1:]
    if part == "remote":
        asyncio.run(remote())
    elif part == "relay":
        asyncio.run(relay(int(args[0]), float(args[1])))
    else:
        local(json.loads(args[0]))


if __name__ == "__main__":
    main()
