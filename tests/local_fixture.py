"""Fixtures of the embedded default, for everybody's tests.

``clearml_server``
    The ClearML-compatible server without an agent, fresh for each test, started within milliseconds.
``local_mode``
    The whole LocalMode (server, two agents, user-space SSH), one for the whole run. Stop your sessions.

Both give a `ClearMLUnderTest`. Its `front` stands before the API and can misbehave; only who uses
``credentials`` goes through it, the agents do not.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

from jupyterlab_clearml_session.local.mode import LocalMode
from jupyterlab_clearml_session.local.server import LocalServer

T = TypeVar("T")
Fault = Literal["none", "freeze", "error500", "html", "refuse", "reset"]

_DEADLINE_S = 30.0
_CANNED = {
    "error500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 5\r\nConnection: close\r\n\r\nOops!",
    "html": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    b"Content-Length: 28\r\nConnection: close\r\n\r\n<html>Welcome, log in</html>",
}


class ApiRefusal(Exception):
    """The API answered with an error; ``status``, ``subcode`` and ``message`` as in the envelope."""

    def __init__(self, meta: dict[str, Any]) -> None:
        super().__init__(meta["result_msg"])
        self.status: int = meta["result_code"]
        self.subcode: int = meta["result_subcode"]
        self.message: str = meta["result_msg"]


@dataclass
class ClearMLUnderTest:
    """A running server: what to configure a client with, and what happened on it."""

    credentials: dict[str, str] = field(repr=False)
    """As for ``configure``; ``api_server`` leads through the front."""
    directory: Path
    fault_front: Front | None
    direct_api_server: str
    access_log: Path

    @property
    def front(self) -> Front:
        """The proxy before the API server that can misbehave."""
        assert self.fault_front is not None
        return self.fault_front

    def call(self, name: str, /, **body: Any) -> dict[str, Any]:
        """Call the API past the front; the ``data`` of the answer. Raises ApiRefusal."""
        pair = f"{self.credentials['access_key']}:{self.credentials['secret_key']}"
        headers = {
            "Authorization": "Basic " + base64.b64encode(pair.encode()).decode(),
            "X-ClearML-Client": "test",
        }
        request = urllib.request.Request(
            f"{self.direct_api_server}/{name}", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=_DEADLINE_S) as answer:
                data: dict[str, Any] = json.load(answer)["data"]
                return data
        except urllib.error.HTTPError as error:
            raise ApiRefusal(json.load(error)["meta"]) from None

    def calls(self, *, since: float = 0.0) -> list[str]:
        """The names of the API calls of others than `call` and the agents, after the time ``since``."""
        return [
            record["call"]
            for record in self.access_records()
            if record["time"] >= since and record["client"] != "test" and not record["agent"]
        ]

    def access_records(self) -> list[dict[str, Any]]:
        """The whole access log."""
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]

    def task(self, task_id: str) -> dict[str, Any]:
        """The Task as ``tasks.get_by_id`` answers it."""
        task: dict[str, Any] = self.call("tasks.get_by_id", task=task_id)["task"]
        return task

    def set_properties(self, task_id: str, **values: str) -> None:
        """Publish properties of a session, as the remote script does."""
        properties = [
            {"section": "properties", "name": name, "value": value} for name, value in values.items()
        ]
        self.call("tasks.edit_hyper_params", task=task_id, force=True, hyperparams=properties)

    def wait_for_status(self, task_id: str, *statuses: str, deadline: float = 60.0) -> dict[str, Any]:
        """The Task as soon as it has one of the statuses. Blocks; use a thread in async tests."""
        end = time.monotonic() + deadline
        while True:
            task = self.task(task_id)
            if task["status"] in statuses:
                return task
            if time.monotonic() > end:
                raise AssertionError(f"the task is {task['status']}, not {' or '.join(statuses)}")
            time.sleep(0.1)

    def console(self, task_id: str) -> str:
        """The console of the Task, all of it."""
        answer = self.call("events.get_task_log", task=task_id, batch_size=10_000, order="asc")
        return "\n".join(event["msg"] for event in answer["events"])


class Front:
    """A TCP proxy before the API server that can freeze, answer nonsense, refuse or reset."""

    def __init__(self, loop: LoopThread, upstream: str) -> None:
        self._loop = loop
        self._upstream = int(upstream.rsplit(":", 1)[1])
        self._fault: Fault = "none"
        self._thawed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        # Never listens: keeps the port for us while connections are refused.
        self._holder = self._bound()
        self._port = self._holder.getsockname()[1]

    def start(self) -> str:
        """Listen; the address for clients."""
        self._loop.run(self._listen())
        self._loop.run(self._set("none"))
        return f"http://127.0.0.1:{self._port}"

    def set(self, fault: Fault) -> None:
        """From now on (open connections included): behave so. ``"none"`` mends everything."""
        self._loop.run(self._set(fault))

    @contextlib.contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """Behave so within the ``with`` block."""
        self.set(fault)
        try:
            yield
        finally:
            self.set("none")

    def stop(self) -> None:
        self._loop.run(self._close())

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._bound())

    def _bound(self) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", self._port))
        return bound

    async def _set(self, fault: Fault) -> None:
        self._fault = fault
        if fault == "freeze":
            self._thawed.clear()
        else:
            self._thawed.set()
            if fault != "none":
                for connection in self._connections:
                    connection.cancel()
        if fault == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        elif fault != "refuse" and self._server is None:
            await self._listen()

    async def _close(self) -> None:
        self._holder.close()
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            writer.close()
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault == "reset":
            writer.transport.abort()
            return
        if self._fault in _CANNED:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_CANNED[self._fault])
            await writer.drain()
            return
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            await asyncio.gather(self._copy(reader, upstream_writer), self._copy(upstream_reader, writer))
        finally:
            upstream_writer.close()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._thawed.wait()
            target.write(data)
            await target.drain()
        target.close()


def launch_session(
    server: ClearMLUnderTest,
    *,
    password: str,
    requirements: str = "clearml\njupyter\njupyterlab",
    **parameters: str,
) -> str:
    """Create and enqueue a session with the stock remote script, by plain API calls; its Task's id."""
    spec = importlib.util.find_spec("clearml_session")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    names = ("tcp_proxy.py", "interactive_session_task.py")
    section = {
        "user_base_directory": "~/",
        "ssh_server": "True",
        "default_docker": "",
        "jupyterlab": "True",
        "vscode_server": "False",
        "force_dropbear": "True",
        "use_ssh_proxy": "False",
        **parameters,
    }
    properties = ("external_address", "internal_ssh_port", "jupyter_port")
    task_id: str = server.call(
        "tasks.create",
        name="a session",
        type="application",
        system_tags=["interactive"],
        hyperparams={
            "interactive_session": {name: {"value": value} for name, value in section.items()},
            "properties": {name: {"value": ""} for name in properties},
        },
        runtime={"_ssh_password": password, "_jupyter_token": ""},
        script={
            "diff": "\n\n".join((package / name).read_text() for name in names),
            "working_dir": ".",
            "entry_point": ".interactive_session.py",
            "requirements": {"pip": requirements},
        },
    )["id"]
    server.call("tasks.enqueue", task=task_id)
    return task_id


