"""One admitted request: passed on to its service, and the answer brought back, both streamed."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream, StreamClosedError

from ..errors import ClearMLSessionError, ConnectionLost, InvalidInput, RemoteBadAnswer
from . import answers, http1, jupyter_pages
from .headers import LOCAL_PARAMETERS, Route, set_cookie_names, strip_token, to_browser, to_remote
from .services import Service
from .splice import check_handshake, splice
from .state import ProxyState
from .transport import Exchange

MAX_COOKIE_NAMES = 200
BULK_BODY = 1024 * 1024
"""Bytes from which a request body travels on the bulk connection."""

LARGE_BODY = 1024 * 1024
"""Bytes from which an answer's body goes past tornado."""

WIDE_BODY = 8 * 1024 * 1024
"""Bytes from which it may take several channels, which need a round trip more to open."""

_XSRF = frozenset({"_xsrf"})
"""The local server's value; a service has none by this name, as it cannot set the cookie."""

_DOWNLOAD_PATH = re.compile(r"/files/|/download|/nbconvert/")

Rewriter = Callable[[bytes, str], bytes]


class Answer(Protocol):
    """Where the answer goes. Its methods are those of `tornado.web.RequestHandler`, and three more."""

    def begin(self, status: int, reason: str, headers: http1.Headers) -> None:
        """Take the answer's head; it leaves with the first `flush`."""

    def offer_xsrf(self) -> None:
        """Let the browser have the local server's XSRF value: what comes is a page."""

    def write(self, chunk: bytes) -> None:
        """Take a piece of the body."""

    def flush(self) -> Awaitable[None]:
        """Send what was taken; await it before more is taken."""

    def finish(self, chunk: bytes | None = None) -> Awaitable[None]:
        """Send what was taken and `chunk`, and end the answer."""

    async def straight(self) -> LargeAnswer | None:
        """Return the answer to go on with where it gets large; None where that is this one.

        Called before `begin`. Raises StreamClosedError where the browser has gone.
        """

    def detach(self) -> IOStream:
        """Return the browser's connection; nothing else is done with it then."""

    def reset(self) -> None:
        """Reset the browser's connection: what it got is no complete answer and must not look like one."""


class LargeAnswer(Answer, Protocol):
    """An answer on the browser's connection itself."""

    status: int

    def lend(self, data: bytes | memoryview) -> asyncio.Future[None] | None:
        """Send a piece of the body, which may change afterwards; return what to wait for before the next one."""


