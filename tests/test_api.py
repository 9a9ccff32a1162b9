"""The REST API in a real Jupyter server, against the embedded ClearML server; no agent runs here.

What an agent and the remote script would tell ClearML, the tests tell it themselves; the real ones are in
``integration/test_main_job.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from jupyter_events import EventLogger
from jupyter_server.serverapp import ServerApp

from jupyterlab_clearml_session.api.events import SCHEMA_ID
from jupyterlab_clearml_session.errors import HelperFailed
from jupyterlab_clearml_session.local import LocalMode
from jupyterlab_clearml_session.models import Phase, Session, SessionEvent
from tests.kernel_fixture import RemoteMachine, running
from tests.lab_fixture import clearml_environment
from tests.local_fixture import ClearMLUnderTest, Fault
from tests.rest_fixture import (  # noqa: F401 - fixtures
    DEADLINE,
    SPEC,
    Call,
    call_fixture,
    launched_session,
    publish,
    remote_side,
    rest_config,
    until_phase,
)
from tests.sshd_fixture import USERNAME

# -- what is always so -------------------------------------------------------------------------------------


async def test_status_tells_the_server_and_the_user(call: Call, clearml_server: ClearMLUnderTest) -> None:
    status, body = await call("GET", "status")
    assert status == 200
    assert body["mode"] == "server"
    assert body["reachable"]
    assert body["api_server"] == clearml_server.credentials["api_server"]
    assert set(body["user"]) == {"id", "name"}


def test_clearml_and_ssh_are_not_imported_by_the_server_s_start() -> None:
    # In a process of its own: others may have imported them here. A whole server: bench/server_start.py.
    code = (
        "import sys, jupyterlab_clearml_session.extension\n"
        "assert not {'clearml', 'asyncssh', 'requests', 'cryptography', 'psutil'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_queues_have_length_and_workers(call: Call) -> None:
    status, body = await call("GET", "queues")
    assert status == 200
    (queue,) = [queue for queue in body["queues"] if queue["name"] == "default"]
    assert (queue["length"], queue["workers"]) == (0, [])


# -- bad luck with ClearML ---------------------------------------------------------------------------------


TROUBLE: list[tuple[Fault, int, str]] = [
    ("freeze", 504, "clearml_deadline"),
    ("error500", 502, "clearml_bad_answer"),
    ("html", 502, "clearml_bad_answer"),
    ("refuse", 503, "clearml_unreachable"),
    ("reset", 503, "clearml_unreachable"),
]


async def test_a_clearml_server_in_trouble_is_a_typed_answer(
    call: Call, clearml_server: ClearMLUnderTest
) -> None:
    for fault, status, code in TROUBLE:
        assert (await call("GET", "queues"))[0] == 200
        with clearml_server.front.fault(fault):
            answers = await asyncio.gather(
                call("GET", "queues"), call("POST", "sessions", SPEC), call("GET", "status")
            )
        for seen, answer in answers[:2]:
            assert (seen, answer["error"]["code"]) == (status, code)
        seen, answer = answers[2]
        assert (seen, answer["reachable"], answer["error"]["code"]) == (200, False, code)
    assert clearml_server.call("tasks.get_all")["tasks"] == []


async def test_wrong_credentials_are_said_so(
    call: Call, clearml_server: ClearMLUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARML_API_SECRET_KEY", "wrong-secret-wrong-secret")
    status, answer = await call("GET", "queues")
    assert (status, answer["error"]["code"]) == (401, "bad_credentials")
    assert "wrong-secret" not in json.dumps(answer)


async def test_who_has_tried_it_here_goes_on_to_a_server(
    call: Call,
    jp_serverapp: ServerApp,
    clearml_server: ClearMLUnderTest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The real embedded default, but for its agents: the test does what they would.
    monkeypatch.setattr("jupyterlab_clearml_session.local.LocalMode", partial(LocalMode, agents=0))
    for name in clearml_environment(clearml_server.credentials):
        monkeypatch.delenv(name)
    # Not left to HOME, which the SDK looks up once in a process.
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(tmp_path / "clearml.conf"))
    assert (await call("POST", "configure", {"mode": "local"}))[1]["mode"] == "local"
    client = jp_serverapp.web_app.settings["clearml_session_manager"].client
    credentials = client.connection.credentials
    local = ClearMLUnderTest(credentials, tmp_path, None, credentials["api_server"], tmp_path)
    gone: asyncio.Queue[str] = asyncio.Queue()
    jp_serverapp.web_app.settings["clearml_session_manager"].add_hook(on_gone=gone.put)
    async with remote_side() as (ssh, jupyter):
        session_id = await launched_session(call, local, ssh, jupyter)
        await until_phase(call, session_id, "ready")

        wrong = {**clearml_server.credentials, "secret_key": "wrong-secret-wrong-secret"}
        status, answer = await call("POST", "configure", wrong)
        assert (status, answer["error"]["code"]) == (401, "bad_credentials")
        assert (await call("GET", "status"))[1]["mode"] == "local"
        assert (await call("GET", f"sessions/{session_id}"))[1]["phase"] == "ready"
        assert gone.empty()

        status, answer = await call("POST", "configure", clearml_server.credentials)
        assert (status, answer["mode"], answer["reachable"]) == (200, "server", True)
        assert answer["api_server"] == clearml_server.credentials["api_server"]
        assert gone.get_nowait() == session_id
        await asyncio.gather(*(connection.wait_closed() for connection in ssh.connections))
    assert (await call("GET", "sessions", params={"state": "all"}))[1]["sessions"] == []
    assert (await call("GET", f"sessions/{session_id}"))[0] == 404
    with pytest.raises(urllib.error.URLError):  # nothing listens there any more
        local.call("users.get_current_user")
    _, session = await call("POST", "sessions", SPEC)
    assert clearml_server.task(session["id"])["status"] == "queued"


# -- the life of a session ---------------------------------------------------------------------------------


async def test_a_session_waits_in_its_queue_and_is_aborted_there(call: Call) -> None:
    status, session = await call("POST", "sessions", SPEC)
    assert status == 202
    assert session["phase"] == "queued"
    assert session["user"] == (await call("GET", "status"))[1]["user"]
    assert session["project"] == "DevOps"
    waiting = await until_phase(call, session["id"], "queued")
    _, listed = await call("GET", "sessions")
    assert [found["id"] for found in listed["sessions"]] == [session["id"]]
    assert waiting["queue"]["name"] == "default"
    status, _ = await call("DELETE", f"sessions/{session['id']}")
    assert status == 202
    ended = await until_phase(call, session["id"], "ended")
    assert "error" not in ended
    status, answer = await call("DELETE", f"sessions/{session['id']}")
    assert (status, answer["error"]["code"]) == (409, "wrong_phase")
    assert (await call("DELETE", f"sessions/{session['id']}", params={"purge": "1"}))[0] == 202
    assert (await call("GET", f"sessions/{session['id']}"))[0] == 404


async def test_the_whole_way_to_ready_and_back(call: Call, clearml_server: ClearMLUnderTest) -> None:
    async with remote_side() as (ssh, jupyter):
        session_id = await launched_session(call, clearml_server, ssh, jupyter)
        ready = await until_phase(call, session_id, "ready")
        assert ready["tunnel"]["host_key"] == "pinned"
        _, found = await call("GET", f"sessions/{session_id}/ports")
        assert jupyter.port in [entry["port"] for entry in found["ports"]]
        assert ssh.password not in json.dumps(ready)
        await call("POST", f"sessions/{session_id}/detach")
        assert (await until_phase(call, session_id, "services_up"))["attached"] is False
        await call("POST", f"sessions/{session_id}/attach")
        await until_phase(call, session_id, "ready")


async def test_a_connection_that_is_made_anew_is_never_told_as_up(
    call: Call, clearml_server: ClearMLUnderTest, jp_serverapp: ServerApp
) -> None:
    told: list[tuple[str, str]] = []
    async with remote_side() as (ssh, jupyter):
        session_id = await launched_session(call, clearml_server, ssh, jupyter)
        await until_phase(call, session_id, "ready")

        def note(event: SessionEvent) -> None:
            assert event.session is not None
            told.append((event.session.phase.value, event.session.tunnel.state.value))

        jp_serverapp.web_app.settings["clearml_session_manager"].subscribe(note)
        status, session = await call("POST", f"sessions/{session_id}/reconnect")
        assert (status, session["phase"]) == (202, "reconnecting")
        assert session["tunnel"]["state"] == "reconnecting"
        await until_phase(call, session_id, "ready")
    assert told[0] == ("reconnecting", "reconnecting")


async def test_a_host_that_has_another_key_is_never_spoken_to(
    call: Call, clearml_server: ClearMLUnderTest
) -> None:
    async with remote_side() as (ssh, jupyter):
        _, session = await call("POST", "sessions", {**SPEC, "username": USERNAME})
        publish(clearml_server, session["id"], ssh, jupyter)
        failed = await until_phase(call, session["id"], "failed")
        assert failed["error"]["code"] == "host_key_mismatch"
        assert ssh.commands == []
        assert ssh.channels_opened == 0


async def test_another_session_s_jupyter_on_our_port_is_not_ready(
    call: Call, clearml_server: ClearMLUnderTest
) -> None:
    async with remote_side() as (ssh, jupyter):
        jupyter.status = 403
        session_id = await launched_session(call, clearml_server, ssh, jupyter)
        failed = await until_phase(call, session_id, "failed")
        assert failed["error"]["code"] == "jupyter_port_clash"


async def test_a_session_stopped_by_somebody_else_says_so(
    call: Call, clearml_server: ClearMLUnderTest
) -> None:
    _, session = await call("POST", "sessions", SPEC)
    clearml_server.call("tasks.stop", task=session["id"])
    ended = await until_phase(call, session["id"], "ended")
    assert ended["error"]["code"] == "session_aborted"


async def test_a_session_that_fails_shows_its_log(call: Call, clearml_server: ClearMLUnderTest) -> None:
    _, session = await call("POST", "sessions", SPEC)
    clearml_server.call("tasks.started", task=session["id"], force=True)
    clearml_server.call("tasks.failed", task=session["id"], status_reason="exit code 1", force=True)
    failed = await until_phase(call, session["id"], "failed")
    assert failed["error"]["code"] == "session_failed"
    assert "exit code 1" in failed["error"]["message"]


async def test_a_session_whose_ssh_server_never_comes_up_fails_after_the_deadline(
    call: Call, clearml_server: ClearMLUnderTest, jp_serverapp: ServerApp
) -> None:
    jp_serverapp.web_app.settings["clearml_session_manager"].setup_deadline = 0.05
    _, session = await call("POST", "sessions", SPEC)
    clearml_server.call("tasks.started", task=session["id"], force=True)
    failed = await until_phase(call, session["id"], "failed")
    assert failed["error"]["code"] == "setup_deadline"
    _, listed = await call("GET", "sessions")
    assert [found["id"] for found in listed["sessions"]] == [session["id"]], "it still holds an agent"
    assert (await call("DELETE", f"sessions/{session['id']}"))[0] == 202


async def test_forwards_lead_to_the_session_and_close_with_it(
    call: Call, clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with remote_side() as (ssh, jupyter):
        session_id = await launched_session(call, clearml_server, ssh, jupyter)
        await until_phase(call, session_id, "ready")
        path = f"sessions/{session_id}/forwards"
        status, plain = await call("POST", path, {"remote_port": jupyter.port})
        assert status == 200
        _, writer = await asyncio.open_connection("127.0.0.1", plain["local_port"])
        writer.close()
        _, to_ssh = await call("POST", path, {"remote_port": "ssh"})
        assert "password" not in to_ssh
        assert f"-p {to_ssh['local_port']}" in to_ssh["ssh_command"]
        # The command's known_hosts file pins the session's key: this is what `ssh` would check.
        known_hosts = (tmp_path / "state" / "known_hosts" / f"clearml-{session_id[:8]}").read_text()
        assert ssh.public_key.split()[1] in known_hosts
        connection = await asyncssh.connect(
            "127.0.0.1",
            to_ssh["local_port"],
            username=USERNAME,
            password=ssh.password,
            host_key_alias=f"clearml-{session_id[:8]}",
            known_hosts=asyncssh.import_known_hosts(known_hosts),
            config=None,
        )
        assert (await connection.run("echo over there")).stdout == "over there\n"
        connection.close()
        _, shown = await call("POST", path, {"remote_port": "ssh", "show_password": True})
        assert shown["password"] == ssh.password
        _, listed = await call("GET", path)
        assert listed["forwards"] == [
            {"local_port": plain["local_port"], "remote_port": jupyter.port},
            {"local_port": to_ssh["local_port"], "remote_port": "ssh"},
        ], "asked again, SSH keeps its port"
        status, answer = await call("POST", path, {"remote_port": 80, "local_port": plain["local_port"]})
        assert (status, answer["error"]["code"]) == (409, "conflict")
        assert (await call("DELETE", f"{path}/{plain['local_port']}"))[0] == 204
        await call("POST", f"sessions/{session_id}/detach")
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection("127.0.0.1", to_ssh["local_port"])


async def test_an_upload_is_seen_and_can_be_cancelled(
    call: Call, clearml_server: ClearMLUnderTest, jp_serverapp: ServerApp, tmp_path: Path
) -> None:
    (tmp_path / "to upload").mkdir()
    for number in range(100):
        (tmp_path / "to upload" / f"{number}.bin").write_bytes(os.urandom(200_000))
    manager = jp_serverapp.web_app.settings["clearml_session_manager"]
    uploading = asyncio.Event()
    manager.subscribe(lambda event: uploading.set() if event.session and event.session.progress else None)
    launch = asyncio.ensure_future(
        call("POST", "sessions", {**SPEC, "upload_files": [str(tmp_path / "to upload")]})
    )
    await asyncio.wait_for(uploading.wait(), DEADLINE)
    _, listed = await call("GET", "sessions")
    (session,) = listed["sessions"]
    assert session["phase"] == "created"
    assert (await call("DELETE", f"sessions/{session['id']}"))[0] == 202
    status, answer = await launch
    assert (status, answer["error"]["code"]) == (424, "session_aborted")
    assert (await call("GET", f"sessions/{session['id']}"))[0] == 404
    assert clearml_server.call("tasks.get_all")["tasks"] == [], "nothing half-made stays"


async def test_what_a_session_was_launched_with_can_be_read_back(call: Call) -> None:
    script = "echo hello\nexport A=1\n"
    _, session = await call("POST", "sessions", {**SPEC, "init_script": script, "password": "not-to-be-seen"})
    status, spec = await call("GET", f"sessions/{session['id']}/spec")
    assert status == 200
    assert spec["init_script"] == script
    assert "not-to-be-seen" not in json.dumps(spec)


async def test_what_the_command_line_remembers_becomes_a_preset(call: Call) -> None:
    status, answer = await call("POST", "import-presets")
    assert (status, answer["error"]["code"]) == (404, "unknown_preset")
    state = {"queue": "default", "docker": "python:3.11", "password": "not-to-be-taken"}
    (Path.home() / ".clearml_session.json").write_text(json.dumps(state))
    status, answer = await call("POST", "import-presets")
    assert status == 200
    (preset,) = answer["presets"].values()
    assert preset["docker"] == "python:3.11"
    assert "not-to-be-taken" not in json.dumps(answer)


async def test_every_change_is_an_event(call: Call, jp_serverapp: ServerApp) -> None:
    seen: list[dict[str, Any]] = []

    async def listen(logger: EventLogger, schema_id: str, data: dict[str, Any]) -> None:
        seen.append(data)

    assert jp_serverapp.event_logger is not None
    jp_serverapp.event_logger.add_listener(schema_id=SCHEMA_ID, listener=listen)
    _, session = await call("POST", "sessions", SPEC)
    await call("DELETE", f"sessions/{session['id']}")
    await until_phase(call, session["id"], "ended")
    phases = [event["session"]["phase"] for event in seen if event["kind"] == "changed"]
    assert phases[0] == "queued"
    assert phases[-1] == "ended"
    revisions = [event["revision"] for event in seen]
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))


async def test_why_a_session_has_no_kernels_stands_on_it_until_it_has(
    call: Call,
    clearml_server: ClearMLUnderTest,
    jp_serverapp: ServerApp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jupyterlab_clearml_session.kernels.channel.FAILED_RETRY_MAX", 0.1)
    (tmp_path / "away").mkdir()
    machine = RemoteMachine(tmp_path / "away")
    machine.helper_dir.touch()  # a file: no folder can be made
    for name, value in machine.env.items():
        monkeypatch.setenv(name, value)
    told: asyncio.Queue[SessionEvent] = asyncio.Queue()
    jp_serverapp.web_app.settings["clearml_session_manager"].subscribe(told.put_nowait)

    async def until(wanted: Callable[[Session], bool]) -> list[Session]:
        """Return what was told, up to the session that is wanted."""
        seen: list[Session] = []

        async def listen() -> None:
            while not seen or not wanted(seen[-1]):
                event = await told.get()
                if event.session is not None:
                    seen.append(event.session)

        await asyncio.wait_for(listen(), DEADLINE)
        return seen

    with running(machine):
        async with remote_side() as (ssh, jupyter):
            session_id = await launched_session(call, clearml_server, ssh, jupyter)
            await until(lambda session: session.kernels_error is not None)
            session = await until_phase(call, session_id, "ready")
            assert session["kernels_error"]["code"] == "helper_failed"
            assert "no folder can be made for it" in session["kernels_error"]["message"]
            assert "choose Reconnect" in session["kernels_error"]["hint"]
            await ssh.drop()
            seen = await until(lambda session: session.phase is Phase.RECONNECTING)
            seen += await until(lambda session: session.phase is Phase.READY)
            assert all(session.kernels_error for session in seen), "the link says nothing of the helper"

            machine.helper_dir.unlink()
            await until(lambda session: session.kernels_error is None)
            seen = await until(lambda session: bool(session.kernelspecs))
            await ssh.drop()
            seen += await until(lambda session: session.phase is Phase.RECONNECTING)
            seen += await until(lambda session: session.phase is Phase.READY)
            assert not any(session.kernels_error for session in seen)
            assert "kernels_error" not in (await call("GET", f"sessions/{session_id}"))[1]

            jp_serverapp.web_app.settings["clearml_session_manager"].set_kernels_error(
                session_id, HelperFailed("It has gone")
            )
            assert (await call("GET", f"sessions/{session_id}"))[1]["kernels_error"][
                "message"
            ] == "It has gone"
            _, detached = await call("POST", f"sessions/{session_id}/detach")
            assert "kernels_error" not in detached


async def test_a_repository_is_looked_at_before_it_is_sent(call: Call, jp_root_dir: Path) -> None:
    repo = jp_root_dir / "project"
    repo.mkdir()
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (
        ["init", "-q", "-b", "main"],
        ["remote", "add", "origin", "https://me:token@git.example.org/x.git"],
        [*identity, "commit", "-q", "--allow-empty", "-m", "first"],
        ["update-ref", "refs/remotes/origin/main", "HEAD"],
    ):
        subprocess.run(["git", "-C", str(repo), *arguments], check=True)
    (repo / "train.py").write_text("print(1)\n")
    status, seen = await call("GET", "repo", params={"folder": "project"})
    assert status == 200
    assert seen["files"] == ["train.py"]
    assert seen["clone_repo"]["url"] == "https://git.example.org/x.git"
    assert seen["clone_repo"]["branch"] == "main"
    for folder in ("../..", "/../", "project/../../..", "nowhere"):
        status, answer = await call("GET", "repo", params={"folder": folder})
        assert (status, answer["error"]["detail"]["field"]) == (400, "folder")


async def test_presets_are_kept_and_launched(call: Call) -> None:
    assert (await call("PUT", "presets/small", {**SPEC, "docker": "python:3.11"}))[0] == 200
    status, session = await call("POST", "sessions", {"preset": "small", "name": "from a preset"})
    assert status == 202
    assert session["name"] == "from a preset"
    assert session["spec"]["docker"] == "python:3.11"
    _, presets = await call("GET", "presets")
    assert presets["last"]["name"] == "from a preset"
    assert (await call("DELETE", "presets/small"))[0] == 200
    status, answer = await call("DELETE", "presets/small")
    assert (status, answer["error"]["code"]) == (404, "unknown_preset")


async def test_the_schema_describes_every_field(call: Call) -> None:
    status, schema = await call("GET", "schema")
    assert status == 200
    assert {"queue", "name", "docker", "packages"} <= set(schema["properties"])
