"""The main job over REST, with every part real above the ClearML API itself.

The embedded ClearML server stands in for a real one; the agent, the remote script, the SSH server's protocol, the
remote JupyterLab and the local Jupyter server are real.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab_fixture import LabServer, clearml_environment
from tests.local_fixture import ClearMLUnderTest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def lab(local_mode: ClearMLUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """A server below a base URL as JupyterHub gives it."""
    server = LabServer(
        tmp_path_factory.mktemp("lab"),
        base_url="/user/someone/",
        environment=clearml_environment(local_mode.credentials),
    ).start()
    yield server
    server.stop()


@dataclass(frozen=True)
class Launch:
    """A session that has become ready, and the seconds from its launch."""

    session: dict[str, Any]
    published_s: float
    """Until the remote had told where its Jupyter is."""
    ready_s: float


@pytest.fixture(scope="module")
def launch(lab: LabServer, local_mode: ClearMLUnderTest) -> Launch:
    began = time.monotonic()
    spec = {"name": "main job", "vscode_server": False, "store_workspace": "~/main job"}
    launched = lab.api("POST", "sessions", spec)
    assert launched["phase"] in ("created", "queued", "starting")

    def published() -> bool:
        parameters = local_mode.task(launched["id"])["hyperparams"].get("properties", {})
        return bool(parameters.get("jupyter_port", {}).get("value"))

    lab.until(published, 90)
    published_s = time.monotonic() - began
    session = lab.phase(launched["id"], "ready")
    return Launch(session, published_s, time.monotonic() - began)


@pytest.fixture(scope="module")
def session(launch: Launch) -> dict[str, Any]:
    return launch.session


def test_a_launch_goes_through_the_phases_to_ready(session: dict[str, Any]) -> None:
    assert session["status"] == "in_progress"
    assert session["attached"]
    assert session["mine"]
    assert session["launched_by"] == "panel"
    assert session["tunnel"]["state"] == "up"
    assert session["tunnel"]["host_key"] == "pinned"
    assert session["progress"]["step"] == session["progress"]["steps"]
    assert session["endpoints"]["jupyter"] == f"clearml-session/proxy/{session['id']}/jupyter/"


def test_ready_comes_soon_after_the_remote_has_published_its_jupyter(launch: Launch) -> None:
    assert launch.ready_s - launch.published_s < 3.0


def test_the_remote_jupyter_answers_under_our_path(lab: LabServer, session: dict[str, Any]) -> None:
    jupyter = session["endpoints"]["jupyter"]
    assert lab.call("GET", jupyter + "api/status").status == 200
    page = lab.call("GET", jupyter + "lab")
    assert page.status == 200
    (blob,) = re.findall(r'<script id="jupyter-config-data"[^>]*>(.*?)</script>', page.body, re.DOTALL)
    config = json.loads(blob)
    assert config["baseUrl"] == f"/user/someone/{jupyter}"
    assert config["token"] == ""


def test_a_file_goes_up_and_comes_back_the_same(
    lab: LabServer, session: dict[str, Any], local_mode: ClearMLUnderTest
) -> None:
    content = os.urandom(300_000)
    path = session["endpoints"]["jupyter"] + "api/contents/up.bin"
    body = {"type": "file", "format": "base64", "content": base64.b64encode(content).decode()}
    assert lab.call("PUT", path, body).status == 201
    answer = lab.call("GET", path + "?content=1&format=base64")
    assert base64.b64decode(answer.body["content"]) == content
    (written,) = local_mode.directory.rglob("up.bin")
    assert written.read_bytes() == content


def test_the_workspace_is_stored_on_request_as_the_remote_script_would(
    lab: LabServer, session: dict[str, Any], local_mode: ClearMLUnderTest
) -> None:
    note = session["endpoints"]["jupyter"] + "api/contents/note.txt"
    assert lab.call("PUT", note, {"type": "file", "format": "text", "content": "kept"}).status == 201
    assert lab.call("POST", f"clearml-session/api/sessions/{session['id']}/workspace").status == 202
    artifacts = local_mode.task(session["id"])["execution"]["artifacts"]
    (artifact,) = [artifact for artifact in artifacts if artifact["key"] == "workspace"]
    assert artifact["mode"] == "input"
    assert "./note.txt" in artifact["type_data"]["preview"]
    files = (local_mode.directory / "server" / "files").rglob("workspace_snapshot.tar.gz")
    (stored,) = [path for path in files if session["id"] in str(path)]
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == artifact["hash"]
    with tarfile.open(stored) as archive:
        member = archive.extractfile("./note.txt")
        assert member is not None
        assert member.read() == b"kept"


def test_a_terminal_opens_over_there(lab: LabServer, session: dict[str, Any]) -> None:
    answer = lab.call("POST", session["endpoints"]["jupyter"] + "api/terminals", {})
    assert answer.status == 200
    assert answer.body["name"]


def test_the_log_is_there_and_holds_no_secret(
    lab: LabServer, session: dict[str, Any], local_mode: ClearMLUnderTest
) -> None:
    def said() -> str:
        lines = lab.api("GET", f"sessions/{session['id']}/log?limit=1000")["lines"]
        return "\n".join(line["text"] for line in lines)

    # The agent sends what it has read every few seconds: a session can be ready before its log says so.
    lab.until(lambda: "token=***" in said())
    text = said()
    assert "PRIVATE KEY" not in text
    runtime = local_mode.task(session["id"])["runtime"]
    for secret in (runtime["_ssh_password"], runtime["_jupyter_token"].strip()):
        assert secret not in text
        assert secret not in lab.log
        assert secret not in str(session)


def test_the_doctor_finds_the_way_to_the_session_in_order(lab: LabServer, session: dict[str, Any]) -> None:
    command = "import sys; from jupyterlab_clearml_session.app import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", command, "doctor", "--session", session["id"]],
        env=lab.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "ok   tunnel: up, host key pinned" in done.stdout
    assert "ok   remote Jupyter: answers with this session's token" in done.stdout
    assert "All is well." in done.stdout


def test_detach_and_attach_again(lab: LabServer, session: dict[str, Any]) -> None:
    lab.api("POST", f"sessions/{session['id']}/detach")
    lab.phase(session["id"], "services_up")
    assert lab.call("GET", session["endpoints"]["jupyter"] + "api/status").status == 409
    lab.api("POST", f"sessions/{session['id']}/attach")
    lab.phase(session["id"], "ready")


def test_another_server_attaches_by_id_alone_and_again_by_itself_after_a_crash(
    session: dict[str, Any], local_mode: ClearMLUnderTest, tmp_path: Path
) -> None:
    second = LabServer(tmp_path, environment=clearml_environment(local_mode.credentials), command="server")
    second.start()
    try:
        second.api("POST", f"sessions/{session['id']}/attach")
        assert second.phase(session["id"], "ready")["tunnel"]["host_key"] == "pinned"
        second.kill()
        second.start()
        assert second.phase(session["id"], "ready")["attached"]
    finally:
        second.stop()


def test_a_frozen_clearml_server_freezes_nothing_else(
    lab: LabServer, session: dict[str, Any], local_mode: ClearMLUnderTest
) -> None:
    jupyter = session["endpoints"]["jupyter"]
    seconds = []
    with local_mode.front.fault("freeze"):
        for _ in range(20):
            began = time.monotonic()
            assert lab.call("GET", "api/status").status == 200
            seconds.append(time.monotonic() - began)
            assert lab.call("GET", jupyter + "api/status").status == 200
        assert [known["id"] for known in lab.api("GET", "sessions")["sessions"]].count(session["id"]) == 1
    # The median: one slow answer is the machine's, a server that waits for ClearML is slow each time.
    assert statistics.median(seconds) < 0.5


def test_a_session_that_fails_in_setup_says_why(lab: LabServer) -> None:
    launched = lab.api(
        "POST", "sessions", {"name": "no such package", "packages": ["no-such-package-anywhere==1.0"]}
    )

    def failed() -> Any:
        found = lab.api("GET", f"sessions/{launched['id']}")
        assert found["phase"] != "ready"
        return found if found["phase"] == "failed" else None

    found = lab.until(failed, 90)
    assert found["error"]["code"] == "session_failed"
    assert found["error"]["hint"]
    # ClearML takes a console in batches: the reason may come a moment after the failure.
    lab.until(
        lambda: any(
            "no-such-package-anywhere" in line
            for line in lab.api("GET", f"sessions/{launched['id']}")["error"]["detail"]["log_tail"]
        )
    )


def test_shut_down_frees_the_agent_and_leaves_no_process(
    lab: LabServer, session: dict[str, Any], local_mode: ClearMLUnderTest
) -> None:
    assert _processes_of(session["id"])
    assert lab.call("DELETE", f"clearml-session/api/sessions/{session['id']}").status == 202
    lab.until(lambda: lab.api("GET", f"sessions/{session['id']}")["phase"] == "ended")

    def idle() -> bool:
        workers = [worker for queue in lab.api("GET", "queues")["queues"] for worker in queue["workers"]]
        return bool(workers) and not any(worker["busy"] for worker in workers)

    lab.until(idle)
    lab.until(lambda: not _processes_of(session["id"]), 10)
    assert session["id"] not in [found["id"] for found in lab.api("GET", "sessions")["sessions"]]
    ended = lab.api("GET", "sessions?state=ended")["sessions"]
    assert session["id"] in [found["id"] for found in ended]
    assert lab.call("DELETE", f"clearml-session/api/sessions/{session['id']}?purge=1").status == 202
    assert lab.call("GET", f"clearml-session/api/sessions/{session['id']}").status == 404


def _processes_of(session_id: str) -> list[str]:
    """Return the command lines of the processes that carry the session's id in their environment (Linux)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if session_id.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has just ended
            continue
    return found