class Relay:
    """Call `start` before the body is read, `send` for each piece of it, then `run`; `close` in every case.

    What the first and the last raise has not been answered: a `ClearMLSessionError` comes before anything was
    sent to the browser. Once something was, a failure resets its connection.
    """

    def __init__(
        self,
        request: HTTPServerRequest,
        answer: Answer,
        state: ProxyState,
        *,
        service: Service,
        path: str,
        by_token: bool,
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._request = request
        self._service = service
        self._path = path
        self._answer = answer
        self._state = state
        self._log = log
        self._by_token = by_token
        self._begun = False
        self._done = False
        self._closed = False
        self._exchange: Exchange | None = None
        self._early: asyncio.Task[http1.ResponseHead] | None = None
        self._route: Route
        self._cookies: set[str]
        """Names of the cookies that the service has set."""

    # -- before the body

    async def start(self, manager: Any) -> None:
        """Find the service and send it the request's head.

        Raises
        ------
        InvalidInput
            The request could be read in two ways.
        ClearMLSessionError
            What `Service.find` and `Exchange.start` raise.
        """
        route, tunnel = await self._service.find(manager, self._state.settings.tunnel_wait)
        if self._closed:
            raise ConnectionLost("The browser went away while the tunnel was being connected.")
        self._route = route
        method = self._request.method or "GET"
        chunked, length = http1.request_framing(self._request.headers.get_all(), self._request.version)
        has_body = chunked or (length is not None and length != "0")
        pool = self._state.pool(tunnel)
        self._cookies = pool.cookies[route.port]
        exchange = Exchange(
            pool,
            route.port,
            method,
            bulk=self._is_bulk(length),
            interactive=is_websocket(self._request),
            prompt=is_websocket(self._request) and bool(route.token),
            wide=length is not None and int(length) >= WIDE_BODY,
        )
        head = http1.request_head(method, self._target(), self._headers(length, chunked, has_body))
        self._exchange = exchange
        await exchange.start(head, chunked=chunked, has_body=has_body)
        if has_body:
            await self._await_continue(exchange)

    def _headers(self, length: str | None, chunked: bool, has_body: bool) -> http1.Headers:
        request = self._request
        result = to_remote(request.headers.get_all(), self._route, request.host, self._cookies)
        if self._service.is_page(self._path) or self._service.is_kernelspecs(self._path):
            # What comes may have to be rewritten.
            result = [(name, value) for name, value in result if name.lower() != "accept-encoding"]
            result.append(("Accept-Encoding", "identity"))
        if chunked:
            result.append(("Transfer-Encoding", "chunked"))
        elif length is not None:
            result.append(("Content-Length", length))
        elif request.method in ("POST", "PUT", "PATCH"):
            result.append(("Content-Length", "0"))
        if has_body and self._expects_continue():
            result.append(("Expect", "100-continue"))
        if is_websocket(request):
            result += [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        return result

    def _target(self) -> str:
        path, mark, query = (self._request.uri or "/").partition("?")
        rest = self._route.to_remote(path)
        if rest is None:
            raise InvalidInput("The path is malformed.", field="path")
        names = LOCAL_PARAMETERS if self._route.token or self._by_token else _XSRF
        query = strip_token(query, names=names)
        target = rest + (mark + query if query else "")
        return "".join(char if char < "\x80" else f"%{ord(char):02X}" for char in target)

    async def _await_continue(self, exchange: Exchange) -> None:
        """Watch for an answer while the body is being sent; keep a client that asked for it waiting for 100."""
        go_on = asyncio.Event()
        self._early = asyncio.ensure_future(exchange.response(go_on.set))
        if not self._expects_continue():
            return
        said = asyncio.ensure_future(go_on.wait())
        await asyncio.wait(
            (said, self._early),
            timeout=self._state.settings.continue_wait,
            return_when=asyncio.FIRST_COMPLETED,
        )
        said.cancel()
        if self._early.done():
            await self.run()  # a final answer: the body is not wanted

    # -- the body

    async def send(self, chunk: bytes) -> None:
        """Pass a piece of the body on, as fast as the remote service takes it."""
        if self._exchange is None or self._done or (self._early is not None and self._early.done()):
            return  # it has answered already: the rest is read and dropped
        try:
            await self._exchange.send(chunk)
        except ConnectionLost:
            return  # what the remote service said, or that it is gone, is told after the body

    # -- after the body

    async def run(self) -> None:
        """Bring the answer back.

        Raises
        ------
        ClearMLSessionError
            There was none, and nothing was sent to the browser.
        """
        exchange = self._exchange
        if exchange is None or self._done:
            return
        try:
            await self._bring(exchange, await self._response(exchange))
        except StreamClosedError:
            self.close()
        except ClearMLSessionError as exc:
            self.close()
            if not self._begun:
                raise
            self._log.info("proxy: %s", exc)
            self._done = True
            self._answer.reset()

    async def _response(self, exchange: Exchange) -> http1.ResponseHead:
        exchange.expire_after(self._state.settings.first_byte)
        if self._early is None:
            exchange.end_request()
            return await exchange.response()
        if not self._early.done():
            try:
                exchange.end_request()
            except ConnectionLost:
                self._log.debug("proxy: the remote service closed its side before the request's end")
        return await self._early

    async def _bring(self, exchange: Exchange, head: http1.ResponseHead) -> None:
        if head.status == 101:
            await self._upgrade(exchange, head)
            return
        self._remember_cookies(head)
        rewriter = self._rewriter(head)
        if rewriter is not None:
            await self._bring_rewritten(exchange, head, rewriter)
            return
        large = await self._answer.straight() if self._is_large(head) else None
        if large is not None:
            self._begun = True
            self._answer = large
            await self._pour(exchange, head, large)
            return
        self._begin(head)
        if whole := exchange.short_body():
            self.close()
            await self._finish(whole)
            return
        if not exchange.channel.readable or head.length == 0:
            await self._flush()  # otherwise it leaves together with the first piece of the body
        await self._bring_body(head, exchange.body())

    async def _bring_body(self, head: http1.ResponseHead, body: AsyncIterator[bytes]) -> None:
        async for data in body:
            self._answer.write(data)
            await self._flush()
            if self._exchange is None:
                return  # the browser went away while it had more than it took
        self.close()
        if self._request.version == "HTTP/1.0" and head.length is None:
            self._detach().close()  # such a client knows the end of the body by the end of the connection
            return
        await self._finish()

    async def _pour(self, exchange: Exchange, head: http1.ResponseHead, answer: LargeAnswer) -> None:
        """Bring a large body: what arrives goes to the browser's socket in the same turn of the event loop."""
        self._begin(head)
        await self._flush()
        try:
            await exchange.pour(answer.lend)
        except ClearMLSessionError:
            if self._exchange is None:
                return  # the browser went away
            raise
        self.close()
        await self._finish()

    async def _bring_rewritten(
        self, exchange: Exchange, head: http1.ResponseHead, rewriter: Rewriter
    ) -> None:
        parts: list[bytes] = []
        size = 0
        body = exchange.body()
        async for data in body:
            parts.append(data)
            size += len(data)
            if size > jupyter_pages.MAX_PAGE:  # no page of Jupyter's
                self._begin(head)
                self._answer.write(b"".join(parts))
                await self._bring_body(head, body)
                return
        self.close()
        page = jupyter_pages.decode(b"".join(parts), head.get("content-encoding"))
        self._begin(head, without=("content-encoding", "content-length", "etag", "last-modified"))
        self._answer.offer_xsrf()
        await self._finish(rewriter(page, self._route.prefix))

    async def _upgrade(self, exchange: Exchange, head: http1.ResponseHead) -> None:
        if not is_websocket(self._request):
            raise RemoteBadAnswer("The remote service switched to another protocol without being asked.")
        check_handshake(head, self._request.headers.get("Sec-WebSocket-Key", ""))
        passed = [
            (name, value)
            for name, value in to_browser(head.headers, self._route)
            if name.lower() not in ("content-length", "content-type")
        ]
        lines = [f"{name}: {value}" for name, value in passed]
        answer = "\r\n".join(
            ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", *lines, "", ""]
        )
        self._begun = True
        stream = self._detach()
        try:
            await stream.write(answer.encode("latin-1"))
            await splice(stream, exchange.channel)
        finally:
            stream.close()
            self.close()

    # -- what leaves for the browser

    def _begin(self, head: http1.ResponseHead, *, without: tuple[str, ...] = ()) -> None:
        if head.status == 204:
            without += ("content-length",)  # there is no body, and no length may be told (RFC 9110 8.6)
        headers = [
            (name, value)
            for name, value in to_browser(head.headers, self._route)
            if name.lower() not in without
        ]
        reason = re.sub(r"[^\x20-\x7e]", "?", head.reason) or answers.reason(head.status)
        self._answer.begin(head.status, reason, headers)

    def _flush(self) -> Awaitable[None]:
        self._begun = True
        return self._answer.flush()

    def _finish(self, chunk: bytes | None = None) -> Awaitable[None]:
        self._begun = self._done = True
        return self._answer.finish(chunk)

    def _detach(self) -> IOStream:
        self._done = True
        return self._answer.detach()

    # -- the ends

    def close(self) -> None:
        """Give the channel back, or tell the remote service that nobody wants its answer any more."""
        self._closed = True
        exchange, self._exchange = self._exchange, None
        if self._early is not None and not self._early.done():
            self._early.cancel()
        if exchange is not None:
            exchange.close()

    # -- what kind of request this is

    def _expects_continue(self) -> bool:
        return "100-continue" in self._request.headers.get("Expect", "").lower()

    def _is_bulk(self, length: str | None) -> bool:
        if length is not None and length.isdigit() and int(length) >= BULK_BODY:
            return True
        return "Range" in self._request.headers or bool(_DOWNLOAD_PATH.search(self._request.path))

    def _is_large(self, head: http1.ResponseHead) -> bool:
        """Whether the body of an answer, to a request without one, should go past tornado."""
        plain = self._request.method == "GET" and self._early is None and head.status < 400
        return plain and (head.length or 0) >= LARGE_BODY

    def _rewriter(self, head: http1.ResponseHead) -> Rewriter | None:
        """Return what rewrites this answer, if anything does."""
        if self._service.kind != "jupyter" or head.length == 0 or (head.length or 0) > jupyter_pages.MAX_PAGE:
            return None
        content = head.get("content-type").lower().partition(";")[0].strip()
        if content == "application/json" and self._service.is_kernelspecs(self._path) and head.status == 200:
            return jupyter_pages.rewrite_kernelspecs
        # Not only where a browser navigates: a page that a script fetches holds the remote's token as well, and
        # so does each of Jupyter's pages that tell an error.
        is_page = head.status >= 400 or (head.status == 200 and self._service.is_page(self._path))
        return jupyter_pages.rewrite if is_page and content == "text/html" else None

    def _remember_cookies(self, head: http1.ResponseHead) -> None:
        for name in set_cookie_names(head.headers):
            if len(self._cookies) < MAX_COOKIE_NAMES:
                self._cookies.add(name)


def is_websocket(request: HTTPServerRequest) -> bool:
    """Whether a request opens a WebSocket."""
    return request.headers.get("Upgrade", "").lower() == "websocket"


def is_navigation(request: HTTPServerRequest) -> bool:
    """Whether a person will see the answer as a page."""
    if request.method not in ("GET", "HEAD") or is_websocket(request):
        return False
    mode = request.headers.get("Sec-Fetch-Mode")
    return mode == "navigate" if mode else "text/html" in request.headers.get("Accept", "")
