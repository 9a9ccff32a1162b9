"""The ``_ex`` calls answer references as objects: ``"project": {"id", "name"}`` instead of a plain id."""

from __future__ import annotations

from .auth import COMPANY_ID, USER_ID, USER_NAME
from .schema import Context
from .store import Document


def expand(context: Context, task: Document) -> Document:
    """A copy of ``task`` with the references as objects."""
    store = context.store
    result = dict(task)
    result["company"] = {"id": COMPANY_ID}
    result["user"] = {"id": USER_ID, "name": USER_NAME}
    if result.get("project"):
        result["project"] = _named(result["project"], store.projects)
    if result.get("parent"):
        result["parent"] = _named(result["parent"], store.tasks)
    queue = result["execution"].get("queue")
    if queue:
        result["execution"] = {**result["execution"], "queue": _named(queue, store.queues)}
    return result


def _named(document_id: str, collection: dict[str, Document]) -> Document:
    document = collection.get(document_id)
    return {"id": document_id, "name": document["name"]} if document else {"id": document_id}
