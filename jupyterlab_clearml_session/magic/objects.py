"""What the magics return: small objects with a rich display, plain text, and the same data as REST."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, overload

from .. import __version__
from ..errors import WrongPhase
from ..launch_spec import LaunchSpec
from . import displays
from .choose import check_attached
from .displays import Markup

Data = Mapping[str, Any]

_OPTION = {"jupyter": "jupyter-lab", "vscode": "vscode-server"}


class Actions(Protocol):
    """What a `SessionHandle` can do; the magics know how."""

    def refresh(self, session_id: str) -> dict[str, Any]: ...
    def wait(self, session_id: str, timeout: float | None) -> dict[str, Any]: ...
    def act(self, session_id: str, action: str) -> dict[str, Any]: ...
    def shutdown(self, session_id: str, purge: bool) -> dict[str, Any]: ...
    def kernels(self, session_id: str) -> list[dict[str, Any]]: ...
    def log(self, session_id: str, limit: int) -> list[dict[str, Any]]: ...
    def run(self, session_id: str, code: str, options: Mapping[str, Any]) -> Any: ...


class Shown:
    """Base: HTML for notebooks, text for terminals, and for ``print``."""

    def _text(self) -> str:
        raise NotImplementedError

    def _html(self) -> Markup:
        raise NotImplementedError

    def __repr__(self) -> str:
        return self._text()

    def _repr_html_(self) -> str:
        return str(self._html())


class SessionHandle(Shown):
    """A session. ``data`` is what REST said of it when it was last asked.

    Every method asks the local Jupyter server and raises the errors of `jupyterlab_clearml_session.errors`.
    """

    def __init__(self, data: Data, actions: Actions) -> None:
        self._data = dict(data)
        self._actions = actions

    @property
    def id(self) -> str:
        return str(self._data["id"])

    @property
    def name(self) -> str:
        return str(self._data.get("name", ""))

    @property
    def phase(self) -> str:
        """The phase now: the server is asked."""
        self._data = self._actions.refresh(self.id)
        return str(self._data["phase"])

    @property
    def data(self) -> dict[str, Any]:
        """The same as ``GET sessions/<id>``, as of the last call."""
        return dict(self._data)

    @property
    def kernels(self) -> list[dict[str, Any]]:
        """The kernels that live on the session, whoever started them."""
        return self._actions.kernels(self.id)

    def refresh(self) -> SessionHandle:
        """Ask the server again."""
        self._data = self._actions.refresh(self.id)
        return self

    def wait(self, timeout: float | None = None) -> SessionHandle:
        """Wait until the session is ready, showing how far it is.

        Raises WaitInterrupted on Ctrl-C, NotReadyInTime after ``timeout`` seconds (the session goes on in both
        cases), and the session's own error where it fails.
        """
        self._data = self._actions.wait(self.id, timeout)
        return self

    def attach(self) -> SessionHandle:
        """Connect to the session; `wait` waits for it."""
        self._data = self._actions.act(self.id, "attach")
        return self

    def detach(self) -> SessionHandle:
        """Close the connection. The session goes on."""
        self._data = self._actions.act(self.id, "detach")
        return self

    def shutdown(self, purge: bool = False) -> SessionHandle:
        """End the session and free its machine; ``purge`` deletes an ended one from ClearML."""
        self._data = self._actions.shutdown(self.id, purge)
        return self

    def log(self, lines: int = 50) -> Log:
        """Return the last lines of the session's log."""
        return Log(self._actions.log(self.id, lines))

    def run(
        self,
        code: str,
        *,
        kernel: str | None = None,
        new: bool = False,
        take: Sequence[str] = (),
        bring: Sequence[str] = (),
        force: bool = False,
    ) -> Any:
        """Run code in this notebook's kernel on the session, as ``%%clearml_session run`` does.

        ``take`` and ``bring`` are the variables of ``--in`` and ``--out``.
        """
        options = {"kernel": kernel, "new": new, "in": list(take), "out": list(bring), "force": force}
        return self._actions.run(self.id, code, options)

    def _text(self) -> str:
        return displays.session_text(self._data)

    def _html(self) -> Markup:
        return displays.session_html(self._data)


class SessionInfo(Shown):
    """All that is known of a session."""

    def __init__(self, data: Data) -> None:
        self.data = dict(data)

    def _text(self) -> str:
        return displays.text_facts(displays.session_facts(self.data))

    def _html(self) -> Markup:
        facts: list[tuple[str, Any]] = list(displays.session_facts(self.data))
        linked = [
            (key, displays.link("its page", value) if key == "in ClearML" else value) for key, value in facts
        ]
        return displays.html_facts(linked)


class SessionList(Shown, Sequence[SessionHandle]):
    """Sessions, in the order of the server."""

    def __init__(self, sessions: Sequence[Data], actions: Actions, empty: str) -> None:
        self.data = [dict(session) for session in sessions]
        self._handles = [SessionHandle(session, actions) for session in sessions]
        self._empty = empty
        self._now: datetime | None = None

    @overload
    def __getitem__(self, index: int) -> SessionHandle: ...
    @overload
    def __getitem__(self, index: slice) -> list[SessionHandle]: ...
    def __getitem__(self, index: int | slice) -> SessionHandle | list[SessionHandle]:
        return self._handles[index]

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[SessionHandle]:
        return iter(self._handles)

    def _text(self) -> str:
        rows = [displays.session_row(session, self._now) for session in self.data]
        return displays.text_table(displays.SESSION_HEADS, rows, self._empty)

    def _html(self) -> Markup:
        rows = [displays.session_html_row(session, self._now) for session in self.data]
        return displays.html_table(displays.SESSION_HEADS, rows, self._empty)


