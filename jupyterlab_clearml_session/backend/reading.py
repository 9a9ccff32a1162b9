"""What the server tells, as our models. The names of fields are the ClearML API's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from ..errors import UnknownTask
from ..models import TASK_ID, LogLine, Queue, Ref, Task, Worker

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)

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
    return Task(
        id=str(entry["id"]),
        name=str(entry.get("name") or ""),
        status=str(entry.get("status") or ""),
        status_reason=str(entry.get("status_reason") or ""),
        status_message=str(entry.get("status_message") or ""),
        status_changed=_text(entry.get("status_changed")),
        type=str(entry.get("type") or ""),
        project=_ref(entry.get("project")),
        user=_ref(entry.get("user")),
        parent=_id(entry.get("parent")),
        tags=tuple(map(str, entry.get("tags") or ())),
        system_tags=tuple(map(str, entry.get("system_tags") or ())),
        comment=str(entry.get("comment") or ""),
        created=_text(entry.get("created")),
        started=_text(entry.get("started")),
        completed=_text(entry.get("completed")),
        last_update=_text(entry.get("last_update")),
        last_worker=_text(entry.get("last_worker")),
        queue=_ref((entry.get("execution") or {}).get("queue")),
        container=dict(entry.get("container") or {}),
        script={key: value for key, value in (entry.get("script") or {}).items() if key != "diff"},
        parameters={
            f"{section}/{name}": str((item or {}).get("value") or "")
            for section, items in (entry.get("hyperparams") or {}).items()
            for name, item in (items or {}).items()
        },
        runtime=dict(entry.get("runtime") or {}),
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


def log_lines(
    events: Sequence[Mapping[str, Any]], limit: int, *, before: int | None = None, partial: bool = False
) -> list[LogLine]:
    """Return the last ``limit`` lines of console events (newest first, as they are answered), oldest first.

    ClearML counts milliseconds and puts many lines into one event. Here each line has a time of its own,
    microseconds apart, so that the time of the first one continues the log backwards without a gap.

    Parameters
    ----------
    before:
        Only lines before this moment, in microseconds.
    partial:
        The oldest millisecond may lack events; it is left out, unless there is no other.
    """
    moments: dict[int, list[str]] = {}
    chronological = events[::-1]  # of events with the same time, too
    for event in sorted(chronological, key=_timestamp):
        moments.setdefault(_timestamp(event), []).extend(_texts(event))
    if partial and len(moments) > 1:
        del moments[min(moments)]
    found = [
        # More than a thousand lines in one millisecond share microseconds.
        (moment * 1000 + number * 1000 // max(1000, len(texts)), text)
        for moment, texts in moments.items()
        for number, text in enumerate(texts)
    ]
    if before is not None:
        found = [line for line in found if line[0] < before]
    start = max(0, len(found) - limit)
    while 0 < start < len(found) and found[start][0] == found[start - 1][0]:
        start += 1
    return [LogLine(_iso(time), text) for time, text in found[start:] or found[-limit:]]


def microseconds(time: str) -> int:
    """Return an ISO 8601 time (UTC where it names no zone) as microseconds since 1970; raises ValueError."""
    moment = datetime.fromisoformat(time.replace("Z", "+00:00"))
    return ((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)) - _EPOCH) // _MICROSECOND


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
        return max(0.0, (microseconds(str(now)) - microseconds(str(last))) / 1_000_000)
    except ValueError:
        return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _ref(value: Any) -> Ref | None:
    if isinstance(value, Mapping):
        return Ref(str(value["id"]), str(value.get("name") or "")) if value.get("id") else None
    return Ref(str(value)) if value else None


def _id(value: Any) -> str | None:
    found = _ref(value)
    return found.id if found else None


def _timestamp(event: Mapping[str, Any]) -> int:
    return int(event.get("timestamp") or 0)


def _texts(event: Mapping[str, Any]) -> list[str]:
    """Return the lines of an event; of a progress bar, what it showed last."""
    text = str(event.get("msg") or "").replace("\r\n", "\n").rstrip("\r\n")
    return [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]


def _iso(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")
