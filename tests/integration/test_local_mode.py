"""LocalMode as a whole: the real agent, the real remote script, and that everything ends with its parent."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from jupyterlab_clearml_session.errors import LocalModeFailed
from jupyterlab_clearml_session.local import LocalMode
from jupyterlab_clearml_session.local.sandbox import MARKER
from tests.local_fixture import (
    ClearMLUnderTest,
    Services,
    launch_session,
    wait_for_services,
)

pytestmark = pytest.mark.integration

PASSWORD = "a-session-password"

PARENT = """
import asyncio, json, sys
from pathlib import Path
from jupyterlab_clearml_session.local import LocalMode

async def main():
    mode = LocalMode(Path(sys.argv[1]), agents=int(sys.argv[2]))
    print(json.dumps(await mode.start()), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@contextmanager
def parent_of_local_mode(
    directory: Path, agents: int = 1
) -> Iterator[tuple[subprocess.Popen[str], ClearMLUnderTest]]:
    """A process that started a LocalMode, with secrets in its environment."""
    outside = directory.parent / "outside"
    outside.mkdir()
    environment = {
        **os.environ,
        "HOME": str(outside),
        "TMPDIR": str(outside),
        "JUPYTER_TOKEN": "leaked",
        "GITHUB_TOKEN": "leaked",
        "CLEARML_API_HOST": "leaked",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(directory), str(agents)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=outside,
    )
    try:
        assert process.stdout is not None
        credentials = json.loads(process.stdout.readline())
        access_log = directory / "server" / "access.jsonl"
        yield process, ClearMLUnderTest(credentials, directory, None, credentials["api_server"], access_log)
    finally:
        process.kill()
        process.wait()


def belonging_to(directory: Path) -> list[psutil.Process]:
    """The processes that have the directory in their environment or command line, and carry the marker."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(directory) in command or (
            MARKER in environment and environment.get("HOME", "").startswith(str(directory))
        ):
            found.append(process)
    return found


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty where it has ended meanwhile."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def wait_for_no_process(directory: Path, deadline: float = 10.0) -> float:
    """Seconds until no process belongs to the directory."""
    start = time.monotonic()
    while left := belonging_to(directory):
        assert time.monotonic() - start < deadline, left
        time.sleep(0.05)
    return time.monotonic() - start


def jupyter_status(services: Services) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{services.jupyter_port}/api/status",
        headers={"Authorization": f"token {services.jupyter_token}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        status: dict[str, Any] = json.load(answer)
        return status


def start_kernel(services: Services) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{services.jupyter_port}/api/kernels",
        data=b"{}",
        headers={"Authorization": f"token {services.jupyter_token}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 201


async def run_over_ssh(services: Services, command: str) -> str:
    async with asyncssh.connect(
        services.address,
        services.ssh_port,
        username="root",
        password=PASSWORD,
        known_hosts=None,
        config=None,
        client_keys=None,
    ) as connection:
        return str((await connection.run(command, check=True)).stdout)


def test_two_sessions_their_sandbox_and_sigkill_of_the_parent(tmp_path: Path) -> None:
    directory = tmp_path / "local"
    with parent_of_local_mode(directory, agents=2) as (parent, server):
        ids = [launch_session(server, password=PASSWORD) for _ in range(2)]
        services, second = (wait_for_services(server, task_id) for task_id in ids)
        assert services.jupyter_port != second.jupyter_port
        assert services.ssh_port != second.ssh_port
        for each in (services, second):
            assert each.address == "127.0.0.1"
            assert jupyter_status(each)["kernels"] == 0
        start_kernel(services)

        seen = asyncio.run(run_over_ssh(services, "env; echo; ls -A ~"))
        environment, files = seen.split("\n\n")
        assert re.search(rf"^HOME={re.escape(str(directory))}/agent-[12]/home$", environment, re.MULTILINE)
        assert "leaked" not in environment
        assert ".jupyter" in files
        # A command that leaves its session, as a daemon does.
        asyncio.run(run_over_ssh(services, "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo"))
        clean = "env -i setsid sh -c 'echo $$; exec sleep 1001 >/dev/null 2>&1 </dev/null'"
        daemon = psutil.Process(int(asyncio.run(run_over_ssh(services, f"({clean}) & sleep 0.2")).strip()))
        assert any("sleep" in words_of(process) for process in belonging_to(directory))
        # Server, guard; for each session an agent, its child, the session, sshd, Jupyter; the kernel.
        assert len(belonging_to(directory)) >= 13

        parent.send_signal(signal.SIGKILL)
        parent.wait()
        seconds = wait_for_no_process(directory)
        assert seconds < 5
        if sys.platform == "linux":
            daemon.wait(5)
        assert list((tmp_path / "outside").iterdir()) == []
    for port in (services.ssh_port, services.jupyter_port):
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=1)


def test_the_server_process_is_killed(tmp_path: Path) -> None:
    """Not even a SIGKILL of the server's own process leaves the agent behind."""
    with parent_of_local_mode(tmp_path / "local") as (parent, server):
        (child,) = psutil.Process(parent.pid).children()
        wait_for_worker(server)
        child.kill()
        wait_for_no_process_but(tmp_path / "local", parent.pid)


def wait_for_worker(server: ClearMLUnderTest, deadline: float = 20.0) -> None:
    end = time.monotonic() + deadline
    while not server.call("workers.get_count")["count"]:
        assert time.monotonic() < end
        time.sleep(0.1)


def wait_for_no_process_but(directory: Path, pid: int, deadline: float = 10.0) -> None:
    end = time.monotonic() + deadline
    while left := [process for process in belonging_to(directory) if process.pid != pid]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def test_stop_asks_the_agent(local_mode: ClearMLUnderTest) -> None:
    task_id = launch_task(local_mode, "import time\nprint('it runs', flush=True)\ntime.sleep(1000)")
    local_mode.wait_for_status(task_id, "in_progress")
    wait_for_console(local_mode, task_id, "it runs")
    assert local_mode.call("tasks.stop", task=task_id)["fields"]["status_message"] == "stopping"
    task = local_mode.wait_for_status(task_id, "stopped", deadline=15)
    assert "completed" in task


def test_a_package_that_does_not_exist(local_mode: ClearMLUnderTest) -> None:
    task_id = launch_session(local_mode, password=PASSWORD, requirements="clearml\n./no-such-directory/xyz")
    task = local_mode.wait_for_status(task_id, "failed")
    assert "exit code" in task["status_reason"] + task["status_message"]
    console = local_mode.console(task_id)
    assert "no-such-directory" in console
    assert "The packages of this session could not be installed" in console


def test_ends_of_tasks_and_their_packages(local_mode: ClearMLUnderTest, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "jcs_test_package", "1.5")
    code = "import jcs_test_package, clearml\nprint('imported', jcs_test_package.VALUE)"
    installed = launch_task(local_mode, code, requirements=f"clearml\n{wheel}")
    # Neither another task nor this environment has it.
    not_installed = launch_task(local_mode, code)
    exited = launch_task(local_mode, "print('so far')\nraise SystemExit(3)")
    assert local_mode.wait_for_status(installed, "completed", "failed")["status"] == "completed"
    assert "imported 42" in local_mode.console(installed)
    for task_id in (not_installed, exited):
        assert local_mode.wait_for_status(task_id, "completed", "failed")["status"] == "failed"
    assert "so far" in local_mode.console(exited)


async def test_stop_and_restart(tmp_path: Path) -> None:
    mode = LocalMode(tmp_path, agents=1)
    server = under_test(mode, await mode.start(), tmp_path)
    task_id = launch_task(server, "import time\nprint('it runs', flush=True)\ntime.sleep(1000)")
    await asyncio.to_thread(wait_for_console, server, task_id, "it runs")
    waiting = launch_task(server, "print(1)")
    assert mode.agents == {"this-machine-1": "running"}
    await mode.stop()
    assert not mode.is_running
    assert belonging_to(tmp_path) == []

    credentials = await mode.start()
    assert credentials["secret_key"] != server.credentials["secret_key"]
    again = under_test(mode, credentials, tmp_path)
    assert again.task(task_id)["status"] == "stopped"
    assert again.task(waiting)["status"] == "stopped"
    assert "it runs" in again.console(task_id)
    await mode.stop()
    assert belonging_to(tmp_path) == []


async def test_a_killed_agent_takes_its_session_with_it_and_comes_back(tmp_path: Path) -> None:
    mode = LocalMode(tmp_path, agents=1)
    server = under_test(mode, await mode.start(), tmp_path)
    running, waiting = launch_task(server, "import time\ntime.sleep(1000)"), launch_task(server, "print(1)")

    def running_as(word: str) -> list[psutil.Process]:
        return [process for process in belonging_to(tmp_path) if word in words_of(process)]

    while not (agents := running_as("daemon")) or not (tasks := running_as("script.py")):
        await asyncio.sleep(0.05)
    agents[0].kill()
    task = await asyncio.to_thread(server.wait_for_status, running, "failed")
    assert task["status_reason"] == "The agent that ran it ended"
    assert not any(process.is_running() for process in (*agents, *tasks))
    await asyncio.to_thread(server.wait_for_status, waiting, "completed")
    await mode.stop()


async def test_start_twice_is_the_same(tmp_path: Path) -> None:
    mode = LocalMode(tmp_path, agents=0)
    first, second = await asyncio.gather(mode.start(), mode.start())
    assert first == second
    assert mode.is_running
    await mode.stop()
    await mode.stop()
    assert belonging_to(tmp_path) == []


async def test_a_directory_serves_one(tmp_path: Path) -> None:
    first, second = (LocalMode(tmp_path, agents=0) for _ in range(2))
    await first.start()
    with pytest.raises(LocalModeFailed) as caught:
        await second.start()
    assert caught.value.detail["reason"] == "in_use"
    assert not second.is_running
    await first.stop()
    await second.start()
    await second.stop()


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    mode = LocalMode(tmp_path, agents=1)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(mode.start(), 0.05)
    assert not mode.is_running
    assert belonging_to(tmp_path) == []


async def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalModeFailed) as caught:
        await LocalMode(tmp_path / "file" / "below").start()
    assert caught.value.detail["reason"] == "no_directory"


