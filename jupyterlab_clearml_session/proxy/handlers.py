"""The proxy's routes: who may use them, where they lead, and the streaming of each request and response."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast
from urllib.parse import unquote

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import ensure_async, url_path_join
from tornado import web
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, url_concat
from tornado.iostream import StreamClosedError

from ..errors import (
    ClearMLSessionError,
    ConnectionLost,
    InvalidInput,
    RemoteBadAnswer,
    TunnelDown,
)
from ..ssh.tunnel import Tunnel
from . import answers, http1, jupyter_pages, trust
from .headers import Route, set_cookie_names, strip_token, to_browser, to_remote
from .splice import check_handshake, splice
from .state import ProxyState
from .transport import Exchange, Pool

AUTH_RESOURCE = "clearml_session"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WEBDAV = ("PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH")
MAX_COOKIE_NAMES = 200
UNLIMITED = 1 << 62
BULK_BODY = 1024 * 1024
"""Bytes from which a request body travels on the bulk connection."""

_KERNELSPECS = "/api/kernelspecs"
_DATA = ("/files/", "/static/", "/api/")
"""Below these, what a remote Jupyter sends is no page of its own, unless it is an error."""

WIDE_BODY = 8 * 1024 * 1024
"""Bytes from which it may take several channels, which need a round trip more to open."""

_DOWNLOAD_PATH = re.compile(r"/files/|/download|/nbconvert/")


@web.stream_request_body
class ProxyHandler(JupyterHandler):
    """One request, passed on to a service of a session. Subclasses say to which one (`_find`)."""

    auth_resource = AUTH_RESOURCE
    SUPPORTED_METHODS = (*METHODS, *WEBDAV)

    _exchange: Exchange | None = None
    _early: asyncio.Task[http1.ResponseHead] | None = None
    _proxied: Route
    _key: tuple[str, int]

    @property
    def state(self) -> ProxyState:
        """The state shared by all requests of this server."""
        state: ProxyState | None = self.settings.get("clearml_session_proxy")
        if state is None:
            state = self.settings["clearml_session_proxy"] = ProxyState()
        return state

    def _answered(self) -> bool:
        return self._finished

    async def _find(self) -> tuple[Route, Tunnel, str]:
        """Return where the request leads, the tunnel there, and the session's id."""
        raise NotImplementedError

    # -- before the body

    async def prepare(self) -> None:  # type: ignore[override]
        """Check who asks, find the service, and send the request's head there before the body is read."""
        cast(HTTP1Connection, self.request.connection).set_max_body_size(UNLIMITED)
        await self._admit()
        if self._answered():
            return
        if not self.path_args[-1]:
            path, mark, query = (self.request.uri or "/").partition("?")
            self.redirect(path + "/" + mark + query)
            return
        try:
            self._proxied, tunnel, session_id = await self._find()
            self._key = (session_id, self._proxied.port)
            self._check_trust(session_id)
            if self._answered():
                return
            await self._begin(self.state.pool(tunnel))
        except InvalidInput as exc:
            await self._refuse(exc)
        except ClearMLSessionError as exc:
            self._fail(exc)

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

    async def _admit(self) -> None:
        """Say whether whoever asks may use the sessions' services: return, answer, or raise."""
        await super().prepare(_redirect_to_login=self._is_navigation())
        if self._answered():
            return
        if self.current_user is None:
            if self._is_navigation():
                self.redirect(url_concat(self.get_login_url(), {"next": self.request.uri or "/"}))
                return
            raise web.HTTPError(403)
        allowed = await ensure_async(
            self.authorizer.is_authorized(self, self.current_user, "execute", AUTH_RESOURCE)
        )
        if not allowed:
            raise web.HTTPError(403, "Not authorised to use the sessions' services")
        self._check_site()

    def _check_site(self) -> None:
        site = self.request.headers.get("Sec-Fetch-Site", "none")
        from_elsewhere = site in ("cross-site", "same-site") and not self.token_authenticated
        if from_elsewhere and not (self.request.method == "GET" and self._is_navigation()):
            raise web.HTTPError(403, "Blocking a cross-site request")

    def _check_trust(self, session_id: str) -> None:
        manager = self.settings["clearml_session_manager"]
        for session in manager.attached():
            if session.id != session_id or trust.trusts(self, session):
                continue
            if not trust.accepts(self, session_id):
                raise trust.warning(self, session, self._prefix(session_id))
            trust.remember(self, session, self._prefix(session_id))

    async def _begin(self, pool: Pool) -> None:
        if self._is_websocket() and not self.check_origin():
            raise web.HTTPError(403, "Blocking a cross-origin WebSocket")
        method = self.request.method or "GET"
        chunked, length = http1.request_framing(self.request.headers.get_all())
        has_body = chunked or (length is not None and length != "0")
        exchange = Exchange(
            pool,
            self._proxied.port,
            method,
            bulk=self._is_bulk(length),
            prompt=self._is_websocket() and bool(self._proxied.token),
            wide=length is not None and int(length) >= WIDE_BODY,
        )
        head = http1.request_head(method, self._target(), self._request_headers(length, chunked, has_body))
        self._exchange = exchange
        await exchange.start(head, chunked=chunked, has_body=has_body)
        if has_body:
            await self._await_continue(exchange)

    def _request_headers(self, length: str | None, chunked: bool, has_body: bool) -> http1.Headers:
        request = self.request
        result = to_remote(
            request.headers.get_all(), self._proxied, request.host, self.state.cookies(*self._key)
        )
        if self._may_be_rewritten():
            result = [(name, value) for name, value in result if name.lower() != "accept-encoding"]
            result.append(("Accept-Encoding", "identity"))
        if chunked:
            result.append(("Transfer-Encoding", "chunked"))
        elif length is not None:
            result.append(("Content-Length", length))
        elif request.method in ("POST", "PUT", "PATCH"):
            result.append(("Content-Length", "0"))
        if has_body and "100-continue" in request.headers.get("Expect", "").lower():
            result.append(("Expect", "100-continue"))
        if self._is_websocket():
            result += [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        return result

    def _target(self) -> str:
        raw = self.request.uri or "/"
        path, mark, query = raw.partition("?")
        rest = self._proxied.to_remote(path)
        if rest is None:
            raise InvalidInput("The path is malformed.", field="path")
        if self._proxied.token or self.token_authenticated:
            query = strip_token(query)
        target = rest + (mark + query if query else "")
        return "".join(char if char < "\x80" else f"%{ord(char):02X}" for char in target)

    async def _await_continue(self, exchange: Exchange) -> None:
        """Watch for an answer while the body is being sent; keep a client that asked for it waiting for 100."""
        go_on = asyncio.Event()
        self._early = asyncio.ensure_future(exchange.response(go_on.set))
        if "100-continue" not in self.request.headers.get("Expect", "").lower():
            return
        said = asyncio.ensure_future(go_on.wait())
        await asyncio.wait(
            (said, self._early),
            timeout=self.state.settings.continue_wait,
            return_when=asyncio.FIRST_COMPLETED,
        )
        said.cancel()
        if self._early.done():
            await self._relay_guarded()  # a final answer: the body is not wanted

    # -- the body

    async def data_received(self, chunk: bytes) -> None:
        """Pass a piece of the body on, as fast as the remote service takes it."""
        if self._exchange is None or self._finished or (self._early is not None and self._early.done()):
            return  # it has answered already: the rest is read and dropped
        try:
            await self._exchange.send(chunk)
        except ConnectionLost:
            return  # what the remote service said, or that it is gone, is told after the body

    # -- after the body

    async def _relay_method(self, *_path: str) -> None:
        await self._relay_guarded()

    get = head = post = put = patch = delete = options = _relay_method
    propfind = proppatch = mkcol = copy = move = lock = unlock = report = search = _relay_method

    async def _relay_guarded(self) -> None:
        try:
            await self._relay()
        except StreamClosedError:
            self._close_exchange()
        except ClearMLSessionError as exc:
            self._close_exchange()
            if self._headers_written:
                self.log.info("proxy: %s", exc)
                self._abort()
            elif not self._finished:
                self._fail(exc)

    async def _relay(self) -> None:
        exchange = self._exchange
        if exchange is None or self._finished:
            return
        head = await self._response(exchange)
        if head.status == 101:
            await self._upgrade(exchange, head)
            return
        self._remember_cookies(head)
        rewriter = self._rewriter(head)
        if rewriter is not None:
            await self._relay_rewritten(exchange, head, rewriter)
        else:
            await self._relay_stream(exchange, head)

    async def _response(self, exchange: Exchange) -> http1.ResponseHead:
        exchange.expire_after(self.state.settings.first_byte)
        if self._early is None:
            exchange.end_request()
            return await exchange.response()
        if not self._early.done():
            try:
                exchange.end_request()
            except ConnectionLost:
                self.log.debug("proxy: the remote service closed its side before the request's end")
        return await self._early

    async def _relay_stream(self, exchange: Exchange, head: http1.ResponseHead) -> None:
        self._send_head(head)
        if whole := exchange.short_body():
            self._close_exchange()
            await self.finish(whole)
            return
        if not exchange.channel.readable or head.length == 0:
            await self.flush()  # otherwise it leaves together with the first piece of the body
        await self._relay_body(exchange, head, exchange.body())

    async def _relay_body(
        self, exchange: Exchange, head: http1.ResponseHead, body: AsyncIterator[bytes]
    ) -> None:
        async for data in body:
            self.write(data)
            await self.flush()
            if self._exchange is None:
                return  # the browser went away while it had more than it took
        self._close_exchange()
        if self.request.version == "HTTP/1.0" and head.length is None:
            self.detach().close()  # such a client knows the end of the body by the end of the connection
            return
        await self.finish()

    async def _relay_rewritten(
        self, exchange: Exchange, head: http1.ResponseHead, rewriter: Callable[[bytes, str], bytes]
    ) -> None:
        parts: list[bytes] = []
        size = 0
        body = exchange.body()
        async for data in body:
            parts.append(data)
            size += len(data)
            if size > jupyter_pages.MAX_PAGE:  # no page of Jupyter's
                self._send_head(head)
                self.write(b"".join(parts))
                await self._relay_body(exchange, head, body)
                return
        self._close_exchange()
        page = jupyter_pages.decode(b"".join(parts), head.get("content-encoding"))
        self._send_head(head, without=("content-encoding", "content-length", "etag", "last-modified"))
        self._offer_xsrf()
        self.write(rewriter(page, self._proxied.prefix))
        await self.finish()

    def _offer_xsrf(self) -> None:
        if not self.get_cookie("_xsrf"):
            _ = self.xsrf_token  # the page's own requests carry it; reading it sets the cookie

    async def _upgrade(self, exchange: Exchange, head: http1.ResponseHead) -> None:
        if not self._is_websocket():
            raise RemoteBadAnswer("The remote service switched to another protocol without being asked.")
        check_handshake(head, self.request.headers.get("Sec-WebSocket-Key", ""))
        passed = [
            (name, value)
            for name, value in to_browser(head.headers, self._proxied)
            if name.lower() not in ("content-length", "content-type")
        ]
        lines = [f"{name}: {value}" for name, value in passed]
        answer = "\r\n".join(
            ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", *lines, "", ""]
        )
        stream = self.detach()
        try:
            await stream.write(answer.encode("latin-1"))
            await splice(stream, exchange.channel)
        finally:
            stream.close()
            self._close_exchange()

    # -- answers

    def _send_head(self, head: http1.ResponseHead, *, without: tuple[str, ...] = ()) -> None:
        self._headers = HTTPHeaders()
        reason = re.sub(r"[^\x20-\x7e]", "?", head.reason) or None
        self.set_status(head.status, reason or self._default_reason(head.status))
        for name, value in to_browser(head.headers, self._proxied):
            if name.lower() not in without:
                self.add_header(name, value)

    @staticmethod
    def _default_reason(status: int) -> str:
        from http.client import responses

        return responses.get(status, "Unknown")

    async def _refuse(self, exc: InvalidInput) -> None:
        """Answer a request that could be read in two ways, and read nothing more from its connection."""
        self.set_header("Connection", "close")
        with contextlib.suppress(StreamClosedError):
            await self._fail(exc)
        self.detach().close()  # a mere `finish` lets Tornado go on with what it holds in its buffer

    def _fail(self, exc: ClearMLSessionError) -> Awaitable[None]:
        self._close_exchange()
        if isinstance(exc, ConnectionLost):
            exc = TunnelDown("The connection to the session broke before it answered.")
        self.set_status(exc.status)
        self.set_header("Cache-Control", "no-store")
        if answers.retries(exc):
            self.set_header("Retry-After", str(answers.RETRY_AFTER))
        if self._is_navigation():
            self.set_header("Content-Security-Policy", answers.PAGE_POLICY)
            self.set_header("Content-Type", "text/html; charset=utf-8")
            return self.finish(answers.page(exc))
        self.set_header("Content-Type", "application/json")
        return self.finish({"error": exc.to_json()})

    def _abort(self) -> None:
        """Reset the browser's connection: what it got is no complete answer and must not look like one."""
        stream = self.detach()
        if stream.socket is not None:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.close()

    # -- the ends

    def compute_etag(self) -> None:
        """Tags are the remote service's business."""

    def check_etag_header(self) -> bool:
        """Likewise."""
        return False

    def on_connection_close(self) -> None:
        """The browser has gone: let the remote service know."""
        super().on_connection_close()
        self._close_exchange()

    def on_finish(self) -> None:
        """Leave nothing open."""
        self._close_exchange()

    def _close_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if self._early is not None and not self._early.done():
            self._early.cancel()
        if exchange is not None:
            exchange.close()

    # -- what kind of request this is

    def _is_navigation(self) -> bool:
        mode = self.request.headers.get("Sec-Fetch-Mode")
        if self.request.method not in ("GET", "HEAD") or self._is_websocket():
            return False
        return mode == "navigate" if mode else "text/html" in self.request.headers.get("Accept", "")

    def _is_websocket(self) -> bool:
        return self.request.headers.get("Upgrade", "").lower() == "websocket"

    def _is_bulk(self, length: str | None) -> bool:
        if length is not None and length.isdigit() and int(length) >= BULK_BODY:
            return True
        return "Range" in self.request.headers or bool(_DOWNLOAD_PATH.search(self.request.path))

    def _may_be_rewritten(self) -> bool:
        """Whether the answer should come uncompressed, because something in it may have to be changed."""
        kind, path = self._service()
        return kind == "jupyter" and (path == _KERNELSPECS or not path.startswith(_DATA))

    def _rewriter(self, head: http1.ResponseHead) -> Callable[[bytes, str], bytes] | None:
        """Return what rewrites this answer, if anything does."""
        kind, path = self._service()
        if kind != "jupyter" or head.length == 0 or (head.length or 0) > jupyter_pages.MAX_PAGE:
            return None
        content = head.get("content-type").lower().partition(";")[0].strip()
        if content == "application/json" and path == _KERNELSPECS and head.status == 200:
            return jupyter_pages.rewrite_kernelspecs
        # Not only where a browser navigates: a page that a script fetches holds the remote's token as well, and
        # so does each of Jupyter's pages that tell an error.
        is_page = head.status >= 400 or (head.status == 200 and not path.startswith(_DATA))
        return jupyter_pages.rewrite if is_page and content == "text/html" else None

    def _remember_cookies(self, head: http1.ResponseHead) -> None:
        known = self.state.cookies(*self._key)
        for name in set_cookie_names(head.headers):
            if len(known) < MAX_COOKIE_NAMES:
                known.add(name)

    # -- for the subclasses

    def _service(self) -> tuple[str, str]:
        """Return which service is asked (``jupyter``, ``vscode``, ``port`` ...), and the path there."""
        return self.path_args[1], self.path_args[-1]

    async def _lookup(
        self, session_id: str, kind: str, number: str | None, prefix: str
    ) -> tuple[Route, Tunnel, str]:
        """Find a service by its kind, or by the number of its port."""
        if number is not None and not 1 <= int(number) <= 65535:
            raise InvalidInput(f"{number} is not a port.", field="port")
        manager: Any = self.settings["clearml_session_manager"]
        wait = self.state.settings.tunnel_wait
        tunnel: Tunnel | None = await manager.tunnel(session_id, wait)
        if tunnel is None:
            raise TunnelDown("The tunnel to the session is down.")
        if number is not None:
            return Route(prefix, int(number), strip=kind == "port"), tunnel, session_id
        endpoint = await manager.endpoint(session_id, kind, wait)
        token = endpoint.token if kind == "jupyter" else ""
        return Route(prefix, endpoint.port, token), tunnel, session_id

    def _prefix(self, *parts: str) -> str:
        return url_path_join(self.base_url, "clearml-session/proxy", *parts).rstrip("/")


class ServiceHandler(ProxyHandler):
    """``/<session>/jupyter/...`` and ``/<session>/vscode/...``."""

    async def _find(self) -> tuple[Route, Tunnel, str]:
        session_id, kind, _ = self.path_args
        return await self._lookup(session_id, kind, None, self._prefix(session_id, kind))


class PortHandler(ProxyHandler):
    """``/<session>/port/<n>/...`` and ``/<session>/port-absolute/<n>/...``."""

    async def _find(self) -> tuple[Route, Tunnel, str]:
        session_id, kind, number, _ = self.path_args
        return await self._lookup(session_id, kind, number, self._prefix(session_id, kind, number))


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


def other_spelling(base_url: str) -> list[tuple[str, type[web.RequestHandler], dict[str, str]]]:
    """Return the route that catches a base URL whose escapes were decoded; none where it has no escapes."""
    plain = unquote(base_url)
    if plain == base_url:
        return []
    return [(re.escape(plain) + r"clearml-session/proxy/(.*)", SpellingHandler, {"base_url": base_url})]


_ROOT = r"clearml-session/proxy/([^/]+)"

handlers: list[tuple[str, type[ProxyHandler]]] = [
    (_ROOT + r"/(jupyter|vscode)(/.*)?", ServiceHandler),
    (_ROOT + r"/(port|port-absolute)/(\d{1,5})(/.*)?", PortHandler),
]
"""The proxy's routes, relative to the server's base URL."""
