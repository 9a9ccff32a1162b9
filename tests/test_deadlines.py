"""Waiting with a deadline: nothing is swallowed."""

from __future__ import annotations

import asyncio

import pytest

from jupyterlab_clearml_session.deadlines import within


async def test_a_result_and_an_error_pass() -> None:
    assert await within(asyncio.sleep(0, "done"), 10) == "done"

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await within(fail(), None)


async def test_what_takes_too_long_is_cancelled() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(asyncio.TimeoutError):
        await within(work(), 0.001)
    assert ended.is_set()


async def test_a_result_at_the_last_moment_counts() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        raise AssertionError

    assert await within(stubborn(), 0.001) == "done all the same"


async def test_a_cancellation_beside_the_result_is_not_swallowed() -> None:
    woken = asyncio.Event()
    turns = 0

    async def loop_for_ever() -> None:
        nonlocal turns
        while True:
            await within(woken.wait(), 10)
            woken.clear()
            turns += 1

    task = asyncio.create_task(loop_for_ever())
    for _ in range(5):
        await asyncio.sleep(0)
    woken.set()
    await asyncio.sleep(0)  # the inner wait is done, the outer one has not run yet
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
