"""One SSH connection to a session: made, checked, watched, closed."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import asyncssh

from ..deadlines import within
from ..errors import (
    AuthenticationFailed,
    ClearMLSessionError,
    ConnectionLost,
    ConnectionRefused,
    ConnectionTimedOut,
    GatewayFailed,
    HostKeyMismatch,
    HostNotFound,
    NoRoute,
    RemoteDeadline,
    RemoteRefused,
    TooManyChannels,
    TunnelDown,
    TunnelError,
)
from ..models import SshTarget
from . import relay
from .channel import ByteStream, Channel, Process, UnixChannel
from .lanes import WideChannel
from .settings import TunnelSettings
from .wire import Wire

# At its finer levels asyncssh writes a line per packet.
asyncssh.set_log_level(logging.WARNING)

Stream = TypeVar("Stream", bound=ByteStream)

NAGLE_OFF = "true"
"""sshd switches Nagle's algorithm off for a connection once a command runs on it; until then small packets wait."""


class Link:
    """An authenticated SSH connection whose host key was one of `SshTarget.host_keys`."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        wire: Wire,
        settings: TunnelSettings,
        *,
        bulk: bool = False,
    ) -> None:
        self.lost = asyncio.Event()
        """Set once the connection is gone; `cause` then says why (None where we closed it)."""
        self.cause: TunnelError | None = None
        self._connection = connection
        self._wire = wire
        self._settings = settings
        self._bulk = bulk
        self._shortcut = wire.take_shortcut(connection)
        self._streams: set[ByteStream] = set()
        self._opening = 0
        self._relay: asyncio.Task[str] | None = None
        self._relay_works = True
        self._tasks: set[asyncio.Task[Any]] = {
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._switch_nagle_off()),
        }

    @property
    def alive(self) -> bool:
        """False as soon as the connection is known to be broken."""
        return not self.lost.is_set() and not self._connection.is_closed()

    @property
    def rtt(self) -> float | None:
        """Round trip to the SSH server in seconds."""
        return self._wire.rtt

    @property
    def channels(self) -> int:
        """Channels that are open or being opened."""
        return len(self._streams) + self._opening

    @property
    def window(self) -> int:
        """Receive window of a new channel in bytes; for bulk larger where the other end is farther away.

        Not so for the interactive connection: a keystroke would wait behind all that a window holds.
        """
        settings = self._settings
        if not self._bulk:
            return settings.window_min
        wanted = int((self._wire.rtt or 0.0) * settings.window_rate)
        return min(settings.window_max, max(settings.window_bulk, wanted))

    async def open_channel(self, port: int) -> Channel:
        """Open a stream to 127.0.0.1:`port` over there.

        Raises RemoteRefused, RemoteDeadline, TooManyChannels and TunnelDown.
        """
        stream = Channel()
        opening = self._connection.create_connection(
            lambda: stream, "127.0.0.1", port, "127.0.0.1", 0, window=self.window
        )
        return await self._open(stream, opening, f"port {port} of the remote machine")

    async def open_prompt_channel(self, port: int) -> ByteStream:
        """As `open_channel`, but what listens there never waits for an acknowledgement (see `relay`).

        It takes one more round trip. Where the remote machine has no Python or forbids Unix sockets, an ordinary
        channel is returned.
        """
        path = await self.relay_path()
        if path is None:
            return await self.open_channel(port)
        stream = UnixChannel()
        opening = self._connection.create_unix_connection(lambda: stream, path, window=self.window)
        try:
            await self._open(stream, opening, "a Unix socket of the remote machine")
        except RemoteRefused:
            self._relay = None
            self._relay_works = False
            return await self.open_channel(port)
        stream.write(b"%d\n" % port)
        await self._accepted(stream, port)
        return stream

    @property
    def lanes(self) -> int:
        """How many channels a large upload should use; 1 where the machine is near."""
        settings = self._settings
        wanted = int((self.rtt or 0.0) * settings.upload_rate / settings.granted_window)
        return max(1, min(settings.max_lanes, wanted))

    async def open_wide_channel(self, port: int, path: str) -> WideChannel:
        """As `open_channel`, with `lanes` channels upwards, through the relay whose socket is at `path`."""
        self._check_room(self.lanes)
        others = [UnixChannel() for _ in range(self.lanes - 1)]
        stream = WideChannel(others)

        def open_lane(lane: UnixChannel) -> Coroutine[Any, Any, UnixChannel]:
            opening = self._connection.create_unix_connection(lambda: lane, path, window=self.window)
            return self._open(lane, opening, "a Unix socket of the remote machine")

        try:
            for result in await asyncio.gather(*map(open_lane, (stream, *others)), return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
            stream.introduce(port, secrets.token_hex(8))
            await self._accepted(stream, port)
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _accepted(self, stream: UnixChannel, port: int) -> None:
        """Wait for the relay's word that it is connected."""
        try:
            answer = await within(stream.readexactly(1), self._settings.open_timeout)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError) as exc:
            stream.abort()
            raise RemoteDeadline(f"Opening port {port} of the remote machine took too long.") from exc
        if answer != relay.ACCEPTED:
            stream.abort()
            raise RemoteRefused(f"Could not open port {port} of the remote machine: connection refused.")

    async def start_process(self, command: str) -> Process:
        """Run a line for the remote user's shell; return its streams. Errors as `open_channel`."""
        stream = Process()
        opening = self._connection.create_session(
            lambda: stream, command, encoding=None, request_pty=False, window=self.window
        )
        return await self._open(stream, opening, "a command on the remote machine")

    async def sftp(self) -> asyncssh.SFTPClient:
        """Start an SFTP client on this connection. Errors as `open_channel`."""
        try:
            return await within(self._connection.start_sftp_client(), self._settings.open_timeout)
        except asyncio.TimeoutError as exc:
            raise RemoteDeadline("The remote machine did not start its SFTP server in time.") from exc
        except (asyncssh.Error, OSError) as exc:
            raise self._refusal(exc, "SFTP on the remote machine") from exc

    def expect_rtt(self, seconds: float) -> None:
        """Take a round trip that was measured on another connection to the same machine."""
        self._wire.observe_rtt(seconds)

    async def close(self) -> None:
        """Close the connection and all that is open on it."""
        tasks = self._tasks if self._relay is None else {*self._tasks, self._relay}
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
            for stream in tuple(self._streams):
                stream.break_off()
            self._connection.close()
            await within(self._connection.wait_closed(), 1.0)
        except asyncio.TimeoutError:
            self._connection.abort()
        finally:  # also where whoever closes is cancelled: nobody else knows of this connection then
            self._wire.abort()
            self.lost.set()

    # -- helpers

    async def _open(self, stream: Stream, opening: Coroutine[Any, Any, Any], what: str) -> Stream:
        try:
            self._check_room(1)
        except ClearMLSessionError:
            opening.close()
            raise
        self._opening += 1
        task = asyncio.ensure_future(opening)
        started = time.monotonic()
        is_ours = False
        try:
            await within(asyncio.shield(task), self._settings.open_timeout)
            is_ours = True
        except asyncio.TimeoutError as exc:
            raise RemoteDeadline(
                f"Opening {what} took longer than {self._settings.open_timeout:g} s."
            ) from exc
        except (asyncssh.Error, OSError) as exc:
            raise self._refusal(exc, what) from exc
        finally:
            self._opening -= 1
            if not is_ours:
                # The answer may still come, or have come in the very turn in which whoever waits was cancelled:
                # a channel that nobody waits for any more is closed then.
                task.add_done_callback(lambda done: _discard(done, stream))
        self._wire.observe_rtt(stream.opened_at - started)
        if not stream.gone:  # by now it may be; nobody would take it out again
            self._streams.add(stream)
        stream.shortcut = self._shortcut
        stream.wire = self._wire
        stream.on_gone = self._streams.discard
        return stream

    def _check_room(self, count: int) -> None:
        if not self.alive:
            raise TunnelDown("The SSH connection is down.")
        if self.channels + count > self._settings.max_channels:
            raise TooManyChannels(f"There are {self.channels} open channels to this machine already.")

    def _refusal(self, exc: Exception, what: str) -> ClearMLSessionError:
        if not isinstance(exc, asyncssh.ChannelOpenError) or exc.reason == "SSH connection closed":
            return TunnelDown("The SSH connection broke.")
        if exc.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
            return RemoteRefused(f"The SSH server of the remote machine does not allow to open {what}.")
        return RemoteRefused(f"Could not open {what}: connection refused.")

    async def relay_path(self) -> str | None:
        """Return the path of the relay's socket, once it runs; None where it cannot run."""
        if not self._relay_works:
            return None
        if self._relay is None:
            self._relay = asyncio.create_task(self._start_relay())
        try:
            return await within(asyncio.shield(self._relay), self._settings.relay_timeout)
        except TooManyChannels:
            return None
        except (asyncio.TimeoutError, ClearMLSessionError, asyncio.IncompleteReadError):
            self._relay_works = False
            return None

    async def _start_relay(self) -> str:
        try:
            process = await self.start_process(relay.command())
        except TooManyChannels:
            self._relay = None  # says nothing of the machine: the next one tries again
            raise
        line = b""
        while not line.endswith(b"\n"):
            line += await process.readexactly(1)
        return line.decode().strip()

    async def _switch_nagle_off(self) -> None:
        try:
            process = await self.start_process(NAGLE_OFF)
            await process.communicate()
        except ClearMLSessionError:
            self._wire.logger.debug("the command that switches Nagle's algorithm off did not run")

    async def _watch(self) -> None:
        """End the connection when nothing has arrived for too long although a probe was sent."""
        patience = self._settings.probe_interval + self._settings.probe_deadline
        closed = asyncio.ensure_future(self._connection.wait_closed())
        try:
            while True:
                silent = time.monotonic() - self._wire.last_received
                if silent >= patience:
                    self.cause = ConnectionLost(
                        f"The remote machine has not answered for {silent:.1f} s.",
                        hint="The network is down, or the machine is overloaded or gone.",
                    )
                    break
                done, _ = await asyncio.wait({closed}, timeout=patience - silent)
                if done:
                    self.cause = ConnectionLost("The remote machine closed the SSH connection.")
                    break
        finally:
            closed.cancel()
        self.lost.set()
        self._connection.abort()


