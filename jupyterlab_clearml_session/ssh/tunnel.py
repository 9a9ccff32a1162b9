"""The SSH connections of an attached session: made, kept alive, made again for as long as they are wanted."""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from ..deadlines import within
from ..errors import (
    ClearMLSessionError,
    ConnectionLost,
    RemoteDeadline,
    RemoteRefused,
    TooManyChannels,
    TunnelDown,
    TunnelError,
)
from ..models import SshTarget, TunnelState, TunnelStatus
from .forward import ForwardedPort
from .settings import TunnelSettings

if TYPE_CHECKING:
    from .channel import ByteStream, Channel, Process
    from .link import Link

Stream = TypeVar("Stream", bound="ByteStream")
SETTINGS = TunnelSettings()

RETRY = 0.02
"""Seconds until a broken connection that was just met is known to be one everywhere."""


class Tunnel:
    """Two SSH connections to one session: interactive, and bulk, so that a download delays no keystroke.

    The bulk connection is made when it is first needed. When the interactive one is lost, both are made anew,
    with a growing wait between attempts, until `close` or a fatal cause (host key, password).

    Parameters
    ----------
    target:
        Asked before each attempt, as the address and the password of a session can change. What it raises
        counts as the attempt's cause.
    on_status:
        Called with each new status, in the event loop.
    """

    def __init__(
        self,
        target: Callable[[], Awaitable[SshTarget]],
        *,
        on_status: Callable[[TunnelStatus], None] | None = None,
        settings: TunnelSettings = SETTINGS,
        log: logging.Logger | logging.LoggerAdapter[Any] | None = None,
    ) -> None:
        self.settings = settings
        self._target = target
        self._on_status = on_status
        self._log = log or logging.getLogger(__name__)
        self._status = TunnelStatus(since=_now())
        self._fatal: ClearMLSessionError | None = None
        self._link: Link | None = None
        self._bulk: Link | None = None
        self._bulk_lock = asyncio.Lock()
        self._bulk_opening: asyncio.Task[Link] | None = None
        self._no_bulk_before = 0.0
        self._ssh_target: SshTarget | None = None
        self._changed = asyncio.Event()
        self._kick = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._forwards: dict[int, ForwardedPort] = {}
        self._closed = False
        self._when_closed: list[Callable[[], object]] = []

    @property
    def status(self) -> TunnelStatus:
        """State, attempt, cause and round trip as they are now."""
        rtt = self._link.rtt if self._link is not None else None
        return replace(self._status, rtt_ms=None if rtt is None else round(rtt * 1000, 2))

    @property
    def forwards(self) -> list[ForwardedPort]:
        """The local ports that are open."""
        return list(self._forwards.values())

    @property
    def bulk_ready(self) -> bool:
        """Whether the bulk connection is up; begins to make it where it is not."""
        if self._bulk is not None and self._bulk.alive:
            return True
        if self._bulk_opening is None or self._bulk_opening.done():
            self._bulk_opening = asyncio.create_task(self._bulk_link())
            self._bulk_opening.add_done_callback(_forget)
        return False

    def start(self) -> None:
        """Begin to connect, and keep connected until `close`. Does nothing where it runs already."""
        if self._closed:
            raise TunnelDown("The tunnel is closed.")
        if self._runner is None or self._runner.done():
            self._fatal = None
            self._set(TunnelState.CONNECTING, attempt=0)
            self._runner = asyncio.create_task(self._run())

    def reconnect(self) -> None:
        """Make the connections anew, now: also ends a wait between attempts and a rest in state failed."""
        if self._runner is None or self._runner.done():
            self.start()
            return
        if self._status.state is TunnelState.UP:
            # Whoever asked is answered before `_run` comes to it.
            self._set(TunnelState.RECONNECTING, attempt=1)
        self._kick.set()

    async def wait_up(self, timeout: float) -> None:
        """Return once the tunnel is up.

        Raises
        ------
        TunnelDown
            It did not come up within `timeout` seconds, or is not wanted any more.
        TunnelError
            The fatal cause that stopped it.
        """
        deadline = time.monotonic() + timeout
        while self._link is None or not self._link.alive:
            if self._fatal is not None:
                raise self._fatal
            left = deadline - time.monotonic()
            if left <= 0 or self._closed or self._runner is None:
                raise TunnelDown("The tunnel to the session is down.", cause=self._status.cause)
            changed = self._changed
            try:
                await within(changed.wait(), left)
            except asyncio.TimeoutError:
                continue

    async def close(self) -> None:
        """Close both connections, all channels and all forwarded ports; return when nothing is left."""
        self._closed = True
        for forwarded in tuple(self._forwards.values()):
            await forwarded.close()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        if self._bulk_opening is not None:
            self._bulk_opening.cancel()
            await asyncio.gather(self._bulk_opening, return_exceptions=True)
        await self._drop_links()
        self._set(TunnelState.DOWN, cause=None)
        while self._when_closed:
            self._when_closed.pop()()

    def when_closed(self, callback: Callable[[], object]) -> None:
        """Call `callback` once the tunnel is closed, at once where it is or is being closed.

        For what others keep of it: whoever waited for it may come back when it has just gone.
        """
        if self._closed:
            callback()
        else:
            self._when_closed.append(callback)

    async def open_prompt_channel(self, port: int, *, wait: float = 0.0) -> ByteStream:
        """As `open_channel`, for a service that sends small pieces and is spoken to for long (a WebSocket).

        What listens there is read by a process of ours that acknowledges at once: without it Jupyter waits 40 ms
        in each cell. Takes a round trip more to open.
        """
        return await self._open_channel(lambda: self._interactive().open_prompt_channel(port), wait)

    async def open_wide_channel(self, port: int, *, wait: float = 0.0) -> ByteStream:
        """As `open_channel` on the bulk connection, for one large upload: over distance on several channels.

        Where that gains nothing or the remote machine does not allow it, it is an ordinary channel.
        """

        async def open_once() -> ByteStream:
            link = await self._bulk_link()
            path = await self._interactive().relay_path() if link.lanes > 1 else None
            if path is None:
                return await link.open_channel(port)
            try:
                return await link.open_wide_channel(port, path)
            except (RemoteRefused, RemoteDeadline, TooManyChannels) as exc:
                self._log.info("no wide channel: %s", exc)
                return await link.open_channel(port)

        return await self._open_channel(open_once, wait)

    async def open_channel(self, port: int, *, bulk: bool = False, wait: float = 0.0) -> Channel:
        """Open a byte stream to 127.0.0.1:`port` of the remote machine.

        Where the tunnel is down, or breaks just now, it is waited for during `wait` seconds.

        Raises
        ------
        TunnelDown
            The tunnel is not up.
        RemoteRefused
            Nothing listens on that port.
        RemoteDeadline
            The remote machine did not answer in time.
        TooManyChannels
            `TunnelSettings.max_channels` are open.
        """

        async def open_once() -> Channel:
            link = await self._bulk_link() if bulk else self._interactive()
            return await link.open_channel(port)

        return await self._open_channel(open_once, wait)

    async def _open_channel(self, open_once: Callable[[], Awaitable[Stream]], wait: float) -> Stream:
        deadline = time.monotonic() + wait
        while True:
            try:
                return await open_once()
            except TunnelDown:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                await asyncio.sleep(min(left, RETRY))
                await self.wait_up(left)

    async def start_process(self, command: str) -> Process:
        """Run a command line over there; its stdin and stdout are a byte stream. Errors as `open_channel`."""
        return await self._interactive().start_process(command)

    async def run(
        self,
        command: str,
        *,
        input: bytes | None = None,  # noqa: A002 -- as in subprocess.run
        timeout: float,
    ) -> tuple[int | None, bytes, bytes]:
        """Run a command line to its end; return (exit status, stdout, the last 64 KiB of stderr).

        Raises
        ------
        RemoteDeadline
            It took longer than `timeout` seconds. It is ended then.
        """
        process = await self.start_process(command)
        try:
            return await within(process.communicate(input), timeout)
        except asyncio.TimeoutError as exc:
            raise RemoteDeadline(f"A command on the remote machine took longer than {timeout:g} s.") from exc
        except ConnectionLost as exc:
            raise TunnelDown("The SSH connection broke while a remote command ran.") from exc
        finally:
            process.abort()

    async def sftp(self) -> Any:
        """Return a new `asyncssh.SFTPClient` on the bulk connection; the caller ends it with ``exit()``."""
        return await (await self._bulk_link()).sftp()

    async def forward(self, remote_port: int, local_port: int = 0) -> ForwardedPort:
        """Listen on 127.0.0.1:`local_port` (0: any free one) and lead to `remote_port` over there.

        The port stays open while the tunnel reconnects. Every user of this machine can connect to it.

        Raises
        ------
        Conflict
            The local port is in use.
        TunnelDown
            The tunnel is closed.
        """
        forwarded = ForwardedPort(self, remote_port)
        await forwarded.listen(local_port)
        if self._closed:  # whoever closed it did not know of this port
            await forwarded.close()
            raise TunnelDown("The tunnel is closed.")
        self._forwards[forwarded.local_port] = forwarded
        forwarded.on_closed = lambda: self._forwards.pop(forwarded.local_port, None)
        return forwarded

    # -- the two connections

    def _interactive(self) -> Link:
        if self._link is not None and self._link.alive:
            return self._link
        raise self._fatal or TunnelDown("The tunnel to the session is down.", cause=self._status.cause)

    async def _bulk_link(self) -> Link:
        async with self._bulk_lock:
            interactive = self._interactive()
            if self._bulk is not None and self._bulk.alive:
                return self._bulk
            await self._drop_bulk()
            assert self._ssh_target is not None
            if time.monotonic() < self._no_bulk_before:
                return interactive
            try:
                bulk = await _connect(self._ssh_target, self.settings, bulk=True)
            except TunnelError as exc:
                # A server may limit connections. One that delays keystrokes is better than none.
                self._log.info("no second SSH connection: %s", exc)
                self._no_bulk_before = time.monotonic() + self.settings.backoff_max
                return interactive
            if self._closed or self._link is not interactive:
                await bulk.close()  # whoever closes or drops the links did not know of it
                raise TunnelDown("The tunnel to the session is down.", cause=self._status.cause)
            if interactive.rtt is not None:
                bulk.expect_rtt(interactive.rtt)
            self._bulk = bulk
            return bulk

    async def _drop_links(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        await self._drop_bulk()

    async def _drop_bulk(self) -> None:
        """Close the bulk connection, with all that is on it."""
        bulk, self._bulk = self._bulk, None
        if bulk is not None:
            await bulk.close()

    # -- keeping connected

    async def _run(self) -> None:
        attempt = 0
        while True:
            self._kick.clear()
            attempt += 1
            try:
                link = await self._attempt(attempt)
            except Exception as failure:  # noqa: BLE001 -- a tunnel that dies silently is "connecting" for ever
                exc = self._cause(failure)
                if isinstance(exc, TunnelError) and exc.fatal:
                    self._fatal = exc
                    self._log.warning("tunnel: %s", exc)
                    self._set(TunnelState.FAILED, attempt=attempt, cause=exc.to_json())
                    return
                self._log.info("tunnel: attempt %d: %s", attempt, exc)
                self._set(self._status.state, attempt=attempt, cause=exc.to_json())
                await self._pause(attempt)
                continue
            attempt = 0
            self._kick.clear()  # whoever asked for a new connection meanwhile has got one
            self._link = link
            self._set(TunnelState.UP, attempt=0, cause=None)
            await self._until_lost(link)
            self._set(
                TunnelState.RECONNECTING,
                attempt=1,
                cause=link.cause.to_json() if link.cause is not None else None,
            )
            await self._drop_links()

    async def _attempt(self, attempt: int) -> Link:
        if attempt > 1:
            self._set(self._status.state, attempt=attempt, cause=self._status.cause)
        target = await self._target()
        self._ssh_target = target
        self._status = replace(self._status, host_key=target.trust)
        return await _connect(target, self.settings)

    def _cause(self, failure: Exception) -> ClearMLSessionError:
        """Return why an attempt failed; a fault of ours is told with its traceback."""
        if isinstance(failure, ClearMLSessionError):
            return failure
        self._log.error("tunnel: an attempt failed unexpectedly", exc_info=failure)
        return TunnelError(f"The connection could not be made: {type(failure).__name__}.")

    async def _until_lost(self, link: Link) -> None:
        kicked = asyncio.ensure_future(self._kick.wait())
        lost = asyncio.ensure_future(link.lost.wait())
        try:
            await asyncio.wait({kicked, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            kicked.cancel()
            lost.cancel()

    async def _pause(self, attempt: int) -> None:
        """Wait before the next attempt; `reconnect` and a machine that wakes from sleep end the wait."""
        settings = self.settings
        wait = min(
            settings.backoff_max, settings.backoff_initial * settings.backoff_factor ** min(attempt - 1, 64)
        )
        deadline = time.monotonic() + wait * random.uniform(0.5, 1.0)  # noqa: S311 -- spreads load, hides nothing
        while (left := deadline - time.monotonic()) > 0:
            wall, monotonic = time.time(), time.monotonic()
            try:
                await within(self._kick.wait(), min(1.0, left))
                return
            except asyncio.TimeoutError:
                if (time.time() - wall) - (time.monotonic() - monotonic) > settings.wake_gap:
                    return

    def _set(self, state: TunnelState, *, attempt: int = 0, cause: Any = None) -> None:
        since = self._status.since if state is self._status.state else _now()
        self._status = replace(self._status, state=state, since=since, attempt=attempt, cause=cause)
        self._changed.set()
        self._changed = asyncio.Event()
        if self._on_status is not None:
            try:
                self._on_status(self.status)
            except Exception:  # noqa: BLE001 -- one who cannot listen must not end the tunnel
                self._log.exception("tunnel: somebody failed on hearing of its state")


async def _connect(target: SshTarget, settings: TunnelSettings, *, bulk: bool = False) -> Link:
    # Importing asyncssh takes 0.2 s: neither when the server starts nor on its event loop.
    link = await asyncio.to_thread(importlib.import_module, ".link", __package__)
    connected: Link = await link.connect(target, settings, bulk=bulk)
    return connected


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _forget(task: asyncio.Task[Link]) -> None:
    """Take the outcome of a connection that nobody waits for; whoever needs it next meets the same failure."""
    if not task.cancelled():
        task.exception()
