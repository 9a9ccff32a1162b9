"""``tasks``: create, read, change, clone and delete. The life of a Task is in `task_status`."""

from __future__ import annotations

import copy

from . import errors
from .auth import USER_ID
from .projects import ensure_project
from .query import project, select, wanted_fields
from .references import expand
from .schema import LIST, NEEDED, NEEDED_LIST, OBJECT, TEXT, Body, Context, Table, one_of
from .store import Document, now
from .task_document import (
    CREATE_FIELDS,
    EDIT_FIELDS,
    FIELDS,
    TASK_TYPES,
    UPDATE_FIELDS,
    apply,
    check,
    new_task,
)

table = Table()

_FILTERS = (
    "id",
    "status",
    "type",
    "project",
    "parent",
    "user",
    "tags",
    "system_tags",
    "company",
    "execution.queue",
)
_DATES = ("created", "started", "completed", "status_changed", "last_update", "last_change", "published")
_CHECKED = {
    "tags": LIST,
    "system_tags": LIST,
    "script": OBJECT,
    "hyperparams": OBJECT,
    "configuration": OBJECT,
    "project": TEXT,
    "parent": TEXT,
}


@table.endpoint("tasks.create", name=NEEDED, type=one_of(TASK_TYPES, required=True), **_CHECKED)
def create(context: Context, body: Body) -> Body:
    check(context, body)
    task = new_task(body["name"], body["type"])
    apply(task, body, CREATE_FIELDS)
    context.store.tasks[task["id"]] = task
    context.store.changed()
    return {"id": task["id"]}


@table.endpoint("tasks.validate", name=NEEDED, type=one_of(TASK_TYPES, required=True), **_CHECKED)
def validate(context: Context, body: Body) -> Body:
    check(context, body)
    return {}


@table.endpoint("tasks.get_by_id", task=NEEDED)
def get_by_id(context: Context, body: Body) -> Body:
    only = wanted_fields(body, FIELDS)
    return {"task": project(_task_to_read(context, body["task"]), only)}


@table.endpoint("tasks.get_by_id_ex", task=NEEDED)
def get_by_id_ex(context: Context, body: Body) -> Body:
    only = wanted_fields(body, FIELDS)
    return {"task": project(expand(context, _task_to_read(context, body["task"])), only)}


@table.endpoint("tasks.get_all")
def get_all(context: Context, body: Body) -> Body:
    only = wanted_fields(body, FIELDS)
    return {"tasks": [project(_listed(task), only) for task in _select(context, body)]}


@table.endpoint("tasks.get_all_ex")
def get_all_ex(context: Context, body: Body) -> Body:
    only = wanted_fields(body, FIELDS)
    found = _select(context, body)
    answer: Body = {}
    if "scroll_id" in body or ("size" in body and "page" not in body):
        start = _scroll_start(body.get("scroll_id"))
        found = found[start : start + int(body.get("size") or 500)]
        answer["scroll_id"] = str(start + len(found))
    answer["tasks"] = [project(_listed(expand(context, task)), only) for task in found]
    return answer


@table.endpoint("tasks.get_types")
def get_types(context: Context, body: Body) -> Body:
    return {"types": sorted({task["type"] for task in context.store.tasks.values()})}


