"""The main job, end to end, on this machine: what `make demo` runs.

Starts JupyterLab with folders of its own, lets it start the embedded default, launches one session and waits until
it is ready, all by the REST interface that everybody uses.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import url_path_join
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

from .deadlines import within
from .phases import services

_READY_DEADLINE = 300.0
_CALL_DEADLINE = 60.0
_CELL_DEADLINE = 60.0
_LOOK = 0.1
_CELL = "import os, socket; print(os.environ['HOME'])"


class DemoFailed(Exception):
    """The demo could not do what it shows; the message says where it stopped."""


def run(*, once: bool, browser: bool) -> int:
    """Run the demo; returns the exit status.

    With ``once`` it prints one JSON line and ends: phases with the seconds since the launch at which each was first
    seen, ``remote_s`` until the remote had published its Jupyter, ``ours_s`` from there to ready. Otherwise
    JupyterLab goes on until Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="clearml-demo-") as folder:
        _use_folders(Path(folder))
        from jupyterlab.labapp import LabApp  # reads the folders when it is imported

        token = secrets.token_hex(24)
        arguments = [
            "--ServerApp.port=0",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.root_dir={folder}/notebooks",
            "--ServerApp.allow_root=True",
            f"--ServerApp.open_browser={browser and not once}",
            f"--LabApp.open_browser={browser and not once}",
            *(["--ServerApp.log_level=WARN", "--LabApp.log_level=WARN"] if once else []),
        ]
        os.environ["JUPYTER_TOKEN"] = token
        server = LabApp.initialize_server(arguments)
        os.environ.pop("JUPYTER_TOKEN")
        demo = _Demo(server, token)
        server.io_loop.add_callback(demo.drive, once)
        server.start()
        return demo.status


def _use_folders(folder: Path) -> None:
    """Keep Jupyter, IPython and the embedded default inside ``folder``."""
    for name, part in {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "IPYTHONDIR": "ipython",
        # JupyterLab's language server support asks Node and npm, which leave caches in TMPDIR and HOME.
        "NODE_COMPILE_CACHE": "node",
        "npm_config_cache": "npm",
    }.items():
        os.environ[name] = str(folder / part)
    (folder / "notebooks").mkdir()