async def connect(target: SshTarget, settings: TunnelSettings, *, bulk: bool = False) -> Link:
    """Connect to a session's SSH server with its password, and only if it has one of its host keys.

    Nothing of the user's own SSH set-up takes part: no config file, no agent, no keys, no known_hosts.

    Raises
    ------
    TunnelError
        The class says why; `HostKeyMismatch` and `AuthenticationFailed` are fatal.
    """
    where = f"{target.address}:{target.port}"
    wire = Wire()
    try:
        connection = await within(
            asyncssh.connect(
                target.address,
                target.port,
                tunnel=wire,
                config=None,
                known_hosts=_pinned(target),
                username=target.username,
                agent_path=None,
                client_keys=None,
                client_host_keys=None,
                gss_host=None,
                kbdint_auth=False,
                encryption_algs=list(settings.encryption),
                compression_algs=None,
                login_timeout=0,
                keepalive_interval=settings.probe_interval,
                # The verdict is ours (`Link._watch`): it counts any byte as life, asyncssh counts probes.
                keepalive_count_max=1_000_000,
                **credentials(target),
            ),
            settings.connect_timeout,
        )
    except asyncio.CancelledError:
        wire.abort()  # it may have been made in this very turn of the event loop; nobody else knows of it
        raise
    except asyncio.TimeoutError as exc:
        raise ConnectionTimedOut(f"{where} did not answer within {settings.connect_timeout:g} s.") from exc
    except (asyncssh.Error, OSError) as exc:
        raise _cause(exc, where, wire) from exc
    return Link(connection, wire, settings, bulk=bulk)


