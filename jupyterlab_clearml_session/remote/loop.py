"""One poller, and what to do for each of the sockets it watches. Used by both ends.

Runs on any Python from 3.8 on with the standard library and pyzmq: it is also sent to the remote machine.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq


class Loop:
    """Belongs to one thread; `call` and `wake` are for all of them.

    Parameters
    ----------
    on_wake:
        Called after each wake-up, when the calls of other threads are done.
    """

    def __init__(self, on_wake: Callable[[], None] = lambda: None) -> None:
        self._on_wake = on_wake
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Callable[[], Any]] = {}
        self._events: dict[Any, int] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._closed = False
        self._lock = threading.Lock()
        self._wake_read, self.wake_fd = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self.wake_fd, False)
        self.watch(self._wake_read, self._woken)

    def watch(self, target: Any, handler: Callable[[], Any], events: int = zmq.POLLIN) -> None:
        """Call ``handler`` whenever a ZMQ socket or file descriptor is ready."""
        self._handlers[target] = handler
        self.want(target, events)

    def want(self, target: Any, events: int) -> None:
        """Say for what a target is watched from now on."""
        if self._events.get(target) != events:
            self._events[target] = events
            self._poller.register(target, events)

    def unwatch(self, target: Any) -> None:
        """Forget a target, if it is known. Due before it is closed."""
        if self._handlers.pop(target, None) is not None:
            del self._events[target]
            self._poller.unregister(target)

    def turn(self, timeout: int) -> None:
        """Wait at most so many milliseconds, and deal with what is ready."""
        for target, _ in self._poller.poll(timeout):
            handler = self._handlers.get(target)
            if handler is not None:
                handler()

    def call(self, function: Callable[[], None]) -> None:
        """Run a function in the loop's thread; once the loop is closed, in this one."""
        self._calls.append(function)
        if not self.wake():
            self._run_calls()

    def wake(self) -> bool:
        """Make `turn` return soon; False where the loop is closed."""
        with self._lock:
            if self._closed:
                return False
            with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
                os.write(self.wake_fd, b"w")
            return True

    def close(self) -> None:
        """End it. Calls that nobody has run yet are run now."""
        with self._lock:
            self._closed = True
            os.close(self._wake_read)
            os.close(self.wake_fd)
        self._run_calls()

    def _woken(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return
        self._run_calls()
        self._on_wake()

    def _run_calls(self) -> None:
        while self._calls:
            try:
                call = self._calls.popleft()
            except IndexError:
                return  # another thread was faster
            call()
