"""The roster by itself: who is told of what, and in which order."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, cast

from jupyterlab_clearml_session.attachment import Attachment
from jupyterlab_clearml_session.models import Task, TunnelStatus
from jupyterlab_clearml_session.record import Record
from jupyterlab_clearml_session.roster import Roster

SESSION = "a" * 32
RUNNING = Task(
    SESSION,
    "a session",
    "in_progress",
    parameters={
        "properties/external_address": "127.0.0.1",
        "properties/internal_ssh_port": "10022",
        "interactive_session/jupyterlab": "False",
    },
)


class FakeAttachment:
    """One that never comes up."""

    status = TunnelStatus()
    jupyter = False
    trouble = None
    tunnel: Any = None

    def start(self) -> None: ...
    async def close(self) -> None: ...


def roster(folder: Path) -> Roster:
    return Roster(
        describe=lambda record: record.describe(None, None, 1800.0),
        connect=lambda record: cast(Attachment, FakeAttachment()),
        state_file=folder / "attached.json",
        log=logging.getLogger("test"),
    )


async def test_a_session_that_is_attached_again_waits_until_all_are_told_that_it_was_detached(
    tmp_path: Path,
) -> None:
    """Otherwise they take down what is of the new tunnel: kernels, known hosts, an address of its own."""
    some = roster(tmp_path)
    told, go_on = asyncio.Event(), asyncio.Event()
    attached: list[bool] = []

    async def on_gone(session_id: str) -> None:
        told.set()
        await go_on.wait()
        attached.append(record.attachment is not None)

    some.add_hook(on_gone=on_gone)
    record: Record = some.put(RUNNING)
    some.want(record)
    assert record.attachment is not None
    leaving = asyncio.create_task(some.let_go(record))
    await told.wait()
    some.want(record)
    some.update(record)  # as each poll does
    go_on.set()
    await leaving
    assert attached == [False]
    assert record.attachment is not None, "and then it is attached"
    await some.close()
