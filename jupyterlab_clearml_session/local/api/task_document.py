"""A Task as a document: its fields, what a new one holds, and how a request changes one."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from . import errors
from .auth import COMPANY_ID, USER_ID
from .schema import Body, Context
from .store import Document, new_id, now

TASK_TYPES = [
    "training",
    "testing",
    "inference",
    "data_processing",
    "application",
    "monitor",
    "controller",
    "optimizer",
    "service",
    "qc",
    "custom",
]

FIELDS = frozenset(
    [
        "id",
        "name",
        "user",
        "company",
        "type",
        "status",
        "status_reason",
        "status_message",
        "status_changed",
        "comment",
        "report",
        "report_assets",
        "created",
        "started",
        "completed",
        "published",
        "active_duration",
        "parent",
        "project",
        "output",
        "execution",
        "container",
        "tags",
        "system_tags",
        "script",
        "last_update",
        "last_change",
        "last_iteration",
        "last_worker",
        "last_worker_report",
        "last_metrics",
        "unique_metrics",
        "metric_stats",
        "hyperparams",
        "configuration",
        "runtime",
        "models",
        "last_changed_by",
        "enqueue_status",
        "output_dest",
    ]
)
CREATE_FIELDS = [
    "name",
    "type",
    "comment",
    "parent",
    "project",
    "tags",
    "system_tags",
    "script",
    "hyperparams",
    "configuration",
    "runtime",
    "container",
    "models",
]
UPDATE_FIELDS = ["name", "tags", "system_tags", "comment", "project", "output__error"]
EDIT_FIELDS = [*CREATE_FIELDS, "report"]


def new_task(name: str, kind: str) -> Document:
    """A draft, with the parts that every Task has."""
    moment = now()
    return {
        "id": new_id(),
        "company": COMPANY_ID,
        "user": USER_ID,
        "name": name,
        "type": kind,
        "status": "created",
        "report_assets": [],
        "created": moment,
        "output": {},
        "execution": {
            "test_split": 0,
            "parameters": {},
            "model_desc": {},
            "model_labels": {},
            "artifacts": [],
        },
        "tags": [],
        "system_tags": [],
        "script": {"requirements": {}},
        "last_update": moment,
        "last_change": moment,
        "last_iteration": 0,
        "last_metrics": {},
        "unique_metrics": [],
        "metric_stats": {},
        "hyperparams": {},
        "configuration": {},
        "runtime": {},
        "container": {},
        "models": {"input": [], "output": []},
        "last_changed_by": USER_ID,
    }


def check(context: Context, body: Body) -> None:
    """Refuse values that a Task cannot have: too short a name, unknown references, parameters without text."""
    name = body.get("name")
    if name is not None and len(name) < 3:
        raise errors.too_short("name")
    if body.get("project") and body["project"] not in context.store.projects:
        raise errors.bad_reference("Project", body["project"], "project")
    if body.get("parent") and body["parent"] not in context.store.tasks:
        raise errors.bad_reference("Task", body["parent"], "parent")
    _check_values(body.get("hyperparams") or {})
    for item in (body.get("configuration") or {}).values():
        if not isinstance(item, dict):
            raise errors.wrong_type("configuration", "dict", item)


def _check_values(hyperparams: Body) -> None:
    for section, params in hyperparams.items():
        if not isinstance(params, dict):
            raise errors.wrong_type("hyperparams", "dict", params)
        for name, param in params.items():
            if not isinstance(param, dict):
                raise errors.wrong_type("hyperparams", "dict", param)
            if not isinstance(param.get("value", ""), str):
                reason = "{'value': ValidationError(StringField only accepts string values,)}"
                text = f"hyperparams={{'{section}': {{'{name}': {reason}}}}}"
                raise errors.ApiError(400, 800, f"Data validation error: {text}")


def apply(task: Document, body: Body, names: Iterable[str]) -> Body:
    """Write those fields of ``body`` that are among ``names`` to the Task; what was written.

    The script is merged onto the stored one (and so is the execution, with it), all else is replaced as a whole.
    """
    fields: Body = {}
    for name in names:
        if body.get(name) is None:
            continue
        value: Any = copy.deepcopy(body[name])
        if name in ("tags", "system_tags"):
            value = sorted(set(value))
        elif name == "script":
            value = {**task["script"], **value}
            value.setdefault("requirements", {})
        elif name == "hyperparams":
            value = _named(value, with_section=True)
        elif name == "configuration":
            value = _named({"": value}, with_section=False)[""]
        elif name == "models":
            value = {"input": [], "output": [], **value}
        fields[name] = task[name] = value
    if "execution" in body and "script" in names:
        fields["execution"] = _merge_execution(task, body["execution"] or {})
    return fields


def _merge_execution(task: Document, execution: Body) -> Body:
    """Merge as the server does; a legacy ``model_desc`` becomes configuration entries of type "legacy"."""
    execution = copy.deepcopy(execution)
    for name, text in (execution.pop("model_desc", None) or {}).items():
        task["configuration"][name] = {"name": name, "value": str(text), "type": "legacy"}
    task["execution"] = {**task["execution"], **execution}
    merged: Body = task["execution"]
    return merged


def _named(sections: Body, *, with_section: bool) -> Body:
    """Hyper-parameters and configurations hold their own names beside being keyed by them."""
    return {
        section: {
            name: {**({"section": section} if with_section else {}), "name": name, **item}
            for name, item in items.items()
        }
        for section, items in sections.items()
    }
