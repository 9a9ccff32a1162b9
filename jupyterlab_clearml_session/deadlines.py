"""Waiting with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def within(awaitable: Awaitable[T], seconds: float | None) -> T:
    """Await ``awaitable`` for at most ``seconds``; asyncio.TimeoutError after that, and it is cancelled.

    As `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that comes in the same turn of the loop
    as the result: a task that waits in a loop then goes on for ever, and whoever ends it waits as long.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _cancel(task)
        raise
    if not task.done():
        await _cancel(task)
    if task.cancelled():
        raise asyncio.TimeoutError
    return task.result()


async def comes(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event at most ``seconds`` (None: for ever); return whether it has come."""
    try:
        return await within(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
