"""A Jupyter server in a process of its own, to be killed, and a notebook page that outlives it.

The server's kernels come from the machine behind an SSH server. As an extension of that process this module does
what the real one does when a session is attached; the ClearML part is left out.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websocket
from jupyter_server.services.kernels.connection import base

from jupyterlab_clearml_session.kernels.manager import SessionKernelManager
from jupyterlab_clearml_session.models import SshTarget
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

from .counting import Count, Verdict
from .kernel_fixture import SESSION_ID, SESSION_ID_VARIABLE, RemoteMachine, session
from .kernel_server_fixture import OneSession
from .lab_fixture import LabServer

VARIABLE = "TEST_REMOTE_MACHINE"
EXTENSIONS = (
    "tests.killed_server",
    "jupyter_lsp",
    "jupyter_server_proxy",
    "jupyterlab",
    "jupyterlab_clearml_session",
    "notebook_shim",
)
"""Of those that this environment may enable, only the first."""
PROTOCOL = "v1.kernel.websocket.jupyter.org"


# -- in the server's process -------------------------------------------------------------------------------


def _load_jupyter_server_extension(app: Any) -> None:
    app.io_loop.add_callback(_attach, app, json.loads(os.environ[VARIABLE]))


async def _attach(app: Any, config: dict[str, Any]) -> None:
    target = SshTarget(
        "127.0.0.1", config["port"], config["username"], config["password"], (config["host_key"],)
    )
    tunnel = TunnelTo(config["env"], target)
    tunnel.start()
    sessions = OneSession(tunnel)
    kernels = SessionKernelManager(
        sessions, app.kernel_spec_manager, log=app.log, runtime_dir=Path(app.runtime_dir)
    )
    app.web_app.settings["clearml_session_kernels"] = kernels
    kernels.start()
    assert sessions.on_ready is not None
    await sessions.on_ready(session(), tunnel)


class TunnelTo(Tunnel):
    """A tunnel to an account that is also the test's own: what runs there gets the machine's environment."""

    def __init__(self, env: dict[str, str], target: SshTarget) -> None:
        async def give() -> SshTarget:
            return target

        super().__init__(give)
        self._env = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())

    async def start_process(self, command: str) -> Any:
        return await super().start_process(f"env {self._env} sh -c {shlex.quote(command)}")


# -- in the test's process ---------------------------------------------------------------------------------


def kernel_server(folder: Path, machine: RemoteMachine, target: SshTarget) -> LabServer:
    """Return a server (not started yet) that is attached to the machine behind an SSH server."""
    config = {
        "port": target.port,
        "username": target.username,
        "password": target.password,
        "host_key": target.host_keys[0],
        "env": machine.env,
    }
    root = str(Path(__file__).parent.parent)
    return LabServer(
        folder,
        command="server",
        environment={VARIABLE: json.dumps(config), SESSION_ID_VARIABLE: SESSION_ID, "PYTHONPATH": root},
        config={
            "ServerApp.jpserver_extensions": {name: name == "tests.killed_server" for name in EXTENSIONS},
            # What Jupyter itself leaves out of a flood is not what is tried here.
            "ZMQChannelsWebsocketConnection.limit_rate": False,
        },
    )


class Page:
    """A notebook page as far as a kernel sees it: its websocket is opened again, by the same name or another."""

    def __init__(self, server: LabServer, kernel_id: str) -> None:
        self.twice = 0
        """Messages that came although they had come before. JupyterLab's page passes over them, as this does."""
        self._server = server
        self._kernel_id = kernel_id
        self._session = uuid.uuid4().hex
        self._seen: set[str] = set()
        self._socket: websocket.WebSocket | None = None

    def connect(self, *, reopened: bool = False) -> None:
        """Open the websocket and ask for the kernel's info, as a page does; a reopened one has another name."""
        if reopened:
            self._session = uuid.uuid4().hex
        where = f"ws://127.0.0.1:{self._server.port}/api/kernels/{self._kernel_id}/channels"
        self._socket = websocket.create_connection(
            f"{where}?session_id={self._session}&token={self._server.token}",
            timeout=60,
            subprotocols=[PROTOCOL],
        )
        self.send("kernel_info_request", {})

    def execute(self, code: str) -> str:
        """Send a cell; return the request's id."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        return self.send("execute_request", {**content, "user_expressions": {}, "stop_on_error": True})

    def send(self, kind: str, content: dict[str, Any]) -> str:
        """Send a message on the shell channel; return its id."""
        assert self._socket is not None
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": self._session, "version": "5.3"}
        parts: list[dict[str, Any]] = [{**header, "username": "", "date": ""}, {}, {}, content]
        packed = [json.dumps(part).encode() for part in parts]
        self._socket.send_binary(base.serialize_msg_to_ws_v1(packed, "shell"))  # type: ignore[no-untyped-call]
        return header["msg_id"]

    def messages(self, timeout: float = 120.0) -> Iterator[dict[str, Any]]:
        """Give what comes, once, until the connection ends. Fails after ``timeout`` seconds."""
        assert self._socket is not None
        deadline = time.monotonic() + timeout
        while True:
            try:
                kind, frame = self._socket.recv_data_frame(control_frame=True)
            except websocket.WebSocketTimeoutException:
                raise
            except (OSError, websocket.WebSocketConnectionClosedException):
                return
            assert time.monotonic() < deadline, "the cell does not end"
            if kind == websocket.ABNF.OPCODE_CLOSE:
                return
            if kind != websocket.ABNF.OPCODE_BINARY:
                continue  # a ping
            channel, parts = base.deserialize_msg_from_ws_v1(frame.data)  # type: ignore[no-untyped-call]
            header, parent, _, content = (json.loads(part) for part in parts[:4])
            if header["msg_id"] in self._seen:
                self.twice += 1
                continue
            self._seen.add(header["msg_id"])
            yield {
                "channel": channel,
                "header": header,
                "msg_type": header["msg_type"],
                "parent_header": parent,
                "content": content,
            }

    def close(self) -> None:
        """Close the websocket."""
        if self._socket is not None:
            self._socket.close()


@dataclass(frozen=True)
class Outcome:
    """What a page was shown of a cell, and how many messages it passed over because they had come before."""

    verdict: Verdict
    repeated_messages: int


def run_and_kill(
    server: LabServer, kernel_name: str, count: Count, rnd: random.Random, *, reopened: bool = False
) -> Outcome:
    """Run a counting cell and kill the server in the middle of each part but the last.

    With ``reopened`` it is a new page that comes after a kill: the notebook was closed and opened again. The reply
    is for the page that sent the cell, as with a local kernel, and is not looked at then.
    """
    server.start()
    try:
        server.until(lambda: kernel_name in server.call("GET", "api/kernelspecs").body["kernelspecs"])
        started = server.call("POST", "api/kernels", {"name": kernel_name})
        assert started.status == 201, (started.body, server.log[-4000:])
        kernel = started.body["id"]
        page = Page(server, kernel)
        page.connect()
        request = page.execute(count.code)
        shown: list[dict[str, Any]] = []
        replies: list[dict[str, Any]] = []
        for part in range(count.parts):
            last = part == count.parts - 1
            limit = len(shown) + rnd.randrange(2, count.part // count.step)
            count.open_gate(part)
            idle = killed = False
            for message in page.messages():
                if message["parent_header"].get("msg_id") != request:
                    continue
                if message["channel"] == "iopub":
                    shown.append(message)
                    idle = idle or message["content"].get("execution_state") == "idle"
                elif message["msg_type"] == "execute_reply":
                    replies.append(message["content"])
                if last and idle and (replies or reopened):
                    break
                if not last and not killed and len(shown) >= limit:
                    server.kill()
                    killed = True  # what had left it is still read
            if not last:
                server.start()
                server.until(lambda: server.call("GET", f"api/kernels/{kernel}").status == 200)
                page.connect(reopened=reopened)
        page.close()
        server.call("DELETE", f"api/kernels/{kernel}")
        return Outcome(count.judge(shown, None if reopened else replies), page.twice)
    finally:
        server.stop()
