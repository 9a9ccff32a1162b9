"""The command line: the doctor says what is wrong and what to do. (The demo: integration/test_demo.py.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jupyterlab_clearml_session.app import main
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
