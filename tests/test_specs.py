"""The kernelspecs of attached sessions: names, logos, and what a crashed server leaves behind."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from jupyterlab_clearml_session.kernels.specs import (
    CURRENT,
    EXPLANATION,
    GATE,
    PNG,
    SOCKET_PATH_LIMIT,
    ServerDirectory,
    distinct,
    gates,
    local_name,
)

from .kernel_fixture import SESSION_ID, session

LOGO = b"<svg/>"


def remote_specs(**resources: bytes) -> dict[str, dict[str, Any]]:
    """What a helper lists."""
    spec = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {"debugger": True},
        "resources": {name: base64.b64encode(data).decode() for name, data in resources.items()},
    }
    return {"python3": spec, "my kernel/ü": {**spec, "display_name": "Mine", "interrupt_mode": "message"}}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[ServerDirectory]:
    made = ServerDirectory(tmp_path / "runtime")
    made.open()
    yield made
    made.close()


def test_jupyter_finds_them_as_long_as_the_session_is_attached(directory: ServerDirectory) -> None:
    manager = KernelSpecManager(kernel_dirs=[str(directory.kernels)], ensure_native_kernel=False)
    names = directory.write(session(), remote_specs(**{"logo-svg.svg": LOGO}))
    assert names == [f"clearml-{SESSION_ID[:8]}-my-kernel--", f"clearml-{SESSION_ID[:8]}-python3"]
    other = "0ddba11" + "0" * 25
    directory.write(session("other", other), remote_specs())
    assert sorted(manager.find_kernel_specs()) == sorted(
        [*names, *(local_name(other, name) for name in remote_specs())]
    )
    spec = manager.get_kernel_spec(names[1])
    assert spec.display_name == "Python 3 · trainer"
    assert (spec.interrupt_mode, spec.metadata["debugger"]) == ("signal", True)
    provisioner = spec.metadata["kernel_provisioner"]
    assert provisioner["provisioner_name"] == "clearml-session"
    assert provisioner["config"]["remote_kernel"] == "python3"
    assert manager.get_kernel_spec(names[0]).interrupt_mode == "message"
    assert (Path(spec.resource_dir) / "logo-svg.svg").read_bytes() == LOGO
    directory.remove(SESSION_ID)
    assert sorted(manager.find_kernel_specs()) == sorted(local_name(other, name) for name in remote_specs())


@pytest.mark.parametrize("name", ["../logo-x", "logo-/../../x", "kernel.json", "logo-a\n", "logo-"])
def test_a_remote_file_name_leads_nowhere_else(directory: ServerDirectory, name: str) -> None:
    (spec,) = directory.write(session(), {"python3": remote_specs(**{name: b"bad"})["python3"]})
    assert [path.name for path in (directory.kernels / spec).iterdir()] == ["kernel.json"]
    assert json.loads((directory.kernels / spec / "kernel.json").read_text())["language"] == "python"
    assert not list(directory.root.glob("**/*x"))


@pytest.mark.parametrize("mine", [True, False], ids=["own", "someone else's"])
def test_only_a_logo_that_holds_no_script_comes_from_someone_elses_machine(
    directory: ServerDirectory, mine: bool
) -> None:
    script = b"<script>alert(1)</script>"
    files = {
        "logo-32x32.png": PNG + b"...",
        "logo-64x64.png": script,
        "logo-svg.svg": LOGO,
        "logo-x.svg": LOGO,
        "logo-x.html": script,
        "logo-16x16.png": PNG,
    }
    (spec,) = directory.write(session(mine=mine), {"python3": remote_specs(**files)["python3"]})
    assert {path.name for path in (directory.kernels / spec).iterdir()} == {
        "kernel.json",
        "logo-32x32.png",
        *(["logo-svg.svg"] if mine else []),
    }


def test_a_program_that_ignores_provisioners_runs_nothing_of_the_remote_machine(
    directory: ServerDirectory,
) -> None:
    _, spec = directory.write(session(), remote_specs())
    argv = json.loads((directory.kernels / spec / "kernel.json").read_text())["argv"]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", EXPLANATION + "\n")


def test_of_two_kernels_with_one_local_name_the_second_is_left_out(directory: ServerDirectory) -> None:
    spec = remote_specs()["python3"]
    kept = distinct(SESSION_ID, dict.fromkeys(("my kernel", "my-kernel", "R", "r", "other"), spec))
    assert sorted(kept) == ["R", "my kernel", "other"]
    assert len(directory.write(session(), kept)) == 3


def other_server(root: Path) -> subprocess.Popen[bytes]:
    """Another server of the same user: it has a kernelspec and lives."""
    code = f"""
import pathlib, sys
from jupyterlab_clearml_session.kernels.specs import ServerDirectory
made = ServerDirectory(pathlib.Path({str(root)!r}))
made.open()
(made.kernels / "clearml-of-another").mkdir()
print(made.sockets, flush=True)
sys.stdin.read()
made.close()
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert Path(server.stdout.readline().decode().strip()).is_dir()
    return server


def test_what_a_crashed_server_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 20)  # its sockets lie elsewhere, and go too
    alive, crashed = other_server(root), other_server(root)
    notes = [root / str(server.pid) / "sockets" for server in (alive, crashed)]
    sockets = [Path(note.read_text()) for note in notes]
    assert all(len(str(path)) < SOCKET_PATH_LIMIT for path in sockets)
    assert gates(root / str(crashed.pid)) == [path / GATE for path in reversed(sockets)], (
        "its own comes first"
    )
    crashed.send_signal(signal.SIGKILL)
    crashed.communicate()
    assert sockets[1].is_dir(), "a crash tidies nothing up"
    own = ServerDirectory(root)
    own.open()
    try:
        assert {path.name for path in root.iterdir() if path.is_dir()} == {
            str(alive.pid),
            str(os.getpid()),
            CURRENT,
        }
        assert [path.is_dir() for path in sockets] == [True, False]
        assert (root / CURRENT).resolve() == own.path.resolve()
        assert root.stat().st_mode & 0o077 == 0, "nobody else gets in"
    finally:
        own.close()
    assert (root / CURRENT).resolve().name == str(alive.pid), "the one that lives is the current one now"
    alive.communicate(b"")
    assert not sockets[0].exists()
    assert [path.name for path in root.iterdir()] == ["lock"]
