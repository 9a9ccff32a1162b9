"""The command line: the doctor says what is wrong and what to do. (The demo: integration/test_demo.py.)"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jupyterlab_clearml_session.app import main
from jupyterlab_clearml_session.demo import _Demo
from jupyterlab_clearml_session.errors import ClearMLDeadline
from tests.lab_fixture import clearml_environment
from tests.local_fixture import ClearMLUnderTest

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run the doctor in an empty HOME with the given environment; returns its status and what it printed."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        status = main(["doctor", *arguments])
        return status, capsys.readouterr().out

    return run


def test_without_a_configuration_the_doctor_names_the_two_doors(doctor: Doctor) -> None:
    status, said = doctor({})
    assert status == 1
    assert "ok   installation: clearml " in said
    assert "FAIL  configuration" in said
    assert "paste credentials" in said


def test_a_configuration_that_is_no_good_is_named(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "clearml.conf").write_text("api { }")
    _, said = doctor({})
    assert "clearml.conf holds no access_key" in said
    (tmp_path / "clearml.conf").unlink()
    broken = (
        tmp_path / "broken.conf"
    )  # not in HOME: the SDK remembers for all tests what is there when it is imported
    broken.write_text("api { credentials { access_key: 'x")
    _, said = doctor({"CLEARML_CONFIG_FILE": str(broken)})
    assert "FAIL  ClearML server: The ClearML configuration cannot be read" in said
    assert "Correct that file" in said
    _, said = doctor({"CLEARML_CONFIG_FILE": "/no/such/clearml.conf"})
    assert "CLEARML_CONFIG_FILE names /no/such/clearml.conf, which is not there" in said


def test_each_step_to_a_session(
    doctor: Doctor, clearml_server: ClearMLUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the agent and the remote script would tell ClearML, the test tells it."""
    monkeypatch.setattr("jupyterlab_clearml_session.doctor._CONNECT_DEADLINE", 1.0)
    environment = clearml_environment(clearml_server.credentials)
    queue = clearml_server.call("queues.get_all")["queues"][0]["id"]
    clearml_server.call("workers.register", worker="w1", queues=[queue])
    assert doctor(environment)[0] == 0
    training = clearml_server.call("tasks.create", name="training", type="training")["id"]
    session = clearml_server.call(
        "tasks.create", name="session", type="application", system_tags=["interactive"]
    )["id"]
    for wanted, says in [
        ("..", "This is not the id"),
        ("0" * 32, "ClearML has no such Task"),
        (training, "This Task is not an interactive session"),
    ]:
        said = doctor({}, "--session", wanted)[1]
        assert f"FAIL  session: {says}" in said
        assert "'%clearml_session list' lists" in said
    assert "FAIL  session: The session is created" in doctor({}, "--session", session)[1]
    clearml_server.call("tasks.started", task=session, force=True)
    assert "has not published its services yet" in doctor({}, "--session", session)[1]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and nobody listens
        clearml_server.set_properties(
            session,
            external_address="127.0.0.1",
            internal_ssh_port=str(nobody.getsockname()[1]),
            jupyter_port="8888",
        )
        clearml_server.call(
            "tasks.edit_runtime", task=session, add_or_update={"_jupyter_token": "0123456789"}
        )
        _, said = doctor({}, "--session", session)
    assert "ok   session: session, SSH at 127.0.0.1" in said
    assert "FAIL  tunnel: Nothing listens on 127.0.0.1" in said
    assert "0123456789" not in said


def test_wrong_credentials(doctor: Doctor, clearml_server: ClearMLUnderTest) -> None:
    environment = clearml_environment(clearml_server.credentials)
    status, said = doctor({**environment, "CLEARML_API_SECRET_KEY": "wrong-secret-wrong-secret"})
    assert status == 1
    assert "FAIL  ClearML server" in said
    assert "wrong-secret" not in said


def test_a_server_without_an_agent(doctor: Doctor, clearml_server: ClearMLUnderTest) -> None:
    status, said = doctor(clearml_environment(clearml_server.credentials))
    assert status == 1
    assert "ok   ClearML server" in said
    assert "FAIL  queues: No agent serves any queue" in said
    assert "clearml-agent daemon" in said


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("once", [True, False])
def test_a_demo_that_fails_in_a_way_nobody_foresaw_ends(
    once: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own server would go on for ever."""
    stopped: list[bool] = []
    demo = _Demo(cast(Any, SimpleNamespace(stop=lambda: stopped.append(True))), "token")

    async def too_late() -> Any:
        raise ClearMLDeadline("There was no answer within 10 seconds.")

    monkeypatch.setattr(demo, "_launch", too_late)
    asyncio.run(demo.drive(once))
    assert (stopped, demo.status) == ([True], 1)
    assert "There was no answer within 10 seconds." in capsys.readouterr().err
