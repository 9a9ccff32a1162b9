"""The user-space SSH server, as the remote script starts it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from jupyterlab_clearml_session.local import sshd
from jupyterlab_clearml_session.local.sandbox import Sandbox

PASSWORD = "a password"
DEADLINE_S = 10


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[tuple[int, asyncssh.SSHKey, subprocess.Popen[bytes]]]:
    """The server in a process of its own; its port, its host key and the process."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(home / "key")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["-e", "-K", "30", "-I", "0", "-F", "-p", str(port), "-r", str(home / "key")]
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "SHELL": "/bin/sh",
        sshd.PASSWORD_VARIABLE: PASSWORD,
    }
    process = subprocess.Popen([sys.executable, sshd.__file__, *arguments], env=environment)
    try:
        await wait_for_port(port)
        yield port, key, process
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


async def wait_for_port(port: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise AssertionError("the server does not listen")


@asynccontextmanager
async def connected(home: Path) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with running(home) as (port, key, _), connect(port, key) as connection:
        yield connection


def connect(port: int, key: asyncssh.SSHKey, password: str = PASSWORD) -> Any:
    known_host = asyncssh.import_known_hosts(f"* {key.export_public_key().decode()}")
    return asyncssh.connect(
        "127.0.0.1",
        port,
        username="whoever",
        password=password,
        known_hosts=known_host,
        config=None,
        client_keys=None,
        agent_path=None,
    )


async def test_commands(tmp_path: Path) -> None:
    async with connected(tmp_path) as connection:
        result = await connection.run("echo out; echo err >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_status) == ("out\n", "err\n", 3)
        result = await connection.run("pwd")
        assert Path(str(result.stdout).strip()).samefile(tmp_path)
        result = await connection.run("env")
        assert PASSWORD not in str(result.stdout)


async def test_large_input_and_output(tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    async with connected(tmp_path) as connection:
        result = await connection.run("cat", input=data, encoding=None)
        assert result.stdout == data


async def test_death_by_a_signal_is_reported(tmp_path: Path) -> None:
    async with connected(tmp_path) as connection:
        result = await connection.run("kill -TERM $$")
        assert result.exit_signal is not None
        assert result.exit_signal[0] == "TERM"


async def test_terminal(tmp_path: Path) -> None:
    async with connected(tmp_path) as connection:
        result = await connection.run(
            "stty size; echo $TERM; tty >/dev/null && echo yes", term_type="xterm", term_size=(90, 33)
        )
        assert str(result.stdout).split() == ["33", "90", "xterm", "yes"]


async def test_login_shell_resized_and_interrupted(tmp_path: Path) -> None:
    async with connected(tmp_path) as connection:
        process = await connection.create_process(term_type="xterm", term_size=(80, 24))

        async def converse() -> None:
            process.stdin.write("PS1='> '; echo ready=$((1+1))\n")
            await process.stdout.readuntil("ready=2")
            process.change_terminal_size(132, 50)
            process.stdin.write("stty size\n")
            await process.stdout.readuntil("50 132")
            # The interrupt must find the command in the foreground.
            process.stdin.write("sh -c 'echo run\"\"ning; exec sleep 100'\n")
            await process.stdout.readuntil("running")
            process.stdin.write("\x03")
            process.stdin.write("echo after=$((2+2)); exit 7\n")
            await process.stdout.readuntil("after=4")
            await process.wait_closed()

        await asyncio.wait_for(converse(), DEADLINE_S)
        assert process.exit_status == 7


@pytest.mark.parametrize("terminal", ["xterm", None])
async def test_a_closed_channel_ends_its_command(tmp_path: Path, terminal: str | None) -> None:
    async with connected(tmp_path) as connection:
        process = await connection.create_process("echo $$; exec sleep 1000", term_type=terminal)
        child = psutil.Process(int(await process.stdout.readline()))
        process.close()
        await asyncio.to_thread(child.wait, DEADLINE_S)


@pytest.mark.parametrize("terminal", ["xterm", None])
async def test_a_closed_channel_ends_its_command_below_nohup_too(
    tmp_path: Path, terminal: str | None
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        await test_a_closed_channel_ends_its_command(tmp_path, terminal)
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_signal_from_the_client(tmp_path: Path) -> None:
    async with connected(tmp_path) as connection:
        process = await connection.create_process("echo started; exec sleep 1000")
        await process.stdout.readline()
        process.send_signal("TERM")
        await asyncio.wait_for(process.wait_closed(), DEADLINE_S)
        assert process.exit_signal is not None


async def test_forwarding(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read(100)).upper())
        writer.close()

    unix_path = tmp_path / "socket"
    tcp_server = await asyncio.start_server(answer, "127.0.0.1", 0)
    unix_server = await asyncio.start_unix_server(answer, unix_path)
    port = tcp_server.sockets[0].getsockname()[1]
    async with tcp_server, unix_server, connected(tmp_path) as connection:
        for streams in (
            await connection.open_connection("127.0.0.1", port, encoding=None),
            await connection.open_unix_connection(str(unix_path), encoding=None),
        ):
            reader, writer = streams
            writer.write(b"hello")
            assert await reader.read() == b"HELLO"
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", unused_port())
        listener = await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", port)
        assert listener.get_port() > 0
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("0.0.0.0", 0, "127.0.0.1", port)


async def test_files(tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("hello")
    async with connected(tmp_path) as connection, connection.start_sftp_client() as sftp:
        assert Path(str(await sftp.getcwd())).samefile(tmp_path)
        assert await sftp.getsize("here.txt") == 5
        async with sftp.open("new.bin", "wb") as file:
            await file.write(b"x" * 1_000_000)
        assert (tmp_path / "new.bin").stat().st_size == 1_000_000
        await asyncssh.scp((connection, "here.txt"), tmp_path / "copy.txt")
        assert (tmp_path / "copy.txt").read_text() == "hello"


async def test_wrong_password_and_loopback_only(tmp_path: Path) -> None:
    async with running(tmp_path) as (port, key, process):
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(port, key, password="wrong")
        listening = [
            entry.laddr.ip
            for entry in psutil.Process(process.pid).net_connections("inet")
            if entry.status == psutil.CONN_LISTEN
        ]
        assert listening == ["127.0.0.1"]


def test_refuses_to_start_without_a_password(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, sshd.__file__, "-p", "1", "-r", "nothing"],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1
    assert b"no password" in done.stderr


def test_stands_in_for_dropbear(tmp_path: Path) -> None:
    servers = dict.fromkeys(
        ("api_server", "web_server", "files_server", "access_key", "secret_key"), "http://127.0.0.1:1"
    )
    Sandbox(tmp_path, servers, "test").create()
    dropbear = str(tmp_path / "bin" / "dropbear")
    assert subprocess.run([dropbear, "-V"], timeout=DEADLINE_S, check=False).returncode == 0
    (tmp_path / "in").write_text("key")
    convert = [
        dropbear,
        "dropbearconvert",
        "openssh",
        "dropbear",
        str(tmp_path / "in"),
        str(tmp_path / "out"),
    ]
    assert subprocess.run(convert, timeout=DEADLINE_S, check=False).returncode == 0
    assert (tmp_path / "out").read_text() == "key"
    assert subprocess.run([dropbear, "nonsense"], timeout=DEADLINE_S, check=False).returncode == 1


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
