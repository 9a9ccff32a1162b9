"""``queues``: the queues and their entries. The agent takes the next Task from here."""

from __future__ import annotations

from collections.abc import Callable

from . import errors
from .auth import COMPANY_ID
from .query import project, select, wanted_fields
from .schema import LIST, NEEDED, TEXT, Body, Context, Table
from .store import Document, now
from .task_status import set_status

table = Table()

_FILTERS = ("id", "tags", "system_tags")
_FIELDS = frozenset(
    [
        "id",
        "name",
        "display_name",
        "user",
        "company",
        "created",
        "tags",
        "system_tags",
        "entries",
        "last_update",
        "metadata",
        "workers",
    ]
)


@table.endpoint("queues.get_all")
def get_all(context: Context, body: Body) -> Body:
    found = select(context.store.queues.values(), body, fields=_FILTERS)
    return {"queues": [_shown(queue, body) for queue in found]}


@table.endpoint("queues.get_all_ex")
def get_all_ex(context: Context, body: Body) -> Body:
    found = select(context.store.queues.values(), body, fields=_FILTERS)
    return {"queues": [_shown(_expand(context, queue), body) for queue in found]}


@table.endpoint("queues.get_by_id", queue=NEEDED)
def get_by_id(context: Context, body: Body) -> Body:
    return {"queue": _shown(context.store.queue(body["queue"]), {})}


@table.endpoint("queues.get_default")
def get_default(context: Context, body: Body) -> Body:
    queue = context.store.default_queue()
    return {"id": queue["id"], "name": queue["name"]}


@table.endpoint("queues.create", name=NEEDED, tags=LIST, system_tags=LIST)
def create(context: Context, body: Body) -> Body:
    _check_name(context, body["name"])
    fields = {name: sorted(set(body.get(name) or [])) for name in ("tags", "system_tags")}
    return {"id": context.store.add_queue(body["name"], **fields)["id"]}


@table.endpoint("queues.update", queue=NEEDED, name=TEXT, tags=LIST, system_tags=LIST)
def update(context: Context, body: Body) -> Body:
    queue = context.store.queue(body["queue"])
    if body.get("name") and body["name"] != queue["name"]:
        _check_name(context, body["name"])
    fields: Body = {}
    for name in ("name", "display_name", "tags", "system_tags"):
        if body.get(name) is not None:
            fields[name] = sorted(set(body[name])) if isinstance(body[name], list) else body[name]
    queue.update(fields)
    context.store.changed()
    return {"updated": 1, "fields": fields}


@table.endpoint("queues.delete", queue=NEEDED)
def delete(context: Context, body: Body) -> Body:
    queue = context.store.queue(body["queue"])
    if queue["entries"] and not body.get("force"):
        raise errors.queue_not_empty(queue["id"])
    _clear(context, queue, f"Queue {queue['id']} was deleted")
    del context.store.queues[queue["id"]]
    context.store.changed()
    return {"deleted": 1}


# -- entries -----------------------------------------------------------------------------------------------


@table.endpoint("queues.get_next_task", queue=NEEDED)
def get_next_task(context: Context, body: Body) -> Body:
    """Pop the first entry. The Task stays queued until the agent says that it started it."""
    queue = context.store.queue(body["queue"])
    if not queue["entries"] or not context.admission.admit(queue["entries"][0]["task"]):
        return {}
    entry = queue["entries"].pop(0)
    queue["last_update"] = now()
    context.store.changed()
    task = context.store.tasks.get(entry["task"])
    answer: Body = {"entry": entry}
    if body.get("get_task_info") and task is not None:
        answer["task_info"] = {"company": task["company"], "user": task["user"]}
    return answer


@table.endpoint("queues.peek_task", queue=NEEDED)
def peek_task(context: Context, body: Body) -> Body:
    entries = context.store.queue(body["queue"])["entries"]
    return {"task": entries[0]["task"]} if entries else {}


@table.endpoint("queues.get_num_entries", queue=NEEDED)
def get_num_entries(context: Context, body: Body) -> Body:
    return {"num": len(context.store.queue(body["queue"])["entries"])}


