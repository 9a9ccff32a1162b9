"""Someone else's session at an address of its own: an origin that shares nothing with the local JupyterLab.

A small server on a loopback port passes requests on as the proxy does, with the same header policy, and lets in
only the browser that came from the warning. A plain forwarded port would not do: cookies do not tell ports apart,
so the browser would send it the local server's login cookie, and any user of this machine could connect to it.
That is also why it is addressed by the other name of this machine (`trust.other_loopback`).
"""

from __future__ import annotations

import hmac
import secrets
import weakref
from typing import Any
from urllib.parse import urlencode

from jupyter_server.auth.identity import User
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import ensure_async
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from ..errors import ApartClosed, ForeignSession, NotAttached
from . import strict, trust
from .handlers import AUTH_RESOURCE, ProxyHandler
from .services import Service

TOKEN = "clearml-session-token"  # noqa: S105 -- a name
"""The parameter that lets a browser in, once. Jupyter's log hides whatever has "token" in its name."""

SHARED = (
    "clearml_session_manager",
    "clearml_session_proxy",
    "cookie_secret",
    "identity_provider",
    "log_function",
)
"""The settings of the local server that its requests need."""


class Apart:
    """The own address of one service of a session. `service` is as in the proxy's path: ``vscode``, ``port/80``."""

    def __init__(self, session_id: str, service: str, name: str) -> None:
        self.session_id = session_id
        self.service = service
        self.host = ""
        self.cookie = ""
        self.secret = secrets.token_urlsafe(32)
        self.requests: weakref.WeakSet[ApartHandler] = weakref.WeakSet()
        """Those that are under way, and none that nobody else knows any more."""
        self._name = name
        self._tokens: set[str] = set()
        self._server: HTTPServer | None = None

    def listen(self, settings: dict[str, Any]) -> None:
        """Open a free loopback port."""
        app = web.Application([(r"(/.*)", ApartHandler, {"apart": self})], **settings)
        strict.guard(app, b"")
        sockets = bind_sockets(0, "127.0.0.1")
        port = sockets[0].getsockname()[1]
        self.host = f"{self._name}:{port}"
        self.cookie = f"clearml-session-apart-{port}"
        self._server = HTTPServer(app)
        self._server.add_sockets(sockets)

    async def close(self) -> None:
        """Close the port and all its connections."""
        if self._server is not None:
            self._server.stop()
            await self._server.close_all_connections()
        for request in tuple(self.requests):
            request.on_connection_close()  # a WebSocket has taken its connection away from the server

    def invite(self, path: str, query: str) -> str:
        """Return the address of a page that lets in whoever opens it first."""
        token = secrets.token_urlsafe(32)
        self._tokens.add(token)
        return f"http://{self.host}{path}{query}{'&' if query else '?'}{urlencode({TOKEN: token})}"

    def lets_in(self, token: str) -> bool:
        """Whether it is a token of `invite` that was not used before."""
        if token not in self._tokens:
            return False
        self._tokens.remove(token)
        return True


class Aparts:
    """All own addresses of this server."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, str], Apart] = {}

    def open(self, session_id: str, service: str, name: str, settings: dict[str, Any]) -> Apart:
        """Return the address of a service under the host name `name`; the same one as long as it is open."""
        key = (session_id, service, name)
        if key not in self._open:
            apart = Apart(session_id, service, name)
            apart.listen({key: settings[key] for key in SHARED if key in settings})
            self._open[key] = apart
        return self._open[key]

    async def forget(self, session_id: str) -> None:
        """Close what belongs to a session that was detached."""
        for key in [key for key in self._open if key[0] == session_id]:
            await self._open.pop(key).close()


class ApartHandler(ProxyHandler):
    """All requests to an own address."""

    def initialize(self, apart: Apart) -> None:
        """Take the address."""
        self._apart = apart
        apart.requests.add(self)

    def check_host(self) -> bool:
        """Accept this address's own name only: any other one was made to lead here (DNS rebinding)."""
        return self.request.host == self._apart.host

    async def _admit(self, _service: Service) -> None:
        self.current_user = self._jupyter_current_user = None
        if not self.check_host():
            raise web.HTTPError(403)
        token = self.get_query_argument(TOKEN, "")
        if token and self._apart.lets_in(token):
            self.set_cookie(self._apart.cookie, self._apart.secret, httponly=True, samesite="Lax")
            query = "&".join(
                part for part in self.request.query.split("&") if not part.startswith(f"{TOKEN}=")
            )
            self.redirect(self.request.path + (f"?{query}" if query else ""))
            return
        if not hmac.compare_digest(self.get_cookie(self._apart.cookie, "") or "", self._apart.secret):
            self._fail(ApartClosed("This address belongs to a session that was opened from JupyterLab."))
            return
        self.current_user = self._jupyter_current_user = User(username="apart")
        self._check_site()
        if self.request.method not in ("GET", "HEAD", "OPTIONS"):
            self.check_xsrf_cookie()

    def offer_xsrf(self) -> None:
        """Not here: the cookie would be the local server's as well, where it is used by this name."""

    def _asked(self) -> tuple[Service, str]:
        kind, _, number = self._apart.service.partition("/")
        return Service(self._apart.session_id, kind, number or None, ""), self.path_args[-1]

    def write_error(self, status_code: int, **_kwargs: Any) -> None:
        """Say no more than the status: Jupyter's error pages are made for its own address."""
        self.set_header("Content-Type", "text/plain")
        self.finish(f"{status_code} {self._reason}\n")


class OpenHandler(JupyterHandler):
    """``/<session>/apart/<service>/...``: the warning's link to an own address."""

    auth_resource = AUTH_RESOURCE

    @web.authenticated
    async def get(self, session_id: str, service: str, path: str | None) -> None:
        """Open the address and lead there."""
        user = self.current_user
        if not await ensure_async(self.authorizer.is_authorized(self, user, "execute", AUTH_RESOURCE)):
            raise web.HTTPError(403, "Not authorised to use the sessions' services")
        name = trust.other_loopback(self.request.host_name)
        if name is None or not trust.accepts(self, session_id):
            raise web.HTTPError(403, ForeignSession.default_hint)
        if all(session.id != session_id for session in self.settings["clearml_session_manager"].attached()):
            raise web.HTTPError(409, NotAttached.default_hint)  # nobody would close the address
        aparts: Aparts = self.settings["clearml_session_aparts"]
        apart = aparts.open(session_id, service, name, self.settings)
        if service.startswith("port-absolute/"):  # such a service knows the whole path
            path = self.request.path.replace(f"/{session_id}/apart/", f"/{session_id}/", 1)
        self.redirect(apart.invite(path or "/", trust.without_proof(self.request.query)))


handlers: list[tuple[str, type[JupyterHandler]]] = [
    (
        r"clearml-session/proxy/([^/]+)/apart/(jupyter|vscode|(?:port|port-absolute)/\d{1,5})(/.*)?",
        OpenHandler,
    ),
]
"""The route of `OpenHandler`, relative to the server's base URL."""
