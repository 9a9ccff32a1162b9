"""The table of endpoints: a name, the fields that are checked before the call, and the function that answers.

Only fields that a real server checks are listed; all others are passed on as they are, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from . import errors

if TYPE_CHECKING:
    from .admission import Admission
    from .events import EventLog
    from .store import Store
    from .workers import Workers

Body = dict[str, Any]


@dataclass
class Context:
    """What an endpoint may use besides its request."""

    store: Store
    workers: Workers
    log: EventLog
    admission: Admission


Answer = Body | str
"""The ``data`` of the envelope, or a plain text that is sent without one."""

Endpoint = Callable[[Context, Body], Answer]
E = TypeVar("E", bound=Endpoint)

_TYPE_NAMES: dict[type, str] = {str: "str", int: "int", list: "list", dict: "dict"}


@dataclass(frozen=True)
class Field:
    """A field that is checked: its types, its items' type, whether it must be there, the values it may have."""

    types: tuple[type, ...]
    required: bool = False
    choices: frozenset[str] | None = None
    items: type | None = None

    def check(self, name: str, body: Body) -> None:
        """Raise the 400 that a real server answers to a bad value, or to none."""
        if name not in body:
            if self.required:
                raise errors.missing_field(name)
            return
        value = body[name]
        if value is None:
            if self.required:
                raise errors.null_field(name)
            return
        if not self._fits(value):
            raise errors.wrong_type(name, _TYPE_NAMES[self.types[0]], value)
        if isinstance(value, list) and self.items is not None:
            for item in value:
                if not isinstance(item, self.items):
                    raise errors.wrong_type(name, _TYPE_NAMES[self.items], item)
        if self.choices is not None and value not in self.choices:
            raise errors.bad_choice(name, value)

    def _fits(self, value: object) -> bool:
        if self.types[0] is int and isinstance(value, str):
            return value.isdigit()  # from the query string
        return isinstance(value, self.types)


TEXT = Field((str,))
NEEDED = Field((str,), required=True)
NUMBER = Field((int, float))
NEEDED_NUMBER = Field((int, float), required=True)
OBJECT = Field((dict,))
LIST = Field((list,), items=str)
NEEDED_LIST = Field((list,), required=True, items=str)
NEEDED_OBJECTS = Field((list,), required=True, items=dict)
TEXTS = Field((str, list), items=str)
"""One text, or a list of them: what the filters take."""

_EVERYWHERE: dict[str, Field] = {
    **dict.fromkeys(("task", "queue", "model", "worker", "name", "comment", "description"), TEXT),
    **dict.fromkeys(("new_task_name", "new_task_parent", "queue_name", "project_name", "uri"), TEXT),
    **dict.fromkeys(("status_reason", "status_message", "new_status", "scroll_id", "search_text"), TEXT),
    **dict.fromkeys(("page", "page_size", "size", "count", "timeout", "from_timestamp"), NUMBER),
    **dict.fromkeys(("script", "execution", "runtime", "container", "models", "_any_", "_all_"), OBJECT),
    **dict.fromkeys(("id", "type", "status", "project", "parent", "user", "order_by"), TEXTS),
    **dict.fromkeys(("tags", "system_tags", "new_task_tags", "new_task_system_tags", "queues"), TEXTS),
    **dict.fromkeys(("created", "started", "completed", "status_changed", "last_update"), TEXTS),
    "only_fields": TEXTS,
}
"""Checked for every endpoint, unless it says otherwise: a bad value must not get into the documents."""


def one_of(choices: Iterable[str], *, required: bool = False) -> Field:
    """A text that must be one of ``choices``."""
    return Field((str,), required, frozenset(choices))


@dataclass
class Table:
    """Endpoints by ``service.action``."""

    _endpoints: dict[str, tuple[dict[str, Field], Endpoint]] = field(default_factory=dict)

    def endpoint(self, *names: str, **fields: Field) -> Callable[[E], E]:
        """Register the decorated function under all ``names``."""

        def register(function: E) -> E:
            for name in names:
                self._endpoints[name] = ({**_EVERYWHERE, **fields}, function)
            return function

        return register

    def merge(self, *others: Table) -> Table:
        """This table with the entries of the others added."""
        for other in others:
            self._endpoints.update(other._endpoints)
        return self

    def call(self, name: str, version: str, context: Context, body: Body) -> Answer:
        """Check the request and answer it. Raises ApiError."""
        try:
            fields, function = self._endpoints[name]
        except KeyError:
            raise errors.unknown_endpoint(name, version) from None
        for field_name, rule in fields.items():
            rule.check(field_name, body)
        return function(context, body)

    def __contains__(self, name: object) -> bool:
        return name in self._endpoints
