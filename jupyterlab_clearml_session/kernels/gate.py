"""How other processes of the same user reach a session: a Unix socket of the server that holds the tunnel.

``jupyter console`` or papermill start kernels in their own process. Their relay connects here and gets a channel to
the helper of its own, as if it had the SSH connection itself. The socket lies in a directory of mode 0700; whoever
can open it could also read the server's memory.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ..errors import ClearMLSessionError, KernelFailed, TunnelDown
from .attach import ByteProcess, splice

TIMEOUT = 90.0
"""Seconds for one connection to be made: the helper may have to be started."""
ACCEPT_AGAIN = 1.0
_LINE_LIMIT = 4096

Open = Callable[[str, str], Awaitable[tuple[ByteProcess, bytes]]]
"""Opens a channel for ``(session_id, client_id)``; gives it and what was read too far."""


class Gate:
    """The server's end.

    Parameters
    ----------
    path:
        Of the socket, in a directory that only its owner can enter.
    open_channel:
        Its ClearMLSessionError is told to the other process.
    """

    def __init__(self, path: Path, open_channel: Open) -> None:
        self.path = path
        self._open = open_channel
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen. Raises OSError."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        self._listener.setblocking(False)
        self._spawn(self._accept(self._listener))

    async def close(self) -> None:
        """Stop listening and end the connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # no descriptor is left for it: it waits until there is one
                await asyncio.sleep(ACCEPT_AGAIN)
                continue
            connection.setblocking(False)
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            request = json.loads(await _read_line(loop, connection))
            process, first = await self._open(str(request["session_id"]), str(request["client_id"]))
        except ClearMLSessionError as error:
            await _say(loop, connection, {"error": error.message, "failed": isinstance(error, KernelFailed)})
            connection.close()
            return
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()
            return
        await _say(loop, connection, {})
        await splice(process, connection, first)


def dial(path: Path, session_id: str, client_id: str) -> socket.socket:
    """Return a socket to a fresh channel, through the server whose gate this is. Blocks.

    Raises TunnelDown where the server is gone, or has no tunnel to the session now; KernelFailed where the helper
    could not be started.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT)
    try:
        connection.connect(str(path))
        connection.sendall(json.dumps({"session_id": session_id, "client_id": client_id}).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            data = connection.recv(1)  # what follows the line belongs to the frames
            if not data:
                raise TunnelDown("The JupyterLab server closed the connection.")
            line += data
    except OSError as error:
        connection.close()
        raise TunnelDown(
            "The JupyterLab server that holds the session's tunnel cannot be reached."
        ) from error
    except BaseException:
        connection.close()
        raise
    answer = json.loads(line)
    if "error" in answer:
        connection.close()
        raise (KernelFailed if answer.get("failed") else TunnelDown)(str(answer["error"]))
    return connection


async def _read_line(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
        data = await loop.sock_recv(connection, _LINE_LIMIT)
        if not data:
            break
        line += data
    return line


async def _say(loop: asyncio.AbstractEventLoop, connection: socket.socket, answer: dict[str, Any]) -> None:
    try:
        await loop.sock_sendall(connection, json.dumps(answer).encode() + b"\n")
    except OSError:
        return  # it went away meanwhile
