"""When to look at ClearML: one poller for all sessions and all who watch them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from logging import Logger

from .deadlines import comes
from .errors import ClearMLSessionError

_NEVER = -float("inf")


class Poller:
    """Reads again and again while somebody looks, never twice at a time, and sleeps while nobody does.

    Parameters
    ----------
    read:
        Reads once; called with the moment (monotonic clock) at which it began.
    interval:
        Seconds until the next read, asked anew after each.
    held:
        True while there is a reason to go on although nobody looks.
    told:
        Called after each read, with what it raised or None.
    window:
        Seconds for which somebody who looked counts as looking.
    """

    def __init__(
        self,
        *,
        read: Callable[[float], Awaitable[None]],
        interval: Callable[[], float],
        held: Callable[[], bool],
        told: Callable[[ClearMLSessionError | None], None],
        window: float,
        log: Logger,
    ) -> None:
        self._read = read
        self._interval = interval
        self._held = held
        self._told = told
        self._window = window
        self._log = log
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._looked = _NEVER
        self._all_users_looked = _NEVER
        self._done = _NEVER
        self._failed = _NEVER
        self._failure: ClearMLSessionError | None = None

    @property
    def all_users(self) -> bool:
        """True while somebody looks at other people's sessions as well."""
        return time.monotonic() - self._all_users_looked < self._window

    @property
    def stale(self) -> bool:
        """True where the last read is older than the interval between two."""
        return time.monotonic() - self._done > self._interval()

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="clearml-session-poller")

    async def close(self) -> None:
        """End, also in the middle of a read."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look(self, *, all_users: bool = False) -> None:
        """Note that somebody looks."""
        now = time.monotonic()
        if now - self._looked > self._window:
            self.wake()
        self._looked = now
        if all_users:
            if not self.all_users:
                self._done = _NEVER  # what was read so far is only our own
            self._all_users_looked = now

    def wake(self) -> None:
        """Read now instead of after the interval."""
        self._wake.set()

    def forget(self) -> None:
        """Count what was read so far as stale."""
        self._done = _NEVER

    async def poll(self) -> None:
        """Read once; a read that began after this was asked for will do. Raises what the read raised."""
        asked = time.monotonic()
        async with self._lock:
            if self._done > asked:
                return
            if self._failure is not None and self._failed > asked:
                # Of those who wait for a frozen server, not each one has a deadline of its own after the others'.
                raise self._failure
            started = time.monotonic()
            try:
                await self._read(started)
            except ClearMLSessionError as error:
                self._failed, self._failure = started, error
                self._told(error)
                raise
            self._done = started
            self._told(None)

    async def _run(self) -> None:
        while True:
            needed = time.monotonic() - self._looked < self._window or self._held()
            if needed:
                try:
                    await self.poll()
                except ClearMLSessionError:
                    pass  # told
                except Exception:  # noqa: BLE001 - a fault of ours must be seen, and must not end the only poller
                    self._log.exception("clearml-session: a poll failed")
            # With nobody looking and nothing attached: sleep until somebody comes.
            await comes(self._wake, self._interval() if needed else None)
            self._wake.clear()
