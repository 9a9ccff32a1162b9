"""Who was admitted a moment ago: so that a page's many small requests are not each asked who they are."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream

from .services import Service

SECONDS = 5.0
"""How long an admission is remembered after it was decided. Using it does not prolong it."""

MOST = 64
"""How many are remembered of one connection; then the oldest is forgotten."""

CONDITIONS = frozenset({"If-Modified-Since", "If-None-Match", "If-Range", "Range"})
"""Headers in which two requests may differ: nobody decides by them who somebody is."""


@dataclass(frozen=True)
class Admission:
    """What was found out. `by_token`: the request showed the server's token."""

    user: Any
    by_token: bool
    until: float

    @property
    def lasts(self) -> bool:
        """Whether it is still remembered."""
        return monotonic() < self.until


class Admissions:
    """Those of the last few seconds, by the browser's connection and a digest of what they were decided by."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._known: WeakKeyDictionary[object, dict[bytes, Admission]] = WeakKeyDictionary()

    def __len__(self) -> int:
        """How many connections there are of which something is remembered."""
        return len(self._known)

    def remember(self, request: HTTPServerRequest, service: Service, *, user: Any, by_token: bool) -> None:
        """Remember that a request was admitted. One with a query is not: its query may have been the reason."""
        stream = _stream_of(request)
        if request.query or stream is None:
            return
        known = self._known.setdefault(stream, {})
        digest = self._digest(request, service)
        known.pop(digest, None)
        if len(known) >= MOST:
            del known[next(iter(known))]
        known[digest] = Admission(user, by_token, monotonic() + SECONDS)

    def find(self, request: HTTPServerRequest, service: Service) -> Admission | None:
        """Return the admission of such a request on the same connection: same service, method and headers."""
        stream = _stream_of(request)
        known = self._known.get(stream) if stream is not None else None
        found = known.get(self._digest(request, service)) if known else None
        return found if found is not None and found.lasts else None

    def move(self, request: HTTPServerRequest, stream: IOStream) -> None:
        """From now on, the connection that `request` came on is `stream`."""
        known = self._known.pop(_stream_of(request), None)
        if known is not None:
            self._known[stream] = known

    def _digest(self, request: HTTPServerRequest, service: Service) -> bytes:
        headers = [header for header in request.headers.get_all() if header[0] not in CONDITIONS]
        seen = repr((request.method, request.remote_ip, request.protocol, service, headers))
        return hashlib.blake2b(seen.encode("utf-8", "backslashreplace"), key=self._key).digest()


def _stream_of(request: HTTPServerRequest) -> object:
    """Return what stands for the connection of a request; None where that is not known."""
    return getattr(request.server_connection, "stream", None)
