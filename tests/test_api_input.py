"""What the REST API refuses, and how: each bad input has a typed answer that names the field, whatever the call is.

Each test is a table over one server; what deviates is collected and shown together.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, NamedTuple

import pytest
from jupyter_server.serverapp import ServerApp

from tests.local_fixture import ClearMLUnderTest
from tests.rest_fixture import SPEC, UNKNOWN_ID, Call, call_fixture, rest_config  # noqa: F401 - fixtures

PACKED = "a" * 300


class Refusal(NamedTuple):
    """One call and the field that its refusal must name."""

    method: str
    path: str
    body: Any
    field: str


def launch(field: str, value: Any, named: str = "") -> Refusal:
    return Refusal("POST", "sessions", {**SPEC, field: value}, named or field)


LAUNCHES = [
    launch("queue", "no-such-queue"),
    launch("queue", []),
    launch("name", "x" * 5000),
    launch("name", "  "),
    launch("name", 5),
    launch("name", "\ud800xx"),
    launch("name", "a\0bc"),
    launch("packages", ["==1.0=="]),
    launch("packages", "torch"),
    launch("packages", [5]),
    launch("requirements", "-r other.txt"),
    launch("env", {"A": 5}, "env.A"),
    launch("env", {"A\n": "x"}),
    launch("env", []),
    launch("clone_repo", {}, "clone_repo.url"),
    launch("clone_repo", {"url": "https://host/x", "surprise": 1}, "clone_repo.surprise"),
    launch("clone_repo", 5),
    launch("docker_network", "bridge"),
    launch("docker", "-v /:/"),
    launch("docker_args", "'"),
    launch("jupyter_lab", "perhaps"),
    launch("git_credentials", 1),
    launch("idle_timeout_min", 10**400),
    launch("idle_timeout_min", -1),
    launch("idle_timeout_min", True),
    launch("remote_ssh_port", 10**400),
    launch("remote_gateway", "host:99999"),
    launch("password", "a'b"),
    launch("username", "-x"),
    launch("upload_files", ["/no/such/file"]),
    launch("upload_files", ["/" + PACKED]),
    launch("upload_files", ["~no-such-user/x"]),
    launch("upload_files", [os.devnull]),
    launch("continue_session", "x"),
    launch("continue_session", UNKNOWN_ID),
    launch("base_task_id", UNKNOWN_ID),
    launch("debugging_session", UNKNOWN_ID),
    launch("surprise", 1),
    launch("x" * 5000, 1, "x" * 80),
    launch("launched_by", "nobody"),
    launch("launched_by", []),
    launch("preset", "no such preset"),
    launch("preset", None),
    launch("preset", {}),
]
BODIES = [
    Refusal("POST", "sessions", body, "body")
    for body in (
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"idle_timeout_min":' + b"9" * 5000 + b"}",
        b'{"init_script":"' + b"x" * (17 * 1024 * 1024) + b'"}',
    )
]
QUERIES = [
    Refusal("GET", "sessions?state=odd", None, "state"),
    Refusal("GET", "sessions?state=%ff", None, "state"),
    Refusal("GET", "sessions?all_users=maybe", None, "all_users"),
    Refusal("GET", "tasks?text=%ff", None, "text"),
    Refusal("GET", f"repo?folder={'x' * 5000}", None, "folder"),
    Refusal("GET", "repo?folder=nowhere", None, "folder"),
    Refusal("GET", "repo?folder=..%2f..", None, "folder"),
    Refusal("DELETE", f"sessions/{UNKNOWN_ID}?purge=x", None, "purge"),
    Refusal("GET", f"sessions/{UNKNOWN_ID}/log?limit=0", None, "limit"),
    Refusal("GET", f"sessions/{UNKNOWN_ID}/log?limit=10001", None, "limit"),
    Refusal("GET", f"sessions/{UNKNOWN_ID}/log?limit=1e3", None, "limit"),
    Refusal("GET", f"sessions/{UNKNOWN_ID}/log?limit={'1'.zfill(9)}{'9' * 5000}", None, "limit"),
    Refusal("GET", f"sessions/{UNKNOWN_ID}/log?limit=%ff", None, "limit"),
    Refusal("GET", "sessions/%ff", None, "session_id"),
]
OTHERS = [
    Refusal("PUT", "presets/%2e%2e", {}, "name"),
    Refusal("PUT", "presets/a%2fb", {}, "name"),
    Refusal("PUT", f"presets/{PACKED}", {}, "name"),
    Refusal("PUT", "presets/%ff", {}, "name"),
    Refusal("PUT", "presets/x", {"surprise": 1}, "surprise"),
    Refusal("POST", "import-presets", {"surprise": 1}, "surprise"),
    Refusal("POST", "configure", {}, "api_server"),
    Refusal("POST", "configure", {"surprise": 1}, "surprise"),
    Refusal("POST", "configure", {"mode": "cloud"}, "mode"),
    Refusal("POST", "configure", {"mode": "local", "surprise": 1}, "surprise"),
    Refusal("POST", "configure", {"api_server": "host", "access_key": "a", "secret_key": "b"}, "api_server"),
    *(
        Refusal("POST", f"sessions/{UNKNOWN_ID}/{call}", {"surprise": 1}, "surprise")
        for call in ("attach", "detach", "reconnect", "workspace", "kernels/x/adopt")
    ),
    *(
        Refusal("POST", f"sessions/{UNKNOWN_ID}/forwards", body, field)
        for body, field in [
            ({}, "remote_port"),
            ({"remote_port": 0}, "remote_port"),
            ({"remote_port": 70000}, "remote_port"),
            ({"remote_port": "http"}, "remote_port"),
            ({"remote_port": True}, "remote_port"),
            ({"remote_port": 80, "local_port": -1}, "local_port"),
            ({"remote_port": 80, "local_port": ""}, "local_port"),
            ({"remote_port": 80, "local_port": False}, "local_port"),
            ({"remote_port": 80, "show_password": True}, "show_password"),
            ({"remote_port": "ssh", "show_password": "yes"}, "show_password"),
            ({"remote_port": 80, "surprise": 1}, "surprise"),
        ]
    ),
]


async def test_bad_input_is_refused_by_the_field_s_name(call: Call, clearml_server: ClearMLUnderTest) -> None:
    wrong = []
    for case in [*LAUNCHES, *BODIES, *QUERIES, *OTHERS]:
        status, answer = await call(case.method, case.path, case.body)
        error = (answer or {}).get("error") or {}
        if (status, (error.get("detail") or {}).get("field")) != (400, case.field) or not error["message"]:
            wrong.append((case, status, answer))
    assert wrong == []
    assert clearml_server.call("tasks.get_all")["tasks"] == [], "nothing was launched"


IDS = [
    "x",
    "..",
    ".",
    "%2e%2e",
    "%2f",
    "a%2fb",
    "%00",
    "%C3%BC",
    "A" * 32,
    "0" * 33,
    UNKNOWN_ID,
    UNKNOWN_ID + "%0a",
]
IDS += ["%20" + UNKNOWN_ID, "%27%20or%201", "%5c", ";", "%3f", "x" * 2000]
CALLS = [
    *(
        ("GET", part)
        for part in ("", "/log", "/spec", "/metrics", "/kernelspecs", "/kernels", "/ports", "/forwards")
    ),
    *(("DELETE", part) for part in ("", "?purge=1", "/kernels/x", "/forwards/80")),
    *(
        ("POST", f"/{part}")
        for part in ("attach", "detach", "reconnect", "workspace", "kernels/x/adopt", "forwards")
    ),
]


async def test_an_id_that_is_none_is_a_typed_404_in_every_call(
    call: Call, clearml_server: ClearMLUnderTest
) -> None:
    training = clearml_server.call("tasks.create", name="training", type="training")["id"]
    wrong = []
    for session_id in [*IDS, training]:
        for method, part in CALLS:
            body = {"remote_port": 80} if (method, part) == ("POST", "/forwards") else None
            status, answer = await call(method, f"sessions/{session_id}{part}", body)
            if status != 404 or answer["error"]["code"] not in ("unknown_session", "http_404"):
                wrong.append((method, session_id[:40], part, status, answer))
    assert wrong == []
    assert clearml_server.task(training)["status"] == "created"


async def test_what_needs_a_tunnel_says_so(call: Call) -> None:
    _, session = await call("POST", "sessions", SPEC)
    for method, part, body in [
        ("POST", "reconnect", None),
        ("GET", "forwards", None),
        ("POST", "forwards", {"remote_port": 80}),
        ("DELETE", "forwards/80", None),
        ("GET", "ports", None),
        ("GET", "kernels", None),
        ("DELETE", "kernels/x", None),
        ("POST", "kernels/x/adopt", None),
        ("GET", "kernelspecs", None),
        ("GET", "metrics", None),
    ]:
        status, answer = await call(method, f"sessions/{session['id']}/{part}", body)
        assert (status, answer["error"]["code"]) == (409, "not_attached"), part


async def test_unknown_calls_and_wrong_verbs_are_typed(call: Call) -> None:
    for method, path, status in [
        ("GET", "nothing/here", 404),
        ("PUT", "nothing", 404),
        ("GET", "", 404),
        ("PUT", "sessions", 405),
        ("DELETE", "status", 405),
        ("GET", "configure", 405),
        ("PATCH", f"sessions/{UNKNOWN_ID}", 405),
        ("GET", f"sessions/{UNKNOWN_ID}/attach", 405),
    ]:
        seen, answer = await call(method, path)
        assert (seen, answer["error"]["code"]) == (status, f"http_{status}"), (method, path)


async def test_nobody_gets_in_without_the_token(call: Call) -> None:
    for method, path in [
        ("GET", "status"),
        ("POST", "sessions"),
        ("DELETE", f"sessions/{UNKNOWN_ID}"),
        ("GET", "nothing"),
    ]:
        status, answer = await call(method, path, headers={"Authorization": "token wrong"})
        assert (status, answer["error"]["code"]) == (403, "http_403")


async def test_a_cookie_alone_changes_nothing(
    call: Call,
    clearml_server: ClearMLUnderTest,
    http_server_client: Any,
    jp_base_url: str,
    jp_auth_header: dict[str, str],
) -> None:
    """Pages of other origins can make a browser send its cookies, but do not know the XSRF value."""
    token = jp_auth_header["Authorization"].split()[1]
    login = await http_server_client.fetch(f"{jp_base_url}api/status?token={token}")
    sent = [header.partition(";")[0] for header in login.headers.get_list("Set-Cookie")]
    cookies = {"Cookie": "; ".join(sent)}
    answers = [
        await call(method, path, body, headers=cookies)
        for method, path, body in [
            ("GET", "status", None),
            ("POST", "sessions", SPEC),
            ("POST", "configure", {"mode": "local"}),
            ("PUT", "presets/x", {}),
            ("DELETE", "presets/x", None),
        ]
    ]
    assert [status for status, _ in answers] == [200, 403, 403, 403, 403]
    assert all(answer["error"]["code"] == "http_403" for _, answer in answers[1:])
    assert clearml_server.call("tasks.get_all")["tasks"] == []


async def test_configure_never_overwrites(call: Call, clearml_server: ClearMLUnderTest) -> None:
    status, answer = await call("POST", "configure", clearml_server.credentials)
    assert (status, answer["error"]["code"]) == (409, "conflict")


@pytest.mark.usefixtures("http_server")
async def test_a_configuration_is_given_up_with_its_caller(
    jp_serverapp: ServerApp,
    http_server_port: tuple[Any, int],
    jp_auth_header: dict[str, str],
    jp_base_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def configure(body: dict[str, Any]) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()  # as a server that does not answer
        except asyncio.CancelledError:
            given_up.set()
            raise

    monkeypatch.setattr(jp_serverapp.web_app.settings["clearml_session_manager"], "configure", configure)
    _, writer = await asyncio.open_connection("127.0.0.1", http_server_port[1])
    body = b'{"mode": "local"}'
    head = (
        f"POST {jp_base_url}clearml-session/api/configure HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: {jp_auth_header['Authorization']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await asyncio.wait_for(begun.wait(), 30)
    writer.close()
    await asyncio.wait_for(given_up.wait(), 30)
