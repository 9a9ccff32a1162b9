"""What the API answers when it refuses: HTTP status, subcode and message as a real ClearML server words them.

Clients decide on the subcode (the SDK) and on the text (the agent), so both are kept to the letter. They were
observed on ClearML server 2.3.0.
"""

from __future__ import annotations

from collections.abc import Iterable


class ApiError(Exception):
    """A refusal. ``status`` is the HTTP status and ``meta.result_code``; ``subcode`` is ClearML's own code."""

    def __init__(self, status: int, subcode: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.subcode = subcode
        self.message = message


# -- the request itself ------------------------------------------------------------------------------------


def unknown_endpoint(name: str, version: str) -> ApiError:
    return ApiError(404, 0, f"Unable to find endpoint for name {name} and version {version}")


def invalid_path(path: str) -> ApiError:
    return ApiError(400, 0, f"Invalid request path {path}")


def malformed_body() -> ApiError:
    return ApiError(400, 0, "The browser (or proxy) sent a request that this server could not understand.")


def invalid(text: str) -> ApiError:
    return ApiError(400, 12, f"Validation error ({text})")


def missing_field(name: str) -> ApiError:
    return invalid(f"error for field '{name}'. field is required!")


def null_field(name: str) -> ApiError:
    return invalid(f"error for field '{name}': field is required!.")


def wrong_type(name: str, expected: str, value: object) -> ApiError:
    return invalid(f"error for field '{name}': ('value is wrong, expected type \"{expected}\"', {value!r}).")


def bad_choice(name: str, value: object) -> ApiError:
    return invalid(f"error for field '{name}': value '{value}' is not a valid choice..")


def missing_required(name: str) -> ApiError:
    return ApiError(400, 11, f"Missing required fields: missing=({name})")


def unknown_only_field(name: str) -> ApiError:
    message = f'Cannot resolve field "{name}"'
    return ApiError(
        400, 14, f"Lookup error (probably an invalid field name or unsupported nested field): err={message}"
    )


def bad_reference(kind: str, value: str, field: str) -> ApiError:
    return ApiError(400, 16, f"Invalid value for fields (expecting {kind} id): id={value}, field={field}")


def too_short(name: str) -> ApiError:
    return ApiError(400, 800, f"Data validation error: {name}=String value is too short")


def duplicate(name: str, company: str) -> ApiError:
    text = "Value combination already exists (unique field already contains this value)"
    return ApiError(400, 801, f"{text}: name={name}, company={company}")


# -- who asks ----------------------------------------------------------------------------------------------


def bad_credentials() -> ApiError:
    return ApiError(401, 22, "Unauthorized (invalid credentials) (failed to locate provided credentials)")


def no_credentials() -> ApiError:
    return ApiError(401, 20, "Unauthorized (missing credentials)")


def bad_scheme() -> ApiError:
    return ApiError(401, 10, "Unauthorized (bad authentication header type)")


def bad_token(reason: str) -> ApiError:
    return ApiError(401, 30, f"Invalid token (invalid jwt token): reason={reason}")


# -- tasks -------------------------------------------------------------------------------------------------


def unknown_task(task: str, company: str | None = None) -> ApiError:
    return ApiError(400, 101, f"Invalid task id: id={task}" + (f", company={company}" if company else ""))


def unknown_tasks(ids: Iterable[str]) -> ApiError:
    return ApiError(400, 101, f"Invalid task id: ids=({', '.join(ids)})")


def unknown_object() -> ApiError:
    return ApiError(400, 10, "Invalid object id: task=None")


def wrong_status(expected: str, status: str) -> ApiError:
    return ApiError(400, 110, f"Invalid task status: expected={expected}, status={status}")


def bad_transition(current: str, new: str) -> ApiError:
    return ApiError(
        400, 110, f"Invalid task status (Invalid status change): current_status={current}, new_status={new}"
    )


def published_task(task: str) -> ApiError:
    return ApiError(400, 110, f"Invalid task status: task_id={task}, status=published")


def not_deletable(task: str, current: str) -> ApiError:
    text = "Task cannot be deleted (due to status, use force=True)"
    return ApiError(400, 123, f"{text}: task={task}, expected=created, current={current}")


# -- queues, projects, users, events -----------------------------------------------------------------------


def unknown_queue(queue: str, company: str) -> ApiError:
    return ApiError(400, 701, f"Invalid queue id: id={queue}, company={company}")


def unknown_queues(ids: Iterable[str]) -> ApiError:
    return ApiError(400, 701, f"Invalid queue id: ids=({', '.join(ids)})")


def queue_not_empty(queue: str) -> ApiError:
    return ApiError(400, 702, f"Queue is not empty (use force=true to delete): id={queue}")


def not_in_queue(task: str, queue: str, company: str) -> ApiError:
    text = "Invalid queue id or task not in queue"
    return ApiError(400, 703, f"{text}: task={task}, id={queue}, company={company}")


def already_queued(task: str) -> ApiError:
    return ApiError(400, 706, f"Failed adding task to queue since task is already queued: task={task}")


def no_default_queue() -> ApiError:
    return ApiError(400, 707, "No default queue is found")


def unknown_project(project: str) -> ApiError:
    return ApiError(400, 401, f"Invalid project id: id={project}")


def project_not_empty(project: str) -> ApiError:
    return ApiError(400, 402, f"Project has associated tasks (use force=true): id={project}")


def duplicate_project(name: str, company: str) -> ApiError:
    return ApiError(400, 801, f"Project with the same name already exists: name={name}, company={company}")


def unknown_user(user: str, company: str) -> ApiError:
    return ApiError(400, 301, f"Invalid user id: id={user}, company={company}")


def events_not_added(reasons: str) -> ApiError:
    return ApiError(400, 131, f"Events not added: {reasons}")


def no_events() -> ApiError:
    return ApiError(400, 17, "Batch request contains no items")
