"""What the server tells, as our models. The names of fields are the ClearML API's (CLEARML_API.md 4 to 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from ..errors import UnknownTask
from ..models import TASK_ID, LogLine, Queue, Ref, Task, Worker

TASK_FIELDS = (
    "id",
    "name",
    "type",
    "status",
    "status_reason",
    "status_message",
    "status_changed",
    "project",
    "user",
    "parent",
    "tags",
    "system_tags",
    "comment",
    "created",
    "started",
    "completed",
    "last_update",
    "last_worker",
    "execution.queue",
    "container",
    "script.repository",
    "script.branch",
    "script.version_num",
    "script.tag",
    "script.entry_point",
    "script.working_dir",
    "script.requirements",
    "hyperparams",
    "runtime",
)
"""What a listing asks for: all that `task` reads, without the texts of scripts and configuration."""


def checked_id(task_id: str) -> str:
    """Return ``task_id`` if it is one (32 characters 0-9 and a-f); raises UnknownTask."""
    if not isinstance(task_id, str) or not TASK_ID.fullmatch(task_id):
        raise UnknownTask("This is not the id of a ClearML Task.")
    return task_id


def task(entry: Mapping[str, Any]) -> Task:
    """Read one Task of tasks.get_all_ex (references are objects there) or tasks.get_all (ids)."""
    runtime = entry.get("runtime") or {}
    return Task(
        id=str(entry["id"]),
        name=str(entry.get("name") or ""),
        status=str(entry.get("status") or ""),
        status_reason=str(entry.get("status_reason") or ""),
        status_message=str(entry.get("status_message") or ""),
        status_changed=entry.get("status_changed"),
        type=str(entry.get("type") or ""),
        project=_ref(entry.get("project")),
        user=_ref(entry.get("user")),
        parent=_id(entry.get("parent")),
        tags=tuple(entry.get("tags") or ()),
        system_tags=tuple(entry.get("system_tags") or ()),
        comment=str(entry.get("comment") or ""),
        created=entry.get("created"),
        started=entry.get("started"),
        completed=entry.get("completed"),
        last_update=entry.get("last_update"),
        last_worker=entry.get("last_worker"),
        queue=_ref((entry.get("execution") or {}).get("queue")),
        container=entry.get("container") or {},
        script={key: value for key, value in (entry.get("script") or {}).items() if key != "diff"},
        parameters={
            f"{section}/{name}": str(item.get("value") or "")
            for section, items in (entry.get("hyperparams") or {}).items()
            for name, item in items.items()
        },
        runtime=runtime,
    )


def queue(entry: Mapping[str, Any]) -> Queue:
    """Read one queue of queues.get_all_ex."""
    entries = (item.get("task") for item in entry.get("entries") or ())
    return Queue(
        id=str(entry["id"]),
        name=str(entry.get("name") or ""),
        tags=tuple(entry.get("tags") or ()),
        system_tags=tuple(entry.get("system_tags") or ()),
        entries=tuple(found for found in map(_id, entries) if found),
        workers=tuple(_worker(worker) for worker in entry.get("workers") or ()),
    )


def log_lines(events: Iterable[Mapping[str, Any]], limit: int) -> list[LogLine]:
    """Return the lines of console events (any order), oldest first, at most ``limit`` of the newest.

    An event is kept whole where it fits, so that the time of the first line continues the log backwards.
    """
    found: list[LogLine] = []
    for event in sorted(events, key=lambda event: event.get("timestamp") or 0, reverse=True):
        lines = [
            LogLine(_iso(event.get("timestamp") or 0), text.rpartition("\r")[2].rstrip())
            for text in str(event.get("msg") or "").replace("\r\n", "\n").rstrip("\r\n").split("\n")
        ]
        if found and len(found) + len(lines) > limit:
            break
        found = lines[-limit:] + found
    return found


def milliseconds(time: str) -> int:
    """Return an ISO 8601 time as the milliseconds that ClearML's events count; raises ValueError."""
    moment = datetime.fromisoformat(time.replace("Z", "+00:00"))
    return round((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() * 1000)


def now() -> str:
    """Return the time now, as the server writes times."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _worker(entry: Mapping[str, Any]) -> Worker:
    busy = bool(entry.get("task"))
    return Worker(
        id=str(entry.get("name") or entry.get("id") or ""), busy=busy, idle_s=None if busy else _idle(entry)
    )


def _idle(entry: Mapping[str, Any]) -> float | None:
    """Seconds since the agent last had work, or None where the server does not say."""
    last, now = entry.get("last_activity_time"), entry.get("last_report_time")
    try:
        return max(0.0, (milliseconds(str(now)) - milliseconds(str(last))) / 1000)
    except ValueError:
        return None


def _ref(value: Any) -> Ref | None:
    if isinstance(value, Mapping):
        return Ref(str(value["id"]), str(value.get("name") or "")) if value.get("id") else None
    return Ref(str(value)) if value else None


def _id(value: Any) -> str | None:
    found = _ref(value)
    return found.id if found else None


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp / 1000, timezone.utc).isoformat(timespec="milliseconds")
