"""The real ``clearml-agent``, one process for each session that may run at a time."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..deadlines import within
from .sandbox import Sandbox

_GRACE_S = 2.0
_RESTARTS = 3
_RESTART_DELAY_S = 1.0
_LARGEST_LOG = 1_000_000
_EMPTY_POLL = (b"No tasks in queue", b"No tasks in Queues")

OnState = Callable[[str, str, int | None], None]


class Agent:
    """One ``clearml-agent daemon`` that serves ``queue``, restarted a few times when it ends by itself.

    ``on_state(worker, "running" | "exited" | "gave_up", exit status)`` hears what becomes of it. ``log`` gets its
    output, without the two lines a second that say that there is nothing to do; it starts anew at 1 MB.
    """

    def __init__(self, sandbox: Sandbox, worker: str, queue: str, log: Path, on_state: OnState) -> None:
        self._sandbox = sandbox
        self._worker = worker
        self._queue = queue
        self._log = log
        self._on_state = on_state
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else None

    def start(self) -> None:
        """Start it, and look after it from now on."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ask it to end: it stops its Task, says so to the server, and unregisters."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await within(self._process.wait(), _GRACE_S)
        except asyncio.TimeoutError:
            self._process.kill()

    async def _run(self) -> None:
        await asyncio.to_thread(self._sandbox.create)
        for attempt in range(_RESTARTS):
            if attempt:
                await asyncio.sleep(_RESTART_DELAY_S)
            self._process = await self._spawn()
            self._on_state(self._worker, "running", None)
            await self._write_log(self._process)
            status = await self._process.wait()
            await asyncio.to_thread(self._sandbox.end_left_overs, self._worker)
            self._on_state(self._worker, "exited", status)
        self._on_state(self._worker, "gave_up", None)

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "clearml_agent",
                "daemon",
                "--queue",
                self._queue,
                "--foreground",
                "--cpu-only",
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._sandbox.home,
            env=self._sandbox.environment(self._worker),
            start_new_session=True,
        )

    async def _write_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            async for line in process.stdout:
                if line.startswith(_EMPTY_POLL):
                    continue
                if file.tell() > _LARGEST_LOG:
                    file.seek(0)
                    file.truncate()
                file.write(line)
