"""REST client of the local Jupyter server (docs/rest-api.md), for the kernel process: standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from ..errors import ClearMLSessionError, ServerRefused, ServerUnreachable
from .server import Server

DEADLINE = 60.0
"""Seconds for a call."""
LAUNCH_DEADLINE = 3700.0
"""Seconds for a launch, which answers once its files are uploaded: the server's own limit and a little more."""


class Client:
    """The calls that the magic needs. Every call raises the typed error that the server answered with.

    ``find`` is called for the server when it is needed first, and again once it stopped answering.
    """

    def __init__(self, find: Callable[[], Server]) -> None:
        self._find = find
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = self._find()
        return self._server

    def use(self, server: Server) -> None:
        """Talk to this server from now on."""
        self._server = server

    # -- clearml-session -----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return self._dict("GET", "status")

    def queues(self, deadline: float = DEADLINE) -> list[dict[str, Any]]:
        return self._list("queues", "queues", deadline)

    def presets(self, deadline: float = DEADLINE) -> dict[str, Any]:
        return self._dict("GET", "presets", deadline=deadline)

    def sessions(
        self,
        state: str = "active",
        *,
        all_users: bool = False,
        tag: str | None = None,
        project: str | None = None,
        deadline: float = DEADLINE,
    ) -> list[dict[str, Any]]:
        query = {"state": state, "all_users": int(all_users), "tag": tag, "project": project}
        asked = urlencode({key: value for key, value in query.items() if value is not None})
        return self._list(f"sessions?{asked}", "sessions", deadline)

    def session(self, session_id: str) -> dict[str, Any]:
        return self._dict("GET", _session(session_id))

    def launch(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._dict("POST", "sessions", body, LAUNCH_DEADLINE)

    def act(self, session_id: str, action: str) -> dict[str, Any]:
        """``action`` is "attach", "detach" or "reconnect"."""
        return self._dict("POST", f"{_session(session_id)}/{action}", {})

    def shutdown(self, session_id: str, *, purge: bool = False) -> dict[str, Any]:
        return self._dict("DELETE", _session(session_id) + ("?purge=1" if purge else ""))

    def log(self, session_id: str, limit: int) -> list[dict[str, Any]]:
        return self._list(f"{_session(session_id)}/log?limit={limit}", "lines")

    def kernelspecs(self, session_id: str, deadline: float = DEADLINE) -> list[dict[str, Any]]:
        return self._list(f"{_session(session_id)}/kernelspecs", "kernelspecs", deadline)

    def kernels(self, session_id: str) -> list[dict[str, Any]]:
        return self._list(f"{_session(session_id)}/kernels", "kernels")

    # -- Jupyter's own ---------------------------------------------------------------------------------------

    def jupyter(self, method: str, path: str, body: Any = None, *, deadline: float = DEADLINE) -> Any:
        """Call Jupyter's own REST API; returns None where it answers 404."""
        status, answer = self._call(method, path, body, deadline)
        if status == 404:
            return None
        if status >= 400:
            raise _refusal(self.server, status, answer)
        return answer

    def _list(self, path: str, key: str, deadline: float = DEADLINE) -> list[dict[str, Any]]:
        items = self._dict("GET", path, deadline=deadline).get(key)
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise ServerUnreachable(f"The Jupyter server at {self.server.url} answered without {key!r}.")
        return list(items)

    def _dict(self, method: str, path: str, body: Any = None, deadline: float = DEADLINE) -> dict[str, Any]:
        status, answer = self._call(method, f"clearml-session/api/{path}", body, deadline)
        if status >= 400:
            raise error_of(answer) or _refusal(self.server, status, answer)
        if not isinstance(answer, dict):
            raise ServerUnreachable(f"The Jupyter server at {self.server.url} did not answer with JSON.")
        return answer

    def _call(self, method: str, path: str, body: Any, deadline: float) -> tuple[int, Any]:
        server = self.server
        try:
            return server.call(method, path, body, deadline=deadline)
        except ServerUnreachable:
            self._server = None  # it may be started again at another port
            raise


def _session(session_id: str) -> str:
    return f"sessions/{quote(session_id, safe='')}"


def error_of(answer: Any) -> ClearMLSessionError | None:
    """Return the typed error of an answer, None where it is not in the contract's form."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        return None
    kind = _classes().get(error["code"])
    if kind is None:
        return None
    # Constructors differ; what they would compute is in the answer already.
    made = kind.__new__(kind)
    ClearMLSessionError.__init__(made, str(error.get("message", "")), hint=str(error.get("hint", "")))
    detail = error.get("detail")
    made.detail = dict(detail) if isinstance(detail, dict) else {}
    return made


def _classes() -> dict[str, type[ClearMLSessionError]]:
    found: dict[str, type[ClearMLSessionError]] = {}
    waiting: list[type[ClearMLSessionError]] = [ClearMLSessionError]
    while waiting:
        kind = waiting.pop()
        found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found


def _refusal(server: Server, status: int, answer: Any) -> ClearMLSessionError:
    message = ""
    if isinstance(answer, dict):
        error = answer.get("error")
        message = str(
            (error.get("message") if isinstance(error, dict) else "") or answer.get("message") or ""
        )
    if status in (401, 403):
        return ServerRefused(
            f"The Jupyter server at {server.url} does not accept our token.",
            hint=f"Give the right one: %clearml_session server {server.url}",
        )
    if status == 404:
        return ServerRefused(
            f"The Jupyter server at {server.url} does not have this extension.",
            hint="Install it where the server runs: pip install jupyterlab_clearml_session; then restart it.",
        )
    text = f"The Jupyter server at {server.url} answered with HTTP {status}"
    return ServerUnreachable(f"{text}: {message}" if message else f"{text}.")
