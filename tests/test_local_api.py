"""The embedded API answers as a real ClearML server does (docs: the observed behaviour of server 2.3.0)."""

from __future__ import annotations

import base64
import gzip
import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from jupyterlab_clearml_session.local.api.auth import Authenticator, Keys
from jupyterlab_clearml_session.local.api.errors import ApiError

from .local_calls import COMPANY, UNKNOWN, Server, basic, bring_to, new_task, raw
from .local_fixture import ApiRefusal

# -- the envelope and the paths ----------------------------------------------------------------------------


def test_envelope(clearml_server: Server) -> None:
    status, answer = raw(clearml_server, "/v2.23/debug.ping")
    meta = answer["meta"]
    assert status == 200
    assert answer["data"] == {"msg": "ClearML server"}
    assert meta["id"] == meta["trx"]
    assert meta["endpoint"] == {
        "name": "debug.ping",
        "requested_version": "2.23",
        "actual_version": "1.0",
    }
    assert (meta["result_code"], meta["result_subcode"], meta["result_msg"]) == (200, 0, "OK")
    assert meta["error_stack"] is None
    assert meta["error_data"] == {}


@pytest.mark.parametrize("path", ["/debug.ping", "/v1.5/debug.ping", "/v999.0/debug.ping"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_any_version_and_both_methods(clearml_server: Server, path: str, method: str) -> None:
    assert raw(clearml_server, path, method=method)[0] == 200


def test_get_with_a_body_and_query_arguments(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    body = json.dumps({"task": task_id}).encode()
    status, answer = raw(
        clearml_server, "/tasks.get_by_id", body, headers=basic(clearml_server), method="GET"
    )
    assert (status, answer["data"]["task"]["id"]) == (200, task_id)
    status, answer = raw(clearml_server, f"/tasks.get_by_id?task={task_id}", headers=basic(clearml_server))
    assert (status, answer["data"]["task"]["id"]) == (200, task_id)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/tasks.nope", b"{}", 404, "Unable to find endpoint for name tasks.nope and version 2.34"),
        (
            "/users.get_vaults",
            b"{}",
            404,
            "Unable to find endpoint for name users.get_vaults and version 2.34",
        ),
        (
            "/workers.get_runtime_properties",
            b"{}",
            404,
            "Unable to find endpoint for name workers.get_runtime_properties and version 2.34",
        ),
        ("/foo", b"{}", 400, "Invalid request path /foo"),
        (
            "/tasks.get_all",
            b"{",
            400,
            "The browser (or proxy) sent a request that this server could not understand.",
        ),
    ],
)
def test_refused_requests(clearml_server: Server, path: str, body: bytes, status: int, message: str) -> None:
    code, answer = raw(clearml_server, path, body, headers=basic(clearml_server))
    assert (code, answer["meta"]["result_code"]) == (status, status)
    assert answer["meta"]["result_msg"] == message
    assert answer["data"] == {}


def test_compressed_request_is_refused(clearml_server: Server) -> None:
    headers = {**basic(clearml_server), "Content-Encoding": "gzip"}
    request = urllib.request.Request(
        clearml_server.direct_api_server + "/debug.ping", gzip.compress(b"{}"), headers
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 415
    caught.value.close()


# -- who may call ------------------------------------------------------------------------------------------


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_login_gives_a_token_that_works(clearml_server: Server) -> None:
    _, answer = raw(clearml_server, "/auth.login", headers=basic(clearml_server), method="GET")
    token = answer["data"]["token"]
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert (claims["api_version"], claims["server_version"], claims["feature_set"]) == (
        "2.34",
        "2.3.0",
        "basic",
    )
    assert claims["exp"] - claims["iat"] == 30 * 24 * 3600
    assert raw(clearml_server, "/users.get_current_user", headers=bearer(token))[0] == 200


@pytest.mark.parametrize(
    ("headers", "subcode", "message"),
    [
        ({}, 20, "Unauthorized (missing credentials)"),
        ({"Authorization": "Odd thing"}, 10, "Unauthorized (bad authentication header type)"),
        (
            {"Authorization": "Basic " + base64.b64encode(b"a:b").decode()},
            22,
            "Unauthorized (invalid credentials) (failed to locate provided credentials)",
        ),
        (
            {"Authorization": "Basic ?"},
            22,
            "Unauthorized (invalid credentials) (failed to locate provided credentials)",
        ),
        (bearer("garbage"), 30, "Invalid token (invalid jwt token): reason=Not enough segments"),
        (bearer("a.b.c"), 30, "Invalid token (invalid jwt token): reason=Signature verification failed"),
    ],
)
def test_refused_credentials(
    clearml_server: Server, headers: dict[str, str], subcode: int, message: str
) -> None:
    status, answer = raw(clearml_server, "/users.get_current_user", headers=headers)
    meta = answer["meta"]
    assert (status, meta["result_subcode"], meta["result_msg"]) == (401, subcode, message)


def test_expired_and_foreign_tokens() -> None:
    authenticator = Authenticator(Keys.random())
    with pytest.raises(ApiError, match="Signature has expired"):
        authenticator.check(f"Bearer {authenticator.token(lifetime_s=-1)}")
    with pytest.raises(ApiError, match="Signature verification failed"):
        authenticator.check(f"Bearer {Authenticator(Keys.random()).token()}")


def test_keys_are_not_shown() -> None:
    keys = Keys.random()
    assert keys.secret_key not in repr(keys)


@pytest.mark.parametrize("name", ["debug.ping", "login.supported_modes"])
def test_public_calls(clearml_server: Server, name: str) -> None:
    assert raw(clearml_server, f"/{name}")[0] == 200


# -- refusals, one by one ----------------------------------------------------------------------------------

REFUSALS: list[tuple[str, dict[str, Any], int, str]] = [
    ("tasks.get_by_id", {}, 12, "Validation error (error for field 'task'. field is required!)"),
    ("tasks.get_by_id", {"task": None}, 12, "Validation error (error for field 'task': field is required!.)"),
    (
        "tasks.get_by_id",
        {"task": 123},
        12,
        "Validation error (error for field 'task': ('value is wrong, expected type \"str\"', 123).)",
    ),
    (
        "tasks.create",
        {"name": "a task", "type": "foo"},
        12,
        "Validation error (error for field 'type': value 'foo' is not a valid choice..)",
    ),
    (
        "tasks.create",
        {"name": "ab", "type": "training"},
        800,
        "Data validation error: name=String value is too short",
    ),
    (
        "tasks.create",
        {"name": "a task", "type": "training", "project": "X"},
        16,
        "Invalid value for fields (expecting Project id): id=X, field=project",
    ),
    (
        "tasks.create",
        {"name": "a task", "type": "training", "hyperparams": {"A": {"n": {"value": 5}}}},
        800,
        (
            "Data validation error: hyperparams={'A': {'n': {'value': "
            "ValidationError(StringField only accepts string values,)}}}"
        ),
    ),
    ("tasks.get_by_id", {"task": UNKNOWN}, 101, f"Invalid task id: ids=({UNKNOWN})"),
    ("events.get_task_log", {"task": UNKNOWN}, 101, f"Invalid task id: ids=({UNKNOWN})"),
    *[
        (f"tasks.{action}", {"task": UNKNOWN}, 101, f"Invalid task id: id={UNKNOWN}, company={COMPANY}")
        for action in ("enqueue", "stop", "edit", "reset", "delete", "stopped", "failed", "completed")
    ],
    ("tasks.clone", {"task": UNKNOWN}, 101, f"Invalid task id: id={UNKNOWN}"),
    ("tasks.started", {"task": UNKNOWN}, 10, "Invalid object id: task=None"),
    (
        "tasks.get_all",
        {"only_fields": ["nonexist"]},
        14,
        (
            "Lookup error (probably an invalid field name or unsupported nested field): "
            'err=Cannot resolve field "nonexist"'
        ),
    ),
    ("tasks.get_all", {"page_size": 0}, 12, "Validation error (page_size must be >0): field=page_size"),
    ("queues.get_by_id", {"queue": "X"}, 701, f"Invalid queue id: id=X, company={COMPANY}"),
    ("queues.create", {"name": "ab"}, 800, "Data validation error: name=String value is too short"),
    (
        "queues.create",
        {"name": "default"},
        801,
        (
            "Value combination already exists (unique field already contains this value): "
            f"name=default, company={COMPANY}"
        ),
    ),
    ("workers.register", {"worker": "w", "queues": ["X"]}, 701, "Invalid queue id: ids=(X)"),
    (
        "workers.status_report",
        {"worker": "w"},
        12,
        "Validation error (error for field 'timestamp'. field is required!)",
    ),
    ("projects.create", {}, 11, "Missing required fields: missing=(name)"),
    ("projects.create", {"name": " "}, 12, "Validation error (Project name cannot be blank)"),
    ("projects.get_by_id", {"project": "X"}, 401, "Invalid project id: id=X"),
    ("users.get_by_id", {"user": "zz"}, 301, f"Invalid user id: id=zz, company={COMPANY}"),
    ("events.add_batch", {}, 131, "Events not added: Event must have a 'type' field=1"),
]


@pytest.mark.parametrize(("name", "body", "subcode", "message"), REFUSALS)
def test_refusals(
    clearml_server: Server, name: str, body: dict[str, Any], subcode: int, message: str
) -> None:
    with pytest.raises(ApiRefusal) as caught:
        clearml_server.call(name, **body)
    assert (caught.value.status, caught.value.subcode, caught.value.message) == (400, subcode, message)


# What refuses it is a state: {full} is a queue that holds the Task {waiting}, {empty} one that holds nothing.
STATE_REFUSALS: list[tuple[str, dict[str, Any], int, str]] = [
    ("tasks.edit", {"task": "{waiting}"}, 110, "Invalid task status: expected=created, status=queued"),
    (
        "tasks.enqueue",
        {"task": "{running}"},
        110,
        "Invalid task status (Invalid status change): current_status=in_progress, new_status=queued",
    ),
    (
        "tasks.reset",
        {"task": "{published}"},
        110,
        "Invalid task status: task_id={published}, status=published",
    ),
    (
        "tasks.delete",
        {"task": "{waiting}"},
        123,
        "Task cannot be deleted (due to status, use force=True): task={waiting}, expected=created, current=queued",
    ),
    (
        "tasks.enqueue",
        {"task": "{waiting}", "queue": "{full}"},
        706,
        "Failed adding task to queue since task is already queued: task={waiting}",
    ),
    (
        "tasks.enqueue",
        {"task": "{waiting}", "queue": "{empty}", "queue_name": "empty"},
        12,
        "Validation error (Either queue id or queue name should be provided)",
    ),
    (
        "queues.update",
        {"queue": "{empty}", "name": "full"},
        801,
        (
            "Value combination already exists (unique field already contains this value): "
            f"name=full, company={COMPANY}"
        ),
    ),
    ("queues.delete", {"queue": "{full}"}, 702, "Queue is not empty (use force=true to delete): id={full}"),
    (
        "queues.remove_task",
        {"queue": "{empty}", "task": "{waiting}"},
        703,
        f"Invalid queue id or task not in queue: task={{waiting}}, id={{empty}}, company={COMPANY}",
    ),
    (
        "projects.create",
        {"name": "Proj1", "description": ""},
        801,
        f"Project with the same name already exists: name=Proj1, company={COMPANY}",
    ),
    (
        "projects.delete",
        {"project": "{project}"},
        402,
        "Project has associated tasks (use force=true): id={project}",
    ),
]


def test_refusals_of_a_state(clearml_server: Server) -> None:
    names = {
        "project": clearml_server.call("projects.create", name="Proj1", description="")["id"],
        "full": clearml_server.call("queues.create", name="full")["id"],
        "empty": clearml_server.call("queues.create", name="empty")["id"],
    }
    for name in ("waiting", "running", "published"):
        names[name] = new_task(clearml_server, project=names["project"])
    clearml_server.call("tasks.enqueue", task=names["waiting"], queue=names["full"])
    bring_to(clearml_server, names["running"], "in_progress")
    bring_to(clearml_server, names["published"], "published")
    for call, body, subcode, message in STATE_REFUSALS:
        filled = {key: value.format(**names) for key, value in body.items()}
        with pytest.raises(ApiRefusal) as caught:
            clearml_server.call(call, **filled)
        refusal = caught.value
        assert (refusal.status, refusal.subcode, refusal.message) == (400, subcode, message.format(**names))
    assert clearml_server.task(names["waiting"])["status"] == "queued"


ODD: tuple[Any, ...] = (1, True, "x", ["x"], [1], [None], {"a": 1}, [{"a": 1}])
"""Values of all JSON types, one of which at most is right for a field."""


@pytest.mark.parametrize(
    "field",
    [
        *("name", "type", "project", "parent", "tags", "system_tags", "script", "runtime", "container"),
        *("hyperparams", "configuration", "execution", "models", "comment"),
    ],
)
def test_a_bad_value_never_gets_into_a_task(clearml_server: Server, field: str) -> None:
    task_id = new_task(clearml_server)
    for value in ODD:
        for action in ("create", "edit", "update"):
            body = {"name": "a task", "type": "training", "task": task_id, field: value}
            status, answer = raw(
                clearml_server, f"/tasks.{action}", json.dumps(body).encode(), headers=basic(clearml_server)
            )
            assert status in (200, 400), (action, value, answer)
    # Whatever was taken can be listed, filtered and shown.
    clearml_server.call("tasks.get_all_ex", tags=["x"], name="x", order_by=["-last_update"])
    clearml_server.call("tasks.get_types")


# -- what it writes down ------------------------------------------------------------------------------------


def test_access_log_holds_no_secrets(clearml_server: Server) -> None:
    start = time.time()
    new_task(clearml_server, runtime={"_ssh_password": "very secret"})
    raw(clearml_server, "/auth.login", headers=basic(clearml_server))
    text = clearml_server.access_log.read_text()
    assert "very secret" not in text
    assert clearml_server.credentials["secret_key"] not in text
    records = [record for record in clearml_server.access_records() if record["time"] >= start]
    assert [record["call"] for record in records] == ["tasks.create", "auth.login"]
    assert all(record["status"] == 200 and record["ms"] < 1000 for record in records)