@dataclass
class Services:
    """Where a session's services are, on 127.0.0.1."""

    address: str
    ssh_port: int
    jupyter_port: int
    jupyter_token: str = field(repr=False)


def wait_for_services(server: ClearMLUnderTest, task_id: str, *, deadline: float = 150.0) -> Services:
    """Block until the session has published its SSH and Jupyter ports; use a thread in async tests.

    Sessions of one installation start one after the other (`admission`), so those of the other test processes may
    come before it.
    """
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        task = server.task(task_id)
        assert task["status"] in ("queued", "in_progress"), server.console(task_id)
        properties, runtime = task["hyperparams"]["properties"], task["runtime"]
        ports = [properties[name]["value"] for name in ("internal_ssh_port", "jupyter_port")]
        if all(ports) and runtime["_jupyter_token"]:
            return Services(
                runtime["external_address"], int(ports[0]), int(ports[1]), runtime["_jupyter_token"].strip()
            )
        time.sleep(0.1)
    raise AssertionError("the session published no ports:\n" + server.console(task_id))


def write_config(server: ClearMLUnderTest, directory: Path) -> Path:
    """Write a ``clearml.conf`` (mode 0600) for the server; its path, for ``CLEARML_CONFIG_FILE``."""
    credentials = server.credentials
    api: dict[str, Any] = {name: credentials[name] for name in ("api_server", "web_server", "files_server")}
    api["credentials"] = {name: credentials[name] for name in ("access_key", "secret_key")}
    path = directory / "clearml.conf"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"api": api}))
    return path


class LoopThread:
    """An event loop in a thread: lets fixtures of any scope serve tests that have their own loops."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there, and wait here for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_DEADLINE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_DEADLINE_S)
        self._loop.close()


@pytest.fixture
def clearml_server(tmp_path: Path) -> Iterator[ClearMLUnderTest]:
    """The server without an agent, empty, for one test."""
    loop = LoopThread()

    async def start() -> tuple[LocalServer, dict[str, str]]:
        server = LocalServer(tmp_path / "clearml-server")
        return server, server.start()

    async def stop(server: LocalServer) -> None:
        server.stop()

    server, credentials = loop.run(start())
    yield from _with_front(loop, credentials, tmp_path, tmp_path / "clearml-server" / "access.jsonl")
    loop.run(stop(server))
    loop.close()


@pytest.fixture(scope="session")
def local_mode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClearMLUnderTest]:
    """Server, agents and SSH, for the whole run."""
    loop = LoopThread()
    directory = tmp_path_factory.mktemp("local-mode")

    async def make() -> LocalMode:
        return LocalMode(directory)

    mode = loop.run(make())
    credentials = loop.run(mode.start())
    yield from _with_front(loop, credentials, directory, mode.access_log)
    loop.run(mode.stop())
    loop.close()


def _with_front(
    loop: LoopThread, credentials: dict[str, str], directory: Path, access_log: Path
) -> Iterator[ClearMLUnderTest]:
    front = Front(loop, credentials["api_server"])
    through_front = {**credentials, "api_server": front.start()}
    yield ClearMLUnderTest(through_front, directory, front, credentials["api_server"], access_log)
    front.stop()
