"""HTTP/1.1 on the wire towards the remote service: request heads out, response heads and framing in (RFC 9112).

Strict on purpose. The response decides where the next one on the same channel begins, so whatever two readers
could understand in two ways is refused, and the channel closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InvalidInput, RemoteBadAnswer

MAX_HEAD = 64 * 1024
MAX_HEADERS = 200
MAX_LINE = 16 * 1024
MAX_CHUNK_LINE = 1024
END_OF_HEAD = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

Headers = list[tuple[str, str]]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TARGET = re.compile(r"[\x21-\x7e]+")
_START = b"HTTP/1."
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\x20-\x7e\x80-\xff\t]*))?")
_HEADER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


@dataclass(frozen=True)
class ResponseHead:
    """A parsed response head. `length` is the body's; None where it is chunked or ends with the channel."""

    status: int
    reason: str
    headers: Headers
    chunked: bool
    length: int | None
    keep_alive: bool

    def get(self, name: str) -> str:
        """Return the first value of a header (lower-case `name`), or an empty string."""
        return next((value for key, value in self.headers if key.lower() == name), "")


def request_head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Serialise a request head.

    Raises
    ------
    InvalidInput
        A part could be read as something else by the remote service (white space in the target, a line break in
        a value ...), or there is too much of it.
    """
    if not _TOKEN.fullmatch(method):
        raise InvalidInput("The request method is malformed.", field="method")
    if not _TARGET.fullmatch(target) or not target.startswith("/"):
        raise InvalidInput("The request target is malformed.", field="path")
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _BAD_VALUE.search(value):
            raise InvalidInput("A request header is malformed.", field="headers")
        lines.append(f"{name}: {value}")
    if len(lines) > MAX_HEADERS + 1 or max(map(len, lines)) > MAX_LINE:
        raise InvalidInput("The request has too many headers, or one that is too long.", field="headers")
    try:
        return "\r\n".join((*lines, "", "")).encode("latin-1")
    except UnicodeEncodeError as exc:
        raise InvalidInput("A request header is malformed.", field="headers") from exc


def request_framing(headers: Iterable[tuple[str, str]], version: str) -> tuple[bool, str | None]:
    """Return how the body of a browser's request is framed: (chunked, Content-Length).

    Tornado checks this as well, but only once it reads the body; by then the head is on its way.

    Raises
    ------
    InvalidInput
        The framing is ambiguous.
    """
    headers = list(headers)
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    codings = [value.lower() for name, value in headers if name.lower() == "transfer-encoding"]
    malformed = len(lengths) > 1 or any(not re.fullmatch(r"[0-9]{1,18}", value) for value in lengths)
    # HTTP/1.0 knows no coding: whoever speaks it in between took the body for the next request (RFC 9112 6.1).
    unknown = codings and (lengths or codings != ["chunked"] or version == "HTTP/1.0")
    if malformed or unknown:
        raise InvalidInput("The length of the request's body is ambiguous.", field="headers")
    return bool(codings), lengths[0] if lengths else None


def response_head(data: bytes, method: str) -> ResponseHead:
    """Parse a response head without its final empty line; `method` is the request's, which decides on the body.

    Raises
    ------
    RemoteBadAnswer
        It is no HTTP/1.x, or it is ambiguous.
    """
    first, *lines = data.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise RemoteBadAnswer("The remote service does not speak HTTP.")
    if len(lines) > MAX_HEADERS:
        raise RemoteBadAnswer("The remote service sent too many headers.")
    headers = fields(lines)
    if headers is None:
        raise RemoteBadAnswer("The remote service sent a malformed header.")
    status = int(match[2])
    chunked, length = _framing(status, method, headers)
    return ResponseHead(
        status=status,
        reason=(match[3] or b"").decode("latin-1"),
        headers=headers,
        chunked=chunked,
        length=length,
        keep_alive=(length is not None or (chunked and match[1] == b"1"))
        and _keep_alive(match[1] == b"1", headers),
    )


def may_begin_head(data: bytes) -> bool:
    """Whether a response head may begin like this. Who speaks another protocol may never say what ends a head."""
    return data.startswith(_START[: len(data)]) and _BARE_LINE_FEED.search(data) is None


def fields(lines: Iterable[bytes]) -> Headers | None:
    """Parse header lines; None where one is malformed: folded, with a bare LF, a space before the colon ..."""
    headers: Headers = []
    for line in lines:
        field = _HEADER_LINE.fullmatch(line)
        if field is None:
            return None
        headers.append((field[1].decode("ascii"), field[2].rstrip(b" \t").decode("latin-1")))
    return headers


def answer_head(status: int, reason: str, headers: Headers) -> bytes:
    """Serialise a response head for the browser, of parts that `response_head` has parsed or that are our own."""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def chunk(parts: list[bytes]) -> list[bytes]:
    """Frame pieces of a body together as one chunk; nothing where there is nothing, as that would end the body."""
    size = sum(map(len, parts))
    return [b"%x\r\n" % size, *parts, b"\r\n"] if size else []


def chunk_size(line: bytes) -> int:
    """Parse the line before a chunk (without its line break); extensions are ignored."""
    match = _CHUNK_LINE.fullmatch(line)
    if match is None:
        raise RemoteBadAnswer("The remote service sent a malformed chunk.")
    return int(match[1], 16)


def _framing(status: int, method: str, headers: Headers) -> tuple[bool, int | None]:
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    codings = [value.lower() for name, value in headers if name.lower() == "transfer-encoding"]
    if codings and (lengths or codings != ["chunked"]):
        raise RemoteBadAnswer("The remote service sent an answer whose length is ambiguous.")
    if len(set(lengths)) > 1 or any(not re.fullmatch(r"[0-9]{1,18}", value) for value in lengths):
        raise RemoteBadAnswer("The remote service sent an answer whose length is ambiguous.")
    if len(lengths) > 1:  # the same again: passed on once, as RFC 9110 8.6 wants it
        headers[:] = [header for header in headers if header[0].lower() != "content-length"]
        headers.append(("Content-Length", lengths[0]))
    if method == "HEAD" or status in (204, 304) or status < 200:
        return False, 0
    if codings:
        return True, None
    return False, int(lengths[0]) if lengths else None


def _keep_alive(http_1_1: bool, headers: Headers) -> bool:
    options = {
        option.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for option in value.split(",")
    }
    return "close" not in options and (http_1_1 or "keep-alive" in options)
