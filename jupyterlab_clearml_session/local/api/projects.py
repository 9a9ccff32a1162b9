"""``projects``: what Tasks are sorted into. A name with slashes makes its parents, too."""

from __future__ import annotations

from . import errors
from .auth import COMPANY_ID, USER_ID, USER_NAME
from .query import project, select, wanted_fields
from .schema import LIST, NEEDED, TEXT, Body, Context, Table
from .store import Document, new_id, now

table = Table()

_FILTERS = ("id", "parent", "user", "tags", "system_tags")
_FIELDS = frozenset(
    [
        "id",
        "name",
        "basename",
        "description",
        "user",
        "company",
        "created",
        "tags",
        "system_tags",
        "default_output_destination",
        "last_update",
        "parent",
        "path",
        "stats",
        "own_tasks",
        "own_models",
    ]
)


def ensure_project(context: Context, name: str) -> str:
    """The id of the project of this name; it is made where there is none."""
    existing = context.store.project_named(name)
    if existing is None:
        existing = _add(context, name, {})
    project_id: str = existing["id"]
    return project_id


@table.endpoint("projects.create", description=TEXT, tags=LIST, system_tags=LIST)
def create(context: Context, body: Body) -> Body:
    if body.get("name") is None:
        raise errors.missing_required("name")
    _check_name(body["name"])
    if context.store.project_named(body["name"]):
        raise errors.duplicate_project(body["name"], COMPANY_ID)
    return {"id": _add(context, body["name"], body)["id"]}


@table.endpoint("projects.get_by_id", project=NEEDED)
def get_by_id(context: Context, body: Body) -> Body:
    return {"project": _project(context, body["project"])}


@table.endpoint("projects.get_all")
def get_all(context: Context, body: Body) -> Body:
    found = select(context.store.projects.values(), body, fields=_FILTERS, dates=("last_update", "created"))
    only = wanted_fields(body, _FIELDS)
    return {"projects": [project(item, only) for item in found]}


@table.endpoint("projects.get_all_ex")
def get_all_ex(context: Context, body: Body) -> Body:
    found = select(context.store.projects.values(), body, fields=_FILTERS, dates=("last_update", "created"))
    only = wanted_fields(body, _FIELDS)
    return {"projects": [project(_expand(item), only) for item in found]}


@table.endpoint("projects.update", project=NEEDED)
def update(context: Context, body: Body) -> Body:
    project = _project(context, body["project"])
    fields: Body = {}
    for name in ("name", "description", "tags", "system_tags", "default_output_destination"):
        if body.get(name) is not None:
            fields[name] = body[name]
    if "name" in fields:
        _check_name(fields["name"])
        fields["basename"] = fields["name"].rsplit("/", 1)[-1]
    project.update(fields, last_update=now())
    context.store.changed()
    return {"updated": 1, "fields": fields}


@table.endpoint("projects.delete", project=NEEDED)
def delete(context: Context, body: Body) -> Body:
    project = _project(context, body["project"])
    tasks = [task for task in context.store.tasks.values() if task.get("project") == project["id"]]
    if tasks and not body.get("force"):
        raise errors.project_not_empty(project["id"])
    for task in tasks:
        task.pop("project", None)
    del context.store.projects[project["id"]]
    context.store.changed()
    return {
        "deleted": 1,
        "disassociated_tasks": len(tasks),
        "urls": {},
        "deleted_models": 0,
        "deleted_tasks": 0,
    }


@table.endpoint("projects.get_task_tags", "projects.get_model_tags", "organization.get_tags")
def get_tags(context: Context, body: Body) -> Body:
    tags = {tag for task in context.store.tasks.values() for tag in task["tags"]}
    return {"tags": sorted(tags), "system_tags": []}


def _project(context: Context, project_id: str) -> Document:
    try:
        return context.store.projects[project_id]
    except KeyError:
        raise errors.unknown_project(project_id) from None


def _check_name(name: str) -> None:
    if not name.strip():
        raise errors.invalid("Project name cannot be blank")
    if len(name) < 3:
        raise errors.too_short("name")


def _add(context: Context, name: str, body: Body) -> Document:
    parent, _, basename = name.rpartition("/")
    moment = now()
    project: Document = {
        "id": new_id(),
        "name": name,
        "basename": basename,
        "description": body.get("description") or "",
        "user": USER_ID,
        "company": COMPANY_ID,
        "created": moment,
        "last_update": moment,
        "tags": sorted(set(body.get("tags") or [])),
        "system_tags": sorted(set(body.get("system_tags") or [])),
    }
    if body.get("default_output_destination"):
        project["default_output_destination"] = body["default_output_destination"]
    if parent:
        project["parent"] = ensure_project(context, parent)
    context.store.projects[project["id"]] = project
    context.store.changed()
    return project


def _expand(project: Document) -> Document:
    return {**project, "company": {"id": COMPANY_ID}, "user": {"id": USER_ID, "name": USER_NAME}}
