"""The helper on the remote machine: a daemon that owns kernels, and how a channel gets to it.

``attach`` runs at the far end of an SSH exec channel. It finds the daemon of the session, starts it if need be,
and hands its own stdin and stdout over to it through the daemon's Unix socket; so the daemon reads and writes
the channel itself, with no process between. The daemon outlives every channel; it ends when the session's
Task is gone, when it has had nothing to do for a while, or after `LIFETIME` without any client.

Runs on any Python from 3.8 on with the standard library and pyzmq (``attach``: without pyzmq).
"""

from __future__ import annotations

import argparse
import array
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import machine
from .link import PROTOCOL

READY = b"\nclearml-session-helper ready "
"""What attach writes before the frames begin, followed by one line of JSON."""
START_TIMEOUT = 20.0
ROOT_VARIABLE = "CLEARML_SESSION_HELPER_DIR"


def main() -> None:
    """Run ``attach`` or ``daemon``."""
    parser = argparse.ArgumentParser(prog="clearml-session-helper")
    parser.add_argument("mode", choices=["attach", "daemon"])
    parser.add_argument("--session", required=True)
    parser.add_argument("--client", default="")
    parser.add_argument("--directory")
    arguments = parser.parse_args()
    if arguments.mode == "daemon":
        from .daemon import run

        run(arguments.session, Path(arguments.directory), own_hash())
        return
    try:
        attach(arguments.session, arguments.client, state_directory(arguments.session))
    except (OSError, AttachFailed) as error:
        _say({"error": str(error)})
        sys.exit(1)


class AttachFailed(Exception):
    """The daemon could not be reached or started; the text says why."""


def state_directory(session_id: str) -> Path:
    """Return the directory of a session's daemon, made and checked to be ours alone.

    It carries the host's name, as a home directory can be shared by several machines.
    """
    root = Path(os.environ.get(ROOT_VARIABLE) or Path.home() / ".cache" / "clearml-session-helper")
    directory = root / f"{socket.gethostname()}-{session_id[:16]}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise AttachFailed(f"{directory} belongs to somebody else")
    directory.chmod(0o700)
    return directory


def own_hash() -> str:
    """Return the hash of the file this runs from; "source" when it is not the bundle."""
    bundle = Path(sys.argv[0])
    return hashlib.sha256(bundle.read_bytes()).hexdigest()[:16] if bundle.suffix == ".pyz" else "source"


# -- attach ------------------------------------------------------------------------------------------------


def attach(session_id: str, client: str, directory: Path) -> None:
    """Hand stdin and stdout over to the daemon and wait until it lets go of them."""
    # The path of a Unix socket is limited to 107 bytes; a relative one never is too long.
    os.chdir(directory)
    with _locked():
        connection = _connect()
        greeting = _greeting(connection) if connection is not None else {}
        if connection is not None and greeting["protocol"] != PROTOCOL:
            connection.close()
            connection = None
            if greeting["kernels"]:
                raise AttachFailed(
                    f"a helper of another version (protocol {greeting['protocol']}, ours is {PROTOCOL}) runs "
                    f"{greeting['kernels']} kernels there; shut them down, or use the version that started them"
                )
            os.kill(greeting["pid"], signal.SIGTERM)
        if connection is None:
            _start_daemon(session_id)
            connection = _wait_for_daemon()
            greeting = _greeting(connection)
    _say(greeting)
    _hand_over(connection, {"client": client}, [0, 1])
    # Only the daemon may keep these open: their closing must reach the other end.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    connection.recv(1)


def _say(answer: dict[str, Any]) -> None:
    os.write(1, READY + json.dumps(answer).encode() + b"\n")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _connect() -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(START_TIMEOUT)
    try:
        connection.connect("socket")
    except OSError:
        connection.close()
        return None  # there is none, or one that ended without a word
    return connection


def _greeting(connection: socket.socket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        data = connection.recv(4096)
        if not data:
            raise AttachFailed("the helper closed the connection")
        line += data
    greeting = json.loads(line)
    assert isinstance(greeting, dict)
    return greeting


def _hand_over(connection: socket.socket, about: dict[str, Any], fds: list[int]) -> None:
    packed = array.array("i", fds).tobytes()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
    connection.sendmsg([json.dumps(about).encode() + b"\n"], rights)
    connection.settimeout(None)


def _start_daemon(session_id: str) -> None:
    jupyter = machine.find_jupyter(session_id)
    env = dict(machine.environment(jupyter)) if jupyter is not None else dict(os.environ)
    env["CLEARML_SESSION_HELPER"] = session_id
    # libzmq takes fresh memory for each large message; in huge pages that takes half the time.
    if "GLIBC_TUNABLES" in env:
        env["CLEARML_SESSION_HELPER_TUNABLES"] = env["GLIBC_TUNABLES"]
    env["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    python = _find_python(jupyter)
    command = [python, sys.argv[0], "daemon", "--session", session_id, "--directory", str(Path.cwd())]
    with os.fdopen(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        subprocess.Popen(
            command,
            env=env,
            cwd=(machine.working_directory(jupyter) if jupyter is not None else None) or Path.home(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _find_python(jupyter: int | None) -> str:
    """Return a Python that has what the daemon needs: the session's own one, if it can be told."""
    candidates = [str(Path.home() / "environment" / "bin" / "python")]
    if jupyter is not None:
        candidates.insert(0, machine.interpreter(jupyter) or "")
    candidates += [sys.executable, "python3", "python"]
    best = ""
    for candidate in candidates:
        if not candidate:
            continue
        check = "import zmq; print(1)\ntry:\n import jupyter_client\n print(2)\nexcept ImportError: pass"
        try:
            result = subprocess.run(
                [candidate, "-c", check], capture_output=True, text=True, timeout=START_TIMEOUT, check=False
            )
        except (OSError, subprocess.SubprocessError):
            continue  # not there, or broken
        if "2" in result.stdout:
            return candidate
        if "1" in result.stdout:
            best = best or candidate
    if not best:
        raise AttachFailed("no Python on the remote machine has pyzmq (is Jupyter installed there?)")
    return best


def _wait_for_daemon() -> socket.socket:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        connection = _connect()
        if connection is not None:
            return connection
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        raise AttachFailed("the helper did not start: " + Path("log").read_text()[-2000:])
    raise AttachFailed("the helper did not start")
