"""A service of a session, as a proxied path names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jupyter_server.utils import url_path_join

from ..errors import InvalidInput, TunnelDown
from ..ssh.tunnel import Tunnel
from .headers import Route

_ROOT = r"clearml-session/proxy/([^/]+)"
PATHS = (_ROOT + r"/(jupyter|vscode)(/.*)?", _ROOT + r"/(port|port-absolute)/(\d{1,5})(/.*)?")
"""The proxied paths, relative to the server's base URL: session, kind, perhaps a port, and the path over there."""

_KERNELSPECS = "/api/kernelspecs"
_DATA = ("/files/", "/static/", "/api/")
"""Below these, what a remote Jupyter sends is no page of its own, unless it is an error."""


@dataclass(frozen=True)
class Service:
    """`kind` is ``jupyter``, ``vscode``, ``port`` or ``port-absolute``; only the last two have a `number`.

    `prefix` is the local path that stands for the service's ``/``, without a final slash.
    """

    session_id: str
    kind: str
    number: str | None
    prefix: str

    @staticmethod
    def named(base_url: str, groups: Sequence[str]) -> tuple[Service, str]:
        """Return what the groups of one of `PATHS` name, and the path there (empty without its slash)."""
        *names, path = groups
        return _service(base_url, *names), path

    async def find(self, manager: Any, wait: float) -> tuple[Route, Tunnel]:
        """Return where the service is and the tunnel there; a tunnel that is down is waited for.

        Raises
        ------
        InvalidInput
            There is no port of that number.
        ClearMLSessionError
            What `ClearMLSessionManager.tunnel` and `ClearMLSessionManager.endpoint` raise.
        """
        if self.number is not None and not 1 <= int(self.number) <= 65535:
            raise InvalidInput(f"{self.number} is not a port.", field="port")
        tunnel: Tunnel | None = await manager.tunnel(self.session_id, wait)
        if tunnel is None:
            raise TunnelDown("The tunnel to the session is down.")
        if self.number is not None:
            return Route(self.prefix, int(self.number), strip=self.kind == "port"), tunnel
        endpoint = await manager.endpoint(self.session_id, self.kind, wait)
        return Route(self.prefix, endpoint.port, endpoint.token if self.kind == "jupyter" else ""), tunnel

    def is_kernelspecs(self, path: str) -> bool:
        """Whether what a path leads to is a Jupyter's list of kernelspecs."""
        return self.kind == "jupyter" and path == _KERNELSPECS

    def is_page(self, path: str) -> bool:
        """Whether what a path leads to may be a page of a Jupyter's own."""
        return self.kind == "jupyter" and not path.startswith(_DATA)


@lru_cache(maxsize=256)
def _service(base_url: str, session_id: str, kind: str, number: str | None = None) -> Service:
    prefix = f"{session_prefix(base_url, session_id)}/{kind}"
    return Service(session_id, kind, number, f"{prefix}/{number}" if number else prefix)


def session_prefix(base_url: str, session_id: str) -> str:
    """Return the local path below which a session's services are, without a final slash."""
    prefix: str = url_path_join(base_url, "clearml-session/proxy", session_id)
    return prefix
