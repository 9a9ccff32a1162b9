"""The remote helper: how it is sent and started, what it keeps, when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.error import HTTPError

import pytest
import zmq

from jupyterlab_clearml_session.backend import reading
from jupyterlab_clearml_session.errors import ConnectionLost, HelperFailed, KernelFailed, RemoteRefused
from jupyterlab_clearml_session.kernels import bundle
from jupyterlab_clearml_session.kernels.attach import Handshake, open_channel
from jupyterlab_clearml_session.kernels.channel import SessionChannel
from jupyterlab_clearml_session.phases import Circumstances, stand
from jupyterlab_clearml_session.remote import helper, idle
from jupyterlab_clearml_session.remote import machine as remote
from jupyterlab_clearml_session.remote.daemon import alone
from jupyterlab_clearml_session.remote.helper import READY
from jupyterlab_clearml_session.remote.kernel import KernelProcess
from jupyterlab_clearml_session.remote.sendlog import SendLog

from .kernel_fixture import (
    SESSION_ID,
    Cable,
    RemoteMachine,
    gone,
    machine,
    remote_machine,
    shake,
    start_kernel,
    talk,
    text_of,
)
from .lab_fixture import clearml_environment
from .local_fixture import ClearMLUnderTest
from .sshd_fixture import ssh_server
from .tunnel_fixture import Watched

__all__ = ["machine"]


@contextlib.contextmanager
def channel_to(machine: RemoteMachine) -> Any:
    channel = SessionChannel(machine.dial)
    channel.start()
    try:
        yield channel
    finally:
        channel.close()


# -- sending and starting ----------------------------------------------------------------------------------


def test_the_bundle_is_one_file_and_always_the_same() -> None:
    assert bundle.bundle() == bundle.bundle.__wrapped__()
    assert bundle.digest() == hashlib.sha256(bundle.bundle()).hexdigest()[:16]
    with zipfile.ZipFile(io.BytesIO(bundle.bundle())) as archive:
        assert archive.testzip() is None
        sources = "".join(archive.read(name).decode() for name in archive.namelist())
    assert "jupyterlab_clearml_session" not in sources, "the helper must not need our package"


def test_it_is_sent_once_and_one_daemon_serves_all(machine: RemoteMachine) -> None:
    infos = []
    for client in ("a", "b"):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            machine.spawn(client, theirs)
            infos.append(shake(ours))
    assert infos[0]["pid"] == infos[1]["pid"]
    assert infos[0]["hash"] == bundle.digest()
    assert len(list(machine.helper_dir.glob("*.pyz"))) == 1


def test_what_a_login_shell_prints_is_skipped() -> None:
    handshake = Handshake()
    assert handshake.feed(b"Welcome to the machine!\nYou have mail.") == b""
    assert handshake.feed(b"\n" + bundle.SEND + b"\n") == bundle.bundle()
    assert handshake.feed(READY + b'{"protocol": 1}\nframes') == b""
    assert handshake.info == {"protocol": 1}
    assert handshake.rest == b"frames"


def test_a_machine_without_pyzmq_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(helper.AttachFailed, match="pyzmq"):
        helper._find_python(None)


def test_what_attach_reports_is_a_typed_error() -> None:
    with pytest.raises(KernelFailed, match="no room"):
        Handshake().feed(READY + b'{"error": "no room"}\n')


@pytest.mark.parametrize("line", [b"{broken", b"null", b"[1]", b"\xff"])
def test_a_broken_greeting_is_a_typed_error(line: bytes) -> None:
    with pytest.raises(KernelFailed, match="greeting"):
        Handshake().feed(READY + line + b"\n")


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (["mkdir"], "no folder can be made for it"),
        (["head"], "it could not be stored"),
        (["python3", "python", "readlink"], "there is no Python 3.8 or newer"),
    ],
    ids=["folder", "room", "python"],
)
async def test_a_machine_that_cannot_run_it_says_why(
    machine: RemoteMachine, monkeypatch: pytest.MonkeyPatch, missing: list[str], reason: str
) -> None:
    stubs = machine.root / "stubs"
    stubs.mkdir()
    for name in missing:
        (stubs / name).write_text("#!/bin/sh\nexit 1\n")
        (stubs / name).chmod(0o755)
    for name, value in {**machine.env, "PATH": f"{stubs}:{machine.env['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    async with ssh_server(cwd=machine.home) as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        with pytest.raises(HelperFailed, match=f"cannot run on the remote machine: {reason}"):
            await open_channel(watched.tunnel.start_process, SESSION_ID, "a")


@pytest.mark.parametrize(
    ("command", "reason"), [("exit 1", "could not be started"), ("sleep 60", "did not answer in time")]
)
async def test_a_machine_that_says_nothing_cannot_run_it(
    monkeypatch: pytest.MonkeyPatch, command: str, reason: str
) -> None:
    monkeypatch.setattr("jupyterlab_clearml_session.kernels.attach.ATTACH_TIMEOUT", 2.0)
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        with pytest.raises(HelperFailed, match=reason):
            await open_channel(lambda _: watched.tunnel.start_process(command), SESSION_ID, "a")


async def test_a_machine_that_runs_no_commands_cannot_run_it() -> None:
    async def refuse(command: str) -> Any:
        raise RemoteRefused("The SSH server of the remote machine does not allow to open a command.")

    with pytest.raises(HelperFailed, match="does not allow"):
        await open_channel(refuse, SESSION_ID, "a")


async def test_an_answer_is_not_missed_where_the_machine_takes_no_more() -> None:
    """It has ended while the file was being sent: why is in what it said before."""
    process = mock.Mock(
        read=mock.AsyncMock(
            side_effect=[bundle.SEND + b"\n", READY + b'{"error": "there is no room"}\n'],
        ),
        write=mock.Mock(side_effect=ConnectionLost("The SSH channel is closed.")),
    )
    with pytest.raises(HelperFailed, match="there is no room"):
        await open_channel(mock.AsyncMock(return_value=process), SESSION_ID, "a")


async def test_a_connection_that_breaks_says_nothing_of_the_machine() -> None:
    async with ssh_server() as server, Watched(server.target()) as watched:
        await watched.tunnel.wait_up(5)
        opening = asyncio.create_task(
            open_channel(lambda _: watched.tunnel.start_process("sleep 60"), SESSION_ID, "a")
        )
        while not any("sleep" in command for command in server.commands):
            await asyncio.sleep(0.01)
        watched.tunnel.reconnect()
        with pytest.raises(ConnectionLost):
            await opening


@pytest.mark.parametrize("before", [b"", b"left by an older version"])
def test_an_upload_that_breaks_off_leaves_nothing_behind(machine: RemoteMachine, before: bytes) -> None:
    target = machine.helper_dir / f"helper-{bundle.digest()}.pyz"
    if before:
        machine.helper_dir.mkdir()
        target.write_bytes(before)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        attach = machine.spawn("a", theirs)
        said = b""
        while bundle.SEND not in said:
            said += ours.recv(4096)
        ours.sendall(bundle.bundle()[:-1])
        ours.shutdown(socket.SHUT_WR)
        assert attach.wait(timeout=30) == 1
    assert [path.read_bytes() for path in machine.helper_dir.iterdir()] == ([before] if before else [])
    machine.dial("b").close()
    assert target.read_bytes() == bundle.bundle()


def test_files_are_for_their_owner_only(machine: RemoteMachine) -> None:
    machine.dial("a").close()
    for path in machine.helper_dir.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    greeting = machine.greeting()
    assert greeting is not None
    folder = Path(f"/proc/{greeting['pid']}/cwd").resolve()
    assert folder == machine.home.resolve(), "kernels start in the user's folder"


def other_version(machine: RemoteMachine, protocol: int, kernels: int) -> subprocess.Popen[bytes]:
    """A daemon of another version, as far as attach sees it."""
    code = f"""
