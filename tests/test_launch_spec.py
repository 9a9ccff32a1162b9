"""LaunchSpec: what is accepted, what is refused and how, and its JSON Schema."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyterlab_clearml_session.backend.remote_script import remote_source
from jupyterlab_clearml_session.errors import InvalidInput
from jupyterlab_clearml_session.launch_spec import GROUPS, CloneRepo, LaunchSpec, json_schema

TASK = "0123456789abcdef" * 2
FIELDS = [field.name for field in dataclasses.fields(LaunchSpec)]

FULL: dict[str, Any] = {
    "queue": "gpu",
    "name": "My session",
    "project": "My project/sub",
    "tags": ["a", "b c"],
    "docker": "nvcr.io/nvidia/pytorch:24.01-py3",
    "docker_args": "-v '/data dir:/data' --ipc=host",
    "docker_network": "port",
    "packages": ["torch==2.5", "git+https://host/repo.git@main"],
    "requirements": "# comment\nnumpy>=1.26 ; python_version > '3.9'\n\n--extra-index-url https://host/simple\n",
    "init_script": "apt-get update\n",
    "env": {"A": "x y", "_B2": ""},
    "git_credentials": True,
    "jupyter_lab": False,
    "vscode_server": False,
    "vscode_version": "4.96.2:2024.22.1",
    "vscode_extensions": "ms-python.python, charliermarsh.ruff@2024.1",
    "disable_storage_packages": True,
    "user_folder": "~/work",
    "store_workspace": "~/workspace",
    "continue_session": TASK,
    "upload_files": ["~/data", "/tmp/x.txt"],
    "clone_repo": {"url": "https://host/repo.git", "branch": "main", "commit": "a" * 40, "diff": "diff"},
    "base_task_id": TASK,
    "public_ip": True,
    "remote_ssh_port": "10022:10050",
    "remote_gateway": "gateway.example.org:2222",
    "router_enabled": True,
    "keepalive": True,
    "username": "someone",
    "password": "secret-pass",
    "force_dropbear": True,
    "idle_timeout_min": 90,
}


def test_every_option_goes_through_json_and_back() -> None:
    spec = LaunchSpec.from_json(FULL)
    assert set(FULL) | {"debugging_session"} == set(FIELDS)
    assert LaunchSpec.from_json(spec.to_json(include_secrets=True)) == spec
    assert json.loads(json.dumps(spec.to_json())) == spec.to_json()
    assert spec.clone_repo == CloneRepo("https://host/repo.git", "main", "a" * 40, "diff")


def test_defaults_are_those_of_the_command_line() -> None:
    assert LaunchSpec.from_json({}) == LaunchSpec()
    assert LaunchSpec.from_json(dict.fromkeys(FIELDS)) == LaunchSpec()
    spec = LaunchSpec()
    assert (spec.jupyter_lab, spec.vscode_server, spec.docker_network) == (True, True, "host")
    assert (spec.queue, spec.name, spec.project, spec.docker) == ("", None, None, "")


def test_the_password_is_write_only() -> None:
    spec = LaunchSpec.from_json(FULL)
    assert "password" not in spec.to_json()
    assert "secret-pass" not in repr(spec)
    assert "secret-pass" not in str(spec)
    assert spec.to_json(include_secrets=True)["password"] == "secret-pass"


def test_replace_checks_too() -> None:
    assert LaunchSpec.from_json(FULL).replace(queue="cpu").password == "secret-pass"
    with pytest.raises(InvalidInput) as caught:
        LaunchSpec().replace(remote_ssh_port="x")
    assert caught.value.detail["field"] == "remote_ssh_port"


REFUSED: list[tuple[str, Any]] = [
    ("name", ""),
    ("name", "ab"),
    ("name", "x" * 256),
    ("name", "two\nlines"),
    ("name", 7),
    ("project", " "),
    ("queue", "x" * 256),
    ("queue", "half \ud800 a character"),
    ("tags", "not a list"),
    ("tags", [1]),
    ("tags", ["a"] * 1001),
    ("docker", "-v /:/host"),
    ("docker", "image;rm"),
    ("docker_args", "--name 'unclosed"),
    ("docker_network", "bridge"),
    ("docker_network", 1),
    ("packages", ["torch = 1"]),
    ("packages", ["-r requirements.txt"]),
    ("packages", ["--unknown-option"]),
    ("packages", ["a b c"]),
    ("packages", "torch"),
    ("requirements", "torch\n-c constraints.txt\n"),
    ("requirements", "x" * 300_000),
    ("init_script", "a\0b"),
    ("env", {"2A": "x"}),
    ("env", {"A B": "x"}),
    ("env", {"PYTHONPATH": "x"}),
    ("env", ["A=1"]),
    ("git_credentials", "true"),
    ("jupyter_lab", 1),
    ("vscode_version", "4.9 beta"),
    ("vscode_extensions", "python"),
    ("continue_session", "../../etc"),
    ("continue_session", TASK.upper()),
    ("debugging_session", "g" * 32),
    ("base_task_id", TASK[:-1]),
    ("upload_files", [None]),
    ("remote_ssh_port", "0"),
    ("remote_ssh_port", "70000"),
    ("remote_ssh_port", "20:10"),
    ("remote_ssh_port", True),
    ("remote_gateway", "host:port"),
    ("remote_gateway", "a host"),
    ("remote_gateway", "::1"),
    ("username", "-oProxyCommand"),
    ("password", "with space"),
    ("password", "quo'te"),
    ("password", "x" * 257),
    ("idle_timeout_min", -1),
    ("idle_timeout_min", float("nan")),
    ("idle_timeout_min", True),
]


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=lambda value: repr(value)[:40])
def test_refused_values_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        LaunchSpec.from_json({field: value})
    assert caught.value.detail["field"] == field
    assert caught.value.message


@pytest.mark.parametrize(
    ("repository", "field"),
    [
        ({}, "clone_repo.url"),
        ({"url": "/etc"}, "clone_repo.url"),
        ({"url": "--upload-pack=x"}, "clone_repo.url"),
        ({"url": "https://user:secret@host/repo"}, "clone_repo.url"),
        ({"url": "https://token@host/repo"}, "clone_repo.url"),
        ({"url": "https://host/repo", "branch": "-x"}, "clone_repo.branch"),
        ({"url": "https://host/repo", "branch": "a..b"}, "clone_repo.branch"),
        ({"url": "https://host/repo", "commit": "HEAD"}, "clone_repo.commit"),
        ({"url": "https://host/repo", "diff": 7}, "clone_repo.diff"),
        ({"url": "https://host/repo", "depth": 1}, "clone_repo.depth"),
        ("https://host/repo", "clone_repo"),
    ],
)
def test_refused_repositories(repository: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        LaunchSpec.from_json({"clone_repo": repository})
    assert caught.value.detail["field"] == field
    assert "secret" not in str(caught.value.to_json())


def test_the_malformed_line_is_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        LaunchSpec.from_json({"packages": ["numpy", "torch = 1"]})
    assert "torch = 1" in caught.value.message
    with pytest.raises(InvalidInput) as caught:
        LaunchSpec.from_json({"requirements": "numpy\n\ntorch = 1\n"})
    assert "Line 3" in caught.value.message
    assert "torch = 1" in caught.value.message


@pytest.mark.parametrize(
    "line",
    [
        "torch",
        "torch==2.5.*",
        "torch[extra]>=1,<2 ; python_version >= '3.10'",
        "name @ https://host/x.whl",
        "https://host/x-1.0-py3-none-any.whl",
        "git+ssh://git@host/repo.git#egg=name",
        "-e git+https://host/repo.git",
        "--extra-index-url https://host/simple",
        "--find-links=https://host/",
        "--pre",
        "# only a comment",
        "torch  # a comment",
        "torch==2.5 --hash=sha256:abc",
    ],
)
def test_lines_that_pip_understands(line: str) -> None:
    assert LaunchSpec.from_json({"packages": [line]}).packages == (line,)
    assert LaunchSpec.from_json({"requirements": f"numpy\n{line}\n"}).requirements


def test_values_are_made_uniform() -> None:
    spec = LaunchSpec.from_json(
        {"remote_ssh_port": 10022, "base_task_id": "None", "name": "  My session ", "tags": ["", "a"]}
    )
    assert (spec.remote_ssh_port, spec.base_task_id, spec.name, spec.tags) == (
        "10022",
        "",
        "My session",
        ("a",),
    )


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("base_task_id", {"debugging_session": TASK, "base_task_id": TASK}),
        ("clone_repo", {"debugging_session": TASK, "clone_repo": {"url": "https://host/repo"}}),
    ],
)
def test_options_that_exclude_each_other(field: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        LaunchSpec.from_json(body)
    assert caught.value.detail["field"] == field


def test_unknown_fields_are_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        LaunchSpec.from_json({"qeue": "gpu"})
    assert caught.value.detail["field"] == "qeue"


HUGE = 10**400
"""JSON has it, no floating-point number does."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(HUGE) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def _answer(body: Any) -> LaunchSpec | InvalidInput:
    try:
        return LaunchSpec.from_json(body)
    except InvalidInput as error:
        return error


