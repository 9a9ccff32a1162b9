"""Blocking calls off the event loop, each with a deadline that holds even where the call itself never ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ..deadlines import within
from ..errors import ClearMLDeadline

T = TypeVar("T")


class DeadlineThreads:
    """Runs functions in daemon threads, at most ``limit`` at a time.

    A function that misses its deadline gives its place back and is left to itself: it cannot hold up the others,
    nor the end of the process (an executor of the standard library would wait for it there). At most ``most_stuck``
    of them may pile up; past that, calls fail at once until some have ended.
    """

    def __init__(self, limit: int = 8, most_stuck: int = 32) -> None:
        self._limit = limit
        self._most_stuck = most_stuck
        self._places: asyncio.Semaphore | None = None
        self._places_loop: asyncio.AbstractEventLoop | None = None
        self._stuck: set[threading.Thread] = set()

    @property
    def stuck(self) -> int:
        """How many calls still run although nobody waits for them any more."""
        self._stuck = {thread for thread in self._stuck if thread.is_alive()}
        return len(self._stuck)

    async def run(self, function: Callable[..., T], *args: Any, deadline: float) -> T:
        """Return ``function(*args)``, run in a thread.

        Raises what the function raises, and ClearMLDeadline after ``deadline`` seconds (waiting for a free place
        included).
        """
        if self.stuck >= self._most_stuck:
            raise ClearMLDeadline(
                f"{self.stuck} earlier requests to the ClearML server have not come back yet."
            )
        try:
            return await within(self._run(function, args), deadline)
        except asyncio.TimeoutError:
            raise ClearMLDeadline(f"There was no answer within {deadline:g} seconds.") from None

    async def _run(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        loop = asyncio.get_running_loop()
        if self._places is None or self._places_loop is not loop:
            self._places, self._places_loop = asyncio.Semaphore(self._limit), loop
        async with self._places:
            answer: asyncio.Future[T] = loop.create_future()
            thread = threading.Thread(
                target=_work, args=(loop, answer, function, args), name="clearml-session-api", daemon=True
            )
            thread.start()
            try:
                return await answer
            except asyncio.CancelledError:
                self._stuck.add(thread)
                raise


def _work(
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[T],
    function: Callable[..., T],
    args: tuple[Any, ...],
) -> None:
    try:
        result = function(*args)
    except BaseException as error:  # noqa: BLE001 - handed to the coroutine that waits for it
        _deliver(loop, answer, error=error)
    else:
        _deliver(loop, answer, result=result)


def _deliver(
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[Any],
    *,
    result: Any = None,
    error: BaseException | None = None,
) -> None:
    def settle() -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    # The loop may have ended while the call was stuck; nobody is left to tell then.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(settle)
