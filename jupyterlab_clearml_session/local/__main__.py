"""The process of a LocalMode: the servers, the agents and the guard. Ends when its input ends.

It speaks JSON lines on its output: first ``{"event": "ready", "credentials": {...}}``, or where another one has
the directory ``{"event": "failed", "reason": "in_use"}``; then what becomes of the agents. Its parent keeps the
other end of its input open for as long as it lives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

from . import guard, orphans
from .agent import Agent
from .api.task_status import set_status
from .sandbox import MARKER, Sandbox
from .server import LocalServer

_QUEUE = "default"
_REAP_EVERY_S = 5.0


class Supervisor:
    """Starts and ends everything that a LocalMode consists of, besides its parent."""

    def __init__(self, directory: Path, agents: int) -> None:
        self._directory = directory
        self._agent_count = agents
        self._mode_id = secrets.token_hex(8)
        self._agents: list[Agent] = []
        self._guard: asyncio.subprocess.Process | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._server = LocalServer(directory / "server")

    async def run(self) -> None:
        """Serve until the input ends or a signal asks to end."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, ended.set)
        await _watch_input(ended)
        self._stop_left_overs()
        credentials = self._server.start()
        orphans.adopt()
        await self._start_guard()
        self._reaper = asyncio.create_task(self._reap())
        try:
            self._start_agents(credentials)
            _say(event="ready", credentials=credentials, mode_id=self._mode_id)
            await ended.wait()
        finally:
            await self._stop()

    def _start_agents(self, credentials: dict[str, str]) -> None:
        logs = self._directory / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        for number in range(1, self._agent_count + 1):
            worker = f"this-machine-{number}"
            sandbox = Sandbox(self._directory / f"agent-{number}", credentials, self._mode_id)
            agent = Agent(sandbox, worker, _QUEUE, logs / f"agent-{number}.log", self._agent_is)
            agent.start()
            self._agents.append(agent)

    def _stop_left_overs(self) -> None:
        """What was running or waiting when the last server ended is over: nobody works on it any more."""
        context = self._server.api.context
        for task in context.store.tasks.values():
            if task["status"] in ("queued", "in_progress"):
                context.store.remove_from_queues(task["id"])
                set_status(context, task, "stopped", message="The machine was shut down", force=True)

    def _agent_is(self, worker: str, state: str, status: int | None) -> None:
        if state == "exited":
            self._end_tasks_of(worker)
        _say(event="agent", worker=worker, state=state, status=status)

    def _end_tasks_of(self, worker: str) -> None:
        """What an agent ran when it ended is over, and nobody else would say so."""
        context = self._server.api.context
        for task in context.store.tasks.values():
            if task["status"] != "in_progress" or not str(task.get("last_worker")).startswith(f"{worker}:"):
                continue
            asked = task.get("status_message") == "stopping"
            reason = "The agent that ran it ended"
            set_status(context, task, "stopped" if asked else "failed", reason=reason, force=True)

    async def _start_guard(self) -> None:
        self._guard = await asyncio.create_subprocess_exec(
            sys.executable,
            guard.__file__,
            MARKER,
            self._mode_id,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(_REAP_EVERY_S)
            orphans.reap(self._own_children())

    def _own_children(self) -> set[int]:
        """The children that asyncio waits for."""
        pids = {agent.pid for agent in self._agents} | {self._guard.pid if self._guard else None}
        return {pid for pid in pids if pid is not None}

    async def _stop(self) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
        await asyncio.gather(*(agent.stop() for agent in self._agents))
        orphans.kill_descendants(but={self._guard.pid} if self._guard else set())
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            await self._guard.wait()
        self._stop_left_overs()
        self._server.stop()


async def _watch_input(ended: asyncio.Event) -> None:
    """Set ``ended`` when the parent is gone: its end of the pipe closes, however it went."""
    loop = asyncio.get_running_loop()

    class Input(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            ended.set()

    await loop.connect_read_pipe(Input, os.fdopen(0, "rb", closefd=False))


def _say(**message: Any) -> None:
    # A parent that is gone cannot hear it; that is noticed elsewhere.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jupyterlab_clearml_session.local", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="Everything is kept below it.")
    parser.add_argument("--agents", type=int, default=2, help="How many sessions may run at a time.")
    options = parser.parse_args()
    os.umask(0o077)
    options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (options.directory / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(event="failed", reason="in_use")
        return
    asyncio.run(Supervisor(options.directory.resolve(), options.agents).run())


if __name__ == "__main__":
    main()
