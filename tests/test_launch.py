"""Launching: what is put on the Task, what is read back from it, and what happens when something goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from clearml_agent.helper.docker_args import DockerArgsSanitizer
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyterlab_clearml_session.backend import draft as drafting
from jupyterlab_clearml_session.backend import host_keys, init_script, reading, uploads
from jupyterlab_clearml_session.backend.client import ClearMLClient
from jupyterlab_clearml_session.backend.connection import Connection
from jupyterlab_clearml_session.backend.draft import RECORD, Materials, as_new_file, draft
from jupyterlab_clearml_session.backend.launch import (
    full_spec,
    launched_by,
    repository_folder,
    session_spec,
    with_host_keys,
)
from jupyterlab_clearml_session.backend.remote_script import session_script
from jupyterlab_clearml_session.errors import (
    ClearMLUnreachable,
    InvalidInput,
    NotDebuggable,
    UnknownQueue,
    UnknownSource,
)
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.models import HostKeyTrust, Task
from jupyterlab_clearml_session.phases import services

from .local_fixture import ClearMLUnderTest

TASK = "0123456789abcdef" * 2
KEYS = host_keys.generate()
PASSWORD = "the-ssh-password"


def _materials(**changes: Any) -> Materials:
    given = Materials(
        password=PASSWORD,
        host_keys=KEYS,
        host_public_keys=host_keys.public_keys(KEYS),
        launched_by="panel",
        project="p" * 32,
    )
    return dataclasses.replace(given, **changes)


def _drafted(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return draft(LaunchSpec.from_json(spec), _materials(**changes))


def _as_task(body: dict[str, Any], **changes: Any) -> Task:
    return reading.task({"id": TASK, "status": "queued", **body, **changes})


@pytest.fixture
def client(clearml_server: ClearMLUnderTest) -> ClearMLClient:
    client = ClearMLClient()
    client.use_local(clearml_server.credentials)
    return client


# -- the Task ----------------------------------------------------------------------------------------------


def test_no_secret_is_shown() -> None:
    materials = _materials(
        user_key="the-key", user_secret="the-secret", git_files={"_git_config": "the-config"}
    )
    shown = repr(materials)
    for secret in (PASSWORD, "the-key", "the-secret", "the-config", "PRIVATE"):
        assert secret not in shown


def test_the_record_holds_no_secret_and_no_local_path() -> None:
    body = _drafted({"password": "x-pass", "upload_files": ["/home/me/data"], "env": {"TOKEN": "t-value"}})
    record = body["runtime"][RECORD]
    for secret in (PASSWORD, "x-pass", "/home/me", "t-value", "PRIVATE"):
        assert secret not in record


def test_user_credentials_are_sent_only_when_asked() -> None:
    assert "_user_key" not in _drafted({})["runtime"]
    sent = _drafted({}, user_key="k", user_secret="s")["runtime"]
    assert (sent["_user_key"], sent["_user_secret"]) == ("k", "s")


def test_a_copy_forgets_where_the_original_ran() -> None:
    published = {
        "properties/external_address": "10.0.0.7",
        "properties/internal_ssh_port": "10022",
        "properties/vscode_port": "9000",
        "properties/jupyter_port": "8888",
    }
    hyperparams: dict[str, Any] = {"interactive_session": {}, "properties": {}}
    for key, value in {**published, "interactive_session/ssh_server": "True"}.items():
        section, name = key.split("/")
        hyperparams[section][name] = {"section": section, "name": name, "value": value, "type": "str"}
    body = _drafted({"base_task_id": TASK}, source={"id": TASK, "name": "base", "hyperparams": hyperparams})
    assert {item["value"] for item in body["hyperparams"]["properties"].values()} == {""}
    assert set(body["hyperparams"]["properties"]) == {key.split("/")[1] for key in published}


def test_a_session_of_an_old_client_keeps_its_section() -> None:
    general = {"ssh_server": {"section": "General", "name": "ssh_server", "value": "True", "type": "bool"}}
    body = _drafted(
        {"base_task_id": TASK, "keepalive": True},
        source={"id": TASK, "name": "old", "hyperparams": {"General": general}},
    )
    assert body["hyperparams"]["General"]["use_ssh_proxy"]["value"] == "True"
    assert "interactive_session" not in body["hyperparams"]


@pytest.mark.parametrize("text", ["", "echo theirs\n"])
def test_a_session_that_continues_another_one_has_none_of_its_variables(text: str) -> None:
    first = _drafted({"store_workspace": "~/ws", "env": {"OLD": "1"}, "init_script": text})
    source = {**first, "id": TASK, "name": "first"}
    body = _drafted({"store_workspace": "~/ws", "continue_session": TASK}, source=source)
    assert body["configuration"].get("interactive_init_script", {}).get("value", "") == text


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ({"docker_network": "host"}, "--network host"),
        ({"docker_network": "none", "docker": "image"}, ""),
        ({"docker_network": "port"}, "-p 10022:10022"),
        ({"docker_network": "port", "remote_ssh_port": "2222:2250"}, "-p 2222:2222"),
        ({"docker_network": "port", "docker_args": "-p 10022:10022 -e A=1"}, "-p 10022:10022 -e A=1"),
        ({"docker_network": "host", "docker_args": "--network host -e A=1"}, "--network host -e A=1"),
    ],
)
def test_docker_networks(spec: dict[str, Any], arguments: str) -> None:
    assert _drafted(spec)["container"]["arguments"] == arguments


def test_a_published_port_is_followed_where_the_real_agent_puts_it() -> None:
    """Without docker: the agent takes another port where ours is in use, and notes which."""
    with socket.create_server(("", 0)) as busy:
        port = busy.getsockname()[1]
        spec = {"docker_network": "port", "remote_ssh_port": f"{port}:{port}", "remote_gateway": "gpu-1"}
        command = ["docker", "run", *shlex.split(_drafted(spec)["container"]["arguments"])]
        _, noted = DockerArgsSanitizer.resolve_port_mapping({}, command)
    published = {"properties/internal_ssh_port": str(port), "properties/external_address": "gpu-1"}
    found = services(Task(id=TASK, name="a", status="in_progress", parameters=published, runtime=noted))
    assert (found.address, found.internal_ssh_port) == ("gpu-1", port)
    assert noted == {"_external_host_tcp_port_mapping": f"{found.ssh_port}:{port}"}
    assert found.ssh_port != port


def test_no_container_where_the_cluster_decides() -> None:
    assert "container" not in _drafted({"docker_network": "none"})


def test_a_task_without_a_repository_cannot_be_debugged() -> None:
    with pytest.raises(NotDebuggable) as caught:
        _drafted({"debugging_session": TASK}, source={"id": TASK, "name": "x", "script": {"repository": ""}})
    assert caught.value.detail["field"] == "debugging_session"


# -- env and clone_repo ------------------------------------------------------------------------------------


def _bash(script: str, home: Path, cwd: Path) -> dict[str, str]:
    """Run an init script as the remote script does; return the variables it leaves."""
    done = subprocess.run(
        ["bash", "-c", f"{script}\nenv -0"],
        cwd=cwd,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "CLEARML_TASK_ID": TASK},
        capture_output=True,
        check=True,
        timeout=30,
    )
    pairs = (entry.partition("=") for entry in done.stdout.decode().split("\0") if entry)
    return {name: value for name, _, value in pairs}


HOSTILE = {"A": "a b", "B": "$(exit 1) `exit 1` $HOME", "C": "'\"\\", "D": "two\nlines", "E": "", "F": "ä€"}


def test_variables_arrive_as_they_are(tmp_path: Path) -> None:
    script = init_script.compose('SEEN="$A"; export SEEN\n', env=HOSTILE)
    found = _bash(script, tmp_path, tmp_path)
    assert {name: found[name] for name in HOSTILE} == HOSTILE
    assert found["SEEN"] == "a b"  # the user's script has them too


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60),
    st.dictionaries(
        st.sampled_from(["A", "B_1", "C"]), st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    ),
    st.sampled_from(["", "repo", "a b'\"$(x)`"]),
)
def test_what_was_put_together_comes_apart(text: str, env: dict[str, str], repository: str) -> None:
    script = init_script.compose(text, env=env, repository=repository, folder="~/work")
    assert init_script.user_text(script) == text
    assert init_script.environment(script) == env


def test_variables_that_were_changed_by_hand_until_no_shell_reads_them_are_none() -> None:
    script = init_script.compose("echo hello\n", env={"A": "b c"}).replace("'b c'", "'b c")
    assert "'b c\n" in script
    assert init_script.environment(script) == {}
    assert init_script.user_text(script) == "echo hello\n"


def test_without_ours_the_script_is_the_user_s() -> None:
    assert init_script.compose("echo hi", env={}) == "echo hi"
    assert "interactive_init_script" not in _drafted({})["configuration"]
    assert _drafted({"init_script": "echo hi"})["configuration"]["interactive_init_script"] == {
        "name": "interactive_init_script",
        "value": "echo hi",
        "type": "bash",
    }


@pytest.mark.parametrize(
    ("folder", "place"),
    [("", ""), ("~/", ""), ("~/my work", "my work"), ("$HOME/x", "x"), ('~/a"b`c$(d)', 'a"b`c$(d)')],
)
def test_the_repository_is_linked_into_jupyter_s_folder(tmp_path: Path, folder: str, place: str) -> None:
    home, checkout = tmp_path / "home", tmp_path / "checkout"
    home.mkdir()
    checkout.mkdir()
    script = init_script.compose("", env={}, repository='re po"$x', folder=folder)
    _bash(script, home, checkout)
    _bash(script, home, checkout)  # once more, over the old link
    link = home / place / f're po"$x-{TASK[:8]}'
    assert link.resolve() == checkout
    assert list(checkout.iterdir()) == []


def test_the_link_in_a_workspace_is_not_archived(tmp_path: Path) -> None:
    """What the remote script does in one process: its beginning, the init script, and at the end the archive."""
    home, checkout = tmp_path / "home", tmp_path / "checkout"
    for folder in (home / "ws", checkout):
        folder.mkdir(parents=True)
    (home / "ws" / "note.txt").write_text("kept")
    script = init_script.compose("", env={}, repository="repo", folder="~/ws", in_workspace=True)
    link = home / "ws" / f"repo-{TASK[:8]}"
    _bash(script, home, checkout)
    assert not link.is_symlink(), "a script that does not keep it out of the archive gets no link"

    program = init_script.LINK_KEEPER + (
        "import json, pathlib, subprocess, sys\n"
        "dump = sys.executable + ' -c \"import json, os; print(json.dumps(dict(os.environ)))\"'\n"
        "found = subprocess.run(['bash', '-c', sys.argv[1] + dump], check=True, capture_output=True).stdout\n"
        "os.environ.update(json.loads(found))\n"
        "print(pathlib.Path(sys.argv[2]).resolve())\n"
        "shutil.make_archive(sys.argv[3], format='gztar', root_dir=pathlib.Path.home() / 'ws')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, script, str(link), str(tmp_path / "archive")],
        cwd=checkout,
        env={**os.environ, "HOME": str(home), "CLEARML_TASK_ID": TASK},
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.strip() == str(checkout)
    with tarfile.open(tmp_path / "archive.tar.gz") as archive:
        assert {name.removeprefix("./") for name in archive.getnames()} == {".", "note.txt"}


@pytest.mark.parametrize("workspace", ["", "~/ws"])
def test_only_a_repository_in_a_workspace_changes_the_remote_script(workspace: str) -> None:
    repository = {"url": "https://host/team/repo.git", "branch": "main", "commit": "a" * 40, "diff": ""}
    diff = _drafted({"clone_repo": repository, "store_workspace": workspace})["script"]["diff"]
    assert (diff == as_new_file(session_script())) == (not workspace)
    assert (diff == as_new_file(init_script.LINK_KEEPER + session_script())) == bool(workspace)
    assert drafting.without_new_file(diff) == ""
    plain = _drafted({"store_workspace": workspace})["script"]["diff"]
    assert plain == session_script()


def test_a_base_task_that_would_archive_the_link_gets_none() -> None:
    script = {"repository": "https://h/repo.git", "entry_point": "__interactive_session__.py", "diff": "old"}
    body = _drafted(
        {"store_workspace": "~/ws", "base_task_id": TASK}, source={"id": TASK, "name": "x", "script": script}
    )
    assert "interactive_init_script" not in body["configuration"]
    assert repository_folder(_as_task({**body, "script": {}})) == ""


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=30).stdout


def _apply_as_the_agent(folder: Path, diff: str) -> None:
    """Apply a diff as clearml-agent does: files that it names are made first."""
    for path in re.findall(r"^--- a/(.*)", diff, re.MULTILINE):
        (folder / path).touch()
    command = ["git", "apply", "--unidiff-zero"]
    subprocess.run(command, input=diff, cwd=folder, check=True, text=True, timeout=30)


def test_a_cloned_repository_gets_the_script_and_the_changes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "a.txt").write_text("two\n")
    diff = _git(tmp_path, "diff", "HEAD")
    _git(tmp_path, "checkout", "-q", ".")

    repository = {"url": "https://host/team/repo.git", "branch": "main", "commit": "a" * 40, "diff": diff}
    body = _drafted({"clone_repo": repository})
    script = body["script"]
    assert (script["repository"], script["branch"], script["version_num"]) == (
        "https://host/team/repo.git",
        "main",
        "a" * 40,
    )
    _apply_as_the_agent(tmp_path, script["diff"])
    assert (tmp_path / "a.txt").read_text() == "two\n"
    written = (tmp_path / script["entry_point"]).read_text()
    assert [line.rstrip() for line in written.splitlines()] == [
        line.rstrip() for line in session_script().splitlines()
    ]
    compile(written, script["entry_point"], "exec", dont_inherit=True)

    task = _as_task(body)
    assert repository_folder(task) == f"repo-{TASK[:8]}"
    text = body["configuration"]["interactive_init_script"]["value"]
    spec = full_spec(task, init_script_text=text, diff=script["diff"])
    assert spec.clone_repo is not None
    assert spec.clone_repo.to_json() == repository

    # Launched with another release of clearml-session than the one that is installed now.
    other = as_new_file("print(1)\n\n# another script\n") + diff
    read = full_spec(task, init_script_text=text, diff=other).clone_repo
    assert read is not None
    assert read.diff == diff


def test_a_new_file_as_a_diff(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    _apply_as_the_agent(tmp_path, as_new_file("a\n\n b \n"))
    assert (tmp_path / drafting.REPOSITORY_ENTRY_POINT).read_text() == "a\n\n b\n"


# -- reading back ------------------------------------------------------------------------------------------

SPEC: dict[str, Any] = {
    "name": "A session",
    "tags": ["a"],
    "docker": "image:1",
    "docker_args": "-e A=1",
    "docker_network": "port",
    "packages": ["torch"],
    "requirements": "numpy\n",
    "init_script": "echo hi\n",
    "env": {"A": "1"},
    "git_credentials": True,
    "jupyter_lab": False,
    "vscode_version": "4.9",
    "user_folder": "~/work",
    "store_workspace": "~/ws",
    "public_ip": True,
    "remote_ssh_port": "10050",
    "remote_gateway": "gate:22",
    "keepalive": True,
    "username": "me",
    "idle_timeout_min": 30,
}


def test_our_own_session_is_read_back() -> None:
    body = _drafted(SPEC)
    task = _as_task(body, execution={"queue": {"id": "q" * 32, "name": "gpu"}})
    read = LaunchSpec.from_json(session_spec(task))
    wanted = LaunchSpec.from_json({**SPEC, "queue": "gpu"})
    assert read == wanted.replace(init_script="", env={})  # those are not part of a listing
    text = body["configuration"]["interactive_init_script"]["value"]
    assert full_spec(task, init_script_text=text, diff="") == wanted
    assert "password" not in session_spec(task)
    assert launched_by(task) == "panel"


@pytest.mark.parametrize("packages", [[], ["tqdm"]])
def test_requirements_do_not_become_packages_as_well(packages: list[str]) -> None:
    read = session_spec(_as_task(_drafted({"packages": packages, "requirements": "torch==2.5\n"})))
    assert read["packages"] == packages
    assert read["requirements"] == "torch==2.5\n"


def test_requirements_too_long_to_be_noted_are_read_back_as_packages() -> None:
    lines = [f"package-{number:04}==1.0" for number in range(600)]
    body = _drafted({"packages": ["tqdm"], "requirements": "\n".join(lines)})
    assert session_spec(_as_task(body))["packages"] == [*lines, "tqdm"]


def test_packages_are_those_that_were_asked_for_not_what_the_agent_installed() -> None:
    body = _drafted({"packages": ["torch"]})
    del body["runtime"][RECORD]
    # What agents leave there (`freeze_task_environment`) once they have made the environment.
    asked = body["script"]["requirements"]["pip"]
    body["script"]["requirements"] = {"pip": "clearml==2.1.12\nsympy==1.13\ntorch==2.5", "org_pip": asked}
    assert session_spec(_as_task(body))["packages"] == ["torch"]


def test_a_session_of_the_command_line_is_read_back() -> None:
    body = _drafted({key: value for key, value in SPEC.items() if key not in ("env", "docker_network")})
    del body["runtime"][RECORD]
    read = session_spec(_as_task(body))
    for name in ("name", "tags", "docker", "docker_args", "jupyter_lab", "vscode_version", "user_folder"):
        assert read[name] == SPEC[name], name
    for name in ("store_workspace", "public_ip", "remote_ssh_port", "keepalive"):
        assert read[name] == SPEC[name], name
    assert read["packages"] == ["numpy", "torch"]
    assert read["docker_network"] == "host"
    assert launched_by(_as_task(body)) == "cli"


def test_who_launched_it() -> None:
    assert launched_by(_as_task(_drafted({}, launched_by="magic"))) == "magic"
    assert launched_by(_as_task({"name": "training", "hyperparams": {}})) == ""


@pytest.mark.parametrize("record", ["", "{", "[]", "7", '{"spec": 7, "by": 7, "host_keys": 7, "folder": 7}'])
def test_a_record_that_somebody_broke(record: str) -> None:
    task = _as_task({**_drafted({}), "runtime": {RECORD: record}})
    assert launched_by(task) == "cli"
    assert repository_folder(task) == ""
    assert session_spec(task)["name"] == "Interactive Session"
    assert with_host_keys(task).trust is HostKeyTrust.UNVERIFIED


@pytest.mark.parametrize("source", ["continue_session", "base_task_id"])
def test_a_session_with_a_repository_that_started_from_another_one_is_read_back(source: str) -> None:
    repository = {"url": "https://host/team/repo.git", "branch": "main", "commit": "a" * 40, "diff": ""}
    spec = {"clone_repo": repository, "store_workspace": "~/ws", source: "b" * 32}
    body = _drafted(spec, source={"id": "b" * 32, "name": "old", "type": "application"})
    read = full_spec(_as_task(body), init_script_text="", diff=body["script"]["diff"])
    assert getattr(read, source) == "b" * 32
    assert read.debugging_session == ""
    assert read.clone_repo is not None


def test_a_debugging_session_of_the_command_line() -> None:
    task = _as_task(
        {
            "name": "x",
            "parent": "b" * 32,
            "script": {
                "entry_point": "__interactive_session__.py",
                "repository": "https://host/team/repo.git",
            },
        }
    )
    assert repository_folder(task) == "environment/task_repository/repo.git"
    assert session_spec(task)["debugging_session"] == "b" * 32


def test_a_note_that_somebody_changed_is_taken_as_far_as_it_is_valid() -> None:
    noted = {"username": "root\n    ProxyCommand sh", "idle_timeout_min": "soon", "docker": "img", "new": 1}
    task = Task(
        id=TASK, name="a session", status="in_progress", runtime={RECORD: json.dumps({"spec": noted})}
    )
    read = session_spec(task)
    assert read == {**LaunchSpec().to_json(), "name": "a session", "docker": "img"} | {
        key: read[key] for key in ("docker_network", "tags", "project")
    }


def test_host_keys_and_what_they_prove() -> None:
    ours = _as_task(_drafted({}))
    assert with_host_keys(ours).trust is HostKeyTrust.PINNED
    assert with_host_keys(ours).host_keys == host_keys.public_keys(KEYS)
    vault = ("ssh-ed25519 AAAA",)
    assert with_host_keys(ours, vault).trust is HostKeyTrust.VAULT
    assert with_host_keys(ours, vault).host_keys == vault
    theirs = _as_task({"name": "cli"})
    assert with_host_keys(theirs).trust is HostKeyTrust.UNVERIFIED
    assert with_host_keys(theirs).host_keys == host_keys.default_public_keys()
    assert with_host_keys(theirs, (), host_keys.default_public_keys()).trust is HostKeyTrust.UNVERIFIED
    assert with_host_keys(theirs, (), host_keys.public_keys(KEYS)).trust is HostKeyTrust.PINNED


# -- on a server -------------------------------------------------------------------------------------------


async def test_the_launched_task_is_the_one_that_is_read(client: ClearMLClient) -> None:
    launched = await client.launch(LaunchSpec(docker="image"), launched_by="magic")
    read = await client.task(launched.id)
    assert read.status == launched.status == "queued"
    for name in (
        "name",
        "type",
        "parameters",
        "container",
        "runtime",
        "host_keys",
        "trust",
        "queue",
        "system_tags",
    ):
        assert getattr(read, name) == getattr(launched, name), name
    assert launched.user is not None
    assert launched.user.id == await client.user_id()
    assert [task.id for task in await client.sessions()] == [launched.id]


async def test_a_launch_costs_four_calls(client: ClearMLClient, clearml_server: ClearMLUnderTest) -> None:
    clearml_server.call("projects.create", name="DevOps", description="")
    await client.user()
    since = time.time()
    first = await client.launch(LaunchSpec())
    assert clearml_server.calls(since=since) == [
        "queues.get_all_ex",
        "projects.get_all",
        "tasks.create",
        "tasks.enqueue",
    ]
    since = time.time()
    await client.launch(LaunchSpec(queue="default"))
    assert clearml_server.calls(since=since) == ["tasks.create", "tasks.enqueue"]
    since = time.time()
    client.use_local(clearml_server.credentials)
    await client.launch(LaunchSpec(base_task_id=first.id))
    assert sorted(clearml_server.calls(since=since)) == [
        *("auth.login", "queues.get_all_ex", "tasks.create", "tasks.enqueue", "tasks.get_all_ex")
    ]


async def test_a_new_project_costs_one_more_once(
    client: ClearMLClient, clearml_server: ClearMLUnderTest
) -> None:
    await client.user()
    since = time.time()
    await client.launch(LaunchSpec(project="Brand (new) [project]"))
    assert len(clearml_server.calls(since=since)) == 5
    since = time.time()
    await client.launch(LaunchSpec(project="Brand (new) [project]"))
    assert len(clearml_server.calls(since=since)) <= 4
    names = [entry["name"] for entry in clearml_server.call("projects.get_all")["projects"]]
    assert names.count("Brand (new) [project]") == 1


async def test_two_launches_at_once_make_the_project_once(
    client: ClearMLClient, clearml_server: ClearMLUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Connection.call
    looked: list[str] = []
    both = asyncio.Event()

    async def together(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
        answer = await call(self, endpoint, **body)
        if endpoint == "projects.get_all" and not both.is_set():
            looked.append(endpoint)
            if len(looked) == 2:
                both.set()
            await asyncio.wait_for(both.wait(), 10)
        return answer

    monkeypatch.setattr(Connection, "call", together)
    first, second = await asyncio.gather(*(client.launch(LaunchSpec(project="new")) for _ in range(2)))
    assert first.project is not None
    assert first.project == second.project
    assert len(clearml_server.call("projects.get_all", name="^new$")["projects"]) == 1


async def test_a_project_that_was_deleted_is_made_again(
    client: ClearMLClient, clearml_server: ClearMLUnderTest
) -> None:
    first = await client.launch(LaunchSpec(project="Short lived"))
    assert first.project is not None
    clearml_server.call("projects.delete", project=first.project.id, force=True)
    second = await client.launch(LaunchSpec(project="Short lived"))
    assert second.project is not None
    assert second.project.id != first.project.id
    assert clearml_server.task(second.id)["project"] == second.project.id


async def test_a_queue_that_was_deleted_is_noticed(
    client: ClearMLClient, clearml_server: ClearMLUnderTest
) -> None:
    queue = clearml_server.call("queues.create", name="short lived")["id"]
    await client.queues()
    clearml_server.call("queues.delete", queue=queue)
    for _ in range(2):
        with pytest.raises(UnknownQueue):
            await client.launch(LaunchSpec(queue="short lived"))
    assert _tasks(clearml_server) == []


async def test_the_project_of_a_listed_session_is_remembered(
    client: ClearMLClient, clearml_server: ClearMLUnderTest
) -> None:
    await client.launch(LaunchSpec())
    other = ClearMLClient()
    other.use_local(clearml_server.credentials)
    await other.sessions()
    await other.queues()
    since = time.time()
    await other.launch(LaunchSpec())
    assert clearml_server.calls(since=since) == ["tasks.create", "tasks.enqueue"]


def _tasks(server: ClearMLUnderTest) -> list[Any]:
    return list(server.call("tasks.get_all", system_tags=["interactive"])["tasks"])


@pytest.mark.parametrize(
    ("spec", "error", "field"),
    [
        ({"queue": "no such queue"}, UnknownQueue, "queue"),
        ({"queue": TASK}, UnknownQueue, "queue"),
        ({"upload_files": ["/no/such/file"]}, InvalidInput, "upload_files"),
        ({"debugging_session": TASK}, UnknownSource, "debugging_session"),
        ({"base_task_id": TASK}, UnknownSource, "base_task_id"),
        ({"continue_session": TASK, "store_workspace": "~/ws"}, UnknownSource, "continue_session"),
    ],
)
async def test_what_cannot_be_launched_leaves_nothing(
    client: ClearMLClient,
    clearml_server: ClearMLUnderTest,
    spec: dict[str, Any],
    error: type[Exception],
    field: str,
) -> None:
    with pytest.raises(error) as caught:
        await client.launch(LaunchSpec.from_json(spec))
    assert caught.value.detail["field"] == field  # type: ignore[attr-defined]
    assert _tasks(clearml_server) == []


async def test_a_session_without_a_workspace_is_not_continued(
    client: ClearMLClient, clearml_server: ClearMLUnderTest
) -> None:
    earlier = clearml_server.call(
        "tasks.create", name="earlier", type="application", system_tags=["interactive"]
    )["id"]
    clearml_server.call("tasks.stopped", task=earlier, force=True)
    with pytest.raises(InvalidInput) as caught:
        await client.launch(LaunchSpec(continue_session=earlier, store_workspace="~/ws"))
    assert caught.value.detail["field"] == "continue_session"
    fresh = await client.launch(LaunchSpec(store_workspace="~/ws"))  # the last one has none: a new session
    assert fresh.parent is None


@pytest.mark.parametrize(
    ("include", "exclude", "queues", "chosen"),
    [
        ([], ["internal"], {}, "default"),
        ([], ["internal"], {"gpu": {"system_tags": ["interactive"]}}, "gpu"),
        ([], ["default"], {"zeta": {}, "alpha": {"tags": ["internal"]}}, "alpha"),
        ([], ["default", "internal"], {"zeta": {}, "alpha": {"tags": ["internal"]}}, "zeta"),
        (["big"], [], {"gpu": {"system_tags": ["interactive"]}, "large": {"tags": ["big"]}}, "large"),
        ([], ["internal"], {"gpu": {"system_tags": ["interactive", "internal"]}}, "default"),
        (["none"], [], {}, None),
    ],
)
async def test_the_rules_of_the_queue(
    clearml_server: ClearMLUnderTest,
    include: list[str],
    exclude: list[str],
    queues: dict[str, dict[str, Any]],
    chosen: str | None,
) -> None:
    for name, fields in queues.items():
        clearml_server.call("queues.create", name=name, **fields)
    client = ClearMLClient(queue_include_tags=include, queue_exclude_tags=exclude)
    client.use_local(clearml_server.credentials)
    if chosen is None:
        with pytest.raises(UnknownQueue):
            await client.launch(LaunchSpec())
        return
    task = await client.launch(LaunchSpec())
    assert task.queue is not None
    assert task.queue.name == chosen


# -- uploads -----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "my data"
    (folder / "sub").mkdir(parents=True)
    (folder / "one.txt").write_text("one")
    (folder / "sub" / "two.bin").write_bytes(os.urandom(600_000))
    return folder


async def test_an_upload_shows_its_progress(
    client: ClearMLClient, clearml_server: ClearMLUnderTest, files: Path
) -> None:
    seen: list[tuple[str, float]] = []
    task = await client.launch(
        LaunchSpec(upload_files=(str(files),)), progress=lambda text, fraction: seen.append((text, fraction))
    )
    await asyncio.sleep(0)
    assert {text for text, _ in seen} == {"Packing files", "Uploading files"}
    sent = [fraction for text, fraction in seen if text == "Uploading files"]
    assert sent == sorted(sent)
    assert sent[-1] == 1.0
    assert len(sent) > 3
    (artifact,) = clearml_server.task(task.id)["execution"]["artifacts"]
    assert artifact["uri"].endswith("/artifacts/session-files/my%20data.zip")
    assert clearml_server.task(task.id)["status"] == "queued"


async def test_several_paths_are_one_archive(
    client: ClearMLClient, clearml_server: ClearMLUnderTest, files: Path
) -> None:
    single = files.parent / "single.txt"
    single.write_text("x")
    task = await client.launch(LaunchSpec(upload_files=(str(files), str(single))))
    (artifact,) = clearml_server.task(task.id)["execution"]["artifacts"]
    names = [
        line.partition(" - ")[0] for line in artifact["type_data"]["preview"].splitlines() if " - " in line
    ]
    assert names == ["my data/one.txt", "my data/sub/two.bin", "single.txt"]
    assert artifact["type"] == "archive"


async def test_a_file_from_before_1980_is_uploaded(client: ClearMLClient, files: Path) -> None:
    os.utime(files / "one.txt", (0, 0))  # as reproducible builds set it; a zip cannot say it
    await client.launch(LaunchSpec(upload_files=(str(files),)))


@pytest.mark.skipif(sys.platform == "darwin", reason="file systems there take Unicode names only")
async def test_a_name_that_is_not_unicode_is_refused_and_leaves_nothing(
    client: ClearMLClient, clearml_server: ClearMLUnderTest, files: Path
) -> None:
    Path(os.fsdecode(os.fsencode(files) + b"/\xff")).touch()
    with pytest.raises(InvalidInput) as caught:
        await client.launch(LaunchSpec(upload_files=(str(files),)))
    assert caught.value.detail["field"] == "upload_files"
    assert json.dumps(caught.value.to_json())
    assert clearml_server.call("tasks.get_all")["tasks"] == []


def test_two_things_of_one_name_cannot_be_uploaded(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same").touch()
    with pytest.raises(InvalidInput):
        uploads.check([str(tmp_path / "a" / "same"), str(tmp_path / "b" / "same")])


async def test_an_upload_that_fails_leaves_no_session(clearml_server: ClearMLUnderTest, files: Path) -> None:
    client = ClearMLClient()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client.use_local({**clearml_server.credentials, "files_server": f"http://127.0.0.1:{port}"})
    with pytest.raises(ClearMLUnreachable):
        await client.launch(LaunchSpec(upload_files=(str(files),)))
    assert _tasks(clearml_server) == []


@pytest.mark.parametrize("own", [True, False], ids=["the file server", "another server"])
async def test_only_clearmls_own_server_is_given_our_token(
    clearml_server: ClearMLUnderTest, files: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    got: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Stay silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        elsewhere = address if own else "http://127.0.0.1:1"
        client = ClearMLClient()
        client.use_local({**clearml_server.credentials, "files_server": elsewhere})
        await client.user()  # imports the SDK, in the way that leaves argparse alone
        # As `sdk.development.default_output_uri` in the user's configuration.
        session = "jupyterlab_clearml_session.backend.sdk.BoundedSession"
        monkeypatch.setattr(f"{session}.default_output_uri", lambda self: f"{address}/folder")
        task = await client.launch(LaunchSpec(upload_files=(str(files / "one.txt"),)))
        server.shutdown()
        thread.join()
    (authorization,) = got
    assert (authorization or "").startswith("Bearer ") == own
    (artifact,) = clearml_server.task(task.id)["execution"]["artifacts"]
    assert artifact["uri"].startswith(f"{address}/folder/")


async def test_a_launch_that_is_cancelled_leaves_no_session(
    client: ClearMLClient, clearml_server: ClearMLUnderTest, files: Path
) -> None:
    launching: asyncio.Future[Task]

    def cancel(text: str, fraction: float) -> None:
        if not seen:
            seen.append(text)
            launching.cancel()

    seen: list[str] = []

    launching = asyncio.ensure_future(client.launch(LaunchSpec(upload_files=(str(files),)), progress=cancel))
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert _tasks(clearml_server) == []
    deadline = time.monotonic() + 10
    while any(thread.name == "clearml-session-api" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the upload goes on"
        await asyncio.sleep(0.01)


async def test_every_session_has_a_password_of_its_own(client: ClearMLClient) -> None:
    passwords = {(await client.launch(LaunchSpec())).runtime["_ssh_password"] for _ in range(2)}
    assert len(passwords) == 2
    assert all(len(password) == 64 for password in passwords)
    chosen = await client.launch(LaunchSpec(password=PASSWORD))
    assert chosen.runtime["_ssh_password"] == PASSWORD
