"""When nobody has worked on the machine for a while: notice it, and end the session's Task.

Runs on any Python from 3.8 on. What counts as work: a busy kernel of ours or of the remote Jupyter, anything sent
to one, a terminal in use, a graphics card or more than half a processor core in use (VS Code, a script).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from . import machine

CPU_CORES = float(os.environ.get("CLEARML_SESSION_HELPER_IDLE_CORES", "0.5"))
"""Processor cores in use from which on the machine counts as working."""
GPU_PERCENT = 5
TIMEOUT = 10.0
_STOP = """
import contextlib, sys
from clearml import Task
task = Task.get_task(task_id=sys.argv[1])
# An agent that sees the Task stopped replaces the message with one of its own.
with contextlib.suppress(Exception):
    task._set_runtime_properties({"_jupyterlab_session_end": sys.argv[2]})
task.mark_stopped(force=True, status_message=sys.argv[2])
"""


class IdleWatch:
    """Ends a session that has been idle for too long.

    Parameters
    ----------
    session_id:
        The session's Task.
    minutes:
        How long it may be idle.
    last_activity:
        Returns when our own kernels were last in use, by the monotonic clock.
    """

    def __init__(self, session_id: str, minutes: float, last_activity: Callable[[], float]) -> None:
        self.minutes = minutes
        self.interval = min(60.0, minutes * 15)
        """Seconds between two looks."""
        self._session_id = session_id
        self._last_activity = last_activity
        self._active = time.monotonic()
        self._meter = machine.Meter("/")

    def look(self) -> bool:
        """Look once, up to some seconds; True where the limit is reached. Not for the loop's thread."""
        now = time.monotonic()
        load = self._meter.measure()
        used = load["cpu_percent"] * (load["cpu_count"] or 1) / 100 > CPU_CORES or any(
            isinstance(gpu["utilization_percent"], int) and gpu["utilization_percent"] >= GPU_PERCENT
            for gpu in load["gpus"]
        )
        self._active = max(self._active, self._last_activity(), now if used else 0.0, *self._jupyter(now))
        return now - self._active >= self.minutes * 60

    def end_session(self) -> None:
        """Stop the Task as its user would; where that is not possible, end its main process."""
        message = f"idle for {self.minutes:g} minutes"
        command = [sys.executable, "-c", _STOP, self._session_id, message]
        try:
            subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError):
            task = machine.find_task(self._session_id)
            if task is not None:
                os.kill(task, signal.SIGTERM)

    def _jupyter(self, now: float) -> Iterator[float]:
        """When the remote Jupyter's kernels and terminals were last in use, by the monotonic clock."""
        yield 0.0
        server = _jupyter_server(machine.find_jupyter(self._session_id))
        if server is None:
            return
        for path in ("api/kernels", "api/terminals"):
            try:
                for thing in _ask(server, path):
                    last = datetime.fromisoformat(thing["last_activity"].replace("Z", "+00:00")).timestamp()
                    yield now if thing.get("execution_state") == "busy" else now - (time.time() - last)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # it is not there, has no terminals, or is another kind of server: the rest decides


def _jupyter_server(pid: int | None) -> dict[str, Any] | None:
    """Return what a Jupyter server notes about itself: address and token."""
    if pid is None:
        return None
    env = machine.environment(pid)
    home = Path(env.get("HOME", str(Path.home())))
    data = Path(env.get("JUPYTER_DATA_DIR") or home / ".local" / "share" / "jupyter")
    runtime = Path(env.get("JUPYTER_RUNTIME_DIR") or data / "runtime")
    for name in (f"jpserver-{pid}.json", f"nbserver-{pid}.json"):
        try:
            noted = json.loads((runtime / name).read_text())
        except (OSError, ValueError):
            continue  # the other name, or not there yet
        assert isinstance(noted, dict)
        return noted
    return None


def _ask(server: dict[str, Any], path: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{int(server['port'])}{server.get('base_url', '/')}{path}"
    request = urllib.request.Request(url, headers={"Authorization": f"token {server.get('token', '')}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TIMEOUT) as answer:
        things: list[dict[str, Any]] = json.load(answer)
    return things
