"""What the proxy itself answers when it cannot pass a request on: JSON for programs, a small page for people."""

from __future__ import annotations

import html
import json
from http.client import responses

from ..errors import ClearMLSessionError, ConnectionLost, ForeignSession, NotAttached, TunnelDown

RETRY_AFTER = 2
"""Seconds after which a browser asks again while the tunnel is down."""

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
{refresh}<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
body {{ display: grid; min-height: 80vh; place-content: center; padding: 1rem; }}
main {{ max-width: 36rem; line-height: 1.5; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{message}</p>
<p>{hint}</p>
{link}</main>
</body>
</html>
"""

_TITLES: dict[str | int, str] = {
    "too_many_channels": "Too much is open to the session",
    403: "Someone else's session",
    404: "No such session",
    409: "The session is not attached",
    503: "Reconnecting to the session",
    504: "The remote service does not answer",
}
"""By the code of the error, where there is one, and by its status."""


def failure(error: ClearMLSessionError, *, page: bool) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return the status, headers and body that tell of a failure: a page, or JSON."""
    if isinstance(error, ConnectionLost):
        error = TunnelDown("The connection to the session broke before it answered.")
    headers = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
    if retries(error):
        headers.append(("Retry-After", str(RETRY_AFTER)))
    if page:
        headers += [("Content-Security-Policy", PAGE_POLICY), ("Content-Type", "text/html; charset=utf-8")]
        return error.status, headers, page_of(error).encode()
    headers.append(("Content-Type", "application/json"))
    return error.status, headers, json.dumps({"error": error.to_json()}).encode()


def reason(status: int) -> str:
    """Return the words that go with a status."""
    return responses.get(status, "Unknown")


def retries(error: ClearMLSessionError) -> bool:
    """Whether the page tries again by itself: what it waits for is on its way, or can be asked for in the panel."""
    return error.status == 503 or isinstance(error, NotAttached)


def page_of(error: ClearMLSessionError) -> str:
    """Return a page that says what happened and what to do, and reloads itself where that will help."""
    title = _TITLES.get(error.code) or _TITLES.get(error.status, "The remote service cannot be reached")
    link = ""
    if isinstance(error, ForeignSession):
        link = f'<p><a href="{html.escape(error.link)}">Open it all the same</a></p>\n'
        if error.apart:
            # Not in a frame: there a page of another site would get none of its cookies.
            where = f'href="{html.escape(error.apart)}" target="_blank" rel="noopener"'
            link = f"<p><a {where}>Open it at an address of its own</a>, where it can do none of that</p>\n{link}"
    return _PAGE.format(
        refresh=f'<meta http-equiv="refresh" content="{RETRY_AFTER}">\n' if retries(error) else "",
        title=html.escape(title),
        message=html.escape(error.message),
        hint=html.escape(error.hint),
        link=link,
    )
