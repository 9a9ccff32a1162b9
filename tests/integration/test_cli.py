"""The stock ``clearml-session`` 0.17, unmodified, in a terminal: on the embedded default, beside our server."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.lab_fixture import LabServer, clearml_environment
from tests.local_fixture import ClearMLUnderTest, write_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

DEADLINE_S = 90


@pytest.fixture(scope="module")
def lab(local_mode: ClearMLUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    environment = clearml_environment(local_mode.credentials)
    server = LabServer(tmp_path_factory.mktemp("lab"), environment=environment, command="server").start()
    yield server
    server.stop()


def start_cli(server: ClearMLUnderTest, home: Path, *arguments: str) -> pexpect.spawn:
    """``clearml-session`` in a terminal, with a HOME of its own and the server's credentials."""
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "TERM": "xterm",
        "CLEARML_CONFIG_FILE": str(write_config(server, home)),
    }
    command = [
        "-m",
        "clearml_session",
        "--config-file",
        str(home / "state.json"),
        "--skip-docker-network",
        "true",
        "--force-dropbear",
        "true",
        "--vscode-server",
        "false",
        "--disable-session-cleanup",
        "true",
        *arguments,
    ]
    return pexpect.spawn(
        sys.executable, command, env=environment, encoding="utf-8", timeout=DEADLINE_S, dimensions=(40, 200)
    )


def test_a_session_of_the_cli_appears_and_attaches_here(
    lab: LabServer, local_mode: ClearMLUnderTest, tmp_path: Path
) -> None:
    user = ("--yes", "--username", "somebody")
    launched = start_cli(local_mode, tmp_path, "--queue", "default", "--session-name", "from the cli", *user)
    launched.expect(r"New session created \[id=([0-9a-f]{32})\]")
    session_id = launched.match.group(1)
    launched.expect("Connection is up and running")
    assert "Jupyter Lab URL: http://localhost:" in launched.before

    found = {session["id"]: session for session in lab.api("GET", "sessions")["sessions"]}
    assert found[session_id]["launched_by"] == "cli"
    assert found[session_id]["phase"] == "services_up"
    assert found[session_id]["name"] == "from the cli"
    lab.api("POST", f"sessions/{session_id}/attach")
    ready = lab.phase(session_id, "ready")
    assert ready["tunnel"]["host_key"] == "unverified", "upstream's keys are public: they prove nothing"
    assert lab.call("GET", ready["endpoints"]["jupyter"] + "api/status").status == 200

    attached = start_cli(local_mode, tmp_path, "--attach", session_id, "--shell", *user)
    attached.expect("Switching to active SSH session")
    attached.sendline("echo home=$HOME")
    attached.expect(rf"home={re.escape(str(local_mode.directory))}/agent-\d/home")
    attached.sendline("exit")
    attached.expect("Goodbye")
    attached.expect(pexpect.EOF)

    lab.api("DELETE", f"sessions/{session_id}")
    launched.expect("Remote session still running!|Remote session shutdown", timeout=60)
    launched.expect(pexpect.EOF)
    lab.until(lambda: lab.api("GET", f"sessions/{session_id}")["phase"] == "ended")


def test_a_session_of_ours_attaches_in_the_cli_and_is_shut_down_there(
    lab: LabServer, local_mode: ClearMLUnderTest, tmp_path: Path
) -> None:
    launched = lab.api("POST", "sessions", {"name": "from the panel", "vscode_server": False})
    session_id = launched["id"]
    lab.phase(session_id, "ready")
    attached = start_cli(local_mode, tmp_path, "--attach", session_id, "--yes")
    attached.expect("Connection is up and running")
    assert "Jupyter Lab URL: http://localhost:" in attached.before
    attached.sendline("Shutdown")
    attached.expect("Remote session shutdown")
    attached.expect(pexpect.EOF)
    ended = lab.until(
        lambda: session if (session := lab.api("GET", f"sessions/{session_id}"))["phase"] == "ended" else None
    )
    assert not ended["attached"]
    assert json.dumps(ended).count("ssh_password") == 0
