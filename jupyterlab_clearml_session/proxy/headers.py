"""Which headers may pass between the browser and the remote service, and how they are changed (docs/security.md).

The remote service is told that it is at ``http://localhost:<port>/``. It never sees the local server's address,
cookies, tokens or XSRF values; the browser never sees the remote's token, and takes its cookies for the proxied
path only.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote_plus, urlsplit

from .http1 import Headers

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Those that RFC 9110 7.6.1 names, and their relatives. What `Connection` lists is dropped as well."""

NOT_TO_REMOTE = frozenset(
    {
        "authorization",
        "cookie",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "origin",
        "referer",
        "true-client-ip",
        "x-csrftoken",
        "x-real-ip",
        "x-scheme",
        "x-xsrftoken",
    }
)
"""The local server's secrets, and where the browser and the local server are. Some are set anew below."""

TOLD_BY_PROXIES = (
    "cf-access-",
    "proxy-",
    "x-amzn-oidc-",
    "x-auth-request-",
    "x-forwarded-",
    "x-goog-authenticated-user-",
    "x-goog-iap-",
    "x-jupyterhub-",
    "x-ms-client-principal",
    "x-ms-token-",
)
"""How names begin by which something before the local server tells it where a request comes from and who asks.

Some hold a token that opens the local server as well.
"""

NOT_TO_BROWSER = frozenset(
    {
        "accept-ch",
        "alt-svc",
        "clear-site-data",
        "nel",
        "origin-agent-cluster",
        "public-key-pins",
        "report-to",
        "reporting-endpoints",
        "set-cookie",
        "set-login",
        "strict-transport-security",
        "www-authenticate",
    }
)
"""What would act on the whole local origin instead of the proxied path."""

_DROPPED_UPWARDS = HOP_BY_HOP | NOT_TO_REMOTE
_DROPPED_DOWNWARDS = HOP_BY_HOP | NOT_TO_BROWSER

LOCAL_COOKIES = re.compile(
    r"_xsrf|clearml-session-.*|username-.*|jupyterhub-.*|jupyter-hub-.*|_jupyter.*", re.IGNORECASE
)
"""Names that belong to the local Jupyter server or its hub; a remote service can neither read nor set them."""

LOCAL_PARAMETERS = frozenset({"token", "_xsrf"})
"""Parameters of a query that hold what is the local server's. JupyterLab adds the second one to downloads."""

_COOKIE_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 -- names, nothing binds


@dataclass(frozen=True)
class Route:
    """Where a proxied path leads.

    `prefix` is the local path that stands for ``/`` of the remote service, without a final slash. Where the
    remote knows the prefix itself (port-absolute), `strip` is False and paths are the same on both sides.
    """

    prefix: str
    port: int
    token: str = ""
    strip: bool = True

    @property
    def host(self) -> str:
        """The address that the remote service is told."""
        return f"localhost:{self.port}"

    def to_local(self, path: str) -> str:
        """Map an absolute path of the remote service to the local one."""
        if not self.strip or path == self.prefix or path.startswith(self.prefix + "/"):
            return path
        return self.prefix + path

    def to_remote(self, path: str) -> str | None:
        """Map a local path to the remote service's; None where it is not below the prefix."""
        if path != self.prefix and not path.startswith(self.prefix + "/"):
            return None
        return (path[len(self.prefix) :] or "/") if self.strip else path

    def __repr__(self) -> str:
        return f"Route({self.prefix!r}, port={self.port}, strip={self.strip})"


def to_remote(
    headers: Iterable[tuple[str, str]], route: Route, local_host: str, cookies: Container[str]
) -> Headers:
    """Return the headers that the remote service gets, without framing.

    `local_host` is the ``Host`` that the browser used, `cookies` the names that this service has set before.
    """
    headers = list(headers)
    dropped = _DROPPED_UPWARDS | _named_by_connection(headers)
    result: Headers = [("Host", route.host)]
    for name, value in headers:
        key = name.lower()
        if key == "cookie":
            kept = _cookies_for_remote(value, cookies)
            if kept:
                result.append(("Cookie", kept))
        elif key == "origin":
            result.append(("Origin", _origin(value, local_host, route)))
        elif key == "referer":
            referer = _referer(value, local_host, route)
            if referer:
                result.append(("Referer", referer))
        elif key == "x-csrftoken":
            if not _is_local_xsrf(value, headers):  # Django, Flask-WTF and others take theirs there
                result.append((name, value))
        elif key not in dropped and not key.startswith(TOLD_BY_PROXIES):
            result.append((name, value))
    if route.token:
        result.append(("Authorization", f"token {route.token}"))
    return result