@table.endpoint("tasks.update", task=NEEDED, **_CHECKED)
def update(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    check(context, body)
    fields = apply(task, body, UPDATE_FIELDS)
    if not fields:
        return {"updated": 0, "fields": {}}
    return changed(context, task, fields)


@table.endpoint("tasks.edit", task=NEEDED, type=one_of(TASK_TYPES), **_CHECKED)
def edit(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    check_created(task, body)
    check(context, body)
    fields = apply(task, body, EDIT_FIELDS)
    return changed(context, task, fields, touched=True)


@table.endpoint("tasks.set_requirements", task=NEEDED, requirements=OBJECT)
def set_requirements(context: Context, body: Body) -> Body:
    # The SDK calls it while the Task runs: no check of the status here.
    task = context.store.task(body["task"])
    task["script"]["requirements"] = body.get("requirements") or {}
    return changed(context, task, {"script.requirements": task["script"]["requirements"]})


@table.endpoint("tasks.clone", task=NEEDED)
def clone(context: Context, body: Body) -> Body:
    store = context.store
    source = store.tasks.get(body["task"])
    if source is None:
        raise errors.unknown_task(body["task"])
    task = new_task(body.get("new_task_name") or source["name"], source["type"])
    for name in (
        "comment",
        "project",
        "tags",
        "script",
        "hyperparams",
        "configuration",
        "container",
        "execution",
    ):
        if name in source:
            task[name] = copy.deepcopy(source[name])
    task["execution"].pop("queue", None)
    task["models"]["input"] = copy.deepcopy(source["models"]["input"])
    task["parent"] = body.get("new_task_parent") or source.get("parent") or source["id"]
    task["system_tags"] = [tag for tag in source["system_tags"] if tag not in ("development", "archived")]
    apply(task, {key[9:]: value for key, value in body.items() if key.startswith("new_task_")}, CREATE_FIELDS)
    artifacts = task["execution"].get("artifacts") or []
    task["execution"]["artifacts"] = [item for item in artifacts if item.get("mode") == "input"]
    store.tasks[task["id"]] = task
    store.changed()
    return {"id": task["id"]}


@table.endpoint("tasks.delete", task=NEEDED)
def delete(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    if task["status"] != "created" and not body.get("force"):
        raise errors.not_deletable(task["id"], task["status"])
    remove(context, task)
    return {
        "deleted": True,
        "updated_children": 0,
        "updated_models": 0,
        "deleted_models": 0,
        "urls": {"model_urls": [], "event_urls": [], "artifact_urls": []}
        if body.get("return_file_urls")
        else None,
    }


@table.endpoint("tasks.archive", tasks=NEEDED_LIST)
def archive(context: Context, body: Body) -> Body:
    tasks = [context.store.task(task_id) for task_id in body["tasks"]]
    for task in tasks:
        set_archived(context, task, True)
    return {"archived": len(tasks)}


@table.endpoint("tasks.unarchive", tasks=NEEDED_LIST)
def unarchive(context: Context, body: Body) -> Body:
    tasks = [context.store.task(task_id) for task_id in body["tasks"]]
    for task in tasks:
        set_archived(context, task, False)
    return {"unarchived": len(tasks)}


@table.endpoint("tasks.move", ids=NEEDED_LIST, project=TEXT)
def move(context: Context, body: Body) -> Body:
    target = body.get("project")
    if not target:
        target = ensure_project(context, body.get("project_name") or "")
    elif target not in context.store.projects:
        raise errors.bad_reference("Project", target, "project")
    for task_id in body["ids"]:
        changed(context, context.store.task(task_id), {})
        context.store.task(task_id)["project"] = target
    return {"project_id": target}


# -- what the other task modules use -----------------------------------------------------------------------


def changed(context: Context, task: Document, fields: Body, *, touched: bool = False) -> Body:
    """Note that a Task was changed; the answer of an update-type call with ``fields`` echoed."""
    stamps = {"last_change": now(), "last_changed_by": USER_ID}
    if touched:
        stamps["last_update"] = stamps["last_change"]
    task.update(stamps)
    context.store.changed()
    return {"updated": 1, "fields": {**copy.deepcopy(fields), **stamps}}


def check_created(task: Document, body: Body) -> None:
    """Raise error 110 unless the Task is still a draft or the call is forced."""
    if task["status"] != "created" and not body.get("force"):
        raise errors.wrong_status("created", task["status"])


def set_archived(context: Context, task: Document, archived: bool) -> None:
    """Put the system tag "archived" on the Task, or take it off."""
    tags = set(task["system_tags"]) - {"archived"}
    task["system_tags"] = sorted(tags | {"archived"} if archived else tags)
    changed(context, task, {})


def remove(context: Context, task: Document) -> None:
    """Delete the Task with its queue entry and its events."""
    context.store.remove_from_queues(task["id"])
    context.log.forget(task["id"])
    del context.store.tasks[task["id"]]
    context.store.changed()


# -- helpers -----------------------------------------------------------------------------------------------


def _task_to_read(context: Context, task_id: str) -> Document:
    task = context.store.tasks.get(task_id)
    if task is None:
        raise errors.unknown_tasks([task_id])
    return task


def _listed(task: Document) -> Document:
    return {key: value for key, value in task.items() if key != "unique_metrics"}


def _select(context: Context, body: Body) -> list[Document]:
    if body.get("search_text"):
        body = {**body, "_any_": {"pattern": body["search_text"], "fields": ["id", "name", "comment"]}}
    return select(context.store.tasks.values(), body, fields=_FILTERS, dates=_DATES)


def _scroll_start(scroll_id: str | None) -> int:
    return int(scroll_id) if scroll_id and scroll_id.isdigit() else 0