@settings(max_examples=300, deadline=None)
@given(JSON | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), JSON, max_size=4))
def test_any_json_gives_a_spec_or_a_named_field(body: Any) -> None:
    answer = _answer(body)
    if isinstance(answer, LaunchSpec):
        assert LaunchSpec.from_json(answer.to_json(include_secrets=True)) == answer
    else:
        assert isinstance(answer.detail["field"], str)
        assert isinstance(json.dumps(answer.to_json()), str)


PLAUSIBLE = {
    "queue": st.text(max_size=20),
    "name": st.text(max_size=20) | st.none(),
    "packages": st.lists(
        st.sampled_from(["torch", "a==1", "x = 1", "-r f", ""]) | st.text(max_size=12), max_size=4
    ),
    "requirements": st.text(alphabet="ab=1.\n#\\ -;", max_size=40),
    "env": st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=3),
    "remote_ssh_port": st.integers() | st.text(alphabet="0123456789:", max_size=8),
    "remote_gateway": st.text(alphabet="ab.:0123456789[]", max_size=12),
    "docker_args": st.text(alphabet="ab '\"\\-", max_size=12),
    "clone_repo": st.fixed_dictionaries(
        {"url": st.text(max_size=20)}, optional={"branch": st.text(max_size=5)}
    ),
    "idle_timeout_min": st.floats() | st.integers() | st.just(HUGE),
    "password": st.text(max_size=12),
}


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional=PLAUSIBLE))
def test_plausible_json_gives_a_spec_or_a_named_field(body: dict[str, Any]) -> None:
    answer = _answer(body)
    if isinstance(answer, LaunchSpec):
        assert LaunchSpec.from_json(answer.to_json(include_secrets=True)) == answer
    else:
        assert answer.detail["field"].partition(".")[0] in body


def test_the_schema_describes_every_field() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == FIELDS
    for name, field in schema["properties"].items():
        assert field["title"], name
        assert field["description"], name
        assert field["x-group"] in GROUPS, name
        assert "type" in field, name
    assert schema["properties"]["password"]["writeOnly"] is True
    assert schema["additionalProperties"] is False


def test_the_schema_and_the_check_agree() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(FULL)
    defaults = {
        name: field["default"] for name, field in json_schema()["properties"].items() if "default" in field
    }
    validator.validate(defaults)
    assert LaunchSpec.from_json(defaults) == LaunchSpec()
    assert not validator.is_valid({"qeue": "gpu"})
    assert not validator.is_valid({"name": "ab"})


def test_every_option_of_the_command_line_is_in_the_docs() -> None:
    options = set(re.findall(r"add_argument\(\s*['\"](--[a-z_-]+)", remote_source("__main__.py")))
    assert len(options) > 35
    docs = (Path(__file__).parent.parent / "docs" / "cli-options.md").read_text(encoding="utf-8")
    assert {option for option in options if f"`{option}`" not in docs} == set()
    assert {field for field in FIELDS if f"`{field}" not in docs} == set()
