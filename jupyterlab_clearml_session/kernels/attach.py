"""From an SSH exec channel to a socket with frames: start the helper over there and splice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ..deadlines import within
from ..errors import ClearMLSessionError, ConnectionLost, HelperFailed, RemoteRefused
from ..remote.helper import READY
from .bundle import SEND, attach_command, bundle

ATTACH_TIMEOUT = 60.0
"""Seconds for starting the helper: a slow file system over there may need most of them."""
CHUNK = 256 * 1024
SOCKET_BUFFER = 1024 * 1024


class ByteProcess(Protocol):
    """What is needed of a remote process (`ssh.channel.Process`)."""

    async def read(self, limit: int = -1) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    def send(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def deliver_to(self, sink: Callable[[bytes | memoryview], None]) -> None: ...
    def pause_delivery(self) -> None: ...
    def resume_delivery(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


StartProcess = Callable[[str], Awaitable[ByteProcess]]


class Handshake:
    """What is said before the frames begin: the file is sent if it is not there, then the helper is ready."""

    def __init__(self) -> None:
        self._input = b""
        self._sent = False
        self.info: dict[str, Any] | None = None
        """The helper's greeting; set when the frames begin."""
        self.rest = b""
        """Bytes of frames that came with the greeting."""

    def feed(self, data: bytes) -> bytes:
        """Take what has come and return what is to be sent. Raises HelperFailed.

        Anything that a login shell prints before is skipped.
        """
        self._input += data
        answer = b""
        if not self._sent and SEND + b"\n" in self._input:
            self._sent = True
            answer = bundle()
        _, found, after = self._input.partition(READY)
        line, newline, rest = after.partition(b"\n")
        if found and newline:
            info = _parsed(line)
            if info is None:
                raise HelperFailed("The kernel helper on the remote machine gave no proper greeting.")
            if "error" in info:
                raise HelperFailed(f"The kernel helper cannot run on the remote machine: {info['error']}")
            self.info = info
            self.rest = rest
        return answer


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        greeting = json.loads(line)
    except ValueError:
        return None
    return greeting if isinstance(greeting, dict) else None


async def open_channel(
    start_process: StartProcess, session_id: str, client_id: str
) -> tuple[ByteProcess, bytes]:
    """Start ``attach`` over there; return the channel and the first bytes of its frames.

    Raises
    ------
    TunnelDown, ConnectionLost
        There is no SSH connection now.
    RemoteDeadline, TooManyChannels
        No channel could be opened on it now.
    HelperFailed
        The helper cannot run over there, or does not answer.
    """
    try:
        process = await start_process(attach_command(session_id, client_id))
    except RemoteRefused as error:
        raise HelperFailed(error.message) from error
    handshake = Handshake()
    try:
        await within(_shake(process, handshake), ATTACH_TIMEOUT)
    except asyncio.TimeoutError as error:
        process.abort()
        raise HelperFailed("The kernel helper on the remote machine did not answer in time.") from error
    except BaseException:
        process.abort()
        raise
    return process, handshake.rest


def as_socket(process: ByteProcess, first: bytes) -> socket.socket:
    """Return a socket that carries the bytes of a channel; the running loop splices them."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    ours.setblocking(False)
    splice(process, ours, first)
    return theirs


def splice(process: ByteProcess, sock: socket.socket, first: bytes = b"") -> asyncio.Task[None]:
    """Carry bytes between a remote process and a non-blocking socket until either ends; close both then."""
    task = asyncio.get_running_loop().create_task(_splice(process, sock, first))
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


_running: set[asyncio.Task[None]] = set()


async def _shake(process: ByteProcess, handshake: Handshake) -> None:
    while handshake.info is None:
        data = await process.read()
        if not data:
            stderr = bytes(getattr(process, "stderr", b"")).decode(errors="replace").strip()[-500:]
            raise HelperFailed("The kernel helper could not be started on the remote machine.", stderr=stderr)
        answer = handshake.feed(data)
        with contextlib.suppress(ConnectionLost):  # why it has ended is what comes next
            for start in range(0, len(answer), CHUNK):
                process.write(answer[start : start + CHUNK])
                await process.drain()


async def _splice(process: ByteProcess, sock: socket.socket, first: bytes) -> None:
    inward, outward = _Inward(process, sock), _Outward(process, sock)
    inward.put(first)
    process.deliver_to(inward.put)
    tasks = [asyncio.ensure_future(process.read()), asyncio.ensure_future(outward.run())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        process.abort()
        inward.close()
        sock.close()
        for result in results:
            # A broken connection ends the wire, which is resumed; anything else is a mistake of ours.
            if isinstance(result, Exception) and not isinstance(result, (OSError, ClearMLSessionError)):
                raise result


class _Outward:
    """From the socket to the channel, by callbacks: a coroutine would cost a turn of the loop for each message."""

    def __init__(self, process: ByteProcess, sock: socket.socket) -> None:
        self._process = process
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._unflushed = 0
        self._full = asyncio.Event()
        self._error: Exception | None = None

    async def run(self) -> None:
        """Carry until the socket ends. Raises OSError or ConnectionLost."""
        while True:
            self._full.clear()
            self._unflushed = 0
            self._loop.add_reader(self._sock, self._on_readable)
            try:
                await self._full.wait()
            finally:
                self._loop.remove_reader(self._sock)
            if self._error is not None:
                raise self._error
            await self._process.drain()

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(CHUNK)
            if not data:
                raise ConnectionResetError("the relay closed the wire")
            self._process.send(data)
        except BlockingIOError:
            return
        except (OSError, ClearMLSessionError) as error:
            self._error = error
            self._full.set()
            return
        self._unflushed += len(data)
        if self._unflushed >= CHUNK:
            self._full.set()


class _Inward:
    """From the channel to the socket, in the turn of the event loop in which it arrives."""

    def __init__(self, process: ByteProcess, sock: socket.socket) -> None:
        self._process = process
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[memoryview] = deque()
        """What the socket did not take yet; while there is any, the loop waits for it."""

    def put(self, data: bytes | memoryview) -> None:
        """Take bytes; a view is only lent."""
        if not self._chunks:
            data = data[self._send(data) :]
            if not data:
                return
            self._process.pause_delivery()
            self._loop.add_writer(self._sock, self._on_writable)
        self._chunks.append(memoryview(bytes(data)))

    def close(self) -> None:
        if self._chunks:
            self._chunks.clear()
            self._loop.remove_writer(self._sock)

    def _on_writable(self) -> None:
        while self._chunks:
            chunk = self._chunks[0]
            sent = self._send(chunk)
            if sent < len(chunk):
                self._chunks[0] = chunk[sent:]
                return
            self._chunks.popleft()
        self._loop.remove_writer(self._sock)
        self._process.resume_delivery()

    def _send(self, data: bytes | memoryview) -> int:
        """Return how much of it is done with."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._process.abort()  # the other end is gone; `read` and `write` say so
            return len(data)
