"""A real Jupyter server process with the extension, with folders of its own, for integration and browser tests."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

START_DEADLINE = 60.0
CALL_DEADLINE = 60.0
_STEP = 0.05


class Answer:
    """Status and JSON of one call."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str]) -> None:
        self.status = status
        self.body = body
        self.headers = headers


class LabServer:
    """Starts ``jupyter lab`` (or ``jupyter server``) below ``folder``, with an empty HOME and no ClearML set-up.

    ``environment`` adds to what the process gets; ``config`` are traits as on its command line.
    """

    def __init__(
        self,
        folder: Path,
        *,
        base_url: str = "/",
        environment: Mapping[str, str] | None = None,
        config: Mapping[str, object] | None = None,
        command: str = "lab",
    ) -> None:
        self.folder = folder
        self.base_url = base_url
        self.token = secrets.token_hex(16)
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._command = command
        self._config = dict(config or {})
        self._environment = dict(environment or {})

    @property
    def url(self) -> str:
        """Address with the base URL, ends in a slash."""
        return f"http://127.0.0.1:{self.port}{self.base_url}"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def log(self) -> str:
        """What the process has printed so far."""
        return (self.folder / "server.log").read_text(errors="replace")

    def environment(self) -> dict[str, str]:
        """The process's environment; also right for a `jupyter` command beside it."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JUPYTER", "JPY_", "CLEARML", "IPYTHON"))
        }
        return {
            **kept,
            "HOME": str(self.home),
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces"),
            "IPYTHONDIR": str(self.folder / "ipython"),
            **self._environment,
        }

    def start(self) -> LabServer:
        """Start the process and wait until it answers."""
        for part in (self.home, self.folder / "notebooks", self.folder / "settings"):
            part.mkdir(parents=True, exist_ok=True)
        (self.folder / "runtime").mkdir(mode=0o700, exist_ok=True)
        traits = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self.port,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "ServerApp.base_url": self.base_url,
            "ServerApp.root_dir": self.folder / "notebooks",
            "ServerApp.port_retries": 0 if self.port else 50,
            **self._config,
        }
        arguments = [f"--{name}={value}" for name, value in traits.items()]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"jupyter{self._command}" if self._command == "lab" else "jupyter_server",
                    *arguments,
                ],
                env={**self.environment(), "JUPYTER_TOKEN": self.token},
                cwd=self.folder / "notebooks",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.until(self._announced, START_DEADLINE)
        return self

    def stop(self) -> None:
        """End it as a user does (SIGTERM); SIGKILL if it does not listen."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not end:\n{self.log[-4000:]}") from None

    def kill(self) -> None:
        """End it without warning."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One HTTP call below the base URL, with the token; errors are answers too."""
        request = urllib.request.Request(
            self.url + path.lstrip("/"),
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"token {self.token}",
                "Content-Type": "application/json",
                **(headers or {}),
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=CALL_DEADLINE) as response:
                return _answer(response.status, response.read(), response.headers)
        except urllib.error.HTTPError as error:
            return _answer(error.code, error.read(), error.headers)

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One call of our REST API that must succeed; returns its JSON."""
        answer = self.call(method, f"clearml-session/api/{path}", body)
        assert answer.status < 400, (method, path, answer.status, answer.body)
        return answer.body

    def until(self, condition: Callable[[], Any], deadline: float = 60.0) -> Any:
        """Return the condition's first true value. For what another process does and tells nobody about."""
        end = time.monotonic() + deadline
        while True:
            value = condition()
            if value:
                return value
            assert self.process is not None
            assert self.process.poll() is None, f"the server ended:\n{self.log[-4000:]}"
            assert time.monotonic() < end, f"not within {deadline} s:\n{self.log[-4000:]}"
            time.sleep(_STEP)

    def phase(self, session_id: str, *phases: str, deadline: float = 90.0) -> Any:
        """Return the session once it is in one of ``phases``; fails at once in another final phase."""

        def reached() -> Any:
            session = self.api("GET", f"sessions/{session_id}")
            if session["phase"] in phases:
                return session
            assert session["phase"] not in ("failed", "ended"), session
            return None

        return self.until(reached, deadline)

    def _announced(self) -> bool:
        assert self.process is not None
        note = self.folder / "runtime" / f"jpserver-{self.process.pid}.json"
        if not note.exists():
            return False
        try:
            self.port = json.loads(note.read_text())["port"]
            return self.call("GET", "api/status").status == 200
        except (ValueError, OSError):  # half written, or not yet listening
            return False


def clearml_environment(credentials: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which ClearML's own tools take ``credentials`` (as for ``configure``)."""
    return {
        "CLEARML_API_HOST": credentials["api_server"],
        "CLEARML_WEB_HOST": credentials["web_server"],
        "CLEARML_FILES_HOST": credentials["files_server"],
        "CLEARML_API_ACCESS_KEY": credentials["access_key"],
        "CLEARML_API_SECRET_KEY": credentials["secret_key"],
    }


def _answer(status: int, body: bytes, headers: Any) -> Answer:
    try:
        return Answer(status, json.loads(body) if body else None, dict(headers))
    except ValueError:
        return Answer(status, body.decode(errors="replace"), dict(headers))
