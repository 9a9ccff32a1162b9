"""Refuses request heads that two servers could read differently, before Tornado mends them.

Tornado takes a bare line feed for the end of a line (until 6.7), and joined folded lines (until 6.6). No handler
sees either: the head has been parsed by then. A proxy in front of the local server may have read something else, so
for our routes such a head is answered 400 and the connection closed, as Tornado does with what it refuses itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tornado import web
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPInputError, HTTPServerConnectionDelegate

OURS = b"clearml-session/proxy/"
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")
"""A bare line feed, a bare carriage return, a folded line."""

_MARK = "clearml_session_strict"


def guard(app: web.Application, ours: bytes = OURS) -> None:
    """Let every connection of `app` refuse such heads where `ours` is in them. Calling it again does nothing."""
    if app.settings.get(_MARK):
        return
    app.settings[_MARK] = True
    start_request: Callable[..., Any] = app.start_request

    def start_strictly(server_conn: object, request_conn: Any) -> HTTPServerConnectionDelegate:
        _watch(request_conn, ours)
        delegate: HTTPServerConnectionDelegate = start_request(server_conn, request_conn)
        return delegate

    app.start_request = start_strictly  # type: ignore[method-assign,assignment]


def _watch(connection: HTTP1Connection, ours: bytes) -> None:
    parse = getattr(connection, "_parse_headers", None)
    if parse is None:
        return  # another Tornado; from 6.7 on it refuses these itself, and no request may fail for this

    def parse_strictly(data: bytes) -> Any:
        if ours in data and _AMBIGUOUS.search(data):
            raise HTTPInputError("a bare line break or a folded line in the request's head")
        return parse(data)

    connection._parse_headers = parse_strictly  # type: ignore[method-assign]
