"""A real Jupyter server is killed while a cell of a remote kernel prints, and the next one goes on."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from ..counting import Count
from ..kernel_fixture import RemoteMachine, machine
from ..kernel_server_fixture import NAME
from ..killed_server import kernel_server, run_and_kill
from ..sshd_fixture import ssh_server

pytestmark = pytest.mark.integration
__all__ = ["machine"]
KILLS = 2


@pytest.mark.parametrize("reopened", [False, True], ids=["the page stays", "the notebook is opened anew"])
async def test_a_killed_server_loses_and_repeats_nothing(
    machine: RemoteMachine, tmp_path: Path, reopened: bool
) -> None:
    count = Count(lines=20_000, step=20, pause=0.0, gates=tmp_path, parts=KILLS + 1)
    async with ssh_server(cwd=machine.home) as sshd:
        server = kernel_server(tmp_path / "server", machine, sshd.target())
        outcome = await asyncio.to_thread(
            run_and_kill, server, NAME, count, random.Random(3), reopened=reopened
        )
    assert outcome.verdict, outcome
