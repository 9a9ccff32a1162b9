"""``events``: the console of the Tasks, and their scalars and plots.

Each Task's events are kept in memory and appended to a file of its own, so that a console of any length costs
no more than its own lines.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from . import errors
from .schema import NEEDED, NEEDED_OBJECTS, NUMBER, TEXT, Body, Context, Table
from .store import Document, now

_TYPES = frozenset(["log", "training_stats_scalar", "training_stats_vector", "training_debug_image", "plot"])
_MOST_EVENTS = 50_000
"""Kept in memory for one Task; older ones are forgotten."""

table = Table()


class EventLog:
    """The events of all Tasks, oldest first, in one file of ``directory`` for each Task."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._events: dict[str, list[Document]] = {}
        directory.mkdir(mode=0o700, exist_ok=True)

    def of(self, task_id: str) -> list[Document]:
        """The Task's events, oldest first."""
        if task_id not in self._events:
            self._events[task_id] = self._read(task_id)
        return self._events[task_id]

    def add(self, task_id: str, events: list[Document]) -> None:
        """Add events to the Task's."""
        kept = self.of(task_id)
        in_order = not kept or events[0]["timestamp"] >= kept[-1]["timestamp"]
        kept.extend(events)
        if not in_order or len(events) > 1:
            kept.sort(key=_timestamp)
        del kept[:-_MOST_EVENTS]
        with self._path(task_id).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)

    def forget(self, task_id: str) -> None:
        """Delete all events of the Task."""
        self._events.pop(task_id, None)
        self._path(task_id).unlink(missing_ok=True)

    def _read(self, task_id: str) -> list[Document]:
        path = self._path(task_id)
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()[-_MOST_EVENTS:]
        return sorted((json.loads(line) for line in lines if line.endswith("}")), key=_timestamp)

    def _path(self, task_id: str) -> Path:
        return self._directory / f"{task_id}.jsonl"


@table.endpoint("events.add_batch", events=NEEDED_OBJECTS)
def add_batch(context: Context, body: Body) -> Body:
    return _add(context, body["events"])


@table.endpoint("events.add", type=TEXT)
def add(context: Context, body: Body) -> Body:
    return _add(context, [body])


@table.endpoint("events.get_task_log", task=NEEDED, order=TEXT, batch_size=NUMBER)
def get_task_log(context: Context, body: Body) -> Body:
    """One batch of console lines, from the end (or before a time), or from the start (or after a time)."""
    lines = _console(context, body["task"])
    size = int(body.get("batch_size") or 500)
    moment = body.get("from_timestamp")
    if body.get("navigate_earlier", True):
        earlier = [event for event in lines if moment is None or event["timestamp"] < moment]
        batch = earlier[-size:][::-1]
    else:
        batch = [event for event in lines if moment is None or event["timestamp"] > moment][:size]
    if body.get("order"):
        batch.sort(key=_timestamp, reverse=body["order"] == "desc")
    return {"events": batch, "returned": len(batch), "total": len(lines)}


@table.endpoint("events.download_task_log", task=NEEDED, line_type=TEXT, line_format=TEXT)
def download_task_log(context: Context, body: Body) -> str:
    """The whole console as text, oldest line first: JSON lines, or lines of a format."""
    lines = _console(context, body["task"])
    if (body.get("line_type") or "json") == "json":
        return "".join(json.dumps(event) + "\n" for event in lines)
    form = body.get("line_format") or "{asctime} {worker} {level} {msg}"
    return "".join(_formatted(form, event).rstrip("\n") + "\n" for event in lines)


@table.endpoint("events.scalar_metrics_iter_histogram", task=NEEDED)
def scalar_metrics_iter_histogram(context: Context, body: Body) -> Body:
    result: Body = {}
    for event in _of_type(context, body, "training_stats_scalar"):
        variants = result.setdefault(event.get("metric", ""), {})
        name = event.get("variant", "")
        series = variants.setdefault(name, {"name": name, "x": [], "y": []})
        series["x"].append(event.get("iter", 0))
        series["y"].append(event.get("value"))
    return result


