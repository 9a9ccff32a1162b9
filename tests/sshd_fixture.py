"""A real SSH server in this process (asyncssh), for tests of whatever goes through a tunnel.

It does what a session's sshd does: password authentication, direct-tcpip to any loopback port, exec through
the shell, and SFTP, with the host key that the test chooses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncssh

from jupyterlab_clearml_session.models import HostKeyTrust, SshTarget

USERNAME = "someone"
PASSWORD = "correct horse battery staple"


class SshServer:
    """What a test holds of a running server: where it is, how to get in, and what it has seen."""

    def __init__(self, key: asyncssh.SSHKey, *, password: str = PASSWORD, cwd: Path | None = None) -> None:
        self.key = key
        self.password = password
        self.cwd = cwd
        self.port = 0
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.accepted = 0
        self.commands: list[str] = []
        self.channels_opened = 0
        self.unix_sockets = True
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._runs: set[asyncio.Task[Any]] = set()

    @property
    def public_key(self) -> str:
        """The host key's public half, OpenSSH one-line format."""
        return self.key.export_public_key().decode().strip()

    def target(self, *, port: int | None = None, password: str | None = None) -> SshTarget:
        """How to reach it, as a session's Task would tell; `port` where a relay stands before it."""
        return SshTarget(
            address="127.0.0.1",
            port=port or self.port,
            username=USERNAME,
            password=self.password if password is None else password,
            host_keys=(self.public_key,),
            trust=HostKeyTrust.PINNED,
        )

    async def start(self, port: int = 0) -> None:
        """Listen on a loopback port (0: any)."""
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            port,
            server_host_keys=[self.key],
            server_factory=lambda: _Server(self),
            process_factory=self._run,
            sftp_factory=True,
            encoding=None,
            allow_scp=False,
        )
        self.port = self._acceptor.get_port()

    async def drop(self) -> None:
        """Break all connections at once, as a crash does; go on listening (who is waiting may be back at once)."""
        broken = tuple(self.connections)
        for connection in broken:
            connection.abort()
        for connection in broken:
            await connection.wait_closed()

    async def stop(self) -> None:
        """Stop listening and break all connections."""
        if self._acceptor is None:
            return
        self._acceptor.close()
        while self.connections:
            await self.drop()
        await self._acceptor.wait_closed()  # from Python 3.12 on for the connections too
        self._acceptor = None
        await asyncio.gather(*self._runs, return_exceptions=True)

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        command = process.command or "cat"
        self.commands.append(command)
        child = await asyncio.create_subprocess_shell(
            command,
            cwd=self.cwd,
            start_new_session=True,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        feeding = asyncio.create_task(_pump(process.stdin, child.stdin))
        output: asyncio.Future[Any] = asyncio.ensure_future(
            asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
        )
        gone: asyncio.Future[Any] = asyncio.ensure_future(process.channel.wait_closed())
        try:
            await asyncio.wait((output, gone), return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                process.exit(await child.wait())
        finally:
            for part in (feeding, output, gone):
                part.cancel()
            await asyncio.gather(feeding, output, gone, return_exceptions=True)
            if child.returncode is None:
                await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    """End a command whose channel is gone: sshd closes its pipes; what does not mind is killed here."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        await asyncio.wait_for(child.wait(), 0.5)
    except asyncio.TimeoutError:
        os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


async def _pump(source: Any, sink: Any) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        if isinstance(sink, asyncio.StreamWriter):
            sink.close()


class _Server(asyncssh.SSHServer):
    def __init__(self, owner: SshServer) -> None:
        self._owner = owner
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._owner.connections.append(conn)
        self._owner.accepted += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection in self._owner.connections:
            self._owner.connections.remove(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return username == USERNAME and password == self._owner.password

    def unix_connection_requested(self, dest_path: str) -> bool:
        return self._owner.unix_sockets

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        self._owner.channels_opened += 1
        return True


class Relay:
    """A TCP relay before a server: what a network can do to a connection, on demand."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.accepted = 0
        self.delay = 0.0
        """Seconds that each piece of data is held back, one way."""
        self.spoil: Callable[[bytes], bytes] = bytes
        """What becomes of a piece of data on its way to the client."""
        self._target = port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def open(self) -> None:
        """Listen (again, on the same port)."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Refuse new connections and cut those there are."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Swallow: connections stay open, new ones are accepted, and no byte passes any more."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let bytes pass again."""
        self._flowing.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            back, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(upstream)
            await asyncio.gather(self._copy(reader, upstream), self._copy(back, writer, down=True))
        except OSError:
            return
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, down: bool = False
    ) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(self.spoil(data) if down else data)
            await writer.drain()
        writer.transport.abort()


@contextlib.asynccontextmanager
async def ssh_server(
    *, cwd: Path | None = None, key: asyncssh.SSHKey | None = None
) -> AsyncIterator[SshServer]:
    """Run a server for the length of a `with` block."""
    server = SshServer(key or asyncssh.generate_private_key("ssh-ed25519"), cwd=cwd)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