import json, os, socket, sys
s = socket.socket(socket.AF_UNIX); s.bind("socket"); s.listen(); print("up", flush=True)
while True:
    c, _ = s.accept()
    greeting = dict(protocol={protocol}, pid=os.getpid(), kernels={kernels}, hash="old")
    c.sendall(json.dumps(greeting).encode() + b"\\n")
"""
    directory = machine.helper_dir / f"{socket.gethostname()}-{SESSION_ID[:16]}"
    directory.mkdir(parents=True, mode=0o700)
    daemon = subprocess.Popen([sys.executable, "-c", code], cwd=directory, stdout=subprocess.PIPE)
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == b"up\n"
    return daemon


def test_a_helper_of_another_protocol_without_kernels_is_replaced(machine: RemoteMachine) -> None:
    old = other_version(machine, protocol=99, kernels=0)
    machine.dial("a").close()
    assert old.wait(timeout=10) == -signal.SIGTERM
    greeting = machine.greeting()
    assert greeting is not None
    assert greeting["hash"] == bundle.digest()
    assert old.stdout is not None
    old.stdout.close()


def test_a_helper_of_another_protocol_with_kernels_is_kept_and_reported(machine: RemoteMachine) -> None:
    old = other_version(machine, protocol=99, kernels=2)
    with pytest.raises(KernelFailed, match=r"another version.*2 kernels"):
        machine.dial("a")
    assert old.poll() is None
    old.kill()
    old.wait()
    assert old.stdout is not None
    old.stdout.close()


# -- life and end ------------------------------------------------------------------------------------------


def test_it_outlives_its_channel_and_its_kernels_die_with_it(machine: RemoteMachine, tmp_path: Path) -> None:
    with channel_to(machine) as channel:
        start_kernel(channel, tmp_path)
    with channel_to(machine) as channel:
        (kernel,) = channel.request("kernels").result(20)
        assert (kernel["id"], kernel["name"], kernel["connected"]) == ("k-1", "python3", False)
        greeting = machine.greeting()
        assert greeting is not None
        os.kill(greeting["pid"], signal.SIGKILL)
        assert gone(kernel["pid"]), "a kernel must not outlive its helper"
        note = next(machine.helper_dir.glob("*/kernels"))
        left = Path(note.read_text())
        assert left.is_dir()
        # The channel finds the next helper by itself, which answers the request and tidies up.
        assert channel.request("kernels").result(30) == []
        assert not left.exists()


def test_a_killed_helper_is_a_dead_kernel_with_a_reason(machine: RemoteMachine, tmp_path: Path) -> None:
    with channel_to(machine) as channel:
        stream = start_kernel(channel, tmp_path)
        greeting = machine.greeting()
        assert greeting is not None
        os.kill(greeting["pid"], signal.SIGKILL)
        port = channel.port(stream)
        deadline = time.monotonic() + 20
        while port.exit_status is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert port.exit_status == -9
        assert "helper" in port.exit_tail[0]


def test_an_attach_that_ends_before_it_is_greeted_ends_nothing_else(machine: RemoteMachine) -> None:
    with channel_to(machine) as channel:
        assert channel.request("kernels").result(30) == []
        before = machine.greeting()
        assert before is not None
        os.kill(before["pid"], signal.SIGSTOP)  # it is busy
        machine.connect().close()
        os.kill(before["pid"], signal.SIGCONT)
        assert machine.greeting() == before


def test_of_two_daemons_of_a_session_the_first_one_stays(machine: RemoteMachine) -> None:
    """An attach that waited for a slow one in vain is followed by another, which starts the second."""
    machine.dial("a").close()
    before = machine.greeting()
    (bundle_file,) = machine.helper_dir.glob("*.pyz")
    (directory,) = (path.parent for path in machine.helper_dir.glob("*/socket"))
    command = ["daemon", "--session", SESSION_ID, "--directory", str(directory)]
    second = subprocess.run(
        [sys.executable, str(bundle_file), *command],
        env={**os.environ, **machine.env, "CLEARML_SESSION_HELPER": SESSION_ID},
        timeout=30,
        check=False,
    )
    assert second.returncode == 0
    assert machine.greeting() == before


def test_last_messages_of_a_dead_kernel_may_be_late() -> None:
    kernel = mock.Mock(spec=KernelProcess, process=mock.Mock(), output=mock.Mock(), _tail=[])
    coming = iter([0, 0, 0, 2, 0, 1, 0, 0, 0])  # a read of each of three channels at a time
    kernel.receive.side_effect = lambda channel: next(coming, 0)
    KernelProcess.finish(kernel)
    assert list(coming) == []
    kernel.output.end.assert_called_once()


def test_a_kernel_that_cannot_be_killed_holds_up_nothing(tmp_path: Path) -> None:
    """A process that hangs in a driver does not end before that lets go of it."""
    with zmq.Context() as context:
        kernel = KernelProcess(context, "k-1", tmp_path, SendLog())
        hung = mock.Mock(spec=subprocess.Popen, pid=2**22 + 1, stdout=None)
        hung.poll.return_value = None
        hung.wait.side_effect = subprocess.TimeoutExpired("kernel", 2)
        kernel.process = hung
        kernel.kill()
        kernel.finish()
        assert kernel.exit_status == -signal.SIGKILL
        kernel.process = hung
        kernel.remove()
    assert hung.wait.call_count == 2


def test_a_file_system_without_locks_keeps_no_helper_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert alone(tmp_path)


def test_it_ends_with_the_session(machine: RemoteMachine, tmp_path: Path) -> None:
    """The session's Task is the oldest process whose environment names it."""
    task = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env={**os.environ, "CLEARML_TASK_ID": SESSION_ID},
    )
    with channel_to(machine) as channel:
        start_kernel(channel, tmp_path)
        (kernel,) = channel.request("kernels").result(20)
        greeting = machine.greeting()
        assert greeting is not None
        task.kill()
        task.communicate()
        assert gone(greeting["pid"])
        assert gone(kernel["pid"])


