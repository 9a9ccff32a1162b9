"""The proxy's routes, and who may use them. What is admitted is passed on by `relay`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable
from typing import Any, cast
from urllib.parse import unquote

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import ensure_async
from tornado import web
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, url_concat
from tornado.iostream import StreamClosedError

from ..errors import ClearMLSessionError, InvalidInput
from . import answers, http1, sockets, trust
from .express import Express
from .lane import Lane
from .relay import LargeAnswer, Relay, is_navigation, is_websocket
from .services import PATHS, Service, session_prefix
from .state import ProxyState

AUTH_RESOURCE = "clearml_session"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WEBDAV = ("PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH")
UNLIMITED = 1 << 62
GONE = 499
"""The status, known from nginx, of a request whose client did not wait for the answer."""


@web.stream_request_body
class ProxyHandler(JupyterHandler):
    """One request to a service of a session: admitted or refused here, then the answer of its `Relay`."""

    auth_resource = AUTH_RESOURCE
    SUPPORTED_METHODS = (*METHODS, *WEBDAV)

    _relay: Relay | None = None
    _gone = False
    _has_begun = False
    _on_lane: tuple[Lane, LargeAnswer] | None = None
    """What the connection has become, and the answer on it."""

    @property
    def state(self) -> ProxyState:
        """The state shared by all requests of this server."""
        return ProxyState.of(self.settings)

    # -- before, during and after the body

    async def prepare(self) -> None:  # type: ignore[override]
        """Check who asks, find the service, and send the request's head there before the body is read."""
        cast(HTTP1Connection, self.request.connection).set_max_body_size(UNLIMITED)
        try:
            service, path = self._asked()
            await self._admit(service)
            if self._answered():
                return
            if not path:
                address, mark, query = (self.request.uri or "/").partition("?")
                self.redirect(address + "/" + mark + query)
                return
            if is_websocket(self.request) and not self.check_origin():
                raise web.HTTPError(403, "Blocking a cross-origin WebSocket")
            self._relay = Relay(
                self.request,
                self,
                self.state,
                service=service,
                path=path,
                by_token=self.token_authenticated,
                log=self.log,
            )
            await self._relay.start(self.settings["clearml_session_manager"])
        except InvalidInput as exc:
            await self._refuse(exc)
        except ClearMLSessionError as exc:
            self._fail(exc)

    async def data_received(self, chunk: bytes) -> None:
        """Pass a piece of the body on."""
        if self._relay is not None:
            await self._relay.send(chunk)

    async def _bring_answer(self, *_path: str) -> None:
        if self._relay is None or self._answered():
            return
        try:
            await self._relay.run()
        except ClearMLSessionError as exc:
            self._fail(exc)
        except BaseException:
            if self._on_lane is not None:
                self._on_lane[0].reset()
            raise
        if self._on_lane is not None:
            lane, answer = self._on_lane
            self.set_status(answer.status)
            self.application.log_request(self)
            await lane.go_on()

    get = head = post = put = patch = delete = options = _bring_answer
    propfind = proppatch = mkcol = copy = move = lock = unlock = report = search = _bring_answer

    # -- who may

    async def _admit(self, service: Service) -> None:
        """Say whether whoever asks may use this service: return, answer, or raise."""
        await super().prepare(_redirect_to_login=is_navigation(self.request))
        if self._answered():
            return
        if self.current_user is None:
            if is_navigation(self.request):
                self.redirect(url_concat(self.get_login_url(), {"next": self.request.uri or "/"}))
                return
            raise web.HTTPError(403)
        allowed = await ensure_async(
            self.authorizer.is_authorized(self, self.current_user, "execute", AUTH_RESOURCE)
        )
        if not allowed:
            raise web.HTTPError(403, "Not authorised to use the sessions' services")
        self._check_site()
        await self._check_trust(service.session_id)
        if not self._answered():
            self.state.admissions.remember(
                self.request, service, user=self.current_user, by_token=self.token_authenticated
            )

    def check_xsrf_cookie(self) -> None:
        """Let a request pass that the browser says comes from this origin; all else as Jupyter decides.

        Remote applications do not know the local server's XSRF value. ``Origin`` and ``Sec-Fetch-Site`` cannot be
        set by a page, so they prove the same (docs/security.md).
        """
        if not hasattr(self, "_jupyter_current_user"):
            return  # tornado asks before Jupyter's `prepare` knows who it is; that asks again
        if not self.token_authenticated:
            if self.request.headers.get("Origin"):
                if not self.check_origin():
                    raise web.HTTPError(403, "Blocking a cross-origin request")
                return
            if self.request.headers.get("Sec-Fetch-Site") == "same-origin":
                return
        super().check_xsrf_cookie()

    def check_origin(self, origin_to_satisfy_tornado: str = "") -> bool:
        """As Jupyter's, which fails on an ``Origin`` that is no address."""
        try:
            return super().check_origin(origin_to_satisfy_tornado)
        except ValueError:
            return False

    def _check_site(self) -> None:
        site = self.request.headers.get("Sec-Fetch-Site", "none")
        from_elsewhere = site in ("cross-site", "same-site") and not self.token_authenticated
        if from_elsewhere and not (self.request.method == "GET" and is_navigation(self.request)):
            raise web.HTTPError(403, "Blocking a cross-site request")

    async def _check_trust(self, session_id: str) -> None:
        prefix = session_prefix(self.base_url, session_id)
        manager = self.settings["clearml_session_manager"]
        # Before the question whose it is: looking up one that is not known yet takes a while, and it may be
        # attached by then.
        await manager.held_tunnel(session_id)
        for session in manager.attached():
            if session.id != session_id or trust.trusts(self, session):
                continue
            if not trust.accepts(self, session_id):
                raise trust.warning(self, session, prefix)
            trust.remember(self, session, prefix)

    # -- answers: those of the relay, and those of failures

    def begin(self, status: int, reason: str, headers: http1.Headers) -> None:
        """As `relay.Answer`."""
        self._has_begun = True
        self._headers = HTTPHeaders()
        self.set_status(status, reason)
        for name, value in headers:
            self.add_header(name, value)

    def offer_xsrf(self) -> None:
        """As `relay.Answer`."""
        if not self.get_cookie("_xsrf"):
            _ = self.xsrf_token  # the page's own requests carry it; reading it sets the cookie

    async def straight(self) -> LargeAnswer | None:
        """As `relay.Answer`."""
        express: Express | None = self.settings.get("clearml_session_express")
        lane = express.lane(self.request) if express is not None else None
        if lane is None or self._relay is None:
            return None
        answer = await lane.lead(self.detach(), self._relay, self.request)
        self._on_lane = lane, answer
        return answer

    def reset(self) -> None:
        """As `relay.Answer`."""
        stream = self.detach()
        if stream.socket is not None:
            sockets.reset_on_close(stream.socket)
        stream.close()

    def _answered(self) -> bool:
        return self._finished

    async def _refuse(self, exc: InvalidInput) -> None:
        """Answer a request that could be read in two ways, and read nothing more from its connection."""
        self.set_header("Connection", "close")
        with contextlib.suppress(StreamClosedError):
            await self._fail(exc)
        self.detach().close()  # a mere `finish` lets Tornado go on with what it holds in its buffer

    def _fail(self, exc: ClearMLSessionError) -> Awaitable[None]:
        self._close_relay()
        if self._has_begun:
            self.clear()  # nothing of it has left yet: its length and coding are not those of what is said here
        if self._gone:
            self.set_status(GONE, "The client has gone")  # for Jupyter's log: no server failed
            return self.finish()
        status, headers, body = answers.failure(exc, page=is_navigation(self.request))
        self.set_status(status)
        for name, value in headers:
            self.set_header(name, value)
        return self.finish(body)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Let a path be in another encoding than UTF-8: the service gets it as it came."""
        if name is None and value:  # none where an optional part of the path is missing
            return value.decode("utf-8", "replace")
        return super().decode_argument(value, name)

    def compute_etag(self) -> None:
        """Tags are the remote service's business."""

    def check_etag_header(self) -> bool:
        """Likewise."""
        return False

    # -- the ends

    def on_connection_close(self) -> None:
        """The browser has gone: let the remote service know."""
        super().on_connection_close()
        self._gone = True
        self._close_relay()

    def on_finish(self) -> None:
        """Leave nothing open."""
        self._close_relay()

    def _close_relay(self) -> None:
        if self._relay is not None:
            self._relay.close()

    # -- for the subclasses

    def _asked(self) -> tuple[Service, str]:
        """Return which service is asked, and the path there."""
        return Service.named(self.base_url, self.path_args)


class SpellingHandler(web.RequestHandler):
    """``/user/a@b/...`` for ``/user/a%40b/...``: leads to the spelling that Jupyter's routes and cookies have.

    VS Code decodes the path that it is served under before it asks for its parts. Nothing is told here: whoever
    follows has to log in there.
    """

    def initialize(self, base_url: str) -> None:
        """Take Jupyter's spelling."""
        self._base_url = base_url

    def get(self, *_path: str) -> None:
        """Lead on."""
        self.redirect(self._base_url + (self.request.uri or "")[len(unquote(self._base_url)) :], status=307)

    head = get


def install(app: web.Application, base_url: str) -> None:
    """Add the proxy's routes to a Jupyter server. `Express` is asked first, and leaves most to `ProxyHandler`."""
    express = app.settings["clearml_session_express"] = Express(app, base_url)
    routes: list[Any] = [(base_url + path, express) for path in PATHS]
    routes += [(base_url + path, ProxyHandler) for path in PATHS]
    plain = unquote(base_url)
    if plain != base_url:
        spelling = re.escape(plain) + r"clearml-session/proxy/(.*)"
        routes.append((spelling, SpellingHandler, {"base_url": base_url}))
    app.add_handlers(".*$", routes)
