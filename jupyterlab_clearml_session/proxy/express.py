"""Small requests the short way: without a handler of Jupyter's, where it admitted the same request a moment ago.

To find out who asks takes Jupyter's handlers longer than it takes to pass the request on. So plain requests (GET
or HEAD, no body, no token in the query, no page) go past them while an admission is remembered (`admissions`), and
past tornado: their connection becomes a `lane`. All others, each first one and each refusal go the whole way.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import unquote

from tornado import web
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerRequest
from tornado.iostream import SSLIOStream
from tornado.routing import Router

from .headers import strip_token
from .lane import Known, Lane, Passage
from .relay import is_navigation, is_websocket
from .services import PATHS, Service
from .state import ProxyState

_BODY = ("Content-Length", "Transfer-Encoding", "Expect")
_TOLD_BY_A_PROXY = ("X-Real-Ip", "X-Forwarded-For", "X-Scheme", "X-Forwarded-Proto")
"""tornado may take from these who asks, for one request."""


class Express(Router):
    """A route's target. It takes the requests that may go the short way; all others are for the next route."""

    SUPPORTED_METHODS: tuple[str, ...] = ()
    """Jupyter looks here for methods that need no login."""

    def __init__(self, app: web.Application, base_url: str) -> None:
        self._settings = app.settings
        self._base_url = base_url
        self._paths = [re.compile(base_url + path) for path in PATHS]
        self._lanes: set[asyncio.Task[None]] = set()

    def find_handler(self, request: HTTPServerRequest, **found: Any) -> HTTPMessageDelegate | None:
        """As tornado's `Router`: who answers the request, or None."""
        server = self._server(request)
        if server is None:
            return None
        groups = [(group or b"").decode("utf-8", "replace") for group in found["path_args"]]
        passage = self._passage(request, groups, {})
        return _Entrance(self, self._lane(server), passage) if passage else None

    def lane(self, request: HTTPServerRequest) -> Lane | None:
        """Return a lane for the connection of a request; None where that has to stay with tornado."""
        server = self._server(request)
        return self._lane(server) if server is not None else None

    def find(self, request: HTTPServerRequest, known: Known) -> Passage | None:
        """Return how a request may go the short way, or None.

        `known` holds what was found for requests with the same headers, and takes what is found now.
        """
        for path in self._paths:
            match = path.fullmatch(request.path)
            if match is not None:
                return self._passage(request, [unquote(group or "") for group in match.groups()], known)
        return None

    def board(self, lane: Lane, passage: Passage) -> None:
        """Take the connection of a request from tornado."""
        stream = cast(HTTP1Connection, passage.request.connection).detach()
        task = asyncio.ensure_future(lane.run(stream, passage))
        self._lanes.add(task)
        task.add_done_callback(self._lanes.discard)

    def _server(self, request: HTTPServerRequest) -> HTTPServer | None:
        """Return who gets the connection of a request back; None where that has to stay with tornado."""
        if not isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
            return None  # Windows' other loop ends a connection with its transport
        if not _may_leave_tornado(request):
            return None
        return getattr(self._settings.get("serverapp"), "http_server", None)

    def _lane(self, server: HTTPServer) -> Lane:
        return Lane(server, self._settings, self.find)

    def _passage(self, request: HTTPServerRequest, groups: Sequence[str], known: Known) -> Passage | None:
        service, path = Service.named(self._base_url, groups)
        if not path or service.is_page(path) or service.is_kernelspecs(path):
            return None
        if strip_token(request.query) != request.query:
            return None
        key = request.method or "", service
        admission = known.get(key)
        if admission is None and _is_plain(request):
            admission = ProxyState.of(self._settings).admissions.find(request, service)
        if admission is None or not admission.lasts:
            return None
        known[key] = admission
        return Passage(request, service, path, admission)


def _may_leave_tornado(request: HTTPServerRequest) -> bool:
    stream = cast(HTTP1Connection, request.connection).stream
    return request.version == "HTTP/1.1" and stream is not None and not isinstance(stream, SSLIOStream)


def _is_plain(request: HTTPServerRequest) -> bool:
    return (
        request.method in ("GET", "HEAD")
        and request.headers.get("Connection", "keep-alive").lower() in ("keep-alive", "close")
        and not any(name in request.headers for name in (*_BODY, *_TOLD_BY_A_PROXY))
        and not is_websocket(request)
        and not is_navigation(request)
    )


class _Entrance(HTTPMessageDelegate):
    """The first request of a lane, which tornado has read."""

    def __init__(self, express: Express, lane: Lane, passage: Passage) -> None:
        self._express = express
        self._lane = lane
        self._passage = passage

    def headers_received(self, start_line: object, headers: HTTPHeaders) -> None:
        """Leave tornado."""
        self._express.board(self._lane, self._passage)
