"""``%%clearml_session run`` beside its peers: variables beside ``scp``, a cell by ZMQ beside a websocket.

Everything runs on this machine: a real OpenSSH server in a mount namespace of its own (needs root; nothing of the
system is changed) is the session's, a real Jupyter server with the extension is the local one, and the ClearML
server is the embedded one without an agent. The rounds are interleaved, so the ratios count and not the absolutes.

    python -m bench.magic [--rounds N] [--megabytes N]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from bench._common import median, table
from bench.proxy import openssh
from jupyterlab_clearml_session.backend.draft import RECORD
from jupyterlab_clearml_session.local.server import LocalServer
from tests.lab_fixture import LabServer, clearml_environment
from tests.local_fixture import ClearMLUnderTest, LoopThread
from tests.notebook_fixture import Notebook

LINES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-magic-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (
            openssh(folder) as (port, host_key, password, key),
            site(folder, port, host_key, password) as lab,
        ):
            notebook = Notebook(lab)
            notebook.ok("%load_ext jupyterlab_clearml_session")
            attached = "s = %clearml_session attach bench\nr = s.run('import os')"
            notebook.ok(attached)
            print(import_cost(), flush=True)
            print(transfers(notebook, folder, port, key, options.rounds, options.megabytes), flush=True)
            print(cells(notebook, lab, options.rounds), flush=True)
            notebook.close()


@contextlib.contextmanager
def site(folder: Path, port: int, host_key: str, password: str) -> Iterator[LabServer]:
    """A local Jupyter server with one running session, whose machine is this one, by OpenSSH."""
    home = folder / "home"
    (home / "environment" / "bin").mkdir(parents=True)
    python = home / "environment" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    passwd = folder / "etc" / "passwd"
    passwd.write_text(passwd.read_text().replace("root:/root:", f"root:{home}:"))
    loop = LoopThread()

    async def start() -> tuple[LocalServer, dict[str, str]]:
        server = LocalServer(folder / "clearml")
        return server, server.start()

    async def stop() -> None:
        clearml.stop()

    clearml, credentials = loop.run(start())
    lab = LabServer(folder / "lab", environment=clearml_environment(credentials), command="server")
    lab.folder.mkdir()
    lab.start()
    try:
        publish(credentials, folder, port, host_key, password)
        session = lab.api("GET", "sessions?state=active")["sessions"][0]
        lab.api("POST", f"sessions/{session['id']}/attach")
        lab.phase(session["id"], "ready")
        yield lab
    finally:
        lab.stop()
        loop.run(stop())
        loop.close()


def publish(credentials: dict[str, str], folder: Path, port: int, host_key: str, password: str) -> None:
    """Make the Task that the remote script would have made of itself."""
    server = ClearMLUnderTest(credentials, folder, None, credentials["api_server"], folder / "access.log")
    options = {"jupyterlab": "False", "vscode_server": "False", "username": "root"}
    properties = {"external_address": "127.0.0.1", "internal_ssh_port": str(port)}
    task_id = server.call(
        "tasks.create",
        name="bench",
        type="application",
        system_tags=["interactive"],
        hyperparams={
            section: {
                name: {"section": section, "name": name, "value": value} for name, value in values.items()
            }
            for section, values in {"interactive_session": options, "properties": properties}.items()
        },
        runtime={
            "_ssh_password": password,
            RECORD: json.dumps({"host_keys": [" ".join(host_key.split()[:2])]}),
        },
    )["id"]
    server.call("tasks.started", task=task_id, force=True)


def import_cost() -> str:
    """What loading the extension costs a kernel, and what the first remote cell adds."""
    code = (
        "import sys, time\n"
        "import ipykernel.zmqshell\n"
        "from IPython.core.interactiveshell import InteractiveShell as Shell\n"
        "shell = Shell.instance()\n"
        "for what in ('%load_ext jupyterlab_clearml_session', '%clearml_session launch --help',"
        " 'import jupyterlab_clearml_session.magic.kernels, jupyterlab_clearml_session.magic.transfer'):\n"
        "    began, before = time.perf_counter(), len(sys.modules)\n"
        "    shell.run_cell(what)\n"
        "    print('@', what.split()[0], (time.perf_counter() - began) * 1000, len(sys.modules) - before)\n"
    )
    runs = []
    for _ in range(5):
        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        runs.append([line.split()[2:] for line in output.splitlines() if line.startswith("@")])
    names = ("`%load_ext`", "first subcommand", "what the first remote cell adds")
    rows = [
        (name, f"{median([float(run[n][0]) for run in runs]):.0f}", runs[0][n][1])
        for n, name in enumerate(names)
    ]
    return table(("in a kernel", "ms", "modules"), rows) + "\n"


def transfers(notebook: Notebook, folder: Path, port: int, key: Path, rounds: int, megabytes: int) -> str:
    """Move one array there and back, beside scp of a file of its size."""
    count = megabytes * 1_000_000
    notebook.ok(
        f"import numpy as np, hashlib\na = np.random.default_rng(0).integers(0, 256, {count}, np.uint8)"
    )
    notebook.ok("from jupyterlab_clearml_session.magic import transfer")
    here, there = folder / "a.bin", folder / "home" / "a.bin"
    notebook.ok(f"a.tofile({str(here)!r})")

    def scp(source: str, target: str, *more: str) -> Callable[[], object]:
        command = ["scp", "-q", "-F", "/dev/null", "-P", str(port), "-i", str(key), *more]
        command += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", source, target]
        return lambda: subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    gcm = ("-c", "aes128-gcm@openssh.com")
    routes: dict[str, Callable[[], object]] = {
        "scp there": scp(str(here), f"root@127.0.0.1:{there}"),
        "scp there, aes128-gcm": scp(str(here), f"root@127.0.0.1:{there}", *gcm),
        "`--in a`": lambda: notebook.ok("r = s.run('', take=['a'])"),
        "scp back": scp(f"root@127.0.0.1:{there}", str(folder / "b.bin")),
        "scp back, aes128-gcm": scp(f"root@127.0.0.1:{there}", str(folder / "b.bin"), *gcm),
        "`--out b`": lambda: notebook.ok("r = s.run('b = a', bring=['b'])"),
    }
    taken: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(rounds):
        for name, move in routes.items():
            began = time.perf_counter()
            move()
            taken[name].append(time.perf_counter() - began)
    same = notebook.ok("hashlib.sha256(b).digest() == hashlib.sha256(a).digest()").result
    rows = [(name, f"{median(t):.2f}", f"{megabytes / median(t):.0f}") for name, t in taken.items()]
    title = f"{megabytes} MB, median of {rounds}; the array came back with an equal SHA-256: {same}"
    return f"{title}\n\n" + table(("way", "s", "MB/s"), rows) + "\n"


def cells(notebook: Notebook, lab: LabServer, rounds: int) -> str:
    """A cell that does nothing, and one that prints much: by our ZMQ sockets and by the server's websocket."""
    kernel = notebook.ok("print(r.where)")
    assert kernel.stdout == "bench\n"
    models = lab.call("GET", "api/sessions").body
    kernel_id = next(m["kernel"]["id"] for m in models if m["path"].startswith(".clearml-session/"))
    flood = f"for n in range({LINES}): print(n)"
    notebook.ok("import time\nkernel = next(iter(get_ipython().magics_manager.registry"
                "['ClearMLSessionMagics']._kernels_there._kept.values())).kernel")  # fmt: skip

    def timed(statement: str) -> float:
        code = f"t = time.perf_counter(); x = {statement}; print('@', time.perf_counter() - t)"
        return float(notebook.ok(code).stdout.rpartition("@")[2])

    empty: dict[str, list[float]] = {
        "`s.run('pass')`": [],
        "of it in the kernel, by ZMQ": [],
        "by websocket": [],
    }
    floods: dict[str, list[float]] = {"by ZMQ": [], "by websocket": []}
    seen = {"by ZMQ": 0, "by websocket": 0}
    for _ in range(rounds * 4):
        empty["`s.run('pass')`"].append(timed("s.run('pass')") * 1000)
        empty["of it in the kernel, by ZMQ"].append(timed("kernel.run('pass')") * 1000)
        empty["by websocket"].append(asyncio.run(by_websocket(lab, kernel_id, "pass"))[0] * 1000)
    for _ in range(rounds):
        outcome = notebook.ok(
            f"t = time.perf_counter(); s.run({flood!r}); print('@', time.perf_counter() - t)"
        )
        text, _, seconds = outcome.stdout.rpartition("@")
        floods["by ZMQ"].append(float(seconds))
        seen["by ZMQ"] = len(text.splitlines())
        spent, lines = asyncio.run(by_websocket(lab, kernel_id, flood))
        floods["by websocket"].append(spent)
        seen["by websocket"] = lines
    first = table(("empty remote cell", "ms"), [(name, f"{median(t):.1f}") for name, t in empty.items()])
    rows = [(name, f"{median(t):.2f}", str(seen[name])) for name, t in floods.items()]
    return first + "\n\n" + table((f"{LINES} lines printed", "s", "lines that arrived"), rows)


async def by_websocket(lab: LabServer, kernel_id: str, code: str) -> tuple[float, int]:
    """Run a cell through the local server's websocket; returns seconds and lines printed."""
    url = f"{lab.url}api/kernels/{kernel_id}/channels?token={lab.token}".replace("http", "ws", 1)
    channels = await websocket_connect(HTTPRequest(url, request_timeout=60), max_message_size=1 << 30)
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "bench", "username": ""}
    content = {
        "code": code,
        "silent": False,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
    }
    message: dict[str, Any] = {"channel": "shell", "header": {**header, "version": "5.3", "date": ""}}
    message |= {"parent_header": {}, "metadata": {}, "content": content}
    began, lines = time.perf_counter(), 0
    await channels.write_message(json.dumps(message))
    while True:
        frame = await channels.read_message()
        assert frame is not None
        answer = json.loads(frame)
        if answer["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        if answer["msg_type"] == "stream" and answer["content"]["name"] == "stdout":
            lines += answer["content"]["text"].count("\n")
        if answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
            spent = time.perf_counter() - began
            channels.close()
            return spent, lines


if __name__ == "__main__":
    main()