@table.endpoint("events.get_task_plots", task=NEEDED)
def get_task_plots(context: Context, body: Body) -> Body:
    plots = list(_of_type(context, body, "plot"))
    return {"plots": plots, "returned": len(plots), "total": len(plots), "scroll_id": ""}


@table.endpoint("events.get_task_events", task=NEEDED, event_type=TEXT)
def get_task_events(context: Context, body: Body) -> Body:
    events = list(_of_type(context, body, body.get("event_type") or ""))
    return {"events": events, "returned": len(events), "total": len(events), "scroll_id": ""}


@table.endpoint("events.delete_for_task", task=NEEDED)
def delete_for_task(context: Context, body: Body) -> Body:
    context.log.forget(context.store.task(body["task"])["id"])
    return {"deleted": True}


# -- helpers -----------------------------------------------------------------------------------------------


def _add(context: Context, events: list[Body]) -> Body:
    if not events:
        raise errors.no_events()
    problems: Counter[str] = Counter()
    accepted: dict[str, list[Document]] = {}
    for event in events:
        problem = _problem(context, event)
        if problem:
            problems[problem] += 1
            continue
        accepted.setdefault(event["task"], []).append(_stored(event))
    added = sum(len(batch) for batch in accepted.values())
    if not added:
        raise errors.events_not_added(", ".join(f"{text}={count}" for text, count in problems.items()))
    for task_id, batch in accepted.items():
        context.log.add(task_id, batch)
        _note(context.store.tasks[task_id], batch)
    context.store.changed()
    return {"added": added, "errors": sum(problems.values()), "errors_info": dict(problems)}


def _problem(context: Context, event: Body) -> str | None:
    if not event.get("type"):
        return "Event must have a 'type' field"
    if not isinstance(event["type"], str) or event["type"] not in _TYPES:
        return f"Invalid event type {event['type']}"
    if str(event.get("task")) not in context.store.tasks:
        return f"Invalid task id {event.get('task')}"
    return None


def _stored(event: Body) -> Document:
    stamp = event.get("timestamp") or int(time.time() * 1000)
    return {
        "metric": "",
        "variant": "",
        "model_event": False,
        **{name: value for name, value in event.items() if value is not None},
        "timestamp": stamp,
        "@timestamp": now(),
    }


def _note(task: Document, events: list[Document]) -> None:
    """What events change in their Task: its last update, last iteration and last values."""
    task["last_update"] = now()
    for event in events:
        task["last_iteration"] = max(task["last_iteration"], int(event.get("iter") or 0))
        if event["type"] != "training_stats_scalar":
            continue
        metric, variant, value = event["metric"], event["variant"], event.get("value")
        if not isinstance(value, (int, float)):
            continue
        last = task["last_metrics"].setdefault(_hash(metric), {}).setdefault(_hash(variant), {})
        last.update(
            metric=metric,
            variant=variant,
            value=value,
            min_value=min(value, last.get("min_value", value)),
            max_value=max(value, last.get("max_value", value)),
        )


def _of_type(context: Context, body: Body, kind: str) -> Iterable[Document]:
    task = context.store.task(body["task"])
    return (event for event in context.log.of(task["id"]) if not kind or event["type"] == kind)


def _console(context: Context, task_id: str) -> list[Document]:
    if task_id not in context.store.tasks:
        raise errors.unknown_tasks([task_id])
    return [event for event in context.log.of(task_id) if event["type"] == "log"]


def _formatted(form: str, event: Document) -> str:
    """Replace the placeholders. (Not `str.format`: a format from outside could look into the objects.)"""
    moment = datetime.fromtimestamp(event["timestamp"] / 1000, timezone.utc)
    fields = {"worker": "", "level": "", **event, "asctime": moment.isoformat(timespec="milliseconds")}
    names = "asctime|timestamp|worker|level|msg"
    return re.sub(rf"\{{({names})\}}", lambda match: str(fields.get(match.group(1), "")), form)


def _timestamp(event: Document) -> int:
    stamp: int = event["timestamp"]
    return stamp


def _hash(text: str) -> str:
    # The API's own key for a metric's name; nothing to do with security.
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