def to_browser(headers: Iterable[tuple[str, str]], route: Route) -> Headers:
    """Return the headers of a response that the browser gets; framing headers other than the length are dropped."""
    headers = list(headers)
    # The length stays, whoever calls it a matter of the connection: without it a large body would be framed by
    # chunks that are in it, and what its end says would be the next answer.
    dropped = _DROPPED_DOWNWARDS | (_named_by_connection(headers) - {"content-length"})
    result: Headers = []
    for name, value in headers:
        key = name.lower()
        if key == "location":
            result.append((name, location(value, route)))
        elif key == "set-cookie":
            cookie = confine_cookie(value, route)
            if cookie:
                result.append((name, cookie))
        elif key == "service-worker-allowed":
            result.append((name, route.prefix + "/"))  # what lies below is the remote's anyway
        elif key not in dropped and not key.startswith("access-control-"):
            result.append((name, value))
    return result


def set_cookie_names(headers: Iterable[tuple[str, str]]) -> set[str]:
    """Return the names of the cookies that a response sets and that may be sent back later."""
    names = {value.partition("=")[0].strip() for name, value in headers if name.lower() == "set-cookie"}
    return {name for name in names if _COOKIE_NAME.fullmatch(name) and not LOCAL_COOKIES.fullmatch(name)}


def confine_cookie(value: str, route: Route) -> str | None:
    """Return a ``Set-Cookie`` value that is valid for the proxied path only; None where it must not pass."""
    pair, *attributes = value.split(";")
    name = pair.partition("=")[0].strip()
    if not _COOKIE_NAME.fullmatch(name) or LOCAL_COOKIES.fullmatch(name):
        return None
    if name.lower().startswith("__host-"):
        return None  # such a cookie must have the path "/", so it cannot be confined
    path = "/"
    kept = [pair.strip()]
    for attribute in attributes:
        key, _, text = attribute.partition("=")
        key = key.strip().lower()  # as browsers read it: a space before the "=" is none of the name
        if key == "path":
            path = text.strip()
        elif key != "domain" and attribute.strip():
            kept.append(attribute.strip())
    if not path.startswith("/"):
        path = "/"
    kept.append(f"Path={_cookie_path(path, route)}")
    return "; ".join(kept)


def location(value: str, route: Route) -> str:
    """Map a ``Location`` that leads into the remote service to the proxied path; leave any other alone."""
    parts = _split(value)
    if parts is None:
        return value
    if parts.netloc:
        if not _is_remote_itself(parts.hostname, _port(parts), route):
            return value
        rest = value.split("//", 1)[1]
        path = rest[len(parts.netloc) :] or "/"
        return route.to_local(path if path.startswith("/") else "/" + path)
    if parts.scheme or not value.startswith("/"):
        return value
    return route.to_local(value)


def strip_token(query: str, *, names: frozenset[str] = frozenset({"token"})) -> str:
    """Return a query string without the parameters in `names`; all others stay byte for byte."""
    if not query:
        return query
    return "&".join(part for part in query.split("&") if unquote_plus(part.partition("=")[0]) not in names)


def _named_by_connection(headers: Iterable[tuple[str, str]]) -> frozenset[str]:
    return frozenset(
        option.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for option in value.split(",")
    )


def _cookies_for_remote(value: str, names: Container[str]) -> str:
    pairs = (pair.strip() for pair in value.split(";"))
    return "; ".join(pair for pair in pairs if pair and pair.partition("=")[0].strip() in names)


def _is_local_xsrf(value: str, headers: Headers) -> bool:
    """Whether it is the local server's XSRF value: as in its cookie, or masked anew, which Tornado begins by 2."""
    cookies = (pair.strip() for name, text in headers if name.lower() == "cookie" for pair in text.split(";"))
    return value.startswith("2|") or f"_xsrf={value}" in cookies


def _cookie_path(path: str, route: Route) -> str:
    if not route.strip:
        # The remote knows the prefix; a path above it would let the cookie out.
        return path if path == route.prefix or path.startswith(route.prefix + "/") else route.prefix + "/"
    return route.prefix + path


def _origin(value: str, local_host: str, route: Route) -> str:
    parts = _split(value)
    is_local = parts is not None and parts.netloc.lower() == local_host.lower()
    return f"http://{route.host}" if is_local else "null"


def _referer(value: str, local_host: str, route: Route) -> str | None:
    parts = _split(value)
    path = route.to_remote(parts.path) if parts is not None else None
    if parts is None or parts.netloc.lower() != local_host.lower() or path is None:
        return None  # elsewhere in the local server: its path and query are none of the remote's business
    query = strip_token(parts.query, names=LOCAL_PARAMETERS)
    return f"http://{route.host}{path}" + (f"?{query}" if query else "")


def _split(value: str) -> SplitResult | None:
    """Return the parts of an address; None where it is none (``http://[``)."""
    try:
        return urlsplit(value)
    except ValueError:
        return None


def _is_remote_itself(hostname: str | None, port: int | None, route: Route) -> bool:
    return hostname in LOOPBACK_NAMES and (port or 80) == route.port


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:
        return None