def credentials(target: SshTarget) -> dict[str, Any]:
    """Return what the connection authenticates with: the password, nothing else."""
    return {"password": target.password, "public_key_auth": False, "preferred_auth": "password"}


def _pinned(target: SshTarget) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
    """Return asyncssh's (trusted, certificate authorities, revoked) with exactly the session's keys."""
    if not target.host_keys:
        raise HostKeyMismatch("The session publishes no host key, so the machine cannot be recognised.")
    try:
        return [asyncssh.import_public_key(line) for line in target.host_keys], [], []
    except asyncssh.KeyImportError as exc:
        raise HostKeyMismatch("The session publishes a host key that cannot be read.") from exc


def _cause(exc: Exception, where: str, wire: Wire) -> TunnelError:
    if isinstance(exc, asyncssh.HostKeyNotVerifiable):
        return HostKeyMismatch(f"The host key of {where} is not the one that was made for this session.")
    if isinstance(exc, asyncssh.KeyExchangeFailed) and "host key" in str(exc).lower():
        return HostKeyMismatch(f"{where} has no host key of the kind that was made for this session.")
    if isinstance(exc, asyncssh.PermissionDenied):
        return AuthenticationFailed(f"{where} does not accept the session's password.")
    if wire.opened:
        if wire.received == 0:
            return GatewayFailed(f"{where} closed the connection before SSH spoke.")
        return ConnectionLost(f"The connection to {where} broke while it was being set up.")
    return _network_cause(exc, where)


def _network_cause(exc: Exception, where: str) -> TunnelError:
    if isinstance(exc, socket.gaierror):
        return HostNotFound(f"The name service does not know the address of {where}.")
    if isinstance(exc, ConnectionRefusedError):
        return ConnectionRefused(f"Nothing listens on {where}.")
    if isinstance(exc, OSError):
        if exc.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN):
            return NoRoute(f"There is no route to {where}.")
        if exc.errno == errno.ETIMEDOUT:
            return ConnectionTimedOut(f"{where} did not answer.")
        if exc.errno == errno.ECONNREFUSED or "[Errno 111]" in str(exc):
            return ConnectionRefused(f"Nothing listens on {where}.")
    return ConnectionLost(f"The connection to {where} could not be made: {type(exc).__name__}.")


def _discard(task: asyncio.Future[Any], stream: ByteStream) -> None:
    if not task.cancelled() and task.exception() is None:
        stream.abort()
