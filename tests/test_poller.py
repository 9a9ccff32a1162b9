"""The one poller: many ask it at a time."""

from __future__ import annotations

import asyncio
import logging

from jupyterlab_clearml_session.errors import ClearMLDeadline, ClearMLSessionError
from jupyterlab_clearml_session.poller import Poller


async def test_who_waits_for_a_frozen_server_waits_for_one_deadline_and_not_for_those_of_all_others() -> None:
    deadline = asyncio.Event()
    reading = asyncio.Event()
    reads = 0
    told: list[ClearMLSessionError | None] = []

    async def read(now: float) -> None:
        nonlocal reads
        reads += 1
        reading.set()
        await deadline.wait()
        if reads <= 2:
            raise ClearMLDeadline("There was no answer")

    poller = Poller(
        read=read,
        interval=lambda: 1.0,
        held=lambda: False,
        told=told.append,
        window=1.0,
        log=logging.getLogger("test"),
    )
    first = asyncio.create_task(poller.poll())
    await reading.wait()
    others = [asyncio.create_task(poller.poll()) for _ in range(20)]
    await asyncio.sleep(0)  # they wait
    deadline.set()
    failures = await asyncio.gather(first, *others, return_exceptions=True)
    assert all(isinstance(failure, ClearMLDeadline) for failure in failures)
    assert reads == 2, "the one that was under way, and one for all who asked meanwhile"
    await poller.poll()  # who asks later is not told of an old failure
    assert reads == 3
    assert told == [failures[0], failures[1], None]
