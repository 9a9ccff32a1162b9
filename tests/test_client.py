"""ClearMLClient against the embedded server, well and badly behaved."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from jupyterlab_clearml_session.backend import configuration
from jupyterlab_clearml_session.backend.answers import data, failure
from jupyterlab_clearml_session.backend.client import ClearMLClient
from jupyterlab_clearml_session.backend.connection import Connection
from jupyterlab_clearml_session.backend.reading import log_lines, microseconds
from jupyterlab_clearml_session.backend.threads import DeadlineThreads
from jupyterlab_clearml_session.errors import (
    BadCredentials,
    ClearMLBadAnswer,
    ClearMLDeadline,
    ClearMLSessionError,
    ClearMLUnreachable,
    Conflict,
    Forbidden,
    InvalidInput,
    NotConfigured,
    UnknownEndpoint,
    UnknownQueue,
    UnknownTask,
    WrongPhase,
)
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.models import HostKeyTrust, LogLine

from .local_fixture import ClearMLUnderTest, Fault, write_config

TASK = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own ClearML configuration out."""
    for prefix in ("CLEARML", "TRAINS"):
        for name in ("API_HOST", "API_ACCESS_KEY", "API_SECRET_KEY", "CONFIG_FILE", "WEB_HOST", "FILES_HOST"):
            monkeypatch.delenv(f"{prefix}_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.fixture
def client(clearml_server: ClearMLUnderTest) -> ClearMLClient:
    client = ClearMLClient(request_timeout=5.0)
    client.use_local(clearml_server.credentials)
    return client


def _session(server: ClearMLUnderTest, **fields: Any) -> str:
    body = {"name": "a session", "type": "application", "system_tags": ["interactive"], **fields}
    return str(server.call("tasks.create", **body)["id"])


# -- which server ------------------------------------------------------------------------------------------


async def test_unconfigured() -> None:
    client = ClearMLClient()
    assert not client.is_configured()
    assert (await client.status()).to_json()["mode"] == "unconfigured"
    with pytest.raises(NotConfigured):
        await client.queues()
    with pytest.raises(NotConfigured):
        await client.launch(LaunchSpec())


def test_asking_whether_it_is_configured_imports_nothing() -> None:
    code = (
        "import sys, argparse; before = argparse.ArgumentParser.parse_args\n"
        "from jupyterlab_clearml_session.backend.client import ClearMLClient\n"
        "ClearMLClient().is_configured()\n"
        "assert not {'clearml', 'asyncssh', 'requests'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_argparse_is_left_alone(client: ClearMLClient) -> None:
    import argparse

    await client.user()
    assert "clearml" in sys.modules
    assert argparse.ArgumentParser.parse_args.__module__ == "argparse"
    assert argparse.ArgumentParser.add_subparsers.__module__ == "argparse"


async def test_the_ordinary_file_is_used(
    clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(write_config(clearml_server, tmp_path)))
    client = ClearMLClient()
    assert client.is_configured()
    status = await client.status()
    assert status.mode == "server"
    assert status.reachable
    assert status.api_server == clearml_server.credentials["api_server"]
    assert status.web_server == client.web_server == clearml_server.credentials["web_server"]
    assert status.user is not None
    assert status.user == await client.user()
    assert status.user.id == await client.user_id()
    assert status.version


async def test_the_environment_is_used(
    clearml_server: ClearMLUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = clearml_server.credentials
    monkeypatch.setenv("CLEARML_API_HOST", credentials["api_server"])
    monkeypatch.setenv("CLEARML_API_ACCESS_KEY", credentials["access_key"])
    monkeypatch.setenv("CLEARML_API_SECRET_KEY", credentials["secret_key"])
    client = ClearMLClient()
    assert client.is_configured()
    assert (await client.status()).reachable


@pytest.mark.parametrize(
    ("text", "configured"),
    [
        ("", False),
        ("sdk { }", False),
        ('# access_key: "x"', False),
        ('api { credentials { access_key: "", secret_key: "" } }', False),
        ('api { credentials { "access_key" = "x" } }', True),
        ("api.credentials.access_key: x", True),
        ('api {\n credentials {"access_key": "x",\n "secret_key": "y"}\n}', True),
        ("api { credentials { access_key: ${KEY} } }", True),
    ],
)
def test_what_counts_as_configured(tmp_path: Path, text: str, configured: bool) -> None:
    (tmp_path / "home" / "clearml.conf").write_text(text)
    assert configuration.is_configured() == configured


async def test_configure_writes_the_first_file(
    clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "clearml.conf"
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(path))
    client = ClearMLClient()
    status = await client.configure(clearml_server.credentials)
    assert status.mode == "server"
    assert status.reachable
    assert path.stat().st_mode & 0o777 == 0o600
    assert (await ClearMLClient().status()).reachable  # the SDK reads what we wrote
    with pytest.raises(Conflict):
        await client.configure(clearml_server.credentials)


async def test_what_is_configured_already_is_named(
    clearml_server: ClearMLUnderTest, client: ClearMLClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded default goes on although there is a file: whoever reads this must find it."""
    path = tmp_path / "home" / "clearml.conf"
    for text in ("sdk {}", 'api { credentials { access_key: "x" } }'):
        path.write_text(text)
        with pytest.raises(Conflict) as caught:
            await client.configure(clearml_server.credentials)
        assert str(path) in caught.value.message
        assert "Move it away" in caught.value.hint
        assert path.read_text() == text
    monkeypatch.setenv("CLEARML_API_ACCESS_KEY", "x")
    with pytest.raises(Conflict, match="CLEARML_API_ACCESS_KEY is set"):
        await client.configure(clearml_server.credentials)
    assert client.mode == "local"


async def test_configure_writes_nothing_where_the_credentials_are_no_good(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    client = ClearMLClient(login_timeout=10.0)
    with pytest.raises(BadCredentials):
        await client.configure({**clearml_server.credentials, "secret_key": "wrong-secret"})
    with clearml_server.front.fault("refuse"), pytest.raises(ClearMLUnreachable):
        await client.configure(clearml_server.credentials)
    assert not client.is_configured()
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("api_server", "not an address"),
        ("api_server", "ftp://host"),
        ("api_server", "http://host:port"),
        ("api_server", "http://name:password@host"),
        ("api_server", ""),
        ("access_key", None),
        ("secret_key", 7),
        ("secret_key", "two\nlines"),
        ("files_server", "javascript:alert(1)"),
        ("nonsense", "x"),
    ],
)
async def test_configure_names_the_bad_field(
    clearml_server: ClearMLUnderTest, field: str, value: Any
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await ClearMLClient().configure({**clearml_server.credentials, field: value})
    assert caught.value.detail["field"] == field


async def test_a_file_that_cannot_be_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.conf"
    path.write_text('api { credentials { access_key: "x"\n')
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(path))
    status = await ClearMLClient().status()
    assert status.mode == "unconfigured"
    assert status.error is not None
    assert status.error["code"] == "not_configured"


# -- reading -----------------------------------------------------------------------------------------------


async def test_queues(client: ClearMLClient, clearml_server: ClearMLUnderTest) -> None:
    waiting = _session(clearml_server)
    clearml_server.call("queues.create", name="busy one", tags=["gpu"])
    clearml_server.call("tasks.enqueue", task=waiting, queue_name="busy one")
    busy, default = await client.queues()
    assert (busy.name, busy.tags, busy.entries) == ("busy one", ("gpu",), (waiting,))
    assert default.name == "default"
    assert default.system_tags == ("default",)


async def test_workers_of_a_queue(client: ClearMLClient, clearml_server: ClearMLUnderTest) -> None:
    (queue,) = await client.queues()
    clearml_server.call("workers.register", worker="host:gpu0", queues=[queue.id], timeout=600)
    (queue,) = await client.queues()
    (worker,) = queue.workers
    assert worker.id == "host:gpu0"
    assert not worker.busy


async def test_a_listing_is_one_call(client: ClearMLClient, clearml_server: ClearMLUnderTest) -> None:
    running, ended = _session(clearml_server), _session(clearml_server, name="ended")
    clearml_server.call("tasks.create", name="no session", type="training")
    clearml_server.call("tasks.stopped", task=ended, force=True)
    await client.sessions()  # logs in, and asks once for vaults
    since = time.time()
    assert [task.id for task in await client.sessions()] == [running]
    assert [task.id for task in await client.sessions(states="ended")] == [ended]
    assert {task.id for task in await client.sessions(states="all")} == {running, ended}
    assert {task.id for task in await client.sessions(extra_ids=[running])} == {running}
    assert clearml_server.calls(since=since) == ["tasks.get_all_ex"] * 4
    assert {task.id for task in await client.sessions(extra_ids=[ended])} == {running, ended}
    assert len(clearml_server.calls(since=since)) == 6


async def test_one_task(client: ClearMLClient, clearml_server: ClearMLUnderTest) -> None:
    task_id = _session(
        clearml_server,
        tags=["a"],
        comment="hello",
        hyperparams={
            "properties": {"jupyter_port": {"section": "properties", "name": "jupyter_port", "value": "7"}}
        },
        runtime={"_ssh_password": "hunter2"},
    )
    task = await client.task(task_id)
    assert (task.name, task.status, task.tags, task.comment) == ("a session", "created", ("a",), "hello")
    assert task.parameters == {"properties/jupyter_port": "7"}
    assert task.runtime["_ssh_password"] == "hunter2"
    assert "hunter2" not in repr(task)
    assert task.trust is HostKeyTrust.UNVERIFIED
    assert len(task.host_keys) == 3


@pytest.mark.parametrize("bad", ["", "..", "%2f", "../" * 8, "ä" * 32, TASK.upper(), TASK + "\n", TASK + "0"])
async def test_garbage_ids_never_reach_the_server(client: ClearMLClient, bad: str) -> None:
    for call in (client.task, client.stop, client.delete, client.log, client.spec):
        with pytest.raises(UnknownTask):
            await call(bad)
    with pytest.raises(UnknownTask):
        await client.sessions(extra_ids=[bad])


async def test_unknown_task(client: ClearMLClient) -> None:
    for call in (client.task, client.stop, client.delete, client.log, client.spec):
        with pytest.raises(UnknownTask):
            await call(TASK)


async def test_log(client: ClearMLClient, clearml_server: ClearMLUnderTest) -> None:
    task_id = _session(clearml_server)
    for number in range(6):
        clearml_server.call(
            "events.add",
            type="log",
            task=task_id,
            timestamp=1000 * number + 1000,
            msg=f"line {number}\nmore {number}\n",
        )
    lines = await client.log(task_id, limit=5)
    assert [line.text for line in lines] == ["more 3", "line 4", "more 4", "line 5", "more 5"]
    assert lines[0].time == "1970-01-01T00:00:04.000001+00:00"
    earlier = await client.log(task_id, limit=4, before=lines[0].time)
    assert [line.text for line in earlier] == ["more 1", "line 2", "more 2", "line 3"]
    assert len(await client.log(task_id)) == 12
    for arguments in ({"before": "yesterday"}, {"limit": 0}):
        with pytest.raises(InvalidInput):
            await client.log(task_id, **arguments)


@pytest.mark.parametrize("limit", [1, 7, 4000])
async def test_a_log_read_page_by_page_is_the_whole_log(
    client: ClearMLClient, clearml_server: ClearMLUnderTest, limit: int
) -> None:
    task_id = _session(clearml_server)
    sizes = [1, 40, 1, 0, 20, 3]  # as an agent sends its console: all that was printed within a second
    events = [
        {"type": "log", "task": task_id, "timestamp": 1000 + number // 2, "msg": f"{number}\n" * size}
        for number, size in enumerate(sizes)
    ]
    for event in events:
        clearml_server.call("events.add", **event)
    read: list[LogLine] = []
    while page := await client.log(task_id, limit=limit, before=read[0].time if read else None):
        assert len(page) <= limit
        read = page + read
    assert [line.time for line in read] == sorted({line.time for line in read})
    assert sorted(line.text for line in read) == sorted(
        text for event in events for text in (str(event["msg"]).splitlines() or [""])
    )


def test_more_lines_than_microseconds_are_cut_but_not_repeated() -> None:
    events = [{"timestamp": 1, "msg": "\n".join(map(str, range(3000)))}]
    page = log_lines(events, 10)
    assert [line.text for line in page] == [str(number) for number in range(2991, 3000)]
    earlier = log_lines(events, 10, before=microseconds(page[0].time))
    assert [line.text for line in earlier][-1] == "2990"
    assert len(log_lines(events, 1)) == 1


async def test_a_long_event_is_cut_and_progress_bars_are_folded(
    client: ClearMLClient, clearml_server: ClearMLUnderTest
) -> None:
    task_id = _session(clearml_server)
    text = "\n".join(f"line {number}" for number in range(50)) + "\n10%\r50%\r100%"
    clearml_server.call("events.add", type="log", task=task_id, timestamp=1, msg=text)
    assert [line.text for line in await client.log(task_id, limit=3)] == ["line 48", "line 49", "100%"]


async def test_find_tasks(client: ClearMLClient, clearml_server: ClearMLUnderTest) -> None:
    script = {"repository": "https://host/repo.git"}
    found = str(clearml_server.call("tasks.create", name="train a.b", type="training", script=script)["id"])
    other = str(clearml_server.call("tasks.create", name="train aXb", type="training", script=script)["id"])
    clearml_server.call("tasks.create", name="train a.b too", type="training")  # no repository
    _session(clearml_server, name="train a.b session", script=script)
    assert [task.id for task in await client.find_tasks("a.b")] == [found]
    assert found in [task.id for task in await client.find_tasks(found[:12])]
    assert {task.id for task in await client.find_tasks("  ")} == {found, other}, "the newest ones"


# -- acting ------------------------------------------------------------------------------------------------


async def test_stop_and_delete(client: ClearMLClient, clearml_server: ClearMLUnderTest) -> None:
    task_id = _session(clearml_server)
    clearml_server.call("tasks.enqueue", task=task_id, queue_name="default")
    with pytest.raises(WrongPhase):
        await client.delete(task_id)
    await client.stop(task_id)
    assert (await client.task(task_id)).status == "stopped"
    await client.delete(task_id)
    with pytest.raises(UnknownTask):
        await client.task(task_id)


# -- bad luck ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("refuse", ClearMLUnreachable),
        ("reset", ClearMLUnreachable),
        ("freeze", ClearMLDeadline),
        ("error500", ClearMLBadAnswer),
        ("html", ClearMLBadAnswer),
    ],
)
@pytest.mark.parametrize("logged_in", [True, False])
async def test_a_server_that_misbehaves(
    clearml_server: ClearMLUnderTest, fault: Fault, error: type[ClearMLSessionError], logged_in: bool
) -> None:
    client = ClearMLClient(request_timeout=3.0, login_timeout=10.0 if logged_in else 3.0)
    client.use_local(clearml_server.credentials)
    if logged_in:
        await client.queues()
    with clearml_server.front.fault(fault):
        begun = time.monotonic()
        with pytest.raises(error):
            await client.queues()
        assert time.monotonic() - begun < 10.0, "the SDK alone would go on for hours"
        status = await client.status()
        assert not status.reachable
        assert status.api_server == clearml_server.credentials["api_server"]
        assert status.error is not None
        assert status.error["code"] == error.code
        assert clearml_server.credentials["secret_key"] not in json.dumps(status.to_json())
    assert len(await client.queues()) == 1  # and it comes back by itself


@pytest.mark.parametrize("pause", [0.1, 60.0])
async def test_a_server_that_drips(clearml_server: ClearMLUnderTest, pause: float) -> None:
    """Each byte comes in time, or no more after the first; the answer never does."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(pause)

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        client = ClearMLClient(login_timeout=10.0)
        client.use_local(clearml_server.credentials)
        await client.user()  # imports the SDK
        client = ClearMLClient(request_timeout=1.0, login_timeout=1.0)
        client.use_local({**clearml_server.credentials, "api_server": f"http://127.0.0.1:{port}"})
        begun = time.monotonic()
        with pytest.raises(ClearMLDeadline):
            await client.queues()
        assert time.monotonic() - begun < 6.0
    finally:
        server.close()


async def test_a_certificate_that_nobody_signed(clearml_server: ClearMLUnderTest, tmp_path: Path) -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_self_signed(tmp_path / "server.pem"))
    async with await asyncio.start_server(nothing, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        client = ClearMLClient(login_timeout=10.0)
        client.use_local({**clearml_server.credentials, "api_server": f"https://127.0.0.1:{port}"})
        begun = time.monotonic()
        with pytest.raises(ClearMLUnreachable) as caught:
            await client.queues()
    assert time.monotonic() - begun < 9.0
    assert "certificate" in caught.value.message


def _self_signed(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    return path


async def test_host_keys_of_the_server_s_vault(
    client: ClearMLClient, clearml_server: ClearMLUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = await client.launch(LaunchSpec())
    assert (await client.task(launched.id)).trust is HostKeyTrust.PINNED  # no vaults there: 404
    client.use_local(clearml_server.credentials)
    keys = {"ssh_host_ed25519_key__pub": "ssh-ed25519 AAAA comment", "ssh_host_rsa_key": "not for us"}
    call = Connection.call
    asked: list[str] = []

    async def with_vault(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
        if endpoint != "users.get_vaults":
            return await call(self, endpoint, **body)
        asked.append(endpoint)
        return {"vaults": [{"data": "{}"}, {"data": json.dumps(keys)}]}

    monkeypatch.setattr(Connection, "call", with_vault)
    for task in (await client.task(launched.id), *(await client.sessions())):
        assert task.trust is HostKeyTrust.VAULT
        assert task.host_keys == ("ssh-ed25519 AAAA",)
    assert len(asked) == 1


async def test_a_vault_that_could_not_be_read_once_is_asked_for_again(
    client: ClearMLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.launch(LaunchSpec())
    keys = json.dumps({"ssh_host_ed25519_key__pub": "ssh-ed25519 AAAA"})
    answers: list[Any] = [ClearMLBadAnswer("<html>down for a moment</html>"), {"vaults": [{"data": keys}]}]
    call = Connection.call

    async def at_last(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
        if endpoint != "users.get_vaults":
            return await call(self, endpoint, **body)
        answer = answers.pop(0)
        if isinstance(answer, ClearMLBadAnswer):
            raise answer
        return dict(answer)

    client._learned.vault_keys = None
    monkeypatch.setattr(Connection, "call", at_last)
    assert [task.trust for task in await client.sessions()] == [HostKeyTrust.PINNED]
    assert [task.trust for task in await client.sessions()] == [HostKeyTrust.VAULT]


@pytest.mark.parametrize(
    "entry",
    [
        7,
        None,
        {},
        {"id": TASK, "hyperparams": 7},
        {"id": TASK, "hyperparams": {"a": {"b": 7}}},
        {"id": TASK, "tags": 7},
        {"id": TASK, "runtime": [7]},
        {"id": TASK, "container": "x"},
    ],
)
async def test_tasks_that_are_not_tasks(
    client: ClearMLClient, monkeypatch: pytest.MonkeyPatch, entry: Any
) -> None:
    async def nonsense(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
        return {"tasks": [entry]}

    await client.user()
    monkeypatch.setattr(Connection, "call", nonsense)
    for call in (client.task(TASK), client.sessions(), client.spec(TASK), client.find_tasks("x")):
        with pytest.raises(ClearMLBadAnswer):
            await call


async def test_one_strange_task_does_not_hide_the_others(
    client: ClearMLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = dict.fromkeys(
        ("name", "status", "tags", "hyperparams", "runtime", "container", "script", "project")
    )
    holes = {"id": "b" * 32, "hyperparams": {"a": None, "b": {"c": None}}, "script": {"requirements": "x"}}

    async def mixed(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
        return {"tasks": [{"id": TASK, **empty}, {"id": "a" * 32, "runtime": 7}, holes]}

    await client.user()
    monkeypatch.setattr(Connection, "call", mixed)
    assert [task.id for task in await client.sessions()] == [TASK, "b" * 32]


async def test_a_vault_that_is_not_for_us_is_none(
    client: ClearMLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.launch(LaunchSpec())
    call = Connection.call

    async def forbidden(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
        if endpoint == "users.get_vaults":
            raise Forbidden("not for this role")
        return await call(self, endpoint, **body)

    client._learned.vault_keys = None
    monkeypatch.setattr(Connection, "call", forbidden)
    assert len(await client.sessions()) == 1


@pytest.mark.parametrize(
    "nonsense", [{}, {"user": 7}, {"user": {}}, {"queues": 7}, {"queues": [7]}, {"queues": [{}]}]
)
async def test_other_answers_that_are_none(
    client: ClearMLClient, monkeypatch: pytest.MonkeyPatch, nonsense: dict[str, Any]
) -> None:
    async def answer(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
        return nonsense

    monkeypatch.setattr(Connection, "call", answer)
    with pytest.raises(ClearMLBadAnswer):
        await client.user()
    if nonsense.get("queues"):
        with pytest.raises(ClearMLBadAnswer):
            await client.queues()


@pytest.mark.parametrize(
    "login", [{}, {"token": "garbage"}, {"token": "a.b.c"}, {"token": 7}, {"token": None}]
)
async def test_a_login_that_brings_no_token(
    clearml_server: ClearMLUnderTest, monkeypatch: pytest.MonkeyPatch, login: dict[str, Any]
) -> None:
    import requests

    from jupyterlab_clearml_session.backend.sdk import BoundedSession

    def answer(*_: Any, **__: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = 200
        response._content = json.dumps({"meta": {"result_code": 200}, "data": login}).encode()
        return response

    monkeypatch.setattr(BoundedSession, "_request_once", answer)
    client = ClearMLClient()
    client.use_local(clearml_server.credentials)
    status = await client.status()
    assert status.error is not None
    assert status.error["code"] == "clearml_bad_answer"
    for call in (client.user(), client.sessions()):
        with pytest.raises(ClearMLBadAnswer):
            await call


async def test_wrong_credentials_then_right_ones(
    clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(clearml_server, tmp_path)
    right = path.read_text()
    path.write_text(right.replace(clearml_server.credentials["secret_key"], "wrong-secret"))
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(path))
    client = ClearMLClient()
    with pytest.raises(BadCredentials) as caught:
        await client.queues()
    assert "wrong-secret" not in str(caught.value.to_json())
    path.write_text(right)
    assert len(await client.queues()) == 1


async def test_a_changed_configuration_is_noticed(
    clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(clearml_server, tmp_path)
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(path))
    client = ClearMLClient(login_timeout=10.0)
    assert (await client.status()).reachable
    path.write_text(path.read_text().replace(clearml_server.credentials["secret_key"], "wrong-secret"))
    status = await client.status()
    assert status.error is not None
    assert status.error["code"] == "bad_credentials"
    assert "wrong-secret" not in str(configuration.fingerprint())


async def test_a_late_answer_of_the_server_before_says_neither_who_we_are_nor_which_keys_are_right(
    client: ClearMLClient, clearml_server: ClearMLUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Connection.call
    late = asyncio.Event()
    before = client.connection

    async def slowly(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
        if self is not before:
            return await call(self, endpoint, **body)
        await late.wait()
        keys = json.dumps({"ssh_host_ed25519_key__pub": "ssh-ed25519 BEFORE"})
        return {"user": {"id": "before", "name": "Before"}, "vaults": [{"data": keys}]}

    monkeypatch.setattr(Connection, "call", slowly)
    asking = asyncio.gather(client.user(), client._vault())
    await asyncio.sleep(0)
    client.use_local(clearml_server.credentials)
    late.set()
    await asking
    assert (await client.user()).id == await client.user_id()
    assert await client._vault() == ()


async def test_the_loop_goes_on_while_the_server_is_frozen(clearml_server: ClearMLUnderTest) -> None:
    client = ClearMLClient(request_timeout=2.0)
    client.use_local(clearml_server.credentials)
    await client.queues()
    with clearml_server.front.fault("freeze"):
        calls = [asyncio.ensure_future(client.queues()) for _ in range(20)]
        for _ in range(5):
            await asyncio.sleep(0)
        # A call that held the loop would have come to its end by now, one after the other.
        assert not any(call.done() for call in calls)
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {ClearMLDeadline}
    assert len(await client.queues()) == 1


async def test_one_login_for_many_callers(clearml_server: ClearMLUnderTest) -> None:
    client = ClearMLClient()
    client.use_local(clearml_server.credentials)
    since = time.time()
    first = asyncio.ensure_future(client.queues())
    others = [asyncio.ensure_future(client.queues()) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()  # the login goes on for the others
    await asyncio.gather(*others)
    assert clearml_server.calls(since=since).count("auth.login") == 1


async def test_a_token_that_has_run_out_is_asked_for_anew_off_the_loop(
    client: ClearMLClient, clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.user()
    session = client.connection.session
    assert session is not None
    asked_by: list[threading.Thread] = []
    request = session._request_once

    def noted(method: str, url: str, **arguments: Any) -> Any:
        asked_by.append(threading.current_thread())
        return request(method, url, **arguments)

    monkeypatch.setattr(session, "_request_once", noted)
    session.token_expiration_threshold_sec = 10**12  # every token has run out as soon as it is there
    session_id = _session(clearml_server)
    assert [task.id for task in await client.sessions()] == [session_id]
    (tmp_path / "data.txt").write_text("1")
    await client.launch(LaunchSpec(upload_files=(str(tmp_path / "data.txt"),)))
    assert threading.main_thread() not in asked_by


async def test_calls_that_never_end_do_not_use_up_the_threads() -> None:
    threads = DeadlineThreads(limit=2, most_stuck=3)
    never = threading.Event()
    for _ in range(3):
        with pytest.raises(ClearMLDeadline):
            await threads.run(never.wait, deadline=0.05)
    assert threads.stuck == 3
    with pytest.raises(ClearMLDeadline):
        await threads.run(lambda: 1, deadline=5.0)  # too many: refused at once
    never.set()
    deadline = time.monotonic() + 5
    while threads.stuck and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert await threads.run(lambda: 1, deadline=5.0) == 1


# -- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "subcode", "error"),
    [
        (401, 22, BadCredentials),
        (403, 20, Forbidden),
        (404, 0, UnknownEndpoint),
        (400, 101, UnknownTask),
        (400, 701, UnknownQueue),
        (400, 401, InvalidInput),
        (400, 110, WrongPhase),
        (400, 123, WrongPhase),
        (400, 12, ClearMLBadAnswer),
        (500, 0, ClearMLBadAnswer),
    ],
)
def test_error_answers(status: int, subcode: int, error: type[ClearMLSessionError]) -> None:
    body = {"meta": {"result_code": status, "result_subcode": subcode, "result_msg": "why"}, "data": {}}
    with pytest.raises(error):
        data(status, json.dumps(body))
    assert type(failure(status, subcode, "why")) is error


@pytest.mark.parametrize(
    "text", ["", "<html>", "[]", "{}", '{"meta": {}}', '{"meta": 7, "data": 7}', '{"meta": {}, "data": 1}']
)
def test_nonsense_answers(text: str) -> None:
    with pytest.raises(ClearMLBadAnswer):
        data(200, text)
