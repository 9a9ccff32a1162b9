"""What the proxy's requests share, and how long they wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ssh.tunnel import Tunnel
from .admissions import Admissions
from .transport import Pool


@dataclass(frozen=True)
class ProxySettings:
    """Times in seconds."""

    tunnel_wait: float = 10.0
    """How long a request waits for a tunnel that is being connected."""
    first_byte: float = 300.0
    """How long the remote service may take until it begins to answer."""
    continue_wait: float = 1.0
    """How long a client that asked (``Expect: 100-continue``) is kept waiting for the remote's word."""


class ProxyState:
    """What requests share: what is kept of each tunnel until it is closed, and who was admitted."""

    def __init__(self, settings: ProxySettings | None = None) -> None:
        self.settings = settings or ProxySettings()
        self.admissions = Admissions()
        self._pools: dict[Tunnel, Pool] = {}

    @staticmethod
    def of(settings: dict[str, Any]) -> ProxyState:
        """Return the state that belongs to a server's settings."""
        state: ProxyState | None = settings.get("clearml_session_proxy")
        if state is None:
            state = settings["clearml_session_proxy"] = ProxyState()
        return state

    def pool(self, tunnel: Tunnel) -> Pool:
        """Return what is kept of a tunnel."""
        pool = self._pools.get(tunnel)
        if pool is None:
            pool = self._pools[tunnel] = Pool(tunnel, self.settings.tunnel_wait)
            tunnel.when_closed(lambda: self._pools.pop(tunnel).close())
        return pool
