"""One line to one ClearML server: logs in when first needed, off the event loop, every call with a deadline."""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import BadCredentials, ClearMLDeadline, ClearMLUnreachable
from .threads import DeadlineThreads

if TYPE_CHECKING:
    from .sdk import BoundedSession

T = TypeVar("T")

_PATCHED_BY_CLEARML = ("add_subparsers", "parse_args", "parse_known_args", "_get_value")
_IMPORT_DEADLINE = 120.0
_import_lock = threading.Lock()


class Connection:
    """Calls to the API server with the given credentials (None: the user's ordinary configuration).

    Parameters
    ----------
    timeout:
        Deadline of a call, in seconds.
    login_timeout:
        Deadline of the login, in seconds. The first one is preceded by ``import clearml``: 2 s, and much more on a
        busy machine, which is no fault of the server's.
    """

    def __init__(
        self,
        threads: DeadlineThreads,
        credentials: Mapping[str, str] | None,
        *,
        timeout: float,
        login_timeout: float,
    ) -> None:
        self.credentials = credentials
        self._threads = threads
        self._timeout = timeout
        self._login_timeout = login_timeout
        self._session: BoundedSession | None = None
        self._login: asyncio.Task[BoundedSession] | None = None

    @property
    def session(self) -> BoundedSession | None:
        """The SDK's session, once logged in."""
        return self._session

    async def call(self, endpoint: str, **body: Any) -> dict[str, Any]:
        """Send one request and return its ``data``; arguments that are None are left out.

        Raises NotConfigured, ClearMLUnreachable, ClearMLDeadline, ClearMLBadAnswer, BadCredentials, Forbidden,
        and what else `answers.failure` knows.
        """
        session = await self.login()
        sent = {key: value for key, value in body.items() if value is not None}
        try:
            try:
                return await self._send(session, endpoint, sent)
            except ClearMLUnreachable:
                # A kept-alive connection that the server closed meanwhile shows only now. Asking again is
                # harmless for a question, not for an order.
                if not endpoint.partition(".")[2].startswith("get"):
                    raise
                return await self._send(session, endpoint, sent)
        except BadCredentials:
            # They may have been renewed in the configuration: read it anew next time.
            self._session = None
            raise

    async def run(self, function: Callable[[BoundedSession], T], deadline: float) -> T:
        """Return ``function(session)``, run in a thread; for what is more than one request (uploads)."""
        session = await self.login()
        return await self._threads.run(function, session, deadline=deadline)

    async def login(self) -> BoundedSession:
        """Return the SDK's session, logging in where that has not been done; raises as `call`."""
        if self._session is not None:
            return self._session
        if self._login is None or self._login.done():
            # One login for all who wait for it; it goes on where one of them is cancelled.
            self._login = asyncio.ensure_future(self._log_in())
            self._login.add_done_callback(_consume)
        return await asyncio.shield(self._login)

    async def _send(self, session: BoundedSession, endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
        # The thread gives up by itself a little earlier, so that it knows why.
        return await self._threads.run(
            session.call, endpoint, body, self._timeout, deadline=self._timeout + 0.5
        )

    async def _log_in(self) -> BoundedSession:
        try:
            await self._threads.run(_import_sdk, deadline=_IMPORT_DEADLINE)
        except ClearMLDeadline:
            raise ClearMLDeadline(
                f"The ClearML SDK could not be imported within {_IMPORT_DEADLINE:g} seconds.",
                hint="This machine is very busy, or its Python lies on a slow disk.",
            ) from None
        self._session = await self._threads.run(
            _open_session, self.credentials, self._login_timeout, deadline=self._login_timeout + 0.5
        )
        return self._session


def configured_host() -> str:
    """Return the API server's address that the user's configuration names. Blocks; imports `clearml`."""
    return str(_import_sdk().configured_host())


def _open_session(credentials: Mapping[str, str] | None, deadline: float) -> BoundedSession:
    session: BoundedSession = _import_sdk().BoundedSession(credentials, deadline)
    return session


def _import_sdk() -> Any:
    """Import `clearml` without what it does to everybody else: it patches argparse to record arguments."""
    with _import_lock:
        kept = {name: vars(argparse.ArgumentParser)[name] for name in _PATCHED_BY_CLEARML}
        try:
            from . import sdk
        finally:
            for name, method in kept.items():
                setattr(argparse.ArgumentParser, name, method)
    return sdk


def _consume(login: asyncio.Task[Any]) -> None:
    """Look at the outcome, so that a login that nobody waits for any more is not reported as forgotten."""
    if not login.cancelled():
        login.exception()
