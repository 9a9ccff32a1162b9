"""The embedded API answers as a real ClearML server does (docs: the observed behaviour of server 2.3.0)."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from jupyterlab_clearml_session.local.api.auth import Authenticator, Keys
from jupyterlab_clearml_session.local.api.errors import ApiError

from .local_fixture import ApiRefusal, ClearMLUnderTest

Server = ClearMLUnderTest
UNKNOWN = "0" * 32
COMPANY = "d1bd92a3b039400cbafc60a7a5b1e52b"


def new_task(server: Server, **fields: Any) -> str:
    task_id: str = server.call("tasks.create", **{"name": "a task", "type": "training", **fields})["id"]
    return task_id


def default_queue(server: Server) -> str:
    queue_id: str = server.call("queues.get_default")["id"]
    return queue_id


def raw(
    server: Server,
    path: str,
    body: bytes = b"",
    *,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> tuple[int, dict[str, Any]]:
    """A request as it is; the status and the envelope."""
    request = urllib.request.Request(
        server.direct_api_server + path, body or None, headers or {}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def basic(server: Server) -> dict[str, str]:
    pair = f"{server.credentials['access_key']}:{server.credentials['secret_key']}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


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


# -- tasks: reading and changing ---------------------------------------------------------------------------


def test_a_fresh_task_has_all_its_parts(clearml_server: Server) -> None:
    task_id = new_task(
        clearml_server,
        tags=["b", "a"],
        script={"entry_point": "a.py", "diff": "print(1)"},
        hyperparams={"Args": {"lr": {"value": "0.1", "type": "float"}}},
        configuration={"General": {"value": "{a:1}", "type": "json"}},
        runtime={"k": 2},
        container={"image": "py"},
    )
    task = clearml_server.task(task_id)
    assert task["status"] == "created"
    assert task["tags"] == ["a", "b"]
    assert task["script"] == {"requirements": {}, "entry_point": "a.py", "diff": "print(1)"}
    assert task["hyperparams"]["Args"]["lr"] == {
        "section": "Args",
        "name": "lr",
        "value": "0.1",
        "type": "float",
    }
    assert task["configuration"]["General"] == {"name": "General", "value": "{a:1}", "type": "json"}
    assert task["runtime"] == {"k": 2}
    assert task["execution"] == {
        "test_split": 0,
        "parameters": {},
        "model_desc": {},
        "model_labels": {},
        "artifacts": [],
    }
    assert task["models"] == {"input": [], "output": []}
    assert "started" not in task
    assert task["created"].endswith("000+00:00")


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["name"], {"name": "a task"}),
        (["execution.queue"], {"execution": {}}),
        (["script.entry_point"], {"script": {"entry_point": "a.py"}}),
        (["status", "runtime.k"], {"status": "created", "runtime": {"k": "v"}}),
    ],
)
def test_only_fields(clearml_server: Server, only: list[str], expected: dict[str, Any]) -> None:
    new_task(clearml_server, script={"entry_point": "a.py"}, runtime={"k": "v", "other": "x"})
    assert clearml_server.call("tasks.get_all", only_fields=only)["tasks"] == [expected]


def test_excluded_fields(clearml_server: Server) -> None:
    new_task(clearml_server)
    (task,) = clearml_server.call("tasks.get_all", only_fields=["-script"])["tasks"]
    assert "script" not in task
    assert "name" in task


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, {"one", "two"}),
        ({"name": "^one$"}, {"one"}),
        ({"tags": ["a"]}, {"one"}),
        ({"tags": ["a", "c"]}, {"one", "two"}),
        ({"tags": ["-a"]}, {"two"}),
        ({"tags": ["__$all", "a", "b"]}, {"one"}),
        ({"tags": ["__$all", "a", "c"]}, set()),
        ({"tags": ["__$any", "a", "c"]}, {"one", "two"}),
        ({"status": ["in_progress"]}, {"two"}),
        ({"status": ["created", "in_progress"]}, {"one", "two"}),
        ({"status": ["nonsense"]}, set()),
        ({"id": [UNKNOWN]}, set()),
        ({"type": ["training"], "status": ["created"]}, {"one"}),
        ({"nonsense": ["x"]}, {"one", "two"}),
        ({"status_changed": [">2020-01-01T00:00:00"]}, {"two"}),
        ({"status_changed": [">=2020-01-01T00:00:00", "<2021-01-01T00:00:00"]}, set()),
        ({"_any_": {"pattern": "TW", "fields": ["name", "comment"]}}, {"two"}),
        ({"_all_": {"pattern": "o", "fields": ["name", "comment"]}}, set()),
        ({"search_text": "one"}, {"one"}),
    ],
)
def test_filters(clearml_server: Server, filters: dict[str, Any], found: set[str]) -> None:
    new_task(clearml_server, name="one", tags=["a", "b"])
    second = new_task(clearml_server, name="two", tags=["b", "c"])
    clearml_server.call("tasks.started", task=second)
    answer = clearml_server.call("tasks.get_all", only_fields=["name"], **filters)
    assert {task["name"] for task in answer["tasks"]} == found


def test_order_and_pages(clearml_server: Server) -> None:
    for name in ("bbb", "aaa", "ccc"):
        new_task(clearml_server, name=name)

    def names(**body: Any) -> list[str]:
        tasks = clearml_server.call("tasks.get_all", only_fields=["name"], **body)["tasks"]
        return [task["name"] for task in tasks]

    assert names(order_by=["name"]) == ["aaa", "bbb", "ccc"]
    assert names(order_by=["-name"]) == ["ccc", "bbb", "aaa"]
    assert names(order_by=["name"], page=1, page_size=2) == ["ccc"]
    # A field that is unset on all of them changes nothing.
    assert len(names(order_by=["-started"])) == 3


def test_references_and_scroll(clearml_server: Server) -> None:
    project = clearml_server.call("projects.create", name="Some project")["id"]
    ids = {new_task(clearml_server, name=f"task {number}", project=project) for number in range(3)}
    seen: set[str] = set()
    scroll = ""
    for size in (2, 1, 0):
        answer = clearml_server.call(
            "tasks.get_all_ex", scroll_id=scroll, size=2, only_fields=["id", "project"]
        )
        assert len(answer["tasks"]) == size
        assert all(task["project"] == {"id": project, "name": "Some project"} for task in answer["tasks"])
        seen |= {task["id"] for task in answer["tasks"]}
        scroll = answer["scroll_id"]
    assert seen == ids


def test_edit_needs_a_draft_or_force(clearml_server: Server) -> None:
    task_id = new_task(clearml_server, runtime={"a": "1"}, script={"entry_point": "a.py"})
    clearml_server.call("tasks.edit", task=task_id, runtime={"b": "2"}, script={"diff": "x"})
    task = clearml_server.task(task_id)
    assert task["runtime"] == {"b": "2"}
    assert task["script"]["entry_point"] == "a.py"
    assert task["script"]["diff"] == "x"
    clearml_server.call("tasks.enqueue", task=task_id)
    with pytest.raises(ApiRefusal, match="expected=created, status=queued") as caught:
        clearml_server.call("tasks.edit", task=task_id, comment="x")
    assert caught.value.subcode == 110
    assert (
        clearml_server.call("tasks.edit", task=task_id, comment="x", force=True)["fields"]["comment"] == "x"
    )


def test_update_changes_light_fields_only(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    answer = clearml_server.call("tasks.update", task=task_id, name="new name", status="failed")
    assert answer["updated"] == 1
    assert answer["fields"]["name"] == "new name"
    assert "status" not in answer["fields"]
    assert clearml_server.call("tasks.update", task=task_id, status="failed") == {"updated": 0, "fields": {}}


def test_legacy_model_design_becomes_configuration(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.edit", task=task_id, execution={"model_desc": {"design": "x=1"}})
    assert clearml_server.task(task_id)["configuration"] == {
        "design": {"name": "design", "value": "x=1", "type": "legacy"}
    }


def test_hyper_parameters(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)

    def edit(section: str, name: str, value: str, **more: Any) -> None:
        item = {"section": section, "name": name, "value": value}
        assert clearml_server.call("tasks.edit_hyper_params", task=task_id, hyperparams=[item], **more) == {
            "updated": 1
        }

    def params() -> set[tuple[str, str, str]]:
        (answer,) = clearml_server.call("tasks.get_hyper_params", tasks=[task_id])["params"]
        return {(item["section"], item["name"], item["value"]) for item in answer["hyperparams"]}

    edit("A", "a.b$c", "1")
    edit("B", "x", "2")
    edit("B", "y", "3", replace_hyperparams="section")
    assert params() == {("A", "a.b$c", "1"), ("B", "y", "3")}
    delete = [{"section": "B", "name": "y"}]
    assert clearml_server.call("tasks.delete_hyper_params", task=task_id, hyperparams=delete) == {
        "deleted": 1
    }
    assert params() == {("A", "a.b$c", "1")}
    edit("C", "z", "4", replace_hyperparams="all")
    assert params() == {("C", "z", "4")}
    clearml_server.call("tasks.enqueue", task=task_id)
    with pytest.raises(ApiRefusal):
        edit("C", "z", "5")
    edit("C", "z", "5", force=True)
    with pytest.raises(ApiRefusal, match="expected type"):
        clearml_server.call(
            "tasks.edit_hyper_params",
            task=task_id,
            hyperparams=[{"section": "A", "name": "n", "value": 5}],
            force=True,
        )


def test_configurations(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    items = [{"name": "SSH", "value": "x", "type": "json"}, {"name": "init", "value": "y"}]
    assert clearml_server.call("tasks.edit_configuration", task=task_id, configuration=items) == {
        "updated": 1
    }
    (answer,) = clearml_server.call("tasks.get_configurations", tasks=[task_id], names=["SSH"])[
        "configurations"
    ]
    assert answer["configuration"] == [items[0]]
    assert clearml_server.call("tasks.delete_configuration", task=task_id, configuration=["SSH"]) == {
        "deleted": 1
    }
    assert set(clearml_server.task(task_id)["configuration"]) == {"init"}


def test_runtime_takes_additions_and_removals(clearml_server: Server) -> None:
    task_id = new_task(clearml_server, runtime={"a": "1"})
    clearml_server.call("tasks.started", task=task_id)
    edit = {"add_or_update": {"b": 2}, "remove": ["a"]}
    assert clearml_server.call("tasks.edit_runtime", task=task_id, **edit) == {"updated": 1}
    assert clearml_server.task(task_id)["runtime"] == {"b": 2}
    assert clearml_server.call("tasks.edit_runtime", task=task_id, runtime={"c": 3}) == {"updated": 0}


def test_artifacts(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    artifact = {"key": "data", "type": "custom", "uri": "http://x/y"}
    clearml_server.call("tasks.add_or_update_artifacts", task=task_id, artifacts=[artifact])
    clearml_server.call("tasks.add_or_update_artifacts", task=task_id, artifacts=[{**artifact, "hash": "h"}])
    assert clearml_server.task(task_id)["execution"]["artifacts"] == [
        {**artifact, "mode": "output", "hash": "h"}
    ]
    clearml_server.call("tasks.delete_artifacts", task=task_id, artifacts=[{"key": "data"}])
    assert clearml_server.task(task_id)["execution"]["artifacts"] == []


# -- the status machine ------------------------------------------------------------------------------------

STATUSES = (
    "created",
    "queued",
    "in_progress",
    "stopped",
    "closed",
    "failed",
    "completed",
    "publishing",
    "published",
)
ALLOWED: dict[str, set[str]] = {
    # by the action: from which statuses it goes without force
    "enqueue": {"created", "stopped", "failed", "queued"},
    "started": {"created", "queued", "stopped", "completed", "in_progress"},
    "stopped": {"queued", "in_progress", "closed", "failed", "stopped"},
    "failed": {"in_progress", "stopped", "closed", "failed"},
    "completed": {"in_progress", "stopped", "completed"},
    "stop": {"queued", "in_progress", "closed", "failed", "stopped"},
    "reset": set(STATUSES) - {"published"},
}


def bring_to(server: Server, task_id: str, status: str) -> None:
    """Into a status by the shortest way of forced calls."""
    steps = {
        "created": (),
        "queued": ("enqueue",),
        "in_progress": ("started",),
        "stopped": ("started", "stopped"),
        "closed": ("started", "stopped", "close"),
        "failed": ("started", "failed"),
        "completed": ("started", "completed"),
        "published": ("started", "stopped", "publish"),
    }
    for action in steps[status]:
        server.call(f"tasks.{action}", task=task_id, force=True)


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "publishing"])
@pytest.mark.parametrize("action", ALLOWED)
def test_status_machine(clearml_server: Server, action: str, status: str) -> None:
    task_id = new_task(clearml_server)
    bring_to(clearml_server, task_id, status)
    if action == "enqueue" and status == "queued":
        # Into another queue: moved. (Into the same one is an error of its own.)
        clearml_server.call("tasks.enqueue", task=task_id, queue_name="another")
        return
    if status in ALLOWED[action]:
        clearml_server.call(f"tasks.{action}", task=task_id)
        return
    with pytest.raises(ApiRefusal) as caught:
        clearml_server.call(f"tasks.{action}", task=task_id)
    assert caught.value.subcode == 110
    clearml_server.call(f"tasks.{action}", task=task_id, force=True)


def test_enqueue_and_dequeue(clearml_server: Server) -> None:
    task_id = new_task(clearml_server, system_tags=["development", "x"])
    queue_id = default_queue(clearml_server)
    answer = clearml_server.call("tasks.enqueue", task=task_id, verify_watched_queue=True)
    assert (answer["queued"], answer["updated"], answer["queue_watched"]) == (1, 1, False)
    fields = answer["fields"]
    assert (fields["status"], fields["enqueue_status"]) == ("queued", "created")
    assert (fields["execution.queue"], fields["status_reason"], fields["status_message"]) == (
        queue_id,
        "",
        "",
    )
    assert clearml_server.task(task_id)["system_tags"] == ["x"]
    with pytest.raises(ApiRefusal, match="already queued") as caught:
        clearml_server.call("tasks.enqueue", task=task_id)
    assert caught.value.subcode == 706
    task = clearml_server.task(task_id)
    assert (task["status"], task["status_reason"]) == ("queued", "failed enqueueing")
    answer = clearml_server.call("tasks.dequeue", task=task_id)
    assert (answer["dequeued"], answer["fields"]["status"]) == (1, "created")
    task = clearml_server.task(task_id)
    assert task["execution"]["queue"] == queue_id
    assert "enqueue_status" not in task
    assert clearml_server.call("tasks.dequeue", task=task_id) == {"dequeued": 1, "updated": 0, "fields": {}}


def test_enqueue_moves_and_makes_queues(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.enqueue", task=task_id)
    clearml_server.call("tasks.enqueue", task=task_id, queue_name="brand new")
    queues = {queue["name"]: queue for queue in clearml_server.call("queues.get_all")["queues"]}
    assert queues["default"]["entries"] == []
    assert [entry["task"] for entry in queues["brand new"]["entries"]] == [task_id]
    with pytest.raises(ApiRefusal, match="Either queue id or queue name should be provided"):
        clearml_server.call("tasks.enqueue", task=task_id, queue="x", queue_name="y")


def test_stop_of_a_queued_task_is_at_once(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.enqueue", task=task_id)
    fields = clearml_server.call("tasks.stop", task=task_id, status_reason="why", status_message="x")[
        "fields"
    ]
    assert (fields["status"], fields["status_reason"]) == ("stopped", "why")
    assert fields["status_message"].startswith("Stopped by ")
    assert "completed" not in clearml_server.task(task_id)
    assert clearml_server.call("queues.get_next_task", queue=default_queue(clearml_server)) == {}


def test_stop_of_a_running_task_asks_its_agent(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.started", task=task_id)
    clearml_server.call("workers.status_report", worker="w:0", task=task_id, timestamp=1)
    for force in (False, True):
        fields = clearml_server.call("tasks.stop", task=task_id, force=force)["fields"]
        assert (fields["status"], fields["status_message"]) == ("in_progress", "stopping")
    fields = clearml_server.call("tasks.stopped", task=task_id, status_reason="done")["fields"]
    assert (fields["status"], fields["status_reason"]) == ("stopped", "done")
    assert "completed" in fields


def test_reset_forgets_the_run_and_keeps_the_recipe(clearml_server: Server) -> None:
    task_id = new_task(clearml_server, runtime={"a": "1"}, script={"entry_point": "a.py"})
    clearml_server.call("tasks.enqueue", task=task_id)
    clearml_server.call("tasks.started", task=task_id)
    clearml_server.call("workers.status_report", worker="w:0", task=task_id, timestamp=1)
    add_lines(clearml_server, task_id, "hello")
    answer = clearml_server.call("tasks.reset", task=task_id)
    assert answer["dequeued"] == {"removed": 1}
    task = clearml_server.task(task_id)
    assert (task["status"], task["status_reason"], task["status_message"]) == ("created", "reset", "reset")
    assert task["runtime"] == {}
    assert task["script"]["entry_point"] == "a.py"
    assert not {"started", "last_worker", "enqueue_status"} & set(task)
    assert "queue" not in task["execution"]
    assert clearml_server.console(task_id) == ""


def test_clone(clearml_server: Server) -> None:
    source = new_task(
        clearml_server, runtime={"a": "1"}, tags=["t"], system_tags=["development", "archived", "keep"]
    )
    clearml_server.call("tasks.started", task=source)
    clone = clearml_server.task(
        clearml_server.call("tasks.clone", task=source, new_task_name="the clone")["id"]
    )
    assert (clone["name"], clone["status"], clone["parent"]) == ("the clone", "created", source)
    assert (clone["runtime"], clone["tags"], clone["system_tags"]) == ({}, ["t"], ["keep"])
    assert "started" not in clone
    again = clearml_server.task(clearml_server.call("tasks.clone", task=clone["id"])["id"])
    assert again["parent"] == source


def test_delete(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.enqueue", task=task_id)
    with pytest.raises(ApiRefusal, match="expected=created, current=queued") as caught:
        clearml_server.call("tasks.delete", task=task_id)
    assert caught.value.subcode == 123
    answer = clearml_server.call("tasks.delete", task=task_id, force=True)
    assert (answer["deleted"], answer["urls"]) == (True, None)
    assert clearml_server.call("queues.get_num_entries", queue=default_queue(clearml_server)) == {"num": 0}


def test_many_at_once(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    answer = clearml_server.call("tasks.stop_many", ids=[task_id, UNKNOWN])
    assert [item["error"]["codes"] for item in answer["failed"]] == [[400, 110], [400, 101]]
    answer = clearml_server.call("tasks.archive_many", ids=[task_id])
    assert answer == {"succeeded": [{"id": task_id, "archived": True}], "failed": []}
    assert clearml_server.task(task_id)["system_tags"] == ["archived"]


def test_ping_is_always_fine(clearml_server: Server) -> None:
    assert clearml_server.call("tasks.ping", task=UNKNOWN) == {}


# -- queues and workers ------------------------------------------------------------------------------------


def test_next_task_stays_queued(clearml_server: Server) -> None:
    queue_id = default_queue(clearml_server)
    assert clearml_server.call("queues.get_next_task", queue=queue_id) == {}
    first, second = new_task(clearml_server), new_task(clearml_server)
    for task_id in (first, second):
        clearml_server.call("tasks.enqueue", task=task_id)
    assert clearml_server.call("queues.move_task_to_front", queue=queue_id, task=second) == {"position": 0}
    assert clearml_server.call("queues.peek_task", queue=queue_id) == {"task": second}
    entry = clearml_server.call("queues.get_next_task", queue=queue_id, get_task_info=True)
    assert entry["entry"]["task"] == second
    assert set(entry["task_info"]) == {"company", "user"}
    assert clearml_server.task(second)["status"] == "queued"
    assert clearml_server.call("queues.remove_task", queue=queue_id, task=first) == {"removed": 1}
    with pytest.raises(ApiRefusal, match="task not in queue") as caught:
        clearml_server.call("queues.remove_task", queue=queue_id, task=first)
    assert caught.value.subcode == 703


def test_sessions_start_one_after_the_other(clearml_server: Server) -> None:
    queue_id = default_queue(clearml_server)
    sessions = [new_task(clearml_server, type="application", system_tags=["interactive"]) for _ in range(2)]
    script = new_task(clearml_server)
    for task_id in (sessions[0], script, sessions[1]):
        clearml_server.call("tasks.enqueue", task=task_id)

    def next_task() -> str | None:
        entry = clearml_server.call("queues.get_next_task", queue=queue_id).get("entry")
        return entry and entry["task"]

    # Another server of this machine may just start a session of its own.
    assert poll(next_task) == sessions[0]
    assert next_task() == script
    assert next_task() is None
    clearml_server.call("tasks.started", task=sessions[0])
    assert next_task() is None
    port = {"section": "properties", "name": "jupyter_port", "value": "8888"}
    clearml_server.call("tasks.edit_hyper_params", task=sessions[0], hyperparams=[port], force=True)
    assert poll(next_task) == sessions[1]
    clearml_server.call("tasks.failed", task=sessions[1], force=True)


def poll(question: Callable[[], str | None], deadline: float = 90.0) -> str | None:
    end = time.monotonic() + deadline
    while (answer := question()) is None and time.monotonic() < end:
        time.sleep(0.05)
    return answer


def test_queue_lists(clearml_server: Server) -> None:
    queue_id = clearml_server.call("queues.create", name="gpu queue", tags=["b", "a"])["id"]
    task_id = new_task(clearml_server, name="waiting")
    clearml_server.call("tasks.enqueue", task=task_id, queue=queue_id)
    clearml_server.call("workers.register", worker="host:0", queues=[queue_id])
    (queue,) = clearml_server.call("queues.get_all_ex", name="^gpu")["queues"]
    assert queue["tags"] == ["a", "b"]
    assert queue["entries"][0]["task"] == {"id": task_id, "name": "waiting"}
    assert [(worker["name"], worker["task"]) for worker in queue["workers"]] == [("host:0", None)]
    with pytest.raises(ApiRefusal, match="Queue is not empty") as caught:
        clearml_server.call("queues.delete", queue=queue_id)
    assert caught.value.subcode == 702
    assert clearml_server.call("queues.delete", queue=queue_id, force=True) == {"deleted": 1}
    assert clearml_server.task(task_id)["status"] == "created"


def test_workers(clearml_server: Server) -> None:
    queue_id = default_queue(clearml_server)
    task_id = new_task(clearml_server, name="busy task")
    clearml_server.call("workers.register", worker="host:0", queues=[queue_id], timeout=600)
    (idle,) = clearml_server.call("workers.get_all")["workers"]
    assert idle["queues"] == [{"id": queue_id, "name": "default"}]
    assert not {"queue", "task"} & set(idle)
    report = {"worker": "host:0", "timestamp": 1, "machine_stats": None, "tags": None}
    clearml_server.call("workers.status_report", task=task_id, queue=queue_id, **report)
    (busy,) = clearml_server.call("workers.get_all")["workers"]
    assert (busy["task"]["id"], busy["task"]["name"]) == (task_id, "busy task")
    assert busy["queue"] == {"id": queue_id, "name": "default", "num_tasks": 0}
    assert clearml_server.task(task_id)["last_worker"] == "host:0"
    with pytest.raises(ApiRefusal) as caught:
        clearml_server.call("workers.status_report", task=UNKNOWN, **report)
    assert caught.value.subcode == 101
    assert clearml_server.call("workers.get_count") == {"count": 1}
    assert clearml_server.call("workers.unregister", worker="host:0") == {}
    assert clearml_server.call("workers.unregister", worker="nobody") == {}
    assert clearml_server.call("workers.get_count") == {"count": 0}


# -- events and projects -----------------------------------------------------------------------------------


def add_lines(server: Server, task_id: str, *lines: str, start: int = 1000) -> dict[str, Any]:
    events = [
        {"type": "log", "task": task_id, "msg": line, "timestamp": start + number}
        for number, line in enumerate(lines)
    ]
    return add_events(server, events)


def add_events(server: Server, events: list[dict[str, Any]]) -> dict[str, Any]:
    body = "\n".join(json.dumps(event) for event in events).encode()
    headers = {**basic(server), "Content-Type": "application/json-lines"}
    status, answer = raw(server, "/events.add_batch", body, headers=headers)
    if status != 200:
        raise ApiRefusal(answer["meta"])
    data: dict[str, Any] = answer["data"]
    return data


def log(server: Server, task_id: str, **body: Any) -> list[str]:
    return [event["msg"] for event in server.call("events.get_task_log", task=task_id, **body)["events"]]


def test_console(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    assert add_lines(clearml_server, task_id, "one", "two", "three") == {
        "added": 3,
        "errors": 0,
        "errors_info": {},
    }
    answer = clearml_server.call("events.get_task_log", task=task_id, batch_size=2)
    assert (answer["returned"], answer["total"]) == (2, 3)
    assert [event["msg"] for event in answer["events"]] == ["three", "two"]
    assert log(clearml_server, task_id, batch_size=2, order="asc") == ["two", "three"]
    assert log(clearml_server, task_id, navigate_earlier=False) == ["one", "two", "three"]
    assert log(clearml_server, task_id, navigate_earlier=False, from_timestamp=1000) == ["two", "three"]
    assert log(clearml_server, task_id, from_timestamp=1002) == ["two", "one"]


def test_downloaded_console(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    add_lines(clearml_server, task_id, "one", "two\n")

    def download(**body: str) -> str:
        request = urllib.request.Request(
            clearml_server.direct_api_server + "/events.download_task_log",
            json.dumps({"task": task_id, **body}).encode(),
            basic(clearml_server),
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    assert [json.loads(line)["msg"] for line in download().splitlines()] == ["one", "two\n"]
    assert (
        download(line_type="text", line_format="{timestamp} {msg} {odd}")
        == "1000 one {odd}\n1001 two\n {odd}\n"
    )
    assert download(line_type="text").startswith("1970-01-01T00:00:01.000+00:00   one\n")


def test_late_lines_are_sorted_in(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    add_lines(clearml_server, task_id, "second", start=2000)
    add_lines(clearml_server, task_id, "first", start=1000)
    assert log(clearml_server, task_id, navigate_earlier=False) == ["first", "second"]


def test_bad_events(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    good = {"type": "log", "task": task_id, "msg": "x"}
    assert add_events(clearml_server, [good, {"type": "zzz", "task": task_id}]) == {
        "added": 1,
        "errors": 1,
        "errors_info": {"Invalid event type zzz": 1},
    }
    with pytest.raises(ApiRefusal, match="Events not added: Invalid task id X=1") as caught:
        add_events(clearml_server, [{"type": "log", "task": "X"}])
    assert caught.value.subcode == 131
    with pytest.raises(ApiRefusal, match="Batch request contains no items") as caught:
        add_events(clearml_server, [])
    assert caught.value.subcode == 17


def test_scalars_update_the_task(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    scalar = {"type": "training_stats_scalar", "task": task_id, "metric": "loss", "variant": "train"}
    add_events(clearml_server, [{**scalar, "iter": 1, "value": 5}, {**scalar, "iter": 7, "value": 3}])
    task = clearml_server.task(task_id)
    assert task["last_iteration"] == 7
    metric, variant = (hashlib.md5(name.encode()).hexdigest() for name in ("loss", "train"))
    last = task["last_metrics"][metric][variant]
    assert (last["value"], last["min_value"], last["max_value"]) == (3, 3, 5)
    histogram = clearml_server.call("events.scalar_metrics_iter_histogram", task=task_id)
    assert histogram["loss"]["train"] == {"name": "train", "x": [1, 7], "y": [5, 3]}


def test_projects(clearml_server: Server) -> None:
    project_id = clearml_server.call("projects.create", name="Team/Sub")["id"]
    names = {project["name"] for project in clearml_server.call("projects.get_all")["projects"]}
    assert names == {"Team", "Team/Sub"}
    with pytest.raises(ApiRefusal, match="Project with the same name already exists") as caught:
        clearml_server.call("projects.create", name="Team/Sub")
    assert caught.value.subcode == 801
    new_task(clearml_server, project=project_id)
    with pytest.raises(ApiRefusal, match="Project has associated tasks") as caught:
        clearml_server.call("projects.delete", project=project_id)
    assert caught.value.subcode == 402
    assert clearml_server.call("projects.delete", project=project_id, force=True)["disassociated_tasks"] == 1


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
