"""Which session is meant: by id, by the beginning of one, by name, or because there is only one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import AmbiguousSession, NotAttached, UnknownSession
from .client import Client
from .displays import SESSION_HEADS, SHORT, named, session_row, short_id, text_table

_FULL_ID = re.compile(r"[0-9a-f]{32}")
_TRIES = 3

Session = dict[str, Any]
Ask = Callable[[str, str], str]
"""Shows the first text, where there is one, and asks the second; returns the answer. Raises CannotAsk where nobody
can be asked."""


class CannotAsk(Exception):
    """Nobody is there to answer (nbclient, papermill)."""


def choose(client: Client, given: str, ask: Ask) -> Session:
    """Return the session that ``given`` means.

    An id that is complete is asked for as it is, so that one this machine never saw is found too; anything else is
    looked for among the user's active sessions, then among the ended ones, then among those of all users. Raises
    UnknownSession and AmbiguousSession.
    """
    wanted = given.strip()
    if not wanted:
        return _only(client.sessions(), ask)
    if _FULL_ID.fullmatch(wanted):
        return client.session(wanted)
    for state, all_users in (("active", False), ("ended", False), ("active", True)):
        found = matches(client.sessions(state, all_users=all_users), wanted)
        if found:
            return (
                found[0] if len(found) == 1 else _pick(f"{len(found)} sessions match {wanted!r}", found, ask)
            )
    raise UnknownSession(
        f"There is no session {wanted!r}.",
        hint="'%clearml_session list' shows yours; --all-users those of all.",
    )


def matches(sessions: Sequence[Session], wanted: str) -> list[Session]:
    """Return the sessions that ``wanted`` may mean: its whole name or id, else the beginning of an id."""
    exact = [session for session in sessions if wanted in (session["id"], session["name"])]
    return exact or [session for session in sessions if session["id"].startswith(wanted.lower())]


def check_attached(session: Mapping[str, Any]) -> None:
    """Raise NotAttached where this server is not connected to the session."""
    if not session.get("attached"):
        raise NotAttached(
            f"{named(session)} is not attached.",
            hint=f"Attach first: %clearml_session attach {short_id(session)}",
        )


def _only(active: Sequence[Session], ask: Ask) -> Session:
    if not active:
        raise UnknownSession(
            "There is no active session.", hint="Launch one: %clearml_session launch --queue QUEUE"
        )
    if len(active) == 1:
        return active[0]
    return _pick(f"{len(active)} sessions are active", list(active), ask)


def _pick(why: str, sessions: list[Session], ask: Ask) -> Session:
    """List the sessions and ask for one; a typed error where nobody can be asked or nobody chooses."""
    rows = [(number, *session_row(session)) for number, session in enumerate(sessions, 1)]
    listing = f"{why}:\n" + text_table(("", *SESSION_HEADS), rows, "")
    try:
        for _ in range(_TRIES):
            answer = ask(listing, "Which one (number, id or name)? ").strip()
            chosen = _answered(sessions, answer)
            if chosen is not None:
                return chosen
            if not answer:
                break
            listing = f"{answer!r} is none of them."
    except CannotAsk:
        pass  # the error says it
    raise AmbiguousSession(
        f"{why}: {', '.join(named(each) for each in sessions)}.",
        sessions=[_brief(session) for session in sessions],
    )


def _answered(sessions: list[Session], answer: str) -> Session | None:
    if answer.isascii() and answer.isdigit() and len(answer) < SHORT and 1 <= int(answer) <= len(sessions):
        return sessions[int(answer) - 1]
    found = matches(sessions, answer) if answer else []
    return found[0] if len(found) == 1 else None


def _brief(session: Mapping[str, Any]) -> dict[str, str]:
    return {"id": session["id"], "name": session["name"]}
