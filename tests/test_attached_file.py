"""Which sessions were attached: the last word is what a restarted server reads."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from jupyterlab_clearml_session import attached_file
from jupyterlab_clearml_session.attached_file import AttachedFile
from jupyterlab_clearml_session.files import write_private

OLD, NEW = "a" * 32, "b" * 32


async def test_a_write_that_is_cancelled_does_not_come_after_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of a server: what is under way is cancelled, and the last state is written."""
    begun, go_on = threading.Event(), threading.Event()

    def slow_at_first(path: Path, text: str) -> None:
        if OLD in text:
            begun.set()
            go_on.wait(10)
        write_private(path, text)

    monkeypatch.setattr(attached_file, "write_private", slow_at_first)
    file = AttachedFile(tmp_path / "attached.json", logging.getLogger("test"))
    old = asyncio.create_task(file.write([OLD]))
    await asyncio.to_thread(begun.wait, 10)
    old.cancel()
    new = asyncio.create_task(file.write([NEW]))
    await asyncio.wait({new}, timeout=0.1)
    go_on.set()
    await asyncio.wait({old, new})
    assert old.cancelled()
    await asyncio.get_running_loop().shutdown_default_executor()  # all threads have ended
    assert file.read() == {NEW}


async def test_servers_that_share_the_file_leave_each_other_s_sessions(tmp_path: Path) -> None:
    path, log = tmp_path / "attached.json", logging.getLogger("test")
    one, other = AttachedFile(path, log), AttachedFile(path, log)
    assert one.read() == other.read() == set()
    await one.write([OLD])
    await other.write([NEW])
    await other.write([])  # as at its end: it has let go, or never had one
    assert AttachedFile(path, log).read() == {OLD}
    late = AttachedFile(path, log)
    assert late.read() == {OLD}
    await one.write([])
    await late.write([OLD])  # it has heard nothing of it yet
    assert AttachedFile(path, log).read() == set()


@pytest.mark.parametrize("text", [None, "", "[]", '{"attached": 7}'])
async def test_a_file_that_somebody_broke_is_written_anew(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "attached.json"
    file = AttachedFile(path, logging.getLogger("test"))
    await file.write([OLD])
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    await file.write([OLD, NEW])
    assert AttachedFile(path, logging.getLogger("test")).read() == {OLD, NEW}