def test_the_environment_and_folder_are_those_of_the_remote_jupyter(
    machine: RemoteMachine, tmp_path: Path
) -> None:
    folder = tmp_path / "user folder"
    (folder / "deep").mkdir(parents=True)
    own = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=3"}  # which the helper has others of
    jupyter = subprocess.Popen(
        [sys.executable, "-c", "input()", "jupyter-lab"],
        stdin=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, **machine.env, "CLEARML_TASK_ID": SESSION_ID, "FROM_JUPYTER": "yes", **own},
    )
    try:
        with channel_to(machine) as channel:
            stream = start_kernel(channel, tmp_path, folders=["deep"], env={"ASKED": "for"})
            client = talk(channel, stream)
            said = client.run(
                "import os; print(os.getcwd(), os.environ['FROM_JUPYTER'], os.environ['ASKED'])"
            )
            assert said == f"{folder / 'deep'} yes for\n"
            assert client.run("print(os.environ['GLIBC_TUNABLES'])") == own["GLIBC_TUNABLES"] + "\n"
            client.close()
    finally:
        jupyter.kill()
        jupyter.communicate()


def test_an_idle_session_is_ended(tmp_path: Path) -> None:
    """Where ClearML cannot be asked to stop the Task, its main process gets the signal."""
    no_sdk = tmp_path / "no-sdk"
    no_sdk.mkdir()
    (no_sdk / "clearml.py").write_text("raise ImportError('not on this machine')\n")
    # What else this machine does must not count.
    settings = {"CLEARML_SESSION_HELPER_IDLE_CORES": "1000", "PYTHONPATH": str(no_sdk)}
    task = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env={**os.environ, "CLEARML_TASK_ID": SESSION_ID},
    )
    with remote_machine(tmp_path, **settings) as machine, channel_to(machine) as channel:
        greeting = channel.request("kernels").result(20), machine.greeting()
        channel.request("idle_limit", minutes=0.001).result(20)
        assert task.wait(timeout=60) == -signal.SIGTERM
        assert greeting[1] is not None
        assert gone(greeting[1]["pid"])
    task.communicate()


