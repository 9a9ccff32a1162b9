"""``workers``: the agents that are alive, as they report it. Kept in memory, for 600 seconds after a report."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from . import errors
from .auth import COMPANY_ID, COMPANY_NAME, USER_ID, USER_NAME
from .schema import LIST, NEEDED, NEEDED_NUMBER, TEXT, Body, Context, Table
from .store import Document, now

_LIFETIME_S = 600

table = Table()


@dataclass
class Worker:
    """One agent. ``deadline`` is on the monotonic clock."""

    id: str
    ip: str = "127.0.0.1"
    queues: list[str] = field(default_factory=list)
    queue: str | None = None
    task: str | None = None
    registered: str = field(default_factory=now)
    reported: str = field(default_factory=now)
    active: str = field(default_factory=now)
    timeout_s: float = _LIFETIME_S
    deadline: float = 0.0

    @property
    def key(self) -> str:
        return f"worker_{COMPANY_ID}_{USER_ID}_{self.id}"

    def seen(self) -> None:
        self.reported = now()
        self.deadline = time.monotonic() + self.timeout_s


class Workers:
    """All agents that reported lately."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def alive(self) -> list[Worker]:
        """The agents whose time is not over, in the order in which they came."""
        moment = time.monotonic()
        self._workers = {name: item for name, item in self._workers.items() if item.deadline > moment}
        return list(self._workers.values())

    def serving(self, queue_id: str) -> list[Worker]:
        """The agents that serve the queue."""
        return [worker for worker in self.alive() if queue_id in worker.queues]

    def get(self, worker_id: str) -> Worker:
        """The agent of this name; it is registered by asking."""
        worker = self._workers.setdefault(worker_id, Worker(worker_id))
        worker.seen()
        return worker

    def remove(self, worker_id: str) -> None:
        self._workers.pop(worker_id, None)

    @staticmethod
    def task_of(worker: Worker, tasks: dict[str, Document]) -> Body | None:
        """The Task that the agent works on, as the API shows it."""
        task = tasks.get(worker.task or "")
        if task is None:
            return None
        return {
            "id": task["id"],
            "name": task["name"],
            "last_iteration": task["last_iteration"],
            "running_time": 0,
        }


@table.endpoint("workers.register", worker=NEEDED, queues=LIST)
def register(context: Context, body: Body) -> Body:
    missing = [queue for queue in body.get("queues") or [] if queue not in context.store.queues]
    if missing:
        raise errors.unknown_queues(missing)
    worker = context.workers.get(body["worker"])
    worker.timeout_s = float(body.get("timeout") or _LIFETIME_S)
    worker.queues = list(body.get("queues") or [])
    worker.registered = now()
    worker.seen()
    return {}


@table.endpoint("workers.unregister", worker=NEEDED)
def unregister(context: Context, body: Body) -> Body:
    context.workers.remove(body["worker"])
    return {}


@table.endpoint("workers.status_report", worker=NEEDED, task=TEXT, queue=TEXT, timestamp=NEEDED_NUMBER)
def status_report(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"]) if body.get("task") else None
    worker = context.workers.get(body["worker"])
    worker.queues = list(body.get("queues") or worker.queues)
    worker.task = task["id"] if task else None
    worker.queue = body.get("queue") if task else None
    worker.active = worker.reported if task else worker.active
    if task is not None:
        task.update(last_worker=worker.id, last_worker_report=worker.reported, last_update=worker.reported)
        context.store.changed()
    return {}


@table.endpoint("workers.get_all")
def get_all(context: Context, body: Body) -> Body:
    return {"workers": [_shown(context, worker) for worker in context.workers.alive()]}


@table.endpoint("workers.get_count")
def get_count(context: Context, body: Body) -> Body:
    return {"count": len(context.workers.alive())}


@table.endpoint("workers.get_stats", "workers.get_activity_report", worker_ids=LIST)
def get_stats(context: Context, body: Body) -> Body:
    return {"workers": []}


def _shown(context: Context, worker: Worker) -> Body:
    queues = context.store.queues
    shown: Body = {
        "company": {"id": COMPANY_ID, "name": COMPANY_NAME},
        "id": worker.id,
        "ip": worker.ip,
        "key": worker.key,
        "last_activity_time": worker.active,
        "last_report_time": worker.reported,
        "queues": [{"id": item, "name": queues[item]["name"]} for item in worker.queues if item in queues],
        "register_time": worker.registered,
        "register_timeout": int(worker.timeout_s),
        "system_tags": [],
        "tags": [],
        "user": {"id": USER_ID, "name": USER_NAME},
    }
    if worker.queue in queues:
        queue = queues[worker.queue]
        shown["queue"] = {"id": queue["id"], "name": queue["name"], "num_tasks": len(queue["entries"])}
    task = context.workers.task_of(worker, context.store.tasks)
    if task is not None:
        shown["task"] = task
    return shown
