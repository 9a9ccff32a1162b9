"""Calls to the embedded ClearML API that several tests of it make."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

from .local_fixture import ApiRefusal, ClearMLUnderTest

Server = ClearMLUnderTest
UNKNOWN = "0" * 32
COMPANY = "d1bd92a3b039400cbafc60a7a5b1e52b"


def new_task(server: Server, **fields: Any) -> str:
    task_id: str = server.call("tasks.create", **{"name": "a task", "type": "training", **fields})["id"]
    return task_id


def default_queue(server: Server) -> str:
    queue_id: str = server.call("queues.get_default")["id"]
    return queue_id


def raw(
    server: Server,
    path: str,
    body: bytes = b"",
    *,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> tuple[int, dict[str, Any]]:
    """A request as it is; the status and the envelope."""
    request = urllib.request.Request(
        server.direct_api_server + path, body or None, headers or {}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def basic(server: Server) -> dict[str, str]:
    pair = f"{server.credentials['access_key']}:{server.credentials['secret_key']}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def bring_to(server: Server, task_id: str, status: str) -> None:
    """Into a status by the shortest way of forced calls."""
    steps = {
        "created": (),
        "queued": ("enqueue",),
        "in_progress": ("started",),
        "stopped": ("started", "stopped"),
        "closed": ("started", "stopped", "close"),
        "failed": ("started", "failed"),
        "completed": ("started", "completed"),
        "published": ("started", "stopped", "publish"),
    }
    for action in steps[status]:
        server.call(f"tasks.{action}", task=task_id, force=True)


def add_lines(server: Server, task_id: str, *lines: str, start: int = 1000) -> dict[str, Any]:
    events = [
        {"type": "log", "task": task_id, "msg": line, "timestamp": start + number}
        for number, line in enumerate(lines)
    ]
    return add_events(server, events)


def add_events(server: Server, events: list[dict[str, Any]]) -> dict[str, Any]:
    body = "\n".join(json.dumps(event) for event in events).encode()
    headers = {**basic(server), "Content-Type": "application/json-lines"}
    status, answer = raw(server, "/events.add_batch", body, headers=headers)
    if status != 200:
        raise ApiRefusal(answer["meta"])
    data: dict[str, Any] = answer["data"]
    return data
