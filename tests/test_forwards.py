"""What a forwarded port tells a terminal or a desktop IDE: nothing that a session's Task could smuggle in."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from jupyterlab_clearml_session.errors import RemoteBadAnswer
from jupyterlab_clearml_session.forwards import ForwardManager
from jupyterlab_clearml_session.models import SshTarget
from jupyterlab_clearml_session.sessions import ClearMLSessionManager

from .sshd_fixture import SshServer, ssh_server
from .tunnel_fixture import Watched

SESSION = "0123456789abcdef0123456789abcdef"


class OneSession:
    """What `ForwardManager` asks of the session manager. Only this is a fake: the tunnel is real."""

    def __init__(self, watched: Watched, server: SshServer) -> None:
        self.target = server.target()
        self._watched = watched
        self._port = server.port

    async def tunnel(self, _session_id: str) -> Any:
        await self._watched.tunnel.wait_up(5)
        return self._watched.tunnel

    async def ssh(self, _session_id: str) -> tuple[SshTarget, int]:
        return self.target, self._port


NAMES = [
    "root\n    ProxyCommand sh -c id",
    "root ProxyCommand",
    "root\tx",
    "root\x00",
    "root\x7f",
    "root\u2028x",
    "-oProxyCommand=id",
    'ro"ot',
]


async def test_what_a_task_says_adds_nothing_to_a_configuration(tmp_path: Path) -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        sessions = OneSession(watched, server)
        manager = ForwardManager(cast(ClearMLSessionManager, sessions), tmp_path / "known_hosts")
        good = sessions.target
        key = good.host_keys[0]
        targets = [replace(good, username=name) for name in NAMES]
        targets += [
            replace(good, host_keys=(key, smuggled))
            for smuggled in (f"{key}\ngithub.com {key}", f"{key}\r", f"{key}\x00")
        ]
        for target in targets:
            sessions.target = target
            with pytest.raises(RemoteBadAnswer):
                await manager.open(SESSION, "ssh")
        assert watched.tunnel.forwards == []
        assert list(tmp_path.iterdir()) == []

        sessions.target = replace(good, username="DOMAIN\\ada.l-1@example", host_keys=(f"{key} a comment",))
        answer = await manager.open(SESSION, "ssh")
        assert "    User DOMAIN\\ada.l-1@example\n" in answer["ssh_config"]
        await manager.forget(SESSION)


async def test_two_windows_that_ask_for_ssh_at_once_get_one_port(tmp_path: Path) -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        manager = ForwardManager(
            cast(ClearMLSessionManager, OneSession(watched, server)), tmp_path / "known_hosts"
        )
        first, second = await asyncio.gather(*(manager.open(SESSION, "ssh") for _ in range(2)))
        assert first == second
        assert len(watched.tunnel.forwards) == 1
        await manager.forget(SESSION)


async def test_a_folder_with_a_blank_in_its_name_is_one_file_to_ssh(tmp_path: Path) -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        directory = tmp_path / "known hosts"
        manager = ForwardManager(cast(ClearMLSessionManager, OneSession(watched, server)), directory)
        answer = await manager.open(SESSION, "ssh")
        (file,) = directory.iterdir()
        # ssh takes several files there (ssh_config(5)), unless the name is quoted for ssh as well as for the shell.
        assert f'UserKnownHostsFile="{file}"' in shlex.split(answer["ssh_command"])
        assert f'    UserKnownHostsFile "{file}"\n' in answer["ssh_config"]
        await manager.forget(SESSION)