def test_an_idle_session_s_task_says_why_it_was_stopped(
    clearml_server: ClearMLUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in clearml_environment(clearml_server.credentials).items():
        monkeypatch.setenv(name, value)
    task_id = str(clearml_server.call("tasks.create", name="a session", type="application")["id"])
    clearml_server.call("tasks.started", task=task_id, force=True)
    idle.IdleWatch(task_id, 30, lambda: 0.0).end_session()
    task = clearml_server.task(task_id)
    assert (task["status"], task["status_message"]) == ("stopped", "idle for 30 minutes")
    # What its agent then makes of the message: the reason is still shown.
    changed = reading.task({**task, "status_message": "Changed by clearml-agent machine:cpu:0"})
    for watched in (True, False):
        standing = stand(changed, Circumstances(watched=watched))
        assert standing.text == "The session has ended itself: idle for 30 minutes"
        assert (standing.error is not None) == watched


def test_work_keeps_a_session_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = {"cpu_percent": 1.0, "cpu_count": 2, "gpus": []}
    monkeypatch.setattr(remote.Meter, "measure", lambda self: quiet)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    last = [0.0]
    watch = idle.IdleWatch(SESSION_ID, 10, lambda: last[0])
    clock[0] += 599
    assert not watch.look()
    clock[0] += 2
    assert watch.look()
    last[0] = clock[0]
    assert not watch.look()
    clock[0] += 601
    quiet["gpus"] = [{"utilization_percent": 80}]
    assert not watch.look()
    quiet.update(gpus=[], cpu_percent=90.0)
    clock[0] += 601
    assert not watch.look()
    quiet["cpu_percent"] = 1.0
    jupyter = [{"execution_state": "busy", "last_activity": "2020-01-01T00:00:00Z"}]
    monkeypatch.setattr(idle, "_jupyter_server", lambda pid: {"port": 1})
    monkeypatch.setattr(idle, "_ask", lambda server, path: jupyter if "kernels" in path else [])
    clock[0] += 601
    assert not watch.look()
    jupyter[0]["execution_state"] = "idle"
    clock[0] += 601
    assert watch.look()


@pytest.mark.parametrize("missing", ["terminals", "kernels"])
@pytest.mark.parametrize("instead", [None, {"message": "no"}, ["no"], [{}]])
def test_a_jupyter_that_lacks_one_kind_of_work_tells_of_the_other(
    missing: str, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = {"cpu_percent": 1.0, "cpu_count": 2, "gpus": []}
    monkeypatch.setattr(remote.Meter, "measure", lambda self: quiet)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watch = idle.IdleWatch(SESSION_ID, 10, lambda: 0.0)
    asked = []

    def ask(server: Any, path: str) -> Any:
        asked.append(path)
        if missing in path:
            if instead is not None:
                return instead
            raise HTTPError(path, 404, "Not Found", Message(), None)
        return [{"execution_state": "busy", "last_activity": "2020-01-01T00:00:00Z"}]

    monkeypatch.setattr(idle, "_jupyter_server", lambda pid: {"port": 1})
    monkeypatch.setattr(idle, "_ask", ask)
    clock[0] += 601
    assert not watch.look()
    assert asked == ["api/kernels", "api/terminals"]


# -- output that nobody takes ------------------------------------------------------------------------------


def run_unwatched(machine: RemoteMachine, tmp_path: Path, code: str) -> str:
    """Run code while the link is down; return the output that comes when it is back."""
    cables: list[Cable] = []
    down = False

    def dial(client_id: str) -> socket.socket:
        if down:
            raise OSError("no link")
        cables.append(Cable(machine.dial(client_id)))
        return cables[-1].near

    channel = SessionChannel(dial)
    channel.start()
    try:
        client = talk(channel, start_kernel(channel, tmp_path))
        client.run("1")
        mark = tmp_path / "done"
        request = client.client.execute(
            f"import time, pathlib\ntime.sleep(0.5)\n{code}\npathlib.Path({str(mark)!r}).touch()"
        )
        while client.next()["msg_type"] != "execute_input":
            pass
        down = True
        cables[-1].cut()
        deadline = time.monotonic() + 60
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        down = False
        channel.redial()
        text = text_of(client.until_idle(request))
        assert client.reply(request)["status"] == "ok"
        client.close()
        return text
    finally:
        channel.close()
        for cable in cables:
            cable.cut()


PRINT = "import sys\nfor i in range(3000):\n    print(i, 'x' * 200)\n    sys.stdout.flush()"


def test_a_helper_that_is_held_up_misses_nothing(machine: RemoteMachine, tmp_path: Path) -> None:
    """A busy machine may keep it from reading for long: more is said meanwhile than ZMQ holds by default."""
    with channel_to(machine) as channel:
        client = talk(channel, start_kernel(channel, tmp_path))
        client.run("1")
        greeting, done = machine.greeting(), tmp_path / "done"
        assert greeting is not None
        request = client.client.execute(f"""
import os, pathlib, signal
os.kill({greeting["pid"]}, signal.SIGSTOP)
for i in range(5000):
    display(i)
pathlib.Path({str(done)!r}).touch()
""")
        deadline = time.monotonic() + 60
        while not done.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(greeting["pid"], signal.SIGCONT)
        shown = [
            m["content"]["data"]["text/plain"] for m in client.until_idle(request) if "data" in m["content"]
        ]
        assert shown == [str(n) for n in range(5000)]
        client.close()


def test_an_overflow_to_disk_loses_nothing(tmp_path: Path) -> None:
    limits = {"CLEARML_SESSION_HELPER_MEMORY": "50000", "CLEARML_SESSION_HELPER_DISK": "100000000"}
    with remote_machine(tmp_path, **limits) as machine:
        text = run_unwatched(machine, tmp_path, PRINT)
    assert [int(line.split()[0]) for line in text.splitlines()] == list(range(3000))


def test_output_beyond_the_limits_is_dropped_with_a_notice(tmp_path: Path) -> None:
    limits = {"CLEARML_SESSION_HELPER_MEMORY": "50000", "CLEARML_SESSION_HELPER_DISK": "100000"}
    with remote_machine(tmp_path, **limits) as machine:
        text = run_unwatched(machine, tmp_path, PRINT)
    lines = [line for line in text.splitlines() if line]
    numbers = [int(line.split()[0]) for line in lines if line[0].isdigit()]
    assert numbers == list(range(len(numbers))), "what is kept is the beginning, in order"
    assert 50 < len(numbers) < 1000
    assert sum("[clearml-session]" in line and "were dropped here" in line for line in lines) == 1


def test_a_full_disk_is_no_worse_than_a_full_buffer(tmp_path: Path) -> None:
    limits = {"CLEARML_SESSION_HELPER_MEMORY": "50000", "CLEARML_SESSION_HELPER_DISK": "100000000"}
    with remote_machine(tmp_path, **limits) as machine:
        machine.dial("first").close()
        greeting = machine.greeting()
        assert greeting is not None
        # From now on no file of the helper can grow beyond this: what a full disk does to it.
        import resource

        resource.prlimit(greeting["pid"], resource.RLIMIT_FSIZE, (60_000, 60_000))
        text = run_unwatched(machine, tmp_path, PRINT)
    lines = [line for line in text.splitlines() if line]
    numbers = [int(line.split()[0]) for line in lines if line[0].isdigit()]
    assert numbers == list(range(len(numbers)))
    assert sum("were dropped here" in line for line in lines) == 1


# -- the machine -------------------------------------------------------------------------------------------


def test_kernelspecs_and_metrics(machine: RemoteMachine) -> None:
    with channel_to(machine) as channel:
        specs = channel.request("kernelspecs").result(30)
        metrics = channel.request("metrics").result(30)
    assert specs["python3"]["language"] == "python"
    assert "logo-svg.svg" in specs["python3"]["resources"]
    assert 0 <= metrics["cpu_percent"] <= 100
    assert 0 < metrics["memory"]["used"] < metrics["memory"]["total"]
    assert metrics["disk"]["free"] <= metrics["disk"]["total"]
    assert metrics["gpus"] == []
    assert metrics["idle_s"] >= 0


def test_a_logo_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("logo-32x32.png", "logo-64x64.png"):
        (tmp_path / name).write_bytes(name.encode())
    read = Path.read_bytes

    def forbidden(path: Path) -> bytes:
        if path.name == "logo-32x32.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert list(remote.resources({"resource_dir": str(tmp_path)})) == ["logo-64x64.png"]


def test_graphics_cards_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, NVIDIA A100-SXM4-40GB, 37, 1024, 40536, 45'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert remote.Meter(str(tmp_path)).measure()["gpus"] == [
        {
            "index": 0,
            "name": "NVIDIA A100-SXM4-40GB",
            "utilization_percent": 37,
            "memory_used_mb": 1024,
            "memory_total_mb": 40536,
            "temperature_c": 45,
        }
    ]


def test_a_process_is_not_mistaken_for_one_that_got_its_id() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = remote.Process(child.pid)
    alive = [process.alive]
    child.kill()
    child.communicate()
    alive.append(process.alive)
    assert alive == [True, False]
    own = remote.Process(os.getpid())
    assert own.start_time is not None
    own.start_time -= 1
    assert not own.alive


def test_the_greeting_holds_no_secret(machine: RemoteMachine, tmp_path: Path) -> None:
    with channel_to(machine) as channel:
        start_kernel(channel, tmp_path)
        assert "secret" not in json.dumps(channel.request("kernels").result(20))
        assert "secret" not in json.dumps(machine.greeting())
