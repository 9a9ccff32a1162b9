"""LocalMode: starts the embedded default in a process of its own, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..deadlines import within
from ..errors import LocalModeFailed
from . import guard
from .sandbox import MARKER

_START_DEADLINE_S = 20.0
_STOP_DEADLINE_S = 15.0
_LOG_TAIL = 20
_LARGEST_LOG = 1_000_000

_INSTALL_HINT = "pip install 'jupyterlab_clearml_session[local]'"


class LocalMode:
    """ClearML on this machine: API and file server, agents, sessions; all below ``directory``.

    Parameters
    ----------
    directory:
        Where everything is kept, documents of former runs included. Made with mode 0700 where it is not there.
    log:
        Hears of agents that end by themselves.
    agents:
        How many sessions may run at a time; 0 is a server without an agent.
    """

    def __init__(
        self,
        directory: Path,
        log: logging.Logger | logging.LoggerAdapter[Any] | None = None,
        *,
        agents: int = 2,
    ) -> None:
        self._directory = Path(directory)
        self._log = log or logging.getLogger(__name__)
        self._agent_count = agents
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._credentials: dict[str, str] = {}
        self._mode_id = ""
        self._agents: dict[str, str] = {}
        self._lock = asyncio.Lock()

    @property
    def is_running(self) -> bool:
        """True while the server's process lives."""
        return self._process is not None and self._process.returncode is None

    @property
    def agents(self) -> Mapping[str, str]:
        """The agents' names, and for each "running", "exited" or "gave_up"."""
        return dict(self._agents)

    @property
    def access_log(self) -> Path:
        """The file with one JSON object for each API call (see `server.LocalServer`)."""
        return self._directory / "server" / "access.jsonl"

    async def start(self) -> dict[str, str]:
        """Start everything; the credentials, as for ``configure``. Where it runs already, the same ones.

        Returns as soon as the API answers; the agents register a second or two later.

        Raises
        ------
        LocalModeFailed
            ``detail.reason`` says why: "agent_missing", "no_directory", "in_use", "exited" (with
            ``log_tail``), "deadline", "unsupported" (Windows).
        """
        async with self._lock:
            if not self.is_running:
                await self._start()
            return dict(self._credentials)

    async def stop(self) -> None:
        """End everything, running sessions included. No process is left when it returns."""
        async with self._lock:
            await self._stop()

    async def _start(self) -> None:
        if sys.platform == "win32":
            raise LocalModeFailed(
                "ClearML on this machine needs Linux or macOS.",
                hint="Use a ClearML server, or run JupyterLab in WSL.",
                reason="unsupported",
            )
        if self._agent_count and importlib.util.find_spec("clearml_agent") is None:
            raise LocalModeFailed(
                "The ClearML agent is not installed in this environment.",
                hint=f"Install it: {_INSTALL_HINT}",
                reason="agent_missing",
            )
        error_log = await asyncio.to_thread(self._make_directory)
        self._agents.clear()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "jupyterlab_clearml_session.local"),
                *("--directory", str(self._directory)),
                *("--agents", str(self._agent_count)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=error_log,
                start_new_session=True,
            )
        finally:
            os.close(error_log)
        assert self._process.stdout is not None
        try:
            line = await within(self._process.stdout.readline(), _START_DEADLINE_S)
            self._take_ready(line)
        except asyncio.TimeoutError:
            await self._stop()
            raise self._failed("did not start in time", "deadline") from None
        except BaseException:
            await self._stop()
            raise
        self._reader = asyncio.create_task(self._read(self._process, self._process.stdout))

    def _take_ready(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            raise self._failed("ended while it was started", "exited") from None
        if message["event"] == "failed":
            raise LocalModeFailed(
                "Another JupyterLab on this machine runs the local ClearML server.",
                hint="Use that one, or end it first.",
                reason=message["reason"],
                directory=str(self._directory),
            )
        self._credentials = message["credentials"]
        self._mode_id = message["mode_id"]

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await within(process.wait(), _STOP_DEADLINE_S)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
            # Its guard does the same; here it is waited for.
            await asyncio.to_thread(guard.kill_all, MARKER, self._mode_id)
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None

    async def _read(self, process: asyncio.subprocess.Process, output: asyncio.StreamReader) -> None:
        async for line in output:
            message = json.loads(line)
            if message.get("event") != "agent":
                continue
            self._agents[message["worker"]] = message["state"]
            if message["state"] != "running":
                self._log.warning(
                    "Local ClearML agent %s: %s (status %s)",
                    *(message["worker"], message["state"], message["status"]),
                )
        status = await process.wait()
        if self._process is process:
            self._log.warning("The local ClearML server ended by itself (status %s)", status)

    def _make_directory(self) -> int:
        """Make the directory; a descriptor of the log that the server's process writes its errors to."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            logs = self._directory / "logs"
            logs.mkdir(mode=0o700, exist_ok=True)
            # Appended to: another server may have the directory, and then this start fails.
            descriptor = os.open(self._error_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            if os.fstat(descriptor).st_size > _LARGEST_LOG:
                os.ftruncate(descriptor, 0)
            return descriptor
        except OSError as error:
            raise LocalModeFailed(
                f"The local ClearML server cannot write to its directory: {error.strerror}.",
                hint="Check the rights and the free space of the directory.",
                reason="no_directory",
                directory=str(self._directory),
            ) from error

    @property
    def _error_log(self) -> Path:
        return self._directory / "logs" / "server.log"

    def _failed(self, what: str, reason: str) -> LocalModeFailed:
        tail = self._error_log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:]
        return LocalModeFailed(
            f"The local ClearML server {what}.",
            hint="The last lines of its log usually say why.",
            reason=reason,
            log_tail=tail,
        )