async def test_agent_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LocalModeFailed) as caught:
        await LocalMode(tmp_path).start()
    assert caught.value.detail["reason"] == "agent_missing"
    assert "jupyterlab_clearml_session[local]" in caught.value.hint


async def test_server_that_ends_at_once(tmp_path: Path) -> None:
    server = tmp_path / "server"
    server.mkdir()
    (server / "store.json").write_text("not json")
    with pytest.raises(LocalModeFailed) as caught:
        await LocalMode(tmp_path, agents=0).start()
    assert caught.value.detail["reason"] == "exited"
    assert any("JSONDecodeError" in line for line in caught.value.detail["log_tail"])


def under_test(mode: LocalMode, credentials: dict[str, str], directory: Path) -> ClearMLUnderTest:
    return ClearMLUnderTest(credentials, directory, None, credentials["api_server"], mode.access_log)


def launch_task(server: ClearMLUnderTest, code: str, requirements: str = "clearml") -> str:
    """An ordinary task of one script; its id."""
    script = {
        "diff": code,
        "entry_point": "script.py",
        "working_dir": ".",
        "requirements": {"pip": requirements},
    }
    task_id: str = server.call("tasks.create", name="a script", type="training", script=script)["id"]
    server.call("tasks.enqueue", task=task_id)
    return task_id


def wait_for_console(server: ClearMLUnderTest, task_id: str, text: str, deadline: float = 60.0) -> None:
    end = time.monotonic() + deadline
    while text not in server.console(task_id):
        assert time.monotonic() < end, server.console(task_id)
        time.sleep(0.1)


def make_wheel(directory: Path, name: str, version: str) -> Path:
    """A minimal wheel, made without a build tool."""
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "VALUE = 42\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in files))
    return path
