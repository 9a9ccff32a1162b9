"""Store a session's workspace while it runs; by itself the remote script stores it only when the session ends.

The archive is made over there, comes through the tunnel, and is uploaded from here: the session needs no ClearML
credentials for it. It is stored as the remote script would, so a session that continues this one restores it.
"""

from __future__ import annotations

import asyncio
import shlex
import tempfile
from pathlib import Path
from typing import BinaryIO

from .backend import init_script
from .backend.launch import repository_folder
from .errors import Conflict, InvalidInput, WorkspaceFailed
from .models import Session
from .sessions import ClearMLSessionManager
from .ssh.tunnel import Tunnel

_CHUNK = 256 * 1024
_NAME = "workspace_snapshot.tar.gz"  # the remote script's
_LIST_DEADLINE = 60.0
_LISTED = 200
_STRICT = "set -u;"
"""A variable that is not there must not become another folder: ``cd ""`` stays in the home folder."""
_storing: set[str] = set()
"""The ids of the sessions whose workspace is being stored: both archives would go to the same place."""


async def store(sessions: ClearMLSessionManager, session_id: str) -> Session:
    """Store the workspace of an attached session now; return the session when it is stored.

    Raises InvalidInput where the session has no workspace, Conflict where it is being stored already, NotAttached,
    TunnelDown, WorkspaceFailed, and what an upload raises.
    """
    if session_id in _storing:
        raise Conflict("The workspace is being stored already", hint="Wait until that has ended.")
    _storing.add(session_id)
    try:
        return await _store(sessions, session_id)
    finally:
        _storing.discard(session_id)


async def _store(sessions: ClearMLSessionManager, session_id: str) -> Session:
    session = await sessions.get(session_id)
    folder = str(session.spec.get("store_workspace") or "")
    if not folder:
        raise InvalidInput("The session was launched without a workspace to store", field="store_workspace")
    tunnel = await sessions.tunnel(session_id)
    place = _shell_path(folder)
    task = await sessions.client.task(session_id)
    try:
        with tempfile.TemporaryDirectory(prefix="clearml-session-") as scratch:
            archive = Path(scratch) / _NAME
            with archive.open("wb") as stream:
                await _fetch(tunnel, place, stream, left_out=repository_folder(task))
            await sessions.client.store_workspace(task, archive, await _preview(tunnel, place, folder))
    except OSError as error:
        raise WorkspaceFailed(
            f"The workspace cannot be kept on this machine until it is uploaded: {error.strerror}.",
            hint="Is there room in this machine's folder for temporary files?",
        ) from None
    return await sessions.get(session_id)


async def _fetch(tunnel: Tunnel, place: str, stream: BinaryIO, *, left_out: str) -> None:
    # The link to the repository would point nowhere on the next machine.
    options = f"--exclude={shlex.quote(f'./{left_out}')} " if left_out else ""
    process = await tunnel.start_process(f"{_STRICT} cd {place} && exec tar {options}-czf - .")
    try:
        while chunk := await process.read(_CHUNK):
            await asyncio.to_thread(stream.write, chunk)
        status = await process.wait()
    finally:
        process.abort()
    # 1: a file changed while it was read, as files of a running session do; or bash did not find the folder.
    if status not in (0, 1) or not stream.tell():
        raise WorkspaceFailed("The workspace could not be packed on the remote machine", exit_status=status)


async def _preview(tunnel: Tunnel, place: str, folder: str) -> str:
    command = f"{_STRICT} cd {place} && find . -type f | sort | head -n {_LISTED}"
    _, listing, _ = await tunnel.run(command, timeout=_LIST_DEADLINE)
    return f"Archive content {folder}:\n{listing.decode('utf-8', 'replace')}"


def _shell_path(folder: str) -> str:
    """Quote a folder for the remote shell, which still expands ``~/`` and ``$NAME``, as the remote script does."""
    return f'"{init_script.expanding(folder)}"'
