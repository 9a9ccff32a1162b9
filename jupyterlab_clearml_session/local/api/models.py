"""``models``: just enough for the SDK's automatic logging of models inside a session."""

from __future__ import annotations

from . import errors
from .auth import COMPANY_ID, USER_ID
from .query import project, select, wanted_fields
from .schema import NEEDED, OBJECT, TEXT, Body, Context, Table
from .store import Document, new_id, now

table = Table()

_FILTERS = ("id", "project", "task", "user", "tags", "system_tags", "uri", "framework", "ready")
_EDITABLE = [
    "name",
    "comment",
    "tags",
    "system_tags",
    "framework",
    "uri",
    "design",
    "labels",
    "project",
    "task",
    "iteration",
    "ready",
    "metadata",
]
_FIELDS = frozenset([*_EDITABLE, *["id", "user", "company", "created", "last_update", "parent", "ui_cache"]])


@table.endpoint("models.create", name=NEEDED, uri=TEXT, labels=OBJECT)
def create(context: Context, body: Body) -> Body:
    moment = now()
    model: Document = {
        "id": new_id(),
        "user": USER_ID,
        "company": COMPANY_ID,
        "created": moment,
        "last_update": moment,
        "ready": False,
        "tags": [],
        "system_tags": [],
        "design": {},
        "labels": {},
    }
    _apply(model, body)
    context.store.models[model["id"]] = model
    context.store.changed()
    return {"id": model["id"], "created": True}


@table.endpoint("models.get_by_id", "models.get_by_id_ex", model=NEEDED)
def get_by_id(context: Context, body: Body) -> Body:
    return {"model": _model(context, body["model"])}


@table.endpoint("models.get_all", "models.get_all_ex")
def get_all(context: Context, body: Body) -> Body:
    found = select(context.store.models.values(), body, fields=_FILTERS, dates=("created", "last_update"))
    only = wanted_fields(body, _FIELDS)
    return {"models": [project(model, only) for model in found]}


@table.endpoint("models.edit", "models.update", model=NEEDED)
def edit(context: Context, body: Body) -> Body:
    model = _model(context, body["model"])
    fields = _apply(model, body)
    context.store.changed()
    return {"updated": 1, "fields": fields}


@table.endpoint("models.set_ready", model=NEEDED)
def set_ready(context: Context, body: Body) -> Body:
    _model(context, body["model"])["ready"] = True
    context.store.changed()
    return {"updated": 1, "published_task": {}}


@table.endpoint("models.delete", model=NEEDED)
def delete(context: Context, body: Body) -> Body:
    del context.store.models[_model(context, body["model"])["id"]]
    context.store.changed()
    return {"deleted": True, "url": None}


def _model(context: Context, model_id: str) -> Document:
    try:
        return context.store.models[model_id]
    except KeyError:
        raise errors.ApiError(400, 201, f"Invalid model id: id={model_id}, company={COMPANY_ID}") from None


def _apply(model: Document, body: Body) -> Body:
    fields = {name: body[name] for name in _EDITABLE if body.get(name) is not None}
    model.update(fields, last_update=now())
    return fields
