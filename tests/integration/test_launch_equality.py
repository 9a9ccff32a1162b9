"""Our Task equals the one that the stock ``clearml-session`` 0.17 makes with the same options.

The command line runs in a terminal against the embedded server, without an agent; it is stopped as soon as its Task
is in the queue. Each case then launches the same with ours, and compares everything on the two Tasks. What differs
on purpose is named in `_as_ours` and listed, with reasons, in docs/cli-options.md.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pexpect
import pytest

from jupyterlab_clearml_session.backend import init_script
from jupyterlab_clearml_session.backend.client import ClearMLClient
from jupyterlab_clearml_session.backend.draft import RECORD
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.local.server import LocalServer
from tests.integration.forked_cli import ForkedCli
from tests.local_fixture import ClearMLUnderTest, Front, LoopThread, write_config

pytestmark = pytest.mark.integration

DEADLINE_S = 120
PASSWORD = "a-password"
ACCESS_TO_GIT = "https://user:token@host\n"
GIT_CONFIG = "[user]\n\tname = Somebody\n"


@dataclass(frozen=True)
class Case:
    """One combination: arguments of the command line, and the same as a LaunchSpec.

    Texts may hold ``{base}``, ``{debug}``, ``{workspace}`` (ids of Tasks on the server) and ``{files}`` (a folder).
    ``answers`` are typed at prompts, in order; without any, the command line runs with ``--yes``.
    """

    cli: tuple[str, ...]
    spec: dict[str, Any] = field(default_factory=dict)
    answers: tuple[tuple[str, str], ...] = ()
    home: dict[str, str] = field(default_factory=dict)
    send_user_credentials: bool = False


_GIT_HOME = {".git-credentials": ACCESS_TO_GIT, ".gitconfig": GIT_CONFIG}
_PYTHON = ("--docker", "python:3.11")

CASES: dict[str, Case] = {
    "nothing said": Case((), {}),
    "without docker's network": Case(
        ("--skip-docker-network", "true", *_PYTHON), {"docker_network": "none", "docker": "python:3.11"}
    ),
    "with the user's credentials": Case(_PYTHON, {"docker": "python:3.11"}, send_user_credentials=True),
    "name, project, tags": Case(
        ("--session-name", "My session", "--project", "A project/sub", "--session-tags", "b", "a", *_PYTHON),
        {"name": "My session", "project": "A project/sub", "tags": ["b", "a"], "docker": "python:3.11"},
    ),
    "queue by name": Case(("--queue", "other", *_PYTHON), {"queue": "other", "docker": "python:3.11"}),
    "docker arguments on the host network": Case(
        ("--docker", "nvidia/cuda:12", "--docker-args", "-e A=1 --ipc=host"),
        {"docker": "nvidia/cuda:12", "docker_args": "-e A=1 --ipc=host"},
    ),
    "docker arguments without network": Case(
        ("--docker", "image:1", "--docker-args", "-v /a:/b", "--skip-docker-network", "true"),
        {"docker": "image:1", "docker_args": "-v /a:/b", "docker_network": "none"},
    ),
    "docker with arguments in the image": Case(
        ("--docker", "image:1 --network host -e B=2"), {"docker": "image:1 --network host -e B=2"}
    ),
    "packages": Case(
        ("--packages", "torch==2.5", "Jupyter>=1", "clearml==2.0", *_PYTHON),
        {"packages": ["torch==2.5", "Jupyter>=1", "clearml==2.0"], "docker": "python:3.11"},
    ),
    "requirements": Case(
        ("--requirements", "{files}/requirements.txt", *_PYTHON),
        {"requirements": "# a comment\n  zlib-ng\n\njupyterlab==4.2\n", "docker": "python:3.11"},
    ),
    "packages and requirements": Case(
        (
            "--packages",
            "tqdm",
            "--requirements",
            "{files}/requirements.txt",
            "--jupyter-lab",
            "false",
            *_PYTHON,
        ),
        {
            "packages": ["tqdm"],
            "requirements": "# a comment\n  zlib-ng\n\njupyterlab==4.2\n",
            "jupyter_lab": False,
            "docker": "python:3.11",
        },
    ),
    "init script": Case(
        ("--init-script", "{files}/init.sh", *_PYTHON),
        {"init_script": "apt-get update\necho 'ready'\n", "docker": "python:3.11"},
    ),
    "init script and folder": Case(
        ("--init-script", "{files}/init.sh", "--user-folder", "~/work dir", *_PYTHON),
        {
            "init_script": "apt-get update\necho 'ready'\n",
            "user_folder": "~/work dir",
            "docker": "python:3.11",
        },
    ),
    "git credentials": Case(
        ("--git-credentials", "true", *_PYTHON),
        {"git_credentials": True, "docker": "python:3.11"},
        home=_GIT_HOME,
    ),
    "git credentials without a configuration": Case(
        ("--git-credentials", "true", "--user-folder", "/data", *_PYTHON),
        {"git_credentials": True, "user_folder": "/data", "docker": "python:3.11"},
        home={".git-credentials": ACCESS_TO_GIT},
    ),
    "no services": Case(
        ("--jupyter-lab", "false", "--vscode-server", "false", *_PYTHON),
        {"jupyter_lab": False, "vscode_server": False, "docker": "python:3.11"},
    ),
    "vs code": Case(
        ("--vscode-version", "4.96.2:2024.22.1", "--vscode-extensions", "ms-python.python,a.b", *_PYTHON),
        {
            "vscode_version": "4.96.2:2024.22.1",
            "vscode_extensions": "ms-python.python,a.b",
            "docker": "python:3.11",
        },
    ),
    "vs code, asked for but off": Case(
        ("--vscode-server", "no", "--vscode-version", "4.9", "--vscode-extensions", "a.b", *_PYTHON),
        {
            "vscode_server": False,
            "vscode_version": "4.9",
            "vscode_extensions": "a.b",
            "docker": "python:3.11",
        },
    ),
    "network": Case(
        (
            "--public-ip",
            "true",
            "--remote-ssh-port",
            "10050",
            "--remote-gateway",
            "gate:2222",
            "--keepalive",
            "true",
            *_PYTHON,
        ),
        {
            "public_ip": True,
            "remote_ssh_port": "10050",
            "remote_gateway": "gate:2222",
            "keepalive": True,
            "docker": "python:3.11",
        },
    ),
    "network, otherwise": Case(
        (
            *("--public-ip", "yes", "--remote-ssh-port", "10022:15000", "--remote-gateway", "10.0.0.1"),
            *("--router-enabled", "true", "--keepalive", "true", *_PYTHON),
        ),
        {
            "public_ip": True,
            "remote_ssh_port": "10022:15000",
            "remote_gateway": "10.0.0.1",
            "router_enabled": True,
            "keepalive": True,
            "docker": "python:3.11",
        },
    ),
    "router, dropbear, user": Case(
        ("--router-enabled", "true", "--force-dropbear", "true", "--username", "somebody", *_PYTHON),
        {"router_enabled": True, "force_dropbear": True, "username": "somebody", "docker": "python:3.11"},
    ),
    "dropbear, user, another name": Case(
        (
            "--force-dropbear",
            "true",
            "--username",
            "root",
            "--session-name",
            "Another",
            "--session-tags",
            "x",
            *_PYTHON,
        ),
        {
            "force_dropbear": True,
            "username": "root",
            "name": "Another",
            "tags": ["x"],
            "docker": "python:3.11",
        },
    ),
    "a file uploaded": Case(
        ("--upload-files", "{files}/requirements.txt", *_PYTHON),
        {"upload_files": ["{files}/requirements.txt"], "docker": "python:3.11"},
    ),
    "a folder uploaded": Case(
        ("--upload-files", "{files}", "--project", "Uploads", *_PYTHON),
        {"upload_files": ["{files}"], "project": "Uploads", "docker": "python:3.11"},
    ),
    "the last workspace continued": Case(
        ("--store-workspace", "~/workspace", *_PYTHON),
        {"store_workspace": "~/workspace", "docker": "python:3.11"},
    ),
    "a chosen workspace continued": Case(
        (
            "--store-workspace",
            "~/ws",
            "--continue-session",
            "{workspace}",
            "--session-name",
            "Next",
            "--packages",
            "tqdm",
        ),
        {"store_workspace": "~/ws", "continue_session": "{workspace}", "name": "Next", "packages": ["tqdm"]},
    ),
    "continued without a workspace": Case(
        ("--continue-session", "{workspace}", *_PYTHON),
        {"continue_session": "{workspace}", "docker": "python:3.11"},
    ),
    "base task": Case(("--base-task-id", "{base}"), {"base_task_id": "{base}"}),
    "base task with changes": Case(
        (
            *(
                "--base-task-id",
                "{base}",
                "--session-name",
                "Based",
                "--packages",
                "torch",
                "--docker-args",
                "-e C=3",
            ),
            *("--init-script", "{files}/init.sh", "--vscode-server", "false"),
        ),
        {
            "base_task_id": "{base}",
            "name": "Based",
            "packages": ["torch"],
            "docker_args": "-e C=3",
            "init_script": "apt-get update\necho 'ready'\n",
            "vscode_server": False,
        },
    ),
    "debugging session": Case(
        ("--debugging-session", "{debug}", *_PYTHON),
        {"debugging_session": "{debug}", "docker": "python:3.11"},
    ),
    "debugging session with changes": Case(
        (
            *(
                "--debugging-session",
                "{debug}",
                "--packages",
                "numpy==2",
                "tqdm",
                "--session-name",
                "Debugged",
            ),
            *("--jupyter-lab", "false", "--skip-docker-network", "true"),
        ),
        {
            "debugging_session": "{debug}",
            "packages": ["numpy==2", "tqdm"],
            "name": "Debugged",
            "jupyter_lab": False,
            "docker_network": "none",
        },
    ),
    "queue asked for": Case(
        _PYTHON,
        {"queue": "", "docker": "python:3.11"},
        answers=(("Select a queue", "0"), ("Launch interactive session", "y")),
    ),
}

# Said of a session, but standing nowhere on the command line's Task.
_NOT_ON_THE_TASK = {"username"}
# Not options of the command line 0.17.
_OURS = {"env", "idle_timeout_min", "clone_repo", "disable_storage_packages"}


@dataclass
class Bench:
    """The server with its Tasks, and the command line's runs, under way or done."""

    server: ClearMLUnderTest
    names: dict[str, str]
    runs: dict[str, Future[str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("equality")
    loop = LoopThread()

    async def start() -> tuple[LocalServer, dict[str, str]]:
        local = LocalServer(directory / "server")
        return local, local.start()

    async def stop(local: LocalServer) -> None:
        local.stop()

    local, credentials = loop.run(start())
    front = Front(loop, credentials["api_server"])
    server = ClearMLUnderTest(
        credentials, directory, front, credentials["api_server"], directory / "server" / "access.jsonl"
    )
    bench = Bench(server, _populate(server, directory))
    # As many at a time as there are cores, in the order of the cases.
    programs: SimpleQueue[ForkedCli] = SimpleQueue()
    started = [ForkedCli() for _ in range(2)]
    for program in started:
        programs.put(program)
    with ThreadPoolExecutor(len(started)) as pool:
        for number, (name, case) in enumerate(CASES.items()):
            run = _run_asked if case.answers else _run_forked
            bench.runs[name] = pool.submit(run, bench, case, directory / f"home-{number}", programs)
        yield bench
    for program in started:
        program.close()
    loop.run(stop(local))
    loop.close()


def _populate(server: ClearMLUnderTest, directory: Path) -> dict[str, str]:
    """Make the queues, Tasks and files that the cases start from; return what the texts name."""
    files = directory / "files"
    (files / "sub").mkdir(parents=True)
    (files / "requirements.txt").write_text("# a comment\n  zlib-ng\n\njupyterlab==4.2\n")
    (files / "init.sh").write_text("apt-get update\necho 'ready'\n")
    (files / "sub" / "data.bin").write_bytes(bytes(range(256)))
    server.call("queues.create", name="other")
    project = server.call("projects.create", name="Research", description="")["id"]
    server.call("projects.create", name="DevOps", description="")
    base = server.call(
        "tasks.create",
        name="A base session",
        type="application",
        project=project,
        comment="kept",
        tags=["from-base"],
        system_tags=["interactive"],
        script={
            "diff": "print('the base')",
            "entry_point": ".interactive_session.py",
            "working_dir": ".",
            "binary": "python",
            "requirements": {"pip": "clearml>=1.1.5\nscipy==1.1"},
        },
        hyperparams={
            "interactive_session": _section(
                "interactive_session", ssh_server="True", ssh_ports="", extra="kept"
            ),
            "Args": _section("Args", lr="0.1"),
            "properties": _section("properties", external_address="", jupyter_port="", internal_ssh_port=""),
        },
        configuration={
            "interactive_init_script": {"name": "interactive_init_script", "value": "old", "type": "bash"}
        },
        container={"image": "base/image", "arguments": "-e X=1", "setup_shell_script": ""},
    )["id"]
    debug = server.call(
        "tasks.create",
        name="An experiment",
        type="training",
        project=project,
        tags=["experiment"],
        script={
            "repository": "https://host/team/repo.git",
            "branch": "main",
            "version_num": "a" * 40,
            "tag": "",
            "binary": "python3.11",
            "entry_point": "train.py",
            "working_dir": "src",
            "diff": "diff --git a/train.py b/train.py\n",
            "requirements": {"pip": "# header\nnumpy==1.26\nclearml==2.1", "conda": "x"},
        },
        hyperparams={"Args": _section("Args", lr="0.1")},
    )["id"]
    workspace = server.call(
        "tasks.create",
        name="An earlier session",
        type="application",
        project=project,
        system_tags=["interactive"],
        script={
            "diff": "old",
            "entry_point": ".interactive_session.py",
            "working_dir": ".",
            "binary": "python",
        },
        hyperparams={
            "interactive_session": _section("interactive_session", ssh_server="True", store_workspace="x")
        },
        container={"image": "earlier/image", "arguments": "", "setup_shell_script": ""},
        execution={
            "artifacts": [
                {
                    "key": "workspace",
                    "type": "archive",
                    "mode": "input",
                    "uri": "http://127.0.0.1:1/workspace.tgz",
                },
                {"key": "report", "type": "custom", "mode": "output", "uri": "http://127.0.0.1:1/report"},
            ]
        },
    )["id"]
    server.call("tasks.stopped", task=workspace, force=True)
    return {"base": base, "debug": debug, "workspace": workspace, "files": str(files)}


def _section(name: str, **values: str) -> dict[str, Any]:
    return {
        key: {"section": name, "name": key, "value": value, "type": "str", "description": ""}
        for key, value in values.items()
    }


def _run_forked(bench: Bench, case: Case, home: Path, programs: SimpleQueue[ForkedCli]) -> str:
    """Run the command line until its Task is in the queue; return the Task's id."""
    arguments = [*_arguments(bench, case), "--yes"]
    if "--queue" not in arguments:
        arguments += ["--queue", "default"]
    program = programs.get()
    try:
        task_id = program.run(arguments, _environment(bench, case, home))
        bench.server.wait_for_status(task_id, "queued", deadline=DEADLINE_S)
        program.end()
    finally:
        programs.put(program)
    return task_id


def _run_asked(bench: Bench, case: Case, home: Path, _: SimpleQueue[ForkedCli]) -> str:
    """As `_run_forked`, in a process all of its own, with answers to its questions."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "clearml_session", *_arguments(bench, case)],
        env=_environment(bench, case, home),
        encoding="utf-8",
        timeout=DEADLINE_S,
        dimensions=(40, 200),
    )
    try:
        for prompt, answer in case.answers:
            child.expect(prompt)
            child.sendline(answer)
        child.expect(r"New session created \[id=([0-9a-f]{32})\]")
        task_id = str(child.match.group(1))
        bench.server.wait_for_status(task_id, "queued", deadline=DEADLINE_S)
    except pexpect.EOF:
        raise AssertionError(f"the command line gave up: {child.before}") from None
    finally:
        child.close(force=True)
    return task_id


def _arguments(bench: Bench, case: Case) -> list[str]:
    given = [argument.format(**bench.names) for argument in case.cli]
    return ["--disable-session-cleanup", "true", "--password", PASSWORD, *given]


def _environment(bench: Bench, case: Case, home: Path) -> dict[str, str]:
    home.mkdir()
    for name, text in case.home.items():
        (home / name).write_text(text)
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "TERM": "xterm",
        "CLEARML_CONFIG_FILE": str(write_config(bench.server, home)),
    }


@pytest.mark.parametrize("name", CASES)
async def test_same_task(bench: Bench, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    for file, text in case.home.items():
        (tmp_path / file).write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    client = ClearMLClient(send_user_credentials=case.send_user_credentials)
    client.use_local(bench.server.credentials)
    spec = LaunchSpec.from_json({"queue": "default", **_filled(case.spec, bench.names), "password": PASSWORD})
    launched = await client.launch(spec, launched_by="panel")

    theirs = bench.server.task(bench.runs[name].result(DEADLINE_S))
    ours = bench.server.task(launched.id)
    assert _normal(ours, bench) == _normal(_as_ours(theirs, ours, case), bench)


def _filled(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        return value.format(**names)
    if isinstance(value, list):
        return [_filled(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, names) for key, item in value.items()}
    return value


def _as_ours(theirs: dict[str, Any], ours: dict[str, Any], case: Case) -> dict[str, Any]:
    """Apply the deliberate differences to the command line's Task, and check each one."""
    # Fresh host keys instead of private keys that everybody knows.
    keys = json.loads(ours["configuration"]["SSH"]["value"])
    assert "SSH" not in theirs["configuration"]
    assert keys["ssh_host_ed25519_key"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    theirs["configuration"]["SSH"] = ours["configuration"]["SSH"]
    # What we note of the launch, in one entry that upstream leaves alone.
    record = json.loads(ours["runtime"][RECORD])
    assert record["by"] == "panel"
    assert PASSWORD not in ours["runtime"][RECORD]
    theirs["runtime"][RECORD] = ours["runtime"][RECORD]
    # The user's ClearML credentials are sent only where that is set.
    if not case.send_user_credentials:
        del theirs["runtime"]["_user_key"], theirs["runtime"]["_user_secret"]
    # A checked-out repository is linked into Jupyter's folder, where it can be opened.
    if case.spec.get("debugging_session"):
        script = ours["configuration"]["interactive_init_script"]
        assert init_script.user_text(script["value"]) == ""
        theirs["configuration"]["interactive_init_script"] = script
    return theirs


def _normal(task: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Return what a launch decides, without times, ids, and what is random by nature."""
    shown = {
        name: task.get(name)
        for name in (
            *("name", "type", "status", "tags", "system_tags", "parent", "project", "script", "container"),
            *("hyperparams", "configuration", "runtime", "models", "output", "user", "enqueue_status"),
        )
    }
    comment = str(task.get("comment", ""))
    shown["comment"] = comment.split(" at ")[0] + comment.partition("UTC")[2]
    execution = dict(task["execution"])
    execution["artifacts"] = [_artifact(item, task["id"], bench) for item in execution.get("artifacts") or []]
    shown["execution"] = execution
    shown["runtime"] = {name: _runtime(name, value) for name, value in task["runtime"].items()}
    return shown


def _runtime(name: str, value: Any) -> Any:
    if name in ("_git_credentials", "_git_config"):  # gzip notes the time
        return gzip.decompress(base64.decodebytes(value.encode())).decode()
    return value


def _artifact(item: dict[str, Any], task_id: str, bench: Bench) -> dict[str, Any]:
    """An uploaded one: the address ends in our own folder, the preview names no path of this machine."""
    shown = {
        name: value
        for name, value in item.items()
        if name not in ("timestamp", "uri", "type_data", "display_data")
    }
    shown["file"] = item["uri"].rpartition("/artifacts/")[2]
    preview = (item.get("type_data") or {}).get("preview") or ""
    shown["files"] = sorted(line.partition(" - ")[0] for line in preview.splitlines() if " - " in line)
    shown["content_type"] = (item.get("type_data") or {}).get("content_type") or None
    return shown


def test_every_option_is_in_two_cases() -> None:
    assert len(CASES) >= 25
    used = Counter(option for case in CASES.values() for option in case.spec)
    used["queue"] += len(CASES)
    used["password"] += len(CASES)
    assert {name for name in LaunchSpec().to_json(include_secrets=True) if used[name] < 2} == _OURS
