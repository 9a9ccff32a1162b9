"""The stock ``clearml-session`` command line against the embedded default, unmodified, in a terminal."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pexpect
import pytest

from tests.local_fixture import ClearMLUnderTest, write_config

pytestmark = pytest.mark.integration

_DEADLINE_S = 90


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
        sys.executable, command, env=environment, encoding="utf-8", timeout=_DEADLINE_S, dimensions=(40, 200)
    )


def test_launch_attach_shutdown(local_mode: ClearMLUnderTest, tmp_path: Path) -> None:
    launched = start_cli(local_mode, tmp_path, "--queue", "default", "--yes", "--username", "somebody")
    launched.expect(r"New session created \[id=([0-9a-f]{32})\]")
    task_id = launched.match.group(1)
    launched.expect("Connection is up and running")
    assert "Jupyter Lab URL: http://localhost:" in launched.before
    assert local_mode.task(task_id)["status"] == "in_progress"

    attached = start_cli(
        local_mode, tmp_path, "--attach", task_id, "--yes", "--username", "somebody", "--shell"
    )
    attached.expect("Switching to active SSH session")
    attached.sendline("echo home=$HOME")
    attached.expect(rf"home={re.escape(str(local_mode.directory))}/agent-\d/home")
    attached.sendline("exit")
    attached.expect("Goodbye")
    attached.expect(pexpect.EOF)

    launched.sendline("Shutdown")
    launched.expect("Remote session shutdown")
    launched.expect(pexpect.EOF)
    local_mode.wait_for_status(task_id, "stopped")