class Table(Shown):
    """REST data (``data``) shown as a table made of some of it."""

    def __init__(self, data: Any, heads: Sequence[str], rows: Sequence[displays.Row], empty: str) -> None:
        self.data = data
        self._heads, self._rows, self._empty = heads, rows, empty

    def _text(self) -> str:
        return displays.text_table(self._heads, self._rows, self._empty)

    def _html(self) -> Markup:
        return displays.html_table(self._heads, self._rows, self._empty)


class Log(Shown):
    """Lines of a log, oldest first; ``data`` holds their ``time`` and ``text``."""

    def __init__(self, lines: Sequence[Data]) -> None:
        self.data = [dict(line) for line in lines]

    def _text(self) -> str:
        return "\n".join(str(line["text"]).rstrip("\n") for line in self.data) or "The log is empty."

    def _html(self) -> Markup:
        style = "max-height: 30em; overflow: auto; white-space: pre-wrap"
        return displays.tag("pre", self._text(), style=style, tabindex="0")


class Status(Shown):
    """Where we stand with ClearML (``data``, as ``GET status``), and the active sessions."""

    def __init__(self, data: Data, sessions: SessionList | None, server: str) -> None:
        self.data = dict(data)
        self.sessions = sessions
        self._server = server

    def _facts(self) -> list[tuple[str, str]]:
        user, error = self.data.get("user") or {}, self.data.get("error") or {}
        mode = {
            "server": "connected to a ClearML server",
            "local": "the embedded default on this machine",
            "unconfigured": "not configured: open the ClearML panel",
        }.get(str(self.data.get("mode")), str(self.data.get("mode")))
        facts = [
            ("ClearML", mode),
            ("API server", self.data.get("api_server")),
            ("reachable", "yes" if self.data.get("reachable") else "no"),
            ("its version", self.data.get("version")),
            ("user", user.get("name") or user.get("id")),
            ("error", error.get("message")),
            ("local Jupyter server", self._server),
            ("this extension", __version__),
        ]
        return [(key, str(value)) for key, value in facts if value]

    def _text(self) -> str:
        text = displays.text_facts(self._facts())
        return text if self.sessions is None else f"{text}\n\n{self.sessions!r}"

    def _html(self) -> Markup:
        facts = displays.html_facts(self._facts())
        return facts if self.sessions is None else displays.tag("div", facts, self.sessions._html())


class Place(Shown):
    """Where a session can be opened; ``url`` has no secret in it."""

    def __init__(self, session: Data, kind: str, url: str, command: str) -> None:
        self.session_id, self.kind, self.url = str(session["id"]), kind, url
        self._name, self._command = str(session.get("name")), command

    def _text(self) -> str:
        return f"{self.kind} of {self._name}: {self.url}"

    def _html(self) -> Markup:
        label = f"Open {self.kind} of {self._name}"
        return displays.tag(
            "div",
            displays.command_button(label, self._command, self.session_id),
            " ",
            displays.link("in a browser tab", self.url),
        )


class ServerInfo(Shown):
    """The local Jupyter server that is used, and why."""

    def __init__(self, url: str, found: str) -> None:
        self.url, self.found = url, found

    def _text(self) -> str:
        return f"{self.url}: {self.found}"

    def _html(self) -> Markup:
        return displays.tag("div", displays.tag("code", self.url), f": {self.found}")


def queue_table(queues: Sequence[Data]) -> Table:
    """Return the queues with their agents."""

    def agents(queue: Data) -> str:
        workers = queue.get("workers") or []
        busy = sum(bool(worker.get("busy")) for worker in workers)
        return f"{len(workers)} ({busy} busy)" if workers else "none"

    rows = [
        (q.get("name", ""), q.get("length", 0), agents(q), ", ".join(q.get("tags") or ())) for q in queues
    ]
    return Table(
        [dict(q) for q in queues], ("queue", "waiting", "agents", "tags"), rows, "There is no queue."
    )


def preset_table(data: Data) -> Table:
    """Return the presets; what differs from the defaults is shown of each."""
    presets: Mapping[str, Data] = data.get("presets") or {}
    rows = [(name, _differences(spec)) for name, spec in presets.items()]
    return Table(dict(data), ("preset", "options"), rows, "There is no preset: save one in the panel.")


def _differences(spec: Data) -> str:
    defaults = LaunchSpec().to_json()
    shown = {key: value for key, value in spec.items() if value != defaults.get(key)}
    if env := shown.get("env"):
        shown["env"] = sorted(env)  # the values may be secrets, and a notebook keeps what it shows
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def place(session: Data, kind: str, base_url: str) -> Place:
    """Return where a session's Jupyter, VS Code or terminals are. Raises WrongPhase and NotAttached."""
    check_attached(session)
    service = "vscode" if kind == "vscode" else "jupyter"
    endpoints = session.get("endpoints") or {}
    path = endpoints.get(f"{service}_open") or endpoints.get(service)
    if not path:
        what = "VS Code" if service == "vscode" else "JupyterLab"
        raise WrongPhase(
            f"{displays.named(session)} shows no {what}: it is {session.get('phase')}.",
            hint=f"'%clearml_session info {displays.short_id(session)}' says more; "
            f"launch with --{_OPTION[service]} to have one.",
        )
    return Place(
        session, kind, base_url.rstrip("/") + "/" + str(path).lstrip("/"), f"clearml-session:open-{kind}"
    )
