"""Launch options with the real agent and the real remote script: what was asked for is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyterlab_clearml_session.backend import uploads
from jupyterlab_clearml_session.backend.client import ClearMLClient
from jupyterlab_clearml_session.backend.launch import repository_folder
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.models import Task
from tests.local_fixture import ClearMLUnderTest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

DEADLINE_S = 120.0
PLAIN = {"docker_network": "none", "force_dropbear": True, "vscode_server": False}
GIT_TOKEN = "a-token-of-git"


@pytest.fixture
def client(local_mode: ClearMLUnderTest) -> ClearMLClient:
    client = ClearMLClient()
    client.use_local(local_mode.credentials)
    return client


@contextlib.asynccontextmanager
async def running(
    client: ClearMLClient, server: ClearMLUnderTest, spec: dict[str, Any]
) -> AsyncIterator[Task]:
    """Launch, wait for the remote Jupyter, and end it afterwards."""
    task = await client.launch(LaunchSpec.from_json({**PLAIN, **spec}))
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not task.parameters.get("properties/jupyter_port"):
            console = await asyncio.to_thread(server.console, task.id) if time.monotonic() > deadline else ""
            assert not console, f"no Jupyter in time:\n{console}"
            assert task.status in ("queued", "in_progress"), await asyncio.to_thread(server.console, task.id)
            await asyncio.sleep(0.3)
            task = await client.task(task.id)
        yield task
    finally:
        await end(client, server, task.id)


async def end(client: ClearMLClient, server: ClearMLUnderTest, task_id: str) -> None:
    if (await client.task(task_id)).status in ("queued", "in_progress"):
        await client.stop(task_id)
        await asyncio.to_thread(server.wait_for_status, task_id, "stopped", "completed", "failed")


def home_of(task: Task) -> Path:
    """Return the HOME of a session on this machine: its Jupyter runs there."""
    return Path(_jupyter(task).environ()["HOME"])


def _jupyter(task: Task) -> psutil.Process:
    port = task.parameters["properties/jupyter_port"]
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if port in line and any("jupyter" in part for part in line):
            return process
    raise AssertionError("the session's Jupyter does not run on this machine")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "my-project"
    folder.mkdir()
    (folder / "train.py").write_text("print('committed')\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
        subprocess.run(command, cwd=folder, check=True, timeout=30)
    (folder / "train.py").write_text("print('changed here')\n")
    (folder / "new.py").write_text("new = True\n")
    (folder / ".env").write_text("SECRET=1\n")
    return folder


async def test_what_is_asked_for_arrives_and_the_workspace_comes_back_in_the_next_session(
    client: ClearMLClient,
    local_mode: ClearMLUnderTest,
    repo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, data = tmp_path / "home", tmp_path / "data"
    for folder in (home, data / "sub"):
        folder.mkdir(parents=True)
    (home / ".git-credentials").write_text(f"https://user:{GIT_TOKEN}@host\n")
    (data / "sub" / "weights.bin").write_bytes(os.urandom(200_000))
    snapshot = await client.collect_repo(repo)
    monkeypatch.setenv("HOME", str(home))
    spec = {
        "clone_repo": snapshot.to_json()["clone_repo"],
        "env": {"GREETING": "it's $HOME"},
        "init_script": 'echo "$GREETING" > greeting-seen\n',
        "upload_files": [str(data)],
        "git_credentials": True,
        "store_workspace": "~/kept",
        "name": "has a workspace",
    }
    async with running(client, local_mode, spec) as task:
        checkout = home_of(task) / "kept" / repository_folder(task)
        assert (checkout / "train.py").read_text() == "print('changed here')\n"
        assert (checkout / "new.py").read_text() == "new = True\n"
        assert not (checkout / ".env").exists()
        assert (checkout / "greeting-seen").read_text() == "it's $HOME\n"
        assert _jupyter(task).environ()["GREETING"] == "it's $HOME"
        uploaded = home_of(task) / "session-files" / "sub" / "weights.bin"
        assert uploaded.read_bytes() == (data / "sub" / "weights.bin").read_bytes()

        written = home_of(task) / ".config" / "git" / "credentials"
        # The remote script writes them in containers and for root only.
        assert written.exists() == (os.geteuid() == 0)
        if written.exists():
            assert GIT_TOKEN in written.read_text()
            assert "_git_credentials" not in local_mode.task(task.id)["runtime"]
        shown = str({**local_mode.task(task.id), "runtime": None}) + local_mode.console(task.id)
        assert GIT_TOKEN not in shown

        again = await client.spec(task.id)
        assert again.clone_repo == snapshot.clone_repo()
        assert again.env == {"GREETING": "it's $HOME"}
        assert again.init_script == spec["init_script"]

        content = os.urandom(300_000)
        kept = home_of(task) / "kept" / "sub" / "data.bin"
        kept.parent.mkdir(parents=True)
        kept.write_bytes(content)
    artifacts = local_mode.task(task.id)["execution"]["artifacts"]
    assert sorted(artifact["key"] for artifact in artifacts) == [uploads.NAME, uploads.WORKSPACE]
    kept.unlink(missing_ok=True)

    following = {"store_workspace": "~/kept", "name": "has a workspace"}
    async with running(client, local_mode, following) as second:  # the last one is continued by itself
        assert second.parent == task.id
        assert (home_of(second) / "kept" / "sub" / "data.bin").read_bytes() == content


async def test_a_task_is_debugged_in_its_repository(
    client: ClearMLClient, local_mode: ClearMLUnderTest, repo: Path
) -> None:
    snapshot = await client.collect_repo(repo)
    experiment = local_mode.call(
        "tasks.create",
        name="an experiment",
        type="training",
        project=local_mode.call("projects.create", name=f"Debugged {time.time()}", description="")["id"],
        script={
            "repository": snapshot.url,
            "branch": snapshot.branch,
            "version_num": snapshot.commit,
            "diff": snapshot.diff,
            "entry_point": "train.py",
            "working_dir": ".",
            "binary": "python3",
            "requirements": {"pip": ""},
        },
    )["id"]
    async with running(client, local_mode, {"debugging_session": experiment}) as task:
        assert task.parent == experiment
        checkout = home_of(task) / repository_folder(task)
        assert (checkout / "train.py").read_text() == "print('changed here')\n"
        assert (checkout / "new.py").read_text() == "new = True\n"
    assert local_mode.task(experiment)["status"] == "created"  # the original is left alone
