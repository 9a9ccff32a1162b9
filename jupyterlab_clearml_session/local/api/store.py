"""What the server knows: tasks, queues, projects, models and events, in memory and in one JSON file.

Documents are kept in the shape in which the API answers them (references are plain ids). The file is written
as a whole to a temporary name and then renamed, so a kill in the middle leaves the former one.
"""

from __future__ import annotations

import json
import os
import secrets
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import errors
from .auth import COMPANY_ID, USER_ID

Document = dict[str, Any]

_COLLECTIONS = ("tasks", "queues", "projects", "models")


def new_id() -> str:
    """32 lower-case hexadecimal digits, as all ids of ClearML are."""
    return secrets.token_hex(16)


def now() -> str:
    """The time in UTC as the API writes it: ISO 8601 with milliseconds (in six digits) and zone."""
    moment = datetime.now(timezone.utc)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000).isoformat(timespec="microseconds")


class Store:
    """All documents. ``path`` None keeps them in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._saved_revision = 0
        self.revision = 0
        self.tasks: dict[str, Document] = {}
        self.queues: dict[str, Document] = {}
        self.projects: dict[str, Document] = {}
        self.models: dict[str, Document] = {}
        self._files_server = ""
        if path is not None and path.exists():
            self._load(path)
        if not any("default" in queue["system_tags"] for queue in self.queues.values()):
            self.add_queue("default", system_tags=["default"])

    def changed(self) -> None:
        """To be called after every change: the next `save` writes."""
        self.revision += 1

    def save(self) -> None:
        """Write the file if anything changed since the last time."""
        if self._path is None or self._saved_revision == self.revision:
            return
        revision = self.revision
        temporary = self._path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            content = {name: getattr(self, name) for name in _COLLECTIONS}
            json.dump({**content, "files_server": self._files_server}, file)
        temporary.replace(self._path)
        self._saved_revision = revision

    def files_moved(self, address: str) -> None:
        """The file server has another port after each start: what was uploaded is at ``address`` from now on."""
        old, self._files_server = self._files_server, address
        self.changed()
        if not old:
            return
        artifacts = [
            item for task in self.tasks.values() for item in task["execution"].get("artifacts") or []
        ]
        for document in [*artifacts, *self.models.values()]:
            uri = document.get("uri") or ""
            if uri.startswith(old + "/"):
                document["uri"] = address + uri[len(old) :]

    # -- lookups that refuse as the real server does -------------------------------------------------------

    def task(self, task_id: str) -> Document:
        """The Task; error 101 where there is none."""
        try:
            return self.tasks[task_id]
        except KeyError:
            raise errors.unknown_task(task_id, COMPANY_ID) from None

    def queue(self, queue_id: str) -> Document:
        """The queue; error 701 where there is none."""
        try:
            return self.queues[queue_id]
        except KeyError:
            raise errors.unknown_queue(queue_id, COMPANY_ID) from None

    def default_queue(self) -> Document:
        """The queue that a Task goes to when none is named; error 707 where there is none any more."""
        for queue in self.queues.values():
            if "default" in queue["system_tags"]:
                return queue
        raise errors.no_default_queue()

    def queue_named(self, name: str) -> Document | None:
        """The queue with exactly this name, or None."""
        return next((queue for queue in self.queues.values() if queue["name"] == name), None)

    def project_named(self, name: str) -> Document | None:
        """The project with exactly this name, or None."""
        return next((project for project in self.projects.values() if project["name"] == name), None)

    # -- new documents -------------------------------------------------------------------------------------

    def add_queue(self, name: str, **fields: Any) -> Document:
        """Make an empty queue. The name must be free."""
        moment = now()
        queue: Document = {
            "id": new_id(),
            "name": name,
            "company": COMPANY_ID,
            "user": USER_ID,
            "created": moment,
            "tags": [],
            "system_tags": [],
            "entries": [],
            "last_update": moment,
            "metadata": {},
        }
        queue.update(fields)
        self.queues[queue["id"]] = queue
        self.changed()
        return queue

    def remove_from_queues(self, task_id: str) -> int:
        """Take the Task out of every queue; how many it was in."""
        removed = 0
        for queue in self.queues.values():
            rest = [entry for entry in queue["entries"] if entry["task"] != task_id]
            removed += len(queue["entries"]) - len(rest)
            if len(rest) != len(queue["entries"]):
                queue["entries"] = rest
                queue["last_update"] = now()
                self.changed()
        return removed

    def _load(self, path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in _COLLECTIONS:
            getattr(self, name).update(content.get(name, {}))
        self._files_server = content.get("files_server", "")
