"""For the tests of the magic: a Jupyter server that is only an HTTP server with answers, and an IPython shell."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from jupyterlab_clearml_session.magic import ClearMLSessionMagics
from jupyterlab_clearml_session.magic.client import Client
from jupyterlab_clearml_session.magic.server import Server

TOKEN = "local-token-0123456789"


def session(number: int, **changes: Any) -> dict[str, Any]:
    """Return a session as REST shows it; its id begins with ``number`` as eight hex digits."""
    name = changes.pop("name", f"session {number}")
    return {
        "id": f"{number:08x}" + "0" * 24,
        "name": name,
        "phase": "ready",
        "phase_text": "Ready",
        "phase_since": "2026-11-22T10:00:00+00:00",
        "status": "in_progress",
        "queue": {"id": "q1", "name": "default"},
        "project": "DevOps",
        "tags": [],
        "comment": "",
        "user": {"id": "u1", "name": "Ada"},
        "mine": True,
        "created": "2026-11-22T09:58:00+00:00",
        "started": "2026-11-22T09:59:00+00:00",
        "ended": None,
        "web_url": "https://app.clear.ml/projects/1",
        "parent": None,
        "launched_by": "panel",
        "attached": True,
        "tunnel": {"state": "up", "since": None, "attempt": 1, "rtt_ms": 12.0, "host_key": "pinned"},
        "endpoints": {
            "jupyter": "clearml-session/proxy/x/jupyter/",
            "jupyter_open": "clearml-session/proxy/x/jupyter/lab",
        },
        "kernelspecs": [f"clearml-{number:08x}-python3"],
        "spec": {},
        "progress": None,
        **changes,
    }


class FakeJupyter:
    """Answers as docs/rest-api.md says, of what the tests put into it; keeps all requests in ``asked``."""

    def __init__(self, base_url: str = "/") -> None:
        self.active: list[dict[str, Any]] = []
        self.ended: list[dict[str, Any]] = []
        self.of_others: list[dict[str, Any]] = []
        self.queues: list[dict[str, Any]] = []
        self.presets: dict[str, Any] = {"presets": {}, "last": {}}
        self.lines: list[dict[str, str]] = []
        self.status: dict[str, Any] = {"mode": "local", "api_server": "http://127.0.0.1:1", "reachable": True}
        self.kernel_ids: list[str] = []
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.on_get_session: Callable[[dict[str, Any]], None] = lambda found: None
        self.base_url = base_url
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.handle(self)

            do_POST = do_DELETE = do_GET

            def log_message(self, *args: Any) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}{base_url}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def note(self, folder: Path, pid: int | None = None, **changes: Any) -> None:
        """Leave a note in a runtime folder as a real server does."""
        folder.mkdir(exist_ok=True)
        pid = os.getpid() if pid is None else pid
        note = {
            "base_url": self.base_url,
            "hostname": "127.0.0.1",
            "port": self.port,
            "secure": False,
            "sock": "",
            "token": TOKEN,
            "pid": pid,
            "url": self.url,
            **changes,
        }
        (folder / f"jpserver-{pid}.json").write_text(json.dumps(note))

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else None
        parts = urlsplit(request.path)
        path = parts.path.removeprefix(self.base_url)
        self.asked.append((request.command, path, body))
        answer: Any
        if request.headers.get("Authorization") != f"token {TOKEN}":
            status, answer = 403, {"message": "Forbidden"}
        elif (request.command, path) in self.answers:
            status, answer = self.answers[request.command, path]
        else:
            status, answer = self._answer(request.command, path, parse_qs(parts.query), body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if path == "api/status":
            return 200, {"kernels": len(self.kernel_ids)}
        if path.startswith("api/kernels/"):
            wanted = path.removeprefix("api/kernels/")
            return (200, {"id": wanted}) if wanted in self.kernel_ids else (404, {"message": "no kernel"})
        path = path.removeprefix("clearml-session/api/")
        if path in ("status", "queues", "presets"):
            return 200, {"queues": self.queues} if path == "queues" else getattr(self, path)
        if path == "sessions" and method == "POST":
            self.active.append(session(0xABC, phase="queued", phase_text="Waiting", attached=False))
            return 202, self.active[-1]
        if path == "sessions":
            return 200, {"sessions": self._listed(query), "revision": 1}
        return self._one(method, path, query)

    def _listed(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        others = self.of_others if query.get("all_users") == ["1"] else []
        return self.ended if query["state"] == ["ended"] else [*self.active, *others]

    def _one(self, method: str, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        _, session_id, *rest = path.split("/")
        found = next((s for s in [*self.active, *self.ended, *self.of_others] if s["id"] == session_id), None)
        if found is None:
            return 404, error("unknown_session", f"There is no session {session_id}")
        if rest == ["log"]:
            return 200, {"lines": self.lines[-int(query["limit"][0]) :]}
        if rest == ["kernels"]:
            return 200, {"kernels": [{"id": "k1", "name": "python3", "state": "idle", "adopted": False}]}
        if rest == ["kernelspecs"]:
            names = found["kernelspecs"]
            return 200, {"kernelspecs": [{"name": n, "display_name": n, "language": "python"} for n in names]}
        if rest:
            found["attached"] = rest == ["attach"]
            found["phase"] = "connecting" if found["attached"] else "services_up"
            return 202, found
        if method == "DELETE":
            found["phase"] = "stopping"
            return 202, found
        self.on_get_session(found)
        return 200, found


def error(code: str, message: str, hint: str = "", **detail: Any) -> dict[str, Any]:
    """Return an error as REST answers it."""
    return {"error": {"code": code, "message": message, "hint": hint, "detail": detail}, "message": message}


@pytest.fixture(name="fake")
def fake_fixture() -> Iterator[FakeJupyter]:
    """A fake Jupyter server."""
    server = FakeJupyter()
    yield server
    server.close()


@pytest.fixture(name="shell")
def shell_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An IPython shell whose displays are kept in ``shell.display_pub.outputs``."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=config, display_pub_class=CapturingDisplayPublisher)
    yield made
    InteractiveShell.clear_instance()


@pytest.fixture(name="magics")
def magics_fixture(shell: Any, fake: FakeJupyter) -> ClearMLSessionMagics:
    """The magics in that shell, as clients of that server."""
    made = ClearMLSessionMagics(shell, Client(lambda: Server(fake.url, TOKEN, found="in the test")))
    shell.register_magics(made)
    return made
