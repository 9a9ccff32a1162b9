"""What a session of the embedded default gets to see, and its packages."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from jupyterlab_clearml_session.local import session_python
from jupyterlab_clearml_session.local.sandbox import MARKER, Sandbox

CREDENTIALS = {
    "api_server": "http://127.0.0.1:1",
    "web_server": "http://127.0.0.1:2",
    "files_server": "http://127.0.0.1:3",
    "access_key": "KEY",
    "secret_key": "SECRET",
}


def test_environment_is_a_short_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = (
        "JUPYTER_TOKEN",
        "JPY_API_TOKEN",
        "JUPYTERHUB_API_TOKEN",
        "CLEARML_API_ACCESS_KEY",
        "CLEARML_API_SECRET_KEY",
        "SSH_AUTH_SOCK",
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "XSRF_COOKIE",
        "PYTHONPATH",
    )
    for name in secrets:
        monkeypatch.setenv(name, "leaked")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    sandbox = Sandbox(tmp_path, CREDENTIALS, "the-id")
    environment = sandbox.environment("worker")
    assert "leaked" not in environment.values()
    assert (environment["LC_ALL"], environment["PIP_NO_INDEX"]) == ("C.UTF-8", "1")
    assert environment["HOME"] == str(tmp_path / "home")
    assert environment["TMPDIR"] == str(tmp_path / "tmp")
    assert environment[MARKER] == "the-id"


def test_keys_are_private(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "agent", CREDENTIALS, "the-id")
    sandbox.create()
    sandbox.create()  # a second start finds everything there
    assert "SECRET" in sandbox.config.read_text()
    assert stat.S_IMODE(sandbox.config.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "agent").stat().st_mode) == 0o700


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "agent", CREDENTIALS, "the-id")
    (tmp_path / "agent").mkdir()
    (tmp_path / "victim").write_text("precious")
    sandbox.config.symlink_to(tmp_path / "victim")
    sandbox.create()
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("pytest", False),
        ("PyTest>=1", False),
        ("pytest>=1000", True),
        ("pytest==1.0 # an old one", True),
        ("no_such_package_xyz", True),
        ("no_such_package_xyz; python_version < '3'", False),
        ("jupyterlab_git", False),
        ("clearml>=1.1.5", False),
        ("-r other.txt", True),
        ("./a/path", True),
        ("pytest @ https://example.org/pytest.zip", True),
        ("!!nonsense!!", True),
    ],
)
def test_missing_packages(line: str, missing: bool) -> None:
    assert session_python.missing_requirements([line]) == ([line] if missing else [])


@pytest.mark.parametrize(
    ("requirements", "lines"),
    [
        ({"pip": "a\n# comment\n\n b==1 \n"}, ["a", "b==1"]),
        ({"pip": ["a", "b"]}, ["a", "b"]),
        ({"pip": None}, []),
        ({}, []),
        (None, []),
    ],
)
def test_requirements_of_a_task(requirements: object, lines: list[str]) -> None:
    assert session_python.requirements_of({"script": {"requirements": requirements}}) == lines


def test_a_directory_with_a_space_and_an_umlaut_is_said_as_the_agent_reads_it(tmp_path: Path) -> None:
    credentials = dict.fromkeys(("api_server", "web_server", "files_server", "access_key", "secret_key"), "x")
    sandbox = Sandbox(tmp_path / "of ü", credentials, "test")
    sandbox.create()
    text = sandbox.config.read_text(encoding="utf-8")
    assert "of ü" in text
    assert "\\u" not in text
    assert " " not in json.loads(text)["agent"]["venvs_dir"], "the agent refuses it"
