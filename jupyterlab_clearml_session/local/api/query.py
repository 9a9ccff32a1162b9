"""The query language of the ``get_all`` calls: filters, order, paging and projection. Pure functions.

Filters of different fields are ANDed, the values of one list are ORed. ``-x`` in a list excludes x;
``"__$all"`` / ``"__$any"`` say how the values after them are joined.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import Any

from . import errors
from .schema import Body
from .store import Document

_COMPARISONS: tuple[tuple[str, Callable[[datetime, datetime], bool]], ...] = (
    (">=", lambda left, right: left >= right),
    ("<=", lambda left, right: left <= right),
    (">", lambda left, right: left > right),
    ("<", lambda left, right: left < right),
)


def select(
    documents: Iterable[Document], body: Body, *, fields: Collection[str], dates: Collection[str] = ()
) -> list[Document]:
    """The documents that match all filters of ``body``, ordered and cut to the page asked for.

    ``fields`` are the names of the fields that may be filtered by value, ``dates`` those by time.
    """
    found = [document for document in documents if _matches(document, body, fields, dates)]
    _sort(found, body.get("order_by") or [])
    return _page(found, body)


def wanted_fields(body: Body, known: Collection[str]) -> list[str]:
    """The paths of ``only_fields``. Raises error 14 where one of them is not among the ``known`` fields."""
    only = body.get("only_fields") or []
    # The real server reads a plain string letter by letter, too.
    wanted = list(only) if isinstance(only, (list, str)) else []
    for path in wanted:
        if path.lstrip("-").split(".")[0] not in known:
            raise errors.unknown_only_field(path)
    return wanted


def project(document: Document, wanted: list[str]) -> Document:
    """The part of ``document`` at the paths ``wanted`` (without those that begin with "-"); all of it for none."""
    if not wanted:
        return document
    excluded = [path[1:] for path in wanted if path.startswith("-")]
    included = [path for path in wanted if not path.startswith("-")]
    result: Document = {} if included else copy.deepcopy(document)
    for path in included:
        _copy_path(document, result, path.split("."))
    for path in excluded:
        _drop_path(result, path.split("."))
    return result


def value_at(document: Document, path: str) -> Any:
    """The value at a dotted path, or None."""
    value: Any = document
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _matches(document: Document, body: Body, fields: Collection[str], dates: Collection[str]) -> bool:
    if body.get("name") and not _regex(body["name"]).search(document.get("name") or ""):
        return False
    for key in ("_any_", "_all_"):
        if body.get(key) and not _matches_pattern(document, body[key], all_fields=key == "_all_"):
            return False
    for name in dates:
        if body.get(name) and not _matches_dates(document.get(name), body[name]):
            return False
    return all(_matches_values(value_at(document, name), body[name]) for name in fields if body.get(name))


def _matches_values(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, list):
        wanted = [wanted]
    have = set(value) if isinstance(value, list) else {value}
    join_all = False
    included: list[Any] = []
    for item in wanted:
        if item in ("__$all", "__$and"):
            join_all = True
        elif item in ("__$any", "__$or"):
            join_all = False
        elif isinstance(item, str) and item.startswith("-"):
            if item[1:] in have:
                return False
        else:
            included.append(item)
    if not included:
        return True
    hits = (item in have for item in included)
    return all(hits) if join_all else any(hits)


def _matches_dates(value: str | None, conditions: Any) -> bool:
    if value is None:
        return False
    moment = datetime.fromisoformat(value)
    for condition in conditions if isinstance(conditions, list) else [conditions]:
        sign, compare = next(
            ((sign, compare) for sign, compare in _COMPARISONS if condition.startswith(sign)),
            ("", lambda left, right: left == right),
        )
        try:
            limit = datetime.fromisoformat(condition[len(sign) :].replace("Z", "+00:00"))
        except ValueError:
            raise errors.invalid(f"Invalid isoformat string: {condition!r}") from None
        if limit.tzinfo is None:
            limit = limit.replace(tzinfo=moment.tzinfo)
        if not compare(moment, limit):
            return False
    return True


def _matches_pattern(document: Document, rule: Body, *, all_fields: bool) -> bool:
    pattern = _regex(rule.get("pattern") or "", re.IGNORECASE)
    hits = (bool(pattern.search(str(value_at(document, name) or ""))) for name in rule.get("fields") or [])
    return all(hits) if all_fields else any(hits)


def _regex(pattern: str, flags: int = 0) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise errors.invalid(f"Invalid regular expression: {error}") from None


def _sort(documents: list[Document], order: Any) -> None:
    # The first key matters most, so it is sorted by last (list.sort is stable).
    for key in reversed(order if isinstance(order, list) else [order]):
        name = key.lstrip("-+")
        present = [document for document in documents if value_at(document, name) is not None]
        absent = [document for document in documents if value_at(document, name) is None]
        descending = key.startswith("-")
        present.sort(key=lambda document: value_at(document, name), reverse=descending)
        documents[:] = present + absent if descending else absent + present


def _page(documents: list[Document], body: Body) -> list[Document]:
    if body.get("page") is None and body.get("page_size") is None:
        return documents
    page, size = int(body.get("page") or 0), body.get("page_size")
    size = 500 if size is None else int(size)
    if size <= 0:
        raise errors.ApiError(400, 12, "Validation error (page_size must be >0): field=page_size")
    return documents[page * size : (page + 1) * size]


def _copy_path(source: Document, target: Document, parts: list[str]) -> None:
    for index, part in enumerate(parts):
        if not isinstance(source, dict) or part not in source:
            return
        if index == len(parts) - 1:
            target[part] = copy.deepcopy(source[part])
            return
        if not isinstance(source[part], dict):
            target[part] = copy.deepcopy(source[part])
            return
        source, target = source[part], target.setdefault(part, {})


def _drop_path(document: Document, parts: list[str]) -> None:
    for part in parts[:-1]:
        if not isinstance(document.get(part), dict):
            return
        document = document[part]
    document.pop(parts[-1], None)
