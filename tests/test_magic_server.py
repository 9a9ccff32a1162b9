"""Finding the local Jupyter server, and what is said where there is none."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterlab_clearml_session.errors import (
    ClearMLUnreachable,
    InvalidInput,
    ServerNotFound,
    ServerRefused,
    ServerUnreachable,
    UnknownSession,
)
from jupyterlab_clearml_session.magic.client import Client
from jupyterlab_clearml_session.magic.http import request
from jupyterlab_clearml_session.magic.server import Server, find_server, kernel_id_of, server_at

from .magic_fixture import TOKEN, FakeJupyter, error, fake_fixture  # noqa: F401 - fixtures

KERNEL = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def other() -> Any:
    server = FakeJupyter("/user/ada/")
    yield server
    server.close()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_kernel_id_is_in_the_name_of_the_connection_file() -> None:
    assert kernel_id_of(f"/run/user/kernel-{KERNEL}.json") == KERNEL
    assert kernel_id_of("/run/user/other.json") is None


def test_the_server_that_owns_the_kernel_is_found_among_several(
    fake: FakeJupyter, other: FakeJupyter, tmp_path: Path
) -> None:
    fake.note(tmp_path, os.getpid())
    other.note(tmp_path, os.getppid())
    other.kernel_ids.append(KERNEL)
    found = find_server(KERNEL, [tmp_path], {"JPY_PARENT_PID": str(os.getpid())})
    assert (found.url, found.found) == (other.url, "it owns this kernel")
    assert found.base_url == "/user/ada/"
    assert TOKEN not in repr(found)


def test_the_parent_is_asked_first(fake: FakeJupyter, other: FakeJupyter, tmp_path: Path) -> None:
    fake.note(tmp_path, os.getpid())
    other.note(tmp_path, os.getppid())
    fake.kernel_ids.append(KERNEL)
    for pid, server in ((os.getpid(), fake), (os.getppid(), other)):
        fake.asked.clear()
        find_server(KERNEL, [tmp_path], {"JPY_PARENT_PID": str(pid)})
        assert bool(other.asked) is (server is other)


def test_the_only_server_serves_a_kernel_that_nobody_owns(fake: FakeJupyter, tmp_path: Path) -> None:
    fake.note(tmp_path)
    fake.note(tmp_path, dead_pid(), port=1)
    (tmp_path / "jpserver-9.json").write_text("{half written")
    assert find_server(KERNEL, [tmp_path], {}).found == "the only one of yours that runs"
    assert find_server(None, [tmp_path], {}).url == fake.url


def test_several_servers_and_no_owner(fake: FakeJupyter, other: FakeJupyter, tmp_path: Path) -> None:
    fake.note(tmp_path, os.getpid())
    other.note(tmp_path, os.getppid())
    with pytest.raises(ServerNotFound) as caught:
        find_server(KERNEL, [tmp_path], {})
    assert caught.value.message.startswith(
        "Several Jupyter servers of yours run, and none of them owns this kernel: http://127.0.0.1:"
    )
    assert caught.value.hint == "Choose one: %clearml_session server URL"


@pytest.mark.parametrize(
    ("kernel_id", "environment", "message"),
    [
        (
            None,
            {},
            "This is IPython without a Jupyter server, and no Jupyter server of yours is running on this machine.",
        ),
        (
            KERNEL,
            {"JPY_PARENT_PID": "1"},
            "No Jupyter server owns this kernel, and no Jupyter server of yours is running on this machine.",
        ),
        (
            None,
            {"VSCODE_PID": "1", "JPY_PARENT_PID": "1"},
            "VS Code started this kernel by itself, without a Jupyter server, and no Jupyter server of yours is",
        ),
    ],
)
def test_says_what_is_missing(
    kernel_id: str | None, environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ServerNotFound) as caught:
        find_server(kernel_id, [tmp_path], environment)
    assert caught.value.message.startswith(message)
    assert caught.value.message.endswith("running on this machine.")
    assert "jupyterlab_clearml_session" in caught.value.hint or "JupyterLab" in caught.value.hint


def test_a_server_with_a_password_only(fake: FakeJupyter, tmp_path: Path) -> None:
    fake.note(tmp_path, token="")
    with pytest.raises(ServerNotFound) as caught:
        find_server(None, [tmp_path], {})
    assert caught.value.message == (
        f"The Jupyter server at {fake.url} runs, but does not accept the token in its note."
    )
    assert "password" in caught.value.hint


def test_another_server_does_not_take_the_place_of_the_one_that_started_the_kernel(
    fake: FakeJupyter, other: FakeJupyter, tmp_path: Path
) -> None:
    fake.note(tmp_path, os.getpid(), token="")
    other.note(tmp_path, os.getppid())
    with pytest.raises(ServerNotFound, match="does not accept the token in its note"):
        find_server(KERNEL, [tmp_path], {"JPY_PARENT_PID": str(os.getpid())})


def test_under_jupyterhub_the_token_is_the_one_of_the_hub(other: FakeJupyter, tmp_path: Path) -> None:
    hub = {"JUPYTERHUB_SERVICE_PREFIX": "/user/ada/", "JUPYTERHUB_API_TOKEN": TOKEN}
    other.kernel_ids.append(KERNEL)
    other.note(tmp_path, token="")
    assert find_server(KERNEL, [tmp_path], hub).found == "it owns this kernel"


def test_under_jupyterhub_without_a_note(other: FakeJupyter, tmp_path: Path) -> None:
    hub = {
        "JUPYTERHUB_SERVICE_PREFIX": "/user/ada/",
        "JUPYTERHUB_API_TOKEN": TOKEN,
        "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{other.port}/user/ada/",
    }
    other.kernel_ids.append(KERNEL)
    assert find_server(KERNEL, [tmp_path], hub).url == other.url


def test_the_environment_can_name_a_server(fake: FakeJupyter, other: FakeJupyter, tmp_path: Path) -> None:
    fake.note(tmp_path)
    named = {"JUPYTERLAB_CLEARML_SESSION_URL": other.url, "JUPYTERLAB_CLEARML_SESSION_TOKEN": TOKEN}
    assert find_server(KERNEL, [tmp_path], named).url == other.url
    # The token of a server that runs here need not be given.
    by_address = {"JUPYTERLAB_CLEARML_SESSION_URL": f"http://localhost:{fake.port}/lab"}
    assert find_server(KERNEL, [tmp_path], by_address).token == TOKEN
    with pytest.raises(ServerNotFound, match="'somewhere' is not the address of a Jupyter server"):
        find_server(KERNEL, [tmp_path], {"JUPYTERLAB_CLEARML_SESSION_URL": "somewhere"})


@pytest.mark.parametrize(
    ("address", "url", "token"),
    [
        ("http://host", "http://host/", ""),
        ("http://host:8888/lab?token=abc", "http://host:8888/", "abc"),
        ("https://me:word@host/user/ada/lab/tree/n.ipynb", "https://host/user/ada/", ""),
        ("http://127.0.0.1:{port}/lab/tree/n.ipynb", "http://127.0.0.1:{port}/", TOKEN),
        ("http://lab:1/", "http://lab:1/", ""),
    ],
)
def test_the_address_of_a_page_will_do(
    address: str, url: str, token: str, fake: FakeJupyter, tmp_path: Path
) -> None:
    fake.note(tmp_path)
    found = server_at(address.format(port=fake.port), "", [tmp_path], found="named")
    assert (found.url, found.token) == (url.format(port=fake.port), token)


def test_an_address_that_is_none_is_told_without_its_token() -> None:
    with pytest.raises(ServerNotFound) as caught:
        server_at("localhost:8888/lab?token=abc", "", [], found="named")
    assert caught.value.message == "'localhost:8888/lab' is not the address of a Jupyter server."


@given(st.text(max_size=20), st.sampled_from(["", "http://", "https://", "http://[", "http://h:"]))
def test_any_address_is_a_server_or_a_typed_error(text: str, scheme: str) -> None:
    with suppress(ServerNotFound):
        assert server_at(scheme + text, "", [], found="named").url.endswith("/")


def test_a_name_that_is_no_host_is_a_server_that_cannot_be_reached() -> None:
    with pytest.raises(ServerUnreachable, match="cannot be reached: "):
        request("GET", f"http://{'a' * 70}/", deadline=1.0)
    with pytest.raises(ServerUnreachable, match="cannot be reached: "):
        request("GET", "http://127.0.0.1:1/\u00e9", deadline=1.0)


def test_a_server_on_a_unix_socket(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps({"id": self.path.rpartition("/")[2]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *args: Any) -> None:
            """Stay silent."""

    path = tmp_path / "s"
    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        note = {
            "sock": str(path),
            "pid": os.getpid(),
            "base_url": "/x/",
            "token": TOKEN,
            "hostname": "",
            "port": 0,
        }
        (tmp_path / "jpserver-1.json").write_text(json.dumps(note))
        assert find_server(KERNEL, [tmp_path], {}).socket == str(path)
        server.shutdown()
        thread.join()


def test_requests_for_this_machine_go_to_no_proxy(fake: FakeJupyter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert Client(lambda: Server(fake.url, TOKEN)).status()["mode"] == "local"


def test_answers_become_the_typed_errors_that_they_were(fake: FakeJupyter) -> None:
    client = Client(lambda: Server(fake.url, TOKEN))
    path = ("POST", "clearml-session/api/sessions")
    fake.answers[path] = (400, error("invalid_input", "Wrong.", "Mend it.", field="queue"))
    with pytest.raises(InvalidInput, match="Wrong") as caught:
        client.launch({})
    assert (caught.value.hint, caught.value.detail) == ("Mend it.", {"field": "queue"})
    fake.answers[path] = (503, error("clearml_unreachable", "No network."))
    with pytest.raises(ClearMLUnreachable):
        client.launch({})
    with pytest.raises(UnknownSession):
        client.session("0" * 32)


def test_answers_that_are_not_ours(fake: FakeJupyter) -> None:
    client = Client(lambda: Server(fake.url, TOKEN))
    path = ("GET", "clearml-session/api/status")
    fake.answers[path] = (404, b"<html>404</html>")
    with pytest.raises(ServerRefused, match="does not have this extension"):
        client.status()
    fake.answers[path] = (500, {"message": "Oh no"})
    with pytest.raises(ServerUnreachable, match="answered with HTTP 500: Oh no"):
        client.status()
    fake.answers[path] = (200, b"not json")
    with pytest.raises(ServerUnreachable, match="did not answer with JSON"):
        client.status()
    fake.answers[("GET", "clearml-session/api/queues")] = (200, {})
    with pytest.raises(ServerUnreachable, match="answered without 'queues'"):
        client.queues()
    with pytest.raises(ServerRefused, match="does not accept our token"):
        Client(lambda: Server(fake.url, "wrong")).status()


def test_a_server_that_went_away_is_looked_for_again(fake: FakeJupyter) -> None:
    servers = [Server("http://127.0.0.1:1/", TOKEN), Server(fake.url, TOKEN)]
    client = Client(lambda: servers.pop(0))
    with pytest.raises(ServerUnreachable, match="cannot be reached"):
        client.status()
    assert client.status()["mode"] == "local"
