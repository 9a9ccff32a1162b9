"""Someone else's session: opened only after this user has read what that means, and said so.

A session's pages share the local origin, so they can do here whatever this user can (docs/security.md). For
sessions that this user launched that is the point; whoever controls someone else's machine would get it too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tornado import web
from tornado.httputil import url_concat

from ..errors import ForeignSession
from .headers import strip_token

if TYPE_CHECKING:
    from jupyter_server.base.handlers import JupyterHandler

    from ..models import Session

COOKIE = "clearml-session-trust"
"""Signed by the local server, holds the session's id, valid for the session's path until the browser closes."""

LINK_DAYS = 1 / 24
"""How long the link of the warning works."""

_TOKEN_SCHEME = re.compile(r"(token|bearer)\s", re.IGNORECASE)
"""Those of which Jupyter takes its token."""


def trusts(handler: JupyterHandler, session: Session) -> bool:
    """Whether this request may see the session's pages without a warning."""
    if session.mine or _is_program(handler):
        return True
    return handler.get_signed_cookie(COOKIE, max_age_days=31) == session.id.encode()


def _is_program(handler: JupyterHandler) -> bool:
    """Whether the request showed the server's token in a header: no page can act in the name of who does.

    Any other header proves nothing: a proxy in front of the local server may add one to every request of a browser
    (``Basic``, an SSO's ``Bearer``). Nor does a token in the query, which a link may hold.
    """
    request = handler.request
    in_header = _TOKEN_SCHEME.match(request.headers.get("Authorization", ""))
    return bool(in_header) and strip_token(request.query) == request.query and handler.token_authenticated


def accepts(handler: web.RequestHandler, session_id: str) -> bool:
    """Whether the user has just followed a link of the warning."""
    given = handler.get_query_argument(COOKIE, "")
    secret = handler.settings["cookie_secret"]
    value = (
        web.decode_signed_value(secret, COOKIE + "-link", given, max_age_days=LINK_DAYS) if given else None
    )
    return value == session_id.encode()


def remember(handler: web.RequestHandler, session: Session, prefix: str) -> None:
    """Set the cookie, and lead on to the same address without the link's proof."""
    handler.set_signed_cookie(
        COOKIE, session.id, expires_days=None, path=prefix, httponly=True, samesite="Strict"
    )
    handler.redirect(handler.request.path + without_proof(handler.request.query))


def without_proof(query: str) -> str:
    """Return a query, with its question mark, without what the warning's link added to it."""
    query = strip_token(query, names=frozenset({COOKIE}))
    return f"?{query}" if query else ""


def warning(handler: web.RequestHandler, session: Session, prefix: str) -> ForeignSession:
    """Return the failure whose page is the warning; its ``link`` leads through, ``apart`` to an own origin."""
    owner = session.user.name if session.user is not None and session.user.name else "someone else"
    proof = handler.create_signed_value(COOKIE + "-link", session.id).decode()
    error = ForeignSession(f"This session was launched by {owner}, not by you.", session=session.id)
    address = handler.request.uri or "/"
    error.link = url_concat(address, {COOKIE: proof})
    if other_loopback(handler.request.host_name):
        error.apart = url_concat(address.replace(prefix + "/", prefix + "/apart/", 1), {COOKIE: proof})
    return error


def other_loopback(name: str) -> str | None:
    """Return a name of this machine that shares no cookie with `name`; None where that is no loopback name.

    Cookies do not tell ports apart: a page at another port of the same name would get the local server's.
    """
    if name == "localhost":
        return "127.0.0.1"
    return "localhost" if name in ("127.0.0.1", "::1", "[::1]") else None
