"""One attached session: its tunnel, and whether the Jupyter at the other end is the session's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from logging import Logger
from typing import Any

from .deadlines import comes
from .errors import (
    ClearMLSessionError,
    JupyterPortClash,
    RemoteBadAnswer,
    RemoteDeadline,
    RemoteJupyterGone,
    RemoteRefused,
    TooManyChannels,
    TunnelDown,
    TunnelError,
)
from .models import SshTarget, TunnelState, TunnelStatus
from .phases import Services
from .ssh.probe import jupyter_status
from .ssh.tunnel import Tunnel

_FOREVER = 10.0**9
_WARM_UP = 0.25
"""Seconds between two probes while the remote Jupyter does not answer yet, or for once."""

_NOT_ITS_OWN = (TunnelDown, TunnelError, TooManyChannels)
"""What a probe may meet that says nothing of the remote Jupyter."""

_BUSY = (RemoteDeadline, RemoteBadAnswer)
"""What a Jupyter that is well does as well, for a while: it computes, or something before it restarts."""


class Attachment:
    """Keeps one session's tunnel up and watches the remote Jupyter through it.

    Parameters
    ----------
    target:
        Returns where to connect; asked anew before each attempt.
    published:
        Returns what the remote script has published, as last read from the Task.
    on_change:
        Called whenever `status`, `jupyter` or `trouble` changed.
    probe_interval:
        Seconds between two looks at a remote Jupyter that is well.
    patience:
        Seconds for which a Jupyter that has published its port may refuse connections, and any may be too busy to
        answer.
    """

    def __init__(
        self,
        target: Callable[[], Awaitable[SshTarget]],
        published: Callable[[], Services],
        on_change: Callable[[], None],
        log: Logger,
        *,
        probe_interval: float = 10.0,
        patience: float = 30.0,
    ) -> None:
        self.jupyter = False
        self.trouble: Mapping[str, Any] | None = None
        self._published = published
        self._on_change = on_change
        self._log = log
        self._probe_interval = probe_interval
        self._patience = patience
        self._look = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self.tunnel = Tunnel(target, on_status=self._on_status, log=log)

    @property
    def status(self) -> TunnelStatus:
        return self.tunnel.status

    def start(self) -> None:
        """Begin to connect."""
        self.tunnel.start()
        self._start_watching()

    def reconnect(self) -> None:
        """Connect anew now, also after a fatal cause."""
        self.tunnel.reconnect()  # first: a tunnel that is up says what is known of the Jupyter
        self._learn(jupyter=False, trouble=None)
        if self._watcher is None or self._watcher.done():
            self._start_watching()
        self._look.set()

    async def close(self) -> None:
        """Close the tunnel and stop watching. Never raises."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)  # `_watch_ended` tells of a failure
        await self.tunnel.close()

    def _start_watching(self) -> None:
        self._watcher = asyncio.create_task(self._watch(), name="clearml-session-watch")
        self._watcher.add_done_callback(self._watch_ended)

    def _watch_ended(self, watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled() and (failure := watcher.exception()) is not None:
            self._log.error("clearml-session: a session is not watched any more", exc_info=failure)

    def _on_status(self, status: TunnelStatus) -> None:
        if status.state is TunnelState.UP:
            self._look.set()
        self._on_change()

    async def _watch(self) -> None:
        failing_since: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.tunnel.wait_up(_FOREVER)
            except TunnelError:
                return  # fatal; the status says why, and reconnect() starts us again
            if self._look.is_set():
                failing_since = None  # what failed on another connection does not count
            self._look.clear()
            published = self._published()
            wait = self._probe_interval
            if published.wants_jupyter and published.jupyter_port:
                trouble = await self._probe(published)
                # The port is published a moment before Jupyter listens on it.
                starting = isinstance(trouble, RemoteJupyterGone) and not self.jupyter
                may_pass = starting or isinstance(trouble, _BUSY)
                failing_since = (failing_since or loop.time()) if may_pass else None
                if failing_since is not None and loop.time() - failing_since < self._patience:
                    wait = _WARM_UP
                elif not isinstance(trouble, _NOT_ITS_OWN):
                    self._learn(jupyter=trouble is None, trouble=trouble.to_json() if trouble else None)
            await comes(self._look, wait)

    async def _probe(self, published: Services) -> ClearMLSessionError | None:
        assert published.jupyter_port is not None
        try:
            status = await jupyter_status(self.tunnel, published.jupyter_port, published.token)
        except RemoteRefused:
            return RemoteJupyterGone("Nothing listens any more on the session's Jupyter port")
        except ClearMLSessionError as error:
            return error
        if status in (401, 403):
            return JupyterPortClash("The Jupyter on the session's port does not accept this session's token")
        if status != 200:
            return RemoteJupyterGone(f"The remote Jupyter answers with HTTP {status}")
        return None

    def _learn(self, *, jupyter: bool, trouble: Mapping[str, Any] | None) -> None:
        if (jupyter, trouble) == (self.jupyter, self.trouble):
            return
        self.jupyter, self.trouble = jupyter, trouble
        self._on_change()
