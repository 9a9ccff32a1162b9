"""``tasks``: the parts of a Task that have calls of their own.

Hyper-parameters, configuration objects, runtime properties, artifacts and models.
"""

from __future__ import annotations

import copy
from typing import Any

from . import errors
from .schema import LIST, NEEDED, NEEDED_LIST, NEEDED_OBJECTS, OBJECT, TEXT, Body, Context, Table, one_of
from .store import Document, now
from .tasks import changed, check_created

table = Table()

_REPLACE = one_of(("none", "section", "all"))


# -- hyper-parameters --------------------------------------------------------------------------------------


@table.endpoint(
    "tasks.edit_hyper_params", task=NEEDED, hyperparams=NEEDED_OBJECTS, replace_hyperparams=_REPLACE
)
def edit_hyper_params(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    check_created(task, body)
    for item in body["hyperparams"]:
        _check_item(item, "section", "name")
    replace = body.get("replace_hyperparams") or "none"
    params: Body = {} if replace == "all" else task["hyperparams"]
    if replace == "section":
        for section in {item["section"] for item in body["hyperparams"]}:
            params.pop(section, None)
    for item in body["hyperparams"]:
        section = params.setdefault(item["section"], {})
        section[item["name"]] = {**section.get(item["name"], {}), **_without_none(item)}
    task["hyperparams"] = params
    changed(context, task, {}, touched=True)
    return {"updated": 1}


@table.endpoint("tasks.get_hyper_params", tasks=NEEDED_LIST)
def get_hyper_params(context: Context, body: Body) -> Body:
    answer = []
    for task in _tasks(context, body["tasks"]):
        items = [item for section in task["hyperparams"].values() for item in section.values()]
        answer.append({"task": task["id"], "hyperparams": items})
    return {"params": answer}


@table.endpoint("tasks.delete_hyper_params", task=NEEDED, hyperparams=NEEDED_OBJECTS)
def delete_hyper_params(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    check_created(task, body)
    for item in body["hyperparams"]:
        _check_item(item, "section")
        section = task["hyperparams"].get(item.get("section"), {})
        if item.get("name"):
            section.pop(item["name"], None)
        if not item.get("name") or not section:
            task["hyperparams"].pop(item.get("section"), None)
    changed(context, task, {}, touched=True)
    return {"deleted": 1}


# -- configuration objects ---------------------------------------------------------------------------------


@table.endpoint("tasks.edit_configuration", task=NEEDED, configuration=NEEDED_OBJECTS)
def edit_configuration(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    check_created(task, body)
    for item in body["configuration"]:
        _check_item(item, "name")
    if body.get("replace_configuration"):
        task["configuration"] = {}
    for item in body["configuration"]:
        stored = task["configuration"].get(item["name"], {})
        task["configuration"][item["name"]] = {**stored, **_without_none(item)}
    changed(context, task, {}, touched=True)
    return {"updated": 1}


@table.endpoint("tasks.get_configurations", tasks=NEEDED_LIST, names=LIST)
def get_configurations(context: Context, body: Body) -> Body:
    names = body.get("names")
    answer = []
    for task in _tasks(context, body["tasks"]):
        items = [item for name, item in task["configuration"].items() if not names or name in names]
        answer.append({"task": task["id"], "configuration": items})
    return {"configurations": answer}


@table.endpoint("tasks.get_configuration_names", tasks=NEEDED_LIST)
def get_configuration_names(context: Context, body: Body) -> Body:
    tasks = _tasks(context, body["tasks"])
    return {
        "configurations": [{"task": task["id"], "names": sorted(task["configuration"])} for task in tasks]
    }


@table.endpoint("tasks.delete_configuration", task=NEEDED, configuration=NEEDED_LIST)
def delete_configuration(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    check_created(task, body)
    for name in body["configuration"]:
        task["configuration"].pop(name, None)
    changed(context, task, {}, touched=True)
    return {"deleted": 1}


# -- runtime -----------------------------------------------------------------------------------------------


@table.endpoint("tasks.edit_runtime", task=NEEDED, add_or_update=OBJECT, remove=LIST)
def edit_runtime(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    added, removed = body.get("add_or_update") or {}, body.get("remove") or []
    if not added and not removed:
        return {"updated": 0}
    task["runtime"].update(copy.deepcopy(added))
    for name in removed:
        task["runtime"].pop(name, None)
    changed(context, task, {}, touched=True)
    return {"updated": 1}


# -- artifacts and models ----------------------------------------------------------------------------------


@table.endpoint("tasks.add_or_update_artifacts", task=NEEDED, artifacts=NEEDED_OBJECTS)
def add_or_update_artifacts(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    stored = {_artifact_key(item): item for item in task["execution"].get("artifacts") or []}
    for item in body["artifacts"]:
        _check_item(item, "key", "type")
        stored[_artifact_key(item)] = {"mode": "output", **_without_none(item)}
    task["execution"]["artifacts"] = list(stored.values())
    changed(context, task, {}, touched=True)
    return {"updated": 1}


@table.endpoint("tasks.delete_artifacts", task=NEEDED, artifacts=NEEDED_OBJECTS)
def delete_artifacts(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    for item in body["artifacts"]:
        _check_item(item, "key")
    gone = {_artifact_key(item) for item in body["artifacts"]}
    artifacts = task["execution"].get("artifacts") or []
    task["execution"]["artifacts"] = [item for item in artifacts if _artifact_key(item) not in gone]
    changed(context, task, {}, touched=True)
    return {"deleted": 1}


_MODEL_TYPE = one_of(("input", "output"), required=True)


@table.endpoint("tasks.add_or_update_model", task=NEEDED, name=NEEDED, model=NEEDED, type=_MODEL_TYPE)
def add_or_update_model(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    models = [item for item in task["models"][body["type"]] if item["name"] != body["name"]]
    models.append({"name": body["name"], "model": body["model"], "updated": now()})
    task["models"][body["type"]] = models
    changed(context, task, {}, touched=True)
    return {"updated": 1}


@table.endpoint("tasks.delete_models", task=NEEDED, models=NEEDED_OBJECTS)
def delete_models(context: Context, body: Body) -> Body:
    task = context.store.task(body["task"])
    for gone in body["models"]:
        _check_item(gone, "name", "type")
        if gone["type"] not in ("input", "output"):
            raise errors.bad_choice("type", gone["type"])
        models = task["models"][gone["type"]]
        task["models"][gone["type"]] = [item for item in models if item["name"] != gone["name"]]
    changed(context, task, {}, touched=True)
    return {"updated": 1}


@table.endpoint("tasks.make_public", "tasks.make_private", ids=LIST, project=TEXT)
def make_public(context: Context, body: Body) -> Body:
    return {"updated": 0}


# -- helpers -----------------------------------------------------------------------------------------------


def _check_item(item: Any, *required: str) -> None:
    for name in required:
        if not item.get(name):
            raise errors.missing_field(name)
        if not isinstance(item[name], str):
            raise errors.wrong_type(name, "str", item[name])
    value = item.get("value")
    if value is not None and not isinstance(value, str):
        raise errors.wrong_type("value", "str", value)


def _without_none(item: Body) -> Body:
    return {name: value for name, value in item.items() if value is not None}


def _artifact_key(item: Body) -> tuple[str, str]:
    return item["key"], item.get("mode") or "output"


def _tasks(context: Context, ids: list[str]) -> list[Document]:
    missing = [task_id for task_id in ids if task_id not in context.store.tasks]
    if missing:
        raise errors.unknown_tasks(missing)
    return [context.store.tasks[task_id] for task_id in ids]
