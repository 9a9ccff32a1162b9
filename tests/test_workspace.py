"""Storing a session's workspace: what is over there goes to ClearML as it is, or nothing does."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jupyterlab_clearml_session import workspace
from jupyterlab_clearml_session.backend.draft import RECORD
from jupyterlab_clearml_session.errors import Conflict, WorkspaceFailed
from jupyterlab_clearml_session.models import Task
from jupyterlab_clearml_session.sessions import ClearMLSessionManager

from .sshd_fixture import ssh_server
from .tunnel_fixture import Watched

SESSION = "0123456789abcdef0123456789abcdef"


class OneSession:
    """What `workspace.store` asks of the session manager and its client. The tunnel is real."""

    def __init__(self, watched: Watched) -> None:
        self.folder = ""
        self.stored: list[bytes] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.client = self
        self._watched = watched

    async def get(self, session_id: str) -> Any:
        return SimpleNamespace(id=session_id, spec={"store_workspace": self.folder})

    async def tunnel(self, _session_id: str) -> Any:
        await self._watched.tunnel.wait_up(5)
        return self._watched.tunnel

    async def task(self, session_id: str) -> Any:
        return Task(session_id, "a session", "in_progress", runtime={RECORD: json.dumps({"folder": "repo"})})

    async def store_workspace(self, _task: Any, archive: Path, _preview: str) -> None:
        self.stored.append(archive.read_bytes())
        await self.go_on.wait()

    async def store(self) -> list[str]:
        """Store, and return the names in what was stored."""
        await workspace.store(cast(ClearMLSessionManager, self), SESSION)
        with tarfile.open(fileobj=io.BytesIO(self.stored[-1])) as archive:
            return sorted(archive.getnames())


@asynccontextmanager
async def one_session() -> AsyncIterator[OneSession]:
    async with ssh_server() as server, Watched(server.target()) as watched:
        yield OneSession(watched)


# bash ends with 1 where it cannot change the folder, as tar does where a file has changed; other shells with 2.
@pytest.mark.parametrize("folder", ["/no/such/folder", "~/no/such/folder"])
async def test_a_folder_that_is_not_there_does_not_replace_the_snapshot(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_shell

    async def with_bash(command: str, **options: Any) -> Any:
        return await start(command, executable="/bin/bash", **options)

    monkeypatch.setattr(asyncio, "create_subprocess_shell", with_bash)
    async with one_session() as one:
        one.folder = folder
        with pytest.raises(WorkspaceFailed):
            await one.store()
        assert one.stored == []


async def test_variables_in_the_folder_s_name_are_those_over_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'my "own" $(work)'
    folder.mkdir()
    (folder / "note.txt").write_text("kept")
    monkeypatch.setenv("HOME", str(tmp_path))  # of the SSH server, which is in this process
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    async with one_session() as one:
        for one.folder in (f"~/{folder.name}", f"$HOME/{folder.name}", f"${{HOME}}/{folder.name}"):
            assert await one.store() == [".", "./note.txt"]
        for one.folder in ("$NO_SUCH_VARIABLE", "$NO_SUCH_VARIABLE/"):
            with pytest.raises(WorkspaceFailed):
                await one.store()
        assert len(one.stored) == 3


async def test_the_link_to_the_repository_is_not_stored(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("kept")
    (tmp_path / "sub").mkdir()
    for link in (f"repo-{SESSION[:8]}", f"sub/repo-{SESSION[:8]}"):
        (tmp_path / link).symlink_to("/no/such/folder")
    async with one_session() as one:
        one.folder = str(tmp_path)
        assert f"./repo-{SESSION[:8]}" not in await one.store()


async def test_two_windows_do_not_store_one_workspace_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("kept")
    async with one_session() as one:
        one.folder = str(tmp_path)
        one.go_on.clear()
        first = asyncio.create_task(one.store())
        await asyncio.sleep(0)  # it has begun
        with pytest.raises(Conflict):
            await asyncio.wait_for(one.store(), 5)
        one.go_on.set()
        assert await first == [".", "./note.txt"]
        assert await one.store() == [".", "./note.txt"], "and again, once that is done"
        assert len(one.stored) == 2


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="a full disk is had without filling one on Linux only"
)
async def test_a_full_disk_on_this_machine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "note.txt").write_text("kept")
    monkeypatch.setattr(workspace, "_NAME", "/dev/full")
    async with one_session() as one:
        one.folder = str(tmp_path)
        with pytest.raises(WorkspaceFailed, match="No space left"):
            await one.store()
