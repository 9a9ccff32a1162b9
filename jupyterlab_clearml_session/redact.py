"""Take the secrets out of a session's console before anybody sees it.

The remote script prints the SSH password, the Jupyter token and the private host keys into the Task's log,
so what we show of that log goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "***"

# Runtime entries whose values are secrets; upstream's names.
_SECRET_RUNTIME = (
    "_ssh_password",
    "_jupyter_token",
    "_user_key",
    "_user_secret",
    "_git_credentials",
    "_git_config",
)
_MIN_SECRET = 6  # shorter values would mask ordinary words
_TOKEN = re.compile(r"(token=|[Aa]uthorization: *\w+ +)[^\s&\"']+")
_PASSWORD = re.compile(
    r"(?i)((?:\b|_)(?:password|access_key|secret_key|user_key|user_secret)\b['\"]?\s*[:=]\s*)['\"]?[^\s'\",\]]+"
)
# The remote script's "# LOGIN u:root p:...": the password may be too short to be looked for by itself.
_LOGIN = re.compile(r"(\bLOGIN u:\S* p:)\S+")
# With or without a name before the token; an SSH user alone is no secret.
_URL_CREDENTIALS = re.compile(r"(\w+://)[^/\s:@]*:[^/\s@]+@|(https?://)[^/\s@]+@")
_PEM_BEGIN = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_PEM_END = re.compile(r"-----END [A-Z ]*PRIVATE KEY-----")
# A line within a key, all but its last one: the lines may begin in the middle of it. Neither a hash nor most paths.
_PEM_BODY = re.compile(r"(?=.*[A-Z])(?=.*[a-z])(?=.*\d)[A-Za-z0-9+/]{60,76}={0,2}")
_PEM_INLINE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)


def secrets_of(runtime: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the secret values in a Task's runtime, longest first, so that none hides part of another."""
    values = {str(runtime.get(name) or "").strip() for name in _SECRET_RUNTIME}
    return tuple(sorted((value for value in values if len(value) >= _MIN_SECRET), key=len, reverse=True))


def redact(lines: Iterable[str], secrets: Iterable[str] = ()) -> list[str]:
    """Return ``lines`` (one console line each, in order) with secrets masked.

    Masked are the given values, tokens in URLs and headers, passwords, credentials in URLs, and private keys,
    also where a key runs over several lines, or the lines begin or end within one. The number of lines stays
    the same.
    """
    known = tuple(secrets)
    in_key = False
    masked: list[str] = []
    for line in lines:
        if in_key or _PEM_BODY.fullmatch(line.strip()):
            in_key = in_key and not _PEM_END.search(line)
            masked.append(MASK)
            continue
        text = _PEM_INLINE.sub(MASK, line)
        begin = _PEM_BEGIN.search(text)
        if begin:
            in_key = True
            text = text[: begin.start()] + MASK
        for secret in known:
            text = text.replace(secret, MASK)
        text = _TOKEN.sub(rf"\g<1>{MASK}", text)
        text = _PASSWORD.sub(rf"\g<1>{MASK}", text)
        text = _LOGIN.sub(rf"\g<1>{MASK}", text)
        masked.append(_URL_CREDENTIALS.sub(rf"\g<1>\g<2>{MASK}@", text))
    return masked
