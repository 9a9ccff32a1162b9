"""Local TCP ports that lead to a session, on request only, and what a terminal or a desktop IDE needs."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import Conflict, RemoteBadAnswer
from .files import write_private
from .models import SshTarget
from .sessions import ClearMLSessionManager

SSH = "ssh"


class ForwardManager:
    """Opens, lists and closes the forwarded ports of all sessions.

    Every local port is on 127.0.0.1, stays open while the tunnel reconnects, and is closed when the session is
    detached. Any user of this machine can connect to it: that is why there is none unless it is asked for.

    Parameters
    ----------
    directory:
        Where the ``known_hosts`` files for `ssh` commands are kept.
    """

    def __init__(self, sessions: ClearMLSessionManager, directory: Path) -> None:
        self._sessions = sessions
        self._directory = directory
        self._to_ssh: set[tuple[str, int]] = set()
        self._opening = asyncio.Lock()

    async def open(
        self, session_id: str, remote_port: int | str, local_port: int = 0, *, show_password: bool = False
    ) -> dict[str, Any]:
        """Open a local port; 0 takes any free one. ``remote_port`` may be "ssh".

        The answer to "ssh" holds a command that works as it stands in a terminal, and the same as a block for
        ``~/.ssh/config``; the password only with ``show_password``. A port that leads to SSH already is answered
        again, unless another one is asked for. Raises as `ClearMLSessionManager.tunnel`, Conflict
        where the local port is in use, RemoteRefused where the session has no SSH server, RemoteBadAnswer where
        what it publishes must not get into a configuration of SSH.
        """
        tunnel = await self._sessions.tunnel(session_id)
        if remote_port != SSH:
            forwarded = await tunnel.forward(int(remote_port), local_port)
            return {"local_port": forwarded.local_port, "remote_port": forwarded.remote_port}
        target, port = await self._sessions.ssh(session_id)
        _check(target)
        async with self._opening:  # of two who ask at once, the second one finds the first one's
            open_ports = () if local_port else tunnel.forwards
            forwarded = next(
                (one for one in open_ports if (session_id, one.local_port) in self._to_ssh), None
            ) or await tunnel.forward(port, local_port)
            self._to_ssh.add((session_id, forwarded.local_port))
        alias = f"clearml-{session_id[:8]}"
        known_hosts = self._directory / alias
        lines = "".join(f"{alias} {key}\n" for key in target.host_keys)
        await asyncio.to_thread(write_private, known_hosts, lines)
        answer: dict[str, Any] = {
            "local_port": forwarded.local_port,
            "remote_port": SSH,
            "ssh_command": _command(alias, known_hosts, forwarded.local_port, target.username),
            "ssh_config": _config(alias, known_hosts, forwarded.local_port, target.username),
        }
        if show_password:
            answer["password"] = target.password
        return answer

    async def list(self, session_id: str) -> Sequence[dict[str, Any]]:
        """Return the open ports of a session. Raises as `ClearMLSessionManager.tunnel`, but waits for no link."""
        tunnel = await self._sessions.held_tunnel(session_id)
        return [
            {
                "local_port": forwarded.local_port,
                "remote_port": SSH
                if (session_id, forwarded.local_port) in self._to_ssh
                else forwarded.remote_port,
            }
            for forwarded in tunnel.forwards
        ]

    async def close(self, session_id: str, local_port: int) -> None:
        """Close one port and its connections. Raises Conflict where it is not open."""
        tunnel = await self._sessions.held_tunnel(session_id)
        for forwarded in tunnel.forwards:
            if forwarded.local_port == local_port:
                self._to_ssh.discard((session_id, local_port))
                await forwarded.close()
                return
        raise Conflict(f"The local port {local_port} is not one of this session's", local_port=local_port)

    async def forget(self, session_id: str) -> None:
        """Remove what was kept for a session that was detached."""
        self._to_ssh = {entry for entry in self._to_ssh if entry[0] != session_id}
        (self._directory / f"clearml-{session_id[:8]}").unlink(missing_ok=True)


def _check(target: SshTarget) -> None:
    """Refuse what would add options to the command or lines to a file: the Task may have been edited by anybody."""
    name = target.username
    if not name.isprintable() or name.startswith("-") or set(name) & set(" \"'"):
        raise RemoteBadAnswer("The session's user name holds characters that no user name has")
    if not all(key.isprintable() for key in target.host_keys):
        raise RemoteBadAnswer("The session publishes a host key that cannot be read")


def _command(alias: str, known_hosts: Path, port: int, user: str) -> str:
    # Password only: keys and the agent of this user are none of the session's business.
    options = [
        f"HostKeyAlias={alias}",
        f'UserKnownHostsFile="{known_hosts}"',  # several files may be named there, with blanks between them
        "StrictHostKeyChecking=yes",
        "PreferredAuthentications=password,keyboard-interactive",
    ]
    words = ["ssh", "-p", str(port)]
    for option in options:
        words += ["-o", option]
    return shlex.join([*words, f"{user}@127.0.0.1"])


def _config(alias: str, known_hosts: Path, port: int, user: str) -> str:
    return (
        f"Host {alias}\n"
        f"    HostName 127.0.0.1\n"
        f"    Port {port}\n"
        f"    User {user}\n"
        f"    HostKeyAlias {alias}\n"
        f'    UserKnownHostsFile "{known_hosts}"\n'
        f"    StrictHostKeyChecking yes\n"
        f"    PreferredAuthentications password,keyboard-interactive\n"
    )