@table.endpoint("queues.add_task", queue=NEEDED, task=NEEDED)
def add_task(context: Context, body: Body) -> Body:
    queue, task = context.store.queue(body["queue"]), context.store.task(body["task"])
    if any(entry["task"] == task["id"] for entry in queue["entries"]):
        raise errors.already_queued(task["id"])
    queue["entries"].append({"task": task["id"], "added": now()})
    context.store.changed()
    return {"added": 1}


@table.endpoint("queues.remove_task", queue=NEEDED, task=NEEDED)
def remove_task(context: Context, body: Body) -> Body:
    queue = context.store.queue(body["queue"])
    queue["entries"].pop(_position(queue, body["task"]))
    context.store.changed()
    task = context.store.tasks.get(body["task"])
    if body.get("update_task_status") and task is not None and task["status"] == "queued":
        reason = f"Task was removed from the queue {queue['id']}"
        set_status(context, task, task.get("enqueue_status") or "created", reason=reason, force=True)
    return {"removed": 1}


@table.endpoint("queues.clear_queue", queue=NEEDED)
def clear_queue(context: Context, body: Body) -> Body:
    queue = context.store.queue(body["queue"])
    return {"removed_tasks": _clear(context, queue, f"Queue {queue['id']} was cleared")}


def _move(target: Callable[[int, int, int], int]) -> Callable[[Context, Body], Body]:
    """An endpoint that moves a Task; ``target`` says where to, by its position, the length and the count."""

    def call(context: Context, body: Body) -> Body:
        queue = context.store.queue(body["queue"])
        old = _position(queue, body["task"])
        length = len(queue["entries"])
        new = min(max(target(old, length, int(body.get("count") or 1)), 0), length - 1)
        queue["entries"].insert(new, queue["entries"].pop(old))
        context.store.changed()
        return {"position": new}

    return call


for _name, _target in {
    "front": lambda old, length, count: 0,
    "back": lambda old, length, count: length - 1,
    "forward": lambda old, length, count: old - count,
    "backward": lambda old, length, count: old + count,
}.items():
    _action = f"queues.move_task_to_{_name}" if _name in ("front", "back") else f"queues.move_task_{_name}"
    table.endpoint(_action, queue=NEEDED, task=NEEDED)(_move(_target))


# -- helpers -----------------------------------------------------------------------------------------------


def _shown(queue: Document, body: Body) -> Document:
    shown = {key: value for key, value in queue.items() if key != "user"}
    return project(shown, wanted_fields(body, _FIELDS))


def _expand(context: Context, queue: Document) -> Document:
    tasks = context.store.tasks
    entries = []
    for entry in queue["entries"]:
        task = tasks.get(entry["task"])
        reference = {"id": entry["task"], **({"name": task["name"]} if task else {})}
        entries.append({**entry, "task": reference})
    workers = [
        {
            "name": worker.id,
            "ip": worker.ip,
            "key": worker.key,
            "task": context.workers.task_of(worker, tasks),
        }
        for worker in context.workers.serving(queue["id"])
    ]
    return {**queue, "company": {"id": COMPANY_ID}, "entries": entries, "workers": workers}


def _check_name(context: Context, name: str) -> None:
    if len(name) < 3:
        raise errors.too_short("name")
    if context.store.queue_named(name):
        raise errors.duplicate(name, COMPANY_ID)


def _position(queue: Document, task_id: str) -> int:
    for position, entry in enumerate(queue["entries"]):
        if entry["task"] == task_id:
            return position
    raise errors.not_in_queue(task_id, queue["id"], COMPANY_ID)


def _clear(context: Context, queue: Document, reason: str) -> list[str]:
    removed = [entry["task"] for entry in queue["entries"]]
    queue["entries"] = []
    context.store.changed()
    for task_id in removed:
        task = context.store.tasks.get(task_id)
        if task is not None:
            task["execution"].pop("queue", None)
            set_status(context, task, task.get("enqueue_status") or "created", reason=reason, force=True)
    return removed
