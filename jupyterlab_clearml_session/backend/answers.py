"""What the API server answered: its data, or the failure behind an error."""

from __future__ import annotations

import json
from typing import Any

from ..errors import (
    BadCredentials,
    ClearMLBadAnswer,
    ClearMLSessionError,
    Forbidden,
    InvalidInput,
    UnknownEndpoint,
    UnknownQueue,
    UnknownTask,
    WrongPhase,
)


def data(status: int, text: str) -> dict[str, Any]:
    """Return the ``data`` of an answer.

    Raises ClearMLBadAnswer where it is not ClearML's protocol, and what `failure` makes of an error.
    """
    try:
        body = json.loads(text)
        meta, found = body["meta"], body["data"]
        subcode, message = int(meta.get("result_subcode") or 0), str(meta.get("result_msg") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        if status == 401:
            raise BadCredentials("The ClearML server does not accept the credentials.") from None
        raise ClearMLBadAnswer(
            f"The server answered with something that is not ClearML's protocol (HTTP {status})."
        ) from None
    if status != 200:
        raise failure(status, subcode, message)
    if not isinstance(found, dict):
        raise ClearMLBadAnswer("The server answered with something that is not ClearML's protocol.")
    return found


def failure(status: int, subcode: int, message: str) -> ClearMLSessionError:
    """Return the failure that an error answer stands for; ClearML tells by the subcode what it is about."""
    if status == 401:
        return BadCredentials("The ClearML server does not accept the credentials.", subcode=subcode)
    if status == 403:
        return Forbidden(f"ClearML does not allow it: {message}", subcode=subcode)
    if status == 404:
        return UnknownEndpoint(f"The ClearML server does not have this call: {message}", subcode=subcode)
    if status == 400 and subcode == 101:
        return UnknownTask("ClearML has no such Task.", subcode=subcode)
    if status == 400 and subcode in (701, 703):
        return UnknownQueue("ClearML has no such queue.", field="queue", subcode=subcode)
    if status == 400 and subcode == 401:
        return InvalidInput("ClearML has no such project.", field="project", subcode=subcode)
    if status == 400 and subcode in (110, 123, 706):
        return WrongPhase(f"ClearML refuses it in the Task's state: {message}", subcode=subcode)
    return ClearMLBadAnswer(
        f"ClearML answered with an error: {message or f'HTTP {status}'}",
        hint="",
        http_status=status,
        subcode=subcode,
    )
