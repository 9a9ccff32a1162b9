"""Take the secrets out of a session's console before anybody sees it.

The remote script prints the SSH password, the Jupyter token and the private host keys into the Task's log
(FIELD_NOTES.md 3), so what we show of that log goes through here.
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
_PASSWORD = re.compile(r"(?i)(\bpassword\b['\"]?\s*[:=]\s*)['\"]?[^\s'\",\]]+")
_URL_CREDENTIALS = re.compile(r"(\w+://)[^/\s:@]+:[^/\s@]+@")
_PEM_BEGIN = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_PEM_END = re.compile(r"-----END [A-Z ]*PRIVATE KEY-----")
_PEM_INLINE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)


def secrets_of(runtime: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the secret values in a Task's runtime, longest first, so that none hides part of another."""
    values = {str(runtime.get(name) or "").strip() for name in _SECRET_RUNTIME}
    return tuple(sorted((value for value in values if len(value) >= _MIN_SECRET), key=len, reverse=True))


def redact(lines: Iterable[str], secrets: Iterable[str] = ()) -> list[str]:
    """Return ``lines`` (one console line each, in order) with secrets masked.

    Masked are the given values, tokens in URLs and headers, passwords, credentials in URLs, and private keys,
    also where a key runs over several lines. The number of lines stays the same.
    """
    known = tuple(secrets)
    in_key = False
    masked: list[str] = []
    for line in lines:
        if in_key:
            in_key = not _PEM_END.search(line)
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
        masked.append(_URL_CREDENTIALS.sub(rf"\g<1>{MASK}@", text))
    return masked
