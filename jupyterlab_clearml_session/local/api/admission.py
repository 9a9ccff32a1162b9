"""On one machine, sessions start one after the other.

The remote script looks for a free port seconds before Jupyter binds it: of two that start together, both can
choose (and publish) the same one. So no session is handed to an agent while another one has not published its
port yet, be it of this server or of another one of this installation.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

from .query import value_at
from .store import Document, Store

_LONGEST_START_S = 60.0
"""After that long the other session has failed in its own way, and the next one may go."""


class Admission:
    """Says whether a session may be handed to an agent. To be refreshed a few times a second.

    Between servers a lock on ``lock_file`` is used, by default this very file: it is there for all servers of the
    installation, and locking writes nothing.
    """

    def __init__(self, store: Store, lock_file: Path = Path(__file__)) -> None:
        self._store = store
        self._starting: str | None = None
        self._deadline = 0.0
        self._lock = lock_file.open("rb")

    def admit(self, task_id: str) -> bool:
        """True if this Task may go now; a session then has the turn until it has published its ports."""
        task = self._store.tasks.get(task_id)
        if task is None or "interactive" not in task["system_tags"]:
            return True
        self.refresh()
        if self._starting is not None or not self._take_lock():
            return False
        self._starting = task_id
        self._deadline = time.monotonic() + _LONGEST_START_S
        return True

    def refresh(self) -> None:
        """Give the turn back if the session that has it is up, has ended, or takes too long."""
        if self._starting is None:
            return
        task = self._store.tasks.get(self._starting)
        if task is not None and time.monotonic() < self._deadline and _is_starting(task):
            return
        self._starting = None
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give everything back."""
        self._lock.close()

    def _take_lock(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: then only this server's sessions wait for each other
            return True
        return True


def _is_starting(task: Document) -> bool:
    return task["status"] in ("queued", "in_progress") and not _published(task)


def _published(task: Document) -> bool:
    params = task["hyperparams"]
    wants_jupyter = value_at(params, "interactive_session.jupyterlab.value") != "False"
    name = "jupyter_port" if wants_jupyter else "internal_ssh_port"
    return bool(value_at(params, f"properties.{name}.value"))
