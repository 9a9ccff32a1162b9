"""``tasks``: the status machine. Which change is allowed, and what each of them writes.

``force`` skips the table; a change to the same status is always allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from . import errors
from .auth import USER_NAME
from .schema import NEEDED, NEEDED_LIST, OBJECT, TEXT, Body, Context, Table
from .store import Document, now
from .tasks import changed, remove, set_archived

_NEXT = {
    "created": {"queued", "in_progress"},
    "queued": {"created", "in_progress", "stopped"},
    "in_progress": {"stopped", "failed", "created", "completed"},
    "stopped": {
        *("closed", "created", "failed", "queued", "in_progress"),
        *("published", "publishing", "completed"),
    },
    "closed": {"created", "failed", "published", "publishing", "stopped"},
    "failed": {"created", "stopped", "published", "queued"},
    "completed": {"published", "in_progress", "created"},
    "publishing": {"published"},
    "published": set(),
}
_WORKER_LIFETIME_S = 600

table = Table()


@table.endpoint("tasks.enqueue", task=NEEDED, queue=TEXT, queue_name=TEXT)
def enqueue(context: Context, body: Body) -> Body:
    store = context.store
    task = store.task(body["task"])
    queue = _queue_for(context, body)
    if any(entry["task"] == task["id"] for entry in queue["entries"]):
        set_status(context, task, "queued", reason="failed enqueueing", force=True)
        raise errors.already_queued(task["id"])
    before = task["status"]
    answer = _change(context, task, "queued", body)
    store.remove_from_queues(task["id"])
    moment = now()
    queue["entries"].append({"task": task["id"], "added": moment})
    queue["last_update"] = moment
    if before != "queued":
        task["enqueue_status"] = before
    task["execution"]["queue"] = queue["id"]
    task["system_tags"] = [tag for tag in task["system_tags"] if tag != "development"]
    answer["fields"].update({"enqueue_status": task.get("enqueue_status"), "execution.queue": queue["id"]})
    if body.get("verify_watched_queue"):
        answer["queue_watched"] = bool(context.workers.serving(queue["id"]))
    return {"queued": 1, **answer}


@table.endpoint("tasks.dequeue", task=NEEDED)
def dequeue(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    if task["status"] not in ("queued", "in_progress"):
        return {"dequeued": 1, "updated": 0, "fields": {}}
    if not body.get("remove_from_all_queues") or task["status"] == "queued":
        context.store.remove_from_queues(task["id"])
    target = body.get("new_status") or task.get("enqueue_status") or "created"
    answer = _change(context, task, target, {**body, "force": True})
    task.pop("enqueue_status", None)
    answer["fields"]["enqueue_status"] = None
    return {"dequeued": 1, **answer}


@table.endpoint("tasks.started", task=NEEDED)
def started(context: Context, body: Body) -> Body:
    task = context.store.tasks.get(body["task"])
    if task is None:
        raise errors.unknown_object()
    first = task["status"] != "in_progress"
    answer = _change(context, task, "in_progress", body)
    if first:
        task["started"] = answer["fields"]["started"] = now()
    return {"started": 1, **answer}


@table.endpoint("tasks.stop", task=NEEDED)
def stop(context: Context, body: Body) -> Body:
    """Stop at once, or ask the agent that runs it to stop it: then only ``status_message`` says so."""
    task = context.store.task(body["task"])
    _check_change(task, "stopped", force=bool(body.get("force")))
    reason = body.get("status_reason") or ""
    if task["status"] == "in_progress" and _has_live_worker(task):
        return set_status(context, task, "in_progress", reason=reason, message="stopping")
    context.store.remove_from_queues(task["id"])
    message = f"Stopped by {USER_NAME}"
    return set_status(context, task, "stopped", reason=reason, message=message, force=True)


@table.endpoint("tasks.stopped", task=NEEDED)
def stopped(context: Context, body: Body) -> Body:
    return _end(context, body, "stopped")


@table.endpoint("tasks.failed", task=NEEDED)
def failed(context: Context, body: Body) -> Body:
    return _end(context, body, "failed")


@table.endpoint("tasks.completed", task=NEEDED)
def completed(context: Context, body: Body) -> Body:
    return {**_end(context, body, "completed"), "published": 0}


@table.endpoint("tasks.close", task=NEEDED)
def close(context: Context, body: Body) -> Body:
    return _change(context, context.store.task(body["task"]), "closed", body)


@table.endpoint("tasks.publish", task=NEEDED)
def publish(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    answer = _change(context, task, "published", body)
    task["published"] = answer["fields"]["published"] = now()
    return {**answer, "committed_versions_results": []}


@table.endpoint("tasks.reset", task=NEEDED)
def reset(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    if task["status"] == "published" and not body.get("force"):
        raise errors.published_task(task["id"])
    removed = context.store.remove_from_queues(task["id"])
    for name in ("last_worker", "last_worker_report", "started", "completed", "published"):
        task.pop(name, None)
    for name in ("active_duration", "enqueue_status"):
        task.pop(name, None)
    task.update(runtime={}, last_iteration=0, last_metrics={}, unique_metrics=[], output={})
    task["models"]["output"] = []
    task["execution"].pop("queue", None)
    artifacts = task["execution"].get("artifacts") or []
    task["execution"]["artifacts"] = [item for item in artifacts if item.get("mode") == "input"]
    if body.get("clear_all"):
        task["script"] = {"requirements": {}}
    context.log.forget(task["id"])
    answer = set_status(context, task, "created", reason="reset", message="reset", force=True)
    dequeued = {"removed": removed} if removed else {}
    return {**answer, "deleted_models": 0, "dequeued": dequeued, "events": {}, "urls": {}}


@table.endpoint("tasks.ping", task=NEEDED)
def ping(context: Context, body: Body) -> Body:
    task = context.store.tasks.get(body["task"])
    if task is not None:
        task["last_update"] = now()
        context.store.changed()
    return {}


# -- many at once: always 200, with what failed ------------------------------------------------------------


def _many(action: Callable[[Context, Body], Body]) -> Callable[[Context, Body], Body]:
    def call(context: Context, body: Body) -> Body:
        succeeded: list[Body] = []
        failures: list[Body] = []
        for task_id in body["ids"]:
            try:
                answer = action(context, {**body, "task": task_id})
            except errors.ApiError as error:
                problem = {"codes": [error.status, error.subcode], "msg": error.message, "data": {}}
                failures.append({"id": task_id, "error": problem})
            else:
                succeeded.append({"id": task_id, **answer})
        return {"succeeded": succeeded, "failed": failures}

    return call


def _archive_one(context: Context, body: Body) -> Body:
    set_archived(context, context.store.task(body["task"]), True)
    return {"archived": True}


def _unarchive_one(context: Context, body: Body) -> Body:
    set_archived(context, context.store.task(body["task"]), False)
    return {"unarchived": True}


def _delete_one(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    if task["status"] != "created" and not body.get("force"):
        raise errors.not_deletable(task["id"], task["status"])
    remove(context, task)
    return {"deleted": True, "updated_children": 0, "updated_models": 0, "deleted_models": 0}


for _name, _action in {
    "enqueue": enqueue,
    "dequeue": dequeue,
    "stop": stop,
    "reset": reset,
    "publish": publish,
    "archive": _archive_one,
    "unarchive": _unarchive_one,
    "delete": _delete_one,
}.items():
    table.endpoint(f"tasks.{_name}_many", ids=NEEDED_LIST, validate=OBJECT)(_many(_action))


# -- the change itself -------------------------------------------------------------------------------------


def set_status(
    context: Context, task: Document, status: str, *, reason: str = "", message: str = "", force: bool = False
) -> Body:
    """Change the status, with the fields that every change writes. Raises error 110."""
    _check_change(task, status, force=force)
    fields = {
        "status": status,
        "status_reason": reason,
        "status_message": message,
        "status_changed": now(),
    }
    task.update(fields)
    return changed(context, task, fields, touched=True)


def _change(context: Context, task: Document, status: str, body: Body) -> Body:
    return set_status(
        context,
        task,
        status,
        reason=body.get("status_reason") or "",
        message=body.get("status_message") or "",
        force=bool(body.get("force")),
    )


def _check_change(task: Document, status: str, *, force: bool) -> None:
    current = task["status"]
    if not force and status != current and status not in _NEXT[current]:
        raise errors.bad_transition(current, status)


def _end(context: Context, body: Body, status: str) -> Body:
    task = context.store.task(body["task"])
    answer = _change(context, task, status, body)
    task["completed"] = answer["fields"]["completed"] = now()
    return answer


def _queue_for(context: Context, body: Body) -> Document:
    store = context.store
    if body.get("queue") and body.get("queue_name"):
        raise errors.invalid("Either queue id or queue name should be provided")
    if body.get("queue_name"):
        return store.queue_named(body["queue_name"]) or store.add_queue(body["queue_name"])
    if body.get("queue"):
        return store.queue(body["queue"])
    return store.default_queue()


def _has_live_worker(task: Document) -> bool:
    if not task.get("last_worker") or "development" in task["system_tags"]:
        return False
    age = datetime.now(timezone.utc) - datetime.fromisoformat(task["last_update"])
    return age.total_seconds() < _WORKER_LIFETIME_S