class _Demo:
    """The client's part, on the server's own event loop."""

    def __init__(self, server: ServerApp, token: str) -> None:
        self.status = 0
        self._server = server
        self._token = token

    async def drive(self, once: bool) -> None:
        try:
            session, report = await self._launch()
            if not once:
                print(f"\nReady: {session['name']}. Open the ClearML panel at the left.\n", flush=True)
                return
            await self._use(session, report)
            print(json.dumps(report), flush=True)
        except Exception as error:  # noqa: BLE001 - a deadline, a connection: whatever it is, nobody would end the server
            reason = error if isinstance(error, DemoFailed) else f"{type(error).__name__}: {error}"
            print(f"The demo failed: {reason}", file=sys.stderr, flush=True)
            self.status = 1
        if once or self.status:
            self._server.stop()

    async def _launch(self) -> tuple[dict[str, Any], dict[str, Any]]:
        began = time.monotonic()
        await self._api("POST", "configure", {"mode": "local"})
        local = time.monotonic() - began
        launched = time.monotonic()
        session = await self._api("POST", "sessions", {"name": "demo session", "vscode_server": False})
        phases: dict[str, float] = {}
        remote: float | None = None
        while True:
            if remote is None and await self._published(session["id"]):
                remote = time.monotonic() - launched
            seen = time.monotonic() - launched
            phases.setdefault(session["phase"], round(seen, 2))
            if session["phase"] == "ready":
                break
            if session["phase"] in ("failed", "ended") or seen > _READY_DEADLINE:
                raise DemoFailed(f"the session is {session['phase']}: {session['phase_text']}")
            await asyncio.sleep(_LOOK)
            session = await self._api("GET", f"sessions/{session['id']}")
        # What the remote took by itself, and what came on top of it here.
        shares = {"remote_s": round(remote or 0.0, 2), "ours_s": round(phases["ready"] - (remote or 0.0), 2)}
        return session, {"session": session["id"], "local_s": round(local, 2), "phases": phases, **shares}

    async def _published(self, session_id: str) -> bool:
        """Ask ClearML itself, past the poller, whether the remote script has published its Jupyter."""
        manager = self._server.web_app.settings["clearml_session_manager"]
        return services(await manager.client.task(session_id)).up

    async def _use(self, session: dict[str, Any], report: dict[str, Any]) -> None:
        """Run a cell over there and shut the session down."""
        began = time.monotonic()
        while not session["kernelspecs"]:
            if time.monotonic() - began > _CALL_DEADLINE:
                raise DemoFailed("the remote kernels did not appear")
            await asyncio.sleep(_LOOK)
            session = await self._api("GET", f"sessions/{session['id']}")
        report["kernelspecs_s"] = round(time.monotonic() - began, 2)
        began = time.monotonic()
        output = await self._run_cell(session["kernelspecs"][0])
        report["cell"] = {"output": output.strip(), "seconds": round(time.monotonic() - began, 2)}
        began = time.monotonic()
        await self._api("DELETE", f"sessions/{session['id']}")
        while (await self._api("GET", f"sessions/{session['id']}"))["phase"] != "ended":
            if time.monotonic() - began > _CALL_DEADLINE:
                raise DemoFailed("the session did not end")
            await asyncio.sleep(_LOOK)
        report["shutdown_s"] = round(time.monotonic() - began, 2)

    async def _run_cell(self, kernel_name: str) -> str:
        """Run the demo's cell in a new remote kernel, as a notebook here does; returns what it printed."""
        kernel = await self._call("POST", "api/kernels", {"name": kernel_name})
        url = self._url(f"api/kernels/{kernel['id']}/channels").replace("http", "ws", 1)
        channels = await websocket_connect(
            HTTPRequest(url, headers=self._headers, request_timeout=_CALL_DEADLINE)
        )
        message_id = uuid.uuid4().hex
        header = {"msg_id": message_id, "msg_type": "execute_request", "session": uuid.uuid4().hex}
        header |= {"username": "", "version": "5.3", "date": ""}
        content = {"code": _CELL, "silent": False, "store_history": True, "user_expressions": {}}
        content |= {"allow_stdin": False, "stop_on_error": True}
        message = {
            "channel": "shell",
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
        }
        await channels.write_message(json.dumps(message))
        try:
            return await within(_output(channels, message_id), _CELL_DEADLINE)
        except asyncio.TimeoutError:
            raise DemoFailed("the remote kernel did not answer") from None
        finally:
            channels.close()

    async def _api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return await self._call(method, f"clearml-session/api/{path}", body)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = await AsyncHTTPClient().fetch(
            HTTPRequest(
                self._url(path),
                method=method,
                headers=self._headers,
                body=json.dumps(body) if body is not None else None,
                allow_nonstandard_methods=True,
                request_timeout=_CALL_DEADLINE,
            ),
            raise_error=False,
        )
        if response.code < 400:
            return json.loads(response.body)
        message = response.reason
        with suppress(ValueError, KeyError, TypeError):
            error = json.loads(response.body)["error"]
            message = f"{error['message']} {error['hint']}".strip()
        raise DemoFailed(f"{method} {path}: {message}")

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self._token}"}

    def _url(self, path: str) -> str:
        return url_path_join(f"http://127.0.0.1:{self._server.port}", self._server.base_url, path)


async def _output(channels: Any, message_id: str) -> str:
    printed = ""
    while (frame := await channels.read_message()) is not None:
        message = json.loads(frame)
        if message["parent_header"].get("msg_id") != message_id:
            continue
        if message["msg_type"] == "stream":
            printed += message["content"]["text"]
        elif message["msg_type"] == "error":
            raise DemoFailed(f"the cell failed: {message['content']['ename']}")
        elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return printed
    raise DemoFailed("the remote kernel's connection was closed")
