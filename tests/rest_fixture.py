"""The REST API in a real Jupyter server, against the embedded ClearML server; no agent runs here.

What an agent and the remote script would tell ClearML, the tests tell it themselves. Fixtures: ``jp_server_config``
(import it and pytest-jupyter starts the server with it) and ``call``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncssh
import psutil
import pytest
from jupyter_server.serverapp import ServerApp

from tests.lab_fixture import clearml_environment
from tests.local_fixture import ClearMLUnderTest
from tests.sshd_fixture import USERNAME, SshServer, ssh_server
from tests.test_attachment import FakeJupyter

Call = Callable[..., Awaitable[tuple[int, Any]]]

DEADLINE = 30.0
SPEC = {"name": "a session", "queue": "default"}
UNKNOWN_ID = "0" * 32


@pytest.fixture(name="jp_server_config")
def rest_config(
    clearml_server: ClearMLUnderTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in clearml_environment(clearml_server.credentials).items():
        monkeypatch.setenv(name, value)
    yield {
        "ServerApp": {"jpserver_extensions": {"jupyterlab_clearml_session": True}},
        "ClearMLSessionExtension": {
            "presets_dir": str(tmp_path / "presets"),
            "state_dir": str(tmp_path / "state"),
        },
        "ClearMLClient": {"request_timeout": 2.0},
        "ClearMLSessionManager": {
            "fast_interval": 0.05,
            "log_interval": 0.0,
            "probe_interval": 0.1,
            "jupyter_patience": 0.0,
        },
    }
    _end_helpers(tmp_path)


def _end_helpers(folder: Path) -> None:
    """End the kernels' helpers whose home was below a folder, and those that were about to start one."""

    def belongs(process: psutil.Process) -> bool:
        return any(part.startswith(f"{folder}/") for part in process.info["cmdline"] or ())

    while found := list(filter(belongs, psutil.process_iter(["cmdline"]))):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=5)


@pytest.fixture(name="call")
def call_fixture(
    jp_serverapp: ServerApp, http_server_client: Any, jp_auth_header: dict[str, str], jp_base_url: str
) -> Call:
    """One call of the REST API; returns status and JSON, errors too. ``path`` is sent as it is."""

    async def call(
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        response = await http_server_client.fetch(
            f"{jp_base_url}clearml-session/api/{path}" + (f"?{urlencode(params)}" if params else ""),
            method=method,
            body=body if isinstance(body, bytes) or body is None else json.dumps(body).encode(),
            headers={**(jp_auth_header if headers is None else headers)},
            allow_nonstandard_methods=True,
            raise_error=False,
            request_timeout=DEADLINE,
        )
        return response.code, json.loads(response.body) if response.body else None

    return call


async def until_phase(call: Call, session_id: str, *phases: str) -> dict[str, Any]:
    """Return the session once it is in one of ``phases``; each look makes the manager look."""
    end = time.monotonic() + DEADLINE
    while True:
        status, session = await call("GET", f"sessions/{session_id}")
        assert status == 200
        if session["phase"] in phases:
            return dict(session)
        assert time.monotonic() < end, f"{session['phase']}: {session['phase_text']}, not {phases}"
        await asyncio.sleep(0.02)


def publish(clearml: ClearMLUnderTest, task_id: str, ssh: SshServer, jupyter: FakeJupyter) -> None:
    """Tell ClearML what the remote script would."""
    clearml.call("tasks.started", task=task_id, force=True)
    clearml.set_properties(
        task_id,
        external_address="127.0.0.1",
        internal_ssh_port=str(ssh.port),
        jupyter_port=str(jupyter.port),
    )
    clearml.call("tasks.edit_runtime", task=task_id, add_or_update={"_jupyter_token": "0123456789abcdef\n"})


@asynccontextmanager
async def remote_side() -> AsyncIterator[tuple[SshServer, FakeJupyter]]:
    """A real SSH server, and what stands in for the Jupyter behind it."""
    jupyter = FakeJupyter()
    await jupyter.start()
    async with ssh_server() as ssh:
        yield ssh, jupyter
    await jupyter.stop()


async def launched_session(
    call: Call, clearml: ClearMLUnderTest, ssh: SshServer, jupyter: FakeJupyter
) -> str:
    """Launch, and do what the agent and the remote script would; return the id."""
    _, session = await call("POST", "sessions", {**SPEC, "username": USERNAME})
    clearml.call("tasks.started", task=session["id"], force=True)
    await until_phase(call, session["id"], "starting")
    task = clearml.task(session["id"])
    keys = json.loads(task["configuration"]["SSH"]["value"])
    ssh.key, ssh.password = (
        asyncssh.import_private_key(keys["ssh_host_ed25519_key"]),
        task["runtime"]["_ssh_password"],
    )
    await ssh.stop()
    await ssh.start()
    publish(clearml, session["id"], ssh, jupyter)
    return str(session["id"])
