"""Small requests the short way: without a handler of Jupyter's, where it admitted the same request a moment ago.

To find out who asks takes Jupyter's handlers longer than it takes to pass the request on. So plain requests (GET
or HEAD, no body, no token in the query, no page) go past them while an admission is remembered (`admissions`). All
others, each first one and each refusal go the whole way. What is done with a request and with its headers is
decided by the same `Relay`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, cast

from tornado import web
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerRequest, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.log import access_log
from tornado.routing import Router

from ..errors import ClearMLSessionError, InvalidInput
from . import answers, http1
from .admissions import Admission
from .headers import strip_token
from .relay import Relay, is_navigation, is_websocket
from .services import Service
from .state import ProxyState

_BODY = ("Content-Length", "Transfer-Encoding", "Expect")


class Express(Router):
    """A route's target. It takes the requests that may go the short way; all others are for the next route."""

    SUPPORTED_METHODS: tuple[str, ...] = ()
    """Jupyter looks here for methods that need no login."""

    def __init__(self, app: web.Application, base_url: str) -> None:
        self._settings = app.settings
        self._base_url = base_url

    def find_handler(self, request: HTTPServerRequest, **found: Any) -> HTTPMessageDelegate | None:
        """As tornado's `Router`: who answers the request, or None."""
        if not _is_plain(request):
            return None
        groups = [(group or b"").decode("utf-8", "replace") for group in found["path_args"]]
        service, path = Service.named(self._base_url, groups)
        if not path or service.is_page(path) or service.is_kernelspecs(path):
            return None
        admission = ProxyState.of(self._settings).admissions.find(request, service)
        return _Passage(request, service, path, self._settings, admission) if admission else None


def _is_plain(request: HTTPServerRequest) -> bool:
    return (
        request.method in ("GET", "HEAD")
        and not any(name in request.headers for name in _BODY)
        and not is_websocket(request)
        and not is_navigation(request)
        and strip_token(request.query) == request.query
    )


class _Passage(HTTPMessageDelegate):
    """One request. To Jupyter's log it is a handler."""

    def __init__(
        self,
        request: HTTPServerRequest,
        service: Service,
        path: str,
        settings: dict[str, Any],
        admission: Admission,
    ) -> None:
        self.request = request
        self.settings = settings
        self.current_user = admission.user
        self._connection = cast(HTTP1Connection, request.connection)
        self._answer = _Answer(self._connection, request)
        self._relay = Relay(
            request,
            self._answer,
            ProxyState.of(settings),
            service=service,
            path=path,
            by_token=admission.by_token,
            log=access_log,
        )
        self._failure: ClearMLSessionError | None = None
        self._task: asyncio.Task[None] | None = None
        self._connection.set_close_callback(self.on_connection_close)

    async def headers_received(self, start_line: object, headers: HTTPHeaders) -> None:
        """Send the request on in the very turn of the event loop in which it was read."""
        try:
            await self._relay.start(self.settings["clearml_session_manager"])
        except ClearMLSessionError as exc:
            self._failure = exc

    def finish(self) -> None:
        """Bring the answer back."""
        self._task = asyncio.ensure_future(self._bring_answer())

    def on_connection_close(self) -> None:
        """The browser has gone: let the remote service know."""
        self._relay.close()

    def get_status(self) -> int:
        """For the log."""
        return self._answer.status

    async def _bring_answer(self) -> None:
        try:
            if self._failure is not None:
                raise self._failure
            await self._relay.run()
        except ClearMLSessionError as exc:
            with contextlib.suppress(StreamClosedError):  # nobody is left to be told
                await self._answer.finish_failed(exc)
            if isinstance(exc, InvalidInput):
                self._connection.close()  # nothing more is read from it, as the whole way
        except BaseException:
            self._connection.close()
            raise
        finally:
            self._relay.close()
        if self.get_status() >= 400 and "log_function" in self.settings:
            self.settings["log_function"](self)


class _Answer:
    """A `relay.Answer` on the browser's connection itself."""

    def __init__(self, connection: HTTP1Connection, request: HTTPServerRequest) -> None:
        self.status = 200
        self._connection = connection
        self._request = request
        self._head: tuple[ResponseStartLine, HTTPHeaders] | None = None
        self._chunks: list[bytes] = []

    def begin(self, status: int, reason: str, headers: http1.Headers) -> None:
        self.status = status
        collected = HTTPHeaders()
        for name, value in headers:
            collected.add(name, value)
        self._head = ResponseStartLine("HTTP/1.1", status, reason), collected

    def offer_xsrf(self) -> None:
        """Pages get it the whole way."""

    def write(self, chunk: bytes) -> None:
        if self._request.method != "HEAD":
            self._chunks.append(chunk)

    def flush(self) -> Awaitable[None]:
        chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if self._head is None:
            return self._connection.write(chunk)
        head, self._head = self._head, None
        return self._connection.write_headers(*head, chunk)

    def finish(self, chunk: bytes | None = None) -> Awaitable[None]:
        if chunk:
            self.write(chunk)
        if self._head is not None and self.status not in (204, 304) and "Content-Length" not in self._head[1]:
            self._head[1]["Content-Length"] = str(sum(map(len, self._chunks)))
        sent = self.flush()
        self._connection.finish()
        return sent

    def detach(self) -> IOStream:
        return self._connection.detach()

    def finish_failed(self, exc: ClearMLSessionError) -> Awaitable[None]:
        """Say why there is no answer of the service."""
        status, headers, body = answers.failure(exc, page=False)
        self._chunks.clear()
        self.begin(status, answers.reason(status), headers)
        return self.finish(body)
