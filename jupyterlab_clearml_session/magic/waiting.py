"""Waiting until a session is ready, with one display that is updated; Ctrl-C ends the waiting only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ClearMLSessionError, NotReadyInTime, SessionAborted, SessionFailed, WaitInterrupted
from . import displays
from .client import Client, error_of
from .live import Live

LOOK = 0.5
"""Seconds between two looks while something is going on."""
LOOK_QUEUED = 2.0
"""Seconds between two looks while the session waits for a machine, which can take hours."""

_OVER = ("ended", "failed")


def wait_until_ready(
    client: Client,
    session_id: str,
    live: Live,
    *,
    timeout: float | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Return the session once it is ready; shows how far it is.

    Raises WaitInterrupted, NotReadyInTime after ``timeout`` seconds, or the session's own error.
    """
    began = time.monotonic()
    session: dict[str, Any] = {"id": session_id, "name": session_id[: displays.SHORT], "phase": "created"}
    try:
        while True:
            session = client.session(session_id)
            seconds = time.monotonic() - began
            if session["phase"] == "ready":
                text = f"{session['name']} is ready, after {seconds:.0f} s."
                live.show(text, displays.tag("div", text))
                return session
            live.show(displays.progress_text(session, seconds), displays.progress_html(session, seconds))
            if session["phase"] in _OVER:
                raise _why_over(session)
            if timeout is not None and seconds >= timeout:
                raise NotReadyInTime(
                    f"{displays.named(session)} was not ready within {timeout:g} seconds: it is "
                    f"{session['phase']}. It goes on.",
                    hint=_goes_on(session_id),
                )
            wanted = LOOK_QUEUED if session["phase"] == "queued" else LOOK
            pause(wanted if timeout is None else min(wanted, max(timeout - seconds, 0)))
    except KeyboardInterrupt:
        raise WaitInterrupted(
            f"Stopped waiting for {displays.named(session)}. The session goes on: it is {session['phase']}.",
            hint=_goes_on(session_id),
        ) from None
    finally:
        live.close()


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn a Ctrl-C that nobody inside deals with into a WaitInterrupted, which shows none of our frames."""
    try:
        yield
    except KeyboardInterrupt:
        raise WaitInterrupted(
            "Interrupted: the answer is no longer waited for.",
            hint="What was asked for may still be done; '%clearml_session status' shows how things stand.",
        ) from None


def _why_over(session: dict[str, Any]) -> ClearMLSessionError:
    typed = error_of(session)
    if typed is not None:
        return typed
    if session["phase"] == "ended":
        return SessionAborted(f"{displays.named(session)} has ended.")
    return SessionFailed(f"{displays.named(session)} failed: {session.get('phase_text', '')}")


def _goes_on(session_id: str) -> str:
    short = session_id[: displays.SHORT]
    return f"'%clearml_session attach {short}' waits again, '%clearml_session shutdown {short}' ends it."
