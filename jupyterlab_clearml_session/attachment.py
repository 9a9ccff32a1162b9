"""One attached session: its tunnel, and whether the Jupyter at the other end is the session's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from logging import Logger
from typing import Any

from .deadlines import within
from .errors import (
    ClearMLSessionError,
    JupyterPortClash,
    RemoteJupyterGone,
    RemoteRefused,
    TunnelDown,
    TunnelError,
)
from .models import SshTarget, TunnelState, TunnelStatus
from .phases import Services
from .ssh.probe import jupyter_status
from .ssh.tunnel import Tunnel

_FOREVER = 10.0**9
_WARM_UP = 0.25
"""Seconds between two probes while the remote Jupyter has not answered yet."""


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
        Seconds for which a Jupyter that has published its port may refuse connections.
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
        self._watcher = asyncio.create_task(self._watch(), name="clearml-session-watch")

    def reconnect(self) -> None:
        """Connect anew now, also after a fatal cause."""
        self._learn(jupyter=False, trouble=None)
        self.tunnel.reconnect()
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch(), name="clearml-session-watch")
        self._look.set()

    async def close(self) -> None:
        """Close the tunnel and stop watching. Never raises."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self.tunnel.close()

    def _on_status(self, status: TunnelStatus) -> None:
        if status.state is TunnelState.UP:
            self._look.set()
        self._on_change()

    async def _watch(self) -> None:
        refused_since: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.tunnel.wait_up(_FOREVER)
            except TunnelError:
                return  # fatal; the status says why, and reconnect() starts us again
            self._look.clear()
            published = self._published()
            wait = self._probe_interval
            if published.wants_jupyter and published.jupyter_port:
                trouble = await self._probe(published)
                if isinstance(trouble, (RemoteRefused, RemoteJupyterGone)) and not self.jupyter:
                    # The port is published a moment before Jupyter listens on it.
                    refused_since = refused_since or loop.time()
                    if loop.time() - refused_since < self._patience:
                        trouble, wait = None, _WARM_UP
                else:
                    refused_since = None
                if wait != _WARM_UP and not isinstance(trouble, TunnelDown):
                    self._learn(jupyter=trouble is None, trouble=trouble.to_json() if trouble else None)
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._look.wait(), wait)

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
