"""Remote kernels beside their peers: a local kernel, five ``ssh -L`` forwards, a websocket over ``ssh -L``, sshpyk.

Everything runs on this machine, over a real OpenSSH server in a mount namespace of its own (needs root; nothing of
the system is changed). The rounds of all routes are interleaved: the ratios count, not the absolutes.

    python -m bench.kernels [--rounds N] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent.parent))

import websocket
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import KernelManager

from bench._common import median, part, percentile, process, table
from bench._kernel_parts import SESSION
from bench.proxy import TOKEN, jupyter, openssh, ssh_forward, wait_for

DELAY = 0.025
PASS_COUNT = 300
FLOOD = "for i in range(200000):\n    print('%0100d' % i)"
BIG = """
import numpy
ip = get_ipython()
array = numpy.ones(100_000_000, dtype='u1')
ip.kernel.session.send(
    ip.kernel.iopub_socket, 'display_data', {'data': {'text/plain': 'x'}, 'metadata': {}},
    parent=ip.kernel.get_parent(), ident=b'display_data', buffers=[memoryview(array)])
"""

Run = Callable[[str], tuple[float, int, int]]
"""Runs code to idle; gives seconds, lines, and bytes of buffers."""


# -- routes ------------------------------------------------------------------------------------------------


class Zmq:
    """A kernel behind ZMQ sockets."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.client = BlockingKernelClient()
        self.client.load_connection_info(cast("KernelConnectionInfo", info))
        self.client.start_channels()

    def ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client.wait_for_ready(timeout=60)
                return
            except RuntimeError:  # a kernel that needs more than a second to start is taken for dead
                if time.monotonic() > deadline:
                    raise

    def run(self, code: str) -> tuple[float, int, int]:
        begin = time.perf_counter()
        request = self.client.execute(code)
        lines = size = 0
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                lines += content["text"].count("\n")
            elif kind == "error":
                raise RuntimeError(content["evalue"])
            elif kind == "status" and content["execution_state"] == "idle":
                break
            size += sum(len(buffer) for buffer in message["buffers"])
        taken = time.perf_counter() - begin
        while self.client.get_shell_msg(timeout=30)["parent_header"].get("msg_id") != request:
            pass
        return taken, lines, size


class Websocket:
    """A kernel behind a Jupyter server's websocket, as a browser has it."""

    def __init__(self, port: int) -> None:
        import urllib.request

        headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/kernels", b"{}", headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            kernel = json.load(answer)["id"]
        self.session = uuid.uuid4().hex
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels?session_id={self.session}&token={TOKEN}",
            timeout=120,
            sockopt=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        )

    def ready(self) -> None:
        self.run("1")

    def run(self, code: str) -> tuple[float, int, int]:
        request = uuid.uuid4().hex
        header = {"msg_id": request, "msg_type": "execute_request", "session": self.session, "username": ""}
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        content |= {"user_expressions": {}, "stop_on_error": True}
        message = {"header": {**header, "version": "5.3", "date": ""}, "parent_header": {}, "metadata": {}}
        begin = time.perf_counter()
        self.socket.send(json.dumps({**message, "content": content, "channel": "shell", "buffers": []}))
        lines = 0
        while True:
            data = self.socket.recv()
            if isinstance(data, bytes):
                continue
            answer = json.loads(data)
            if answer["parent_header"].get("msg_id") != request or answer["channel"] != "iopub":
                continue
            if answer["msg_type"] == "stream":
                lines += answer["content"]["text"].count("\n")
            if answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
                return time.perf_counter() - begin, lines, 0


class Ours:
    """Kernels through the relay of a process that stands for the local server."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def start(self) -> Zmq:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("start\n")
        self._child.stdin.flush()
        info = json.loads(self._child.stdout.readline())
        return Zmq({**info, "key": info["key"].encode()})


@contextlib.contextmanager
def relayed(folder: Path, ssh_port: int, host_key: str, password: str) -> Iterator[Ours]:
    """Start the local server's part, and end the helper after it."""
    env = {
        "CLEARML_SESSION_HELPER_DIR": str(folder / "helper"),
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    config = {"ssh_port": ssh_port, "host_key": host_key, "password": password, "env": env}
    child = subprocess.Popen(
        [sys.executable, "-m", "bench._kernel_parts", json.dumps(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert child.stdout is not None
    try:
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("the relay did not start")
        yield Ours(child)
    finally:
        child.communicate(timeout=30)
        stop_helpers()


def stop_helpers() -> None:
    """End the daemons that the measured session has left."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if b"daemon" in command and SESSION.encode() in command:
                os.kill(int(entry.name), signal.SIGTERM)


@contextlib.contextmanager
def tcp_kernel() -> Iterator[KernelManager]:
    """A kernel as ``jupyter_client`` starts it on this machine."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stderr=subprocess.DEVNULL)
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def five_forwards(stack: contextlib.ExitStack, ssh_port: int, key: Path) -> Zmq:
    """A kernel whose five ports are forwarded by ``ssh -L``."""
    manager = stack.enter_context(tcp_kernel())
    info = dict(manager.get_connection_info())
    names = [f"{name}_port" for name in ("shell", "iopub", "stdin", "control", "hb")]
    command, local = ssh_forward(ssh_port, key, [cast("int", info[name]) for name in names])
    stack.enter_context(process(*command, lines=0))
    for port in local:
        wait_for(port)
    return Zmq({**info, **dict(zip(names, local, strict=True))})


def websocket_over_ssh(stack: contextlib.ExitStack, ssh_port: int, key: Path, lab: int) -> Websocket:
    """A remote Jupyter's websocket through ``ssh -L``: what users of ``clearml-session`` have."""
    command, local = ssh_forward(ssh_port, key, [lab])
    stack.enter_context(process(*command, lines=0))
    wait_for(local[0])
    return Websocket(local[0])


def sshpyk_kernel(stack: contextlib.ExitStack, folder: Path, ssh_port: int, key: Path) -> Zmq | None:
    """A kernel through sshpyk's provisioner; None where it is not installed."""
    if shutil.which("ssh") is None or not _has("sshpyk"):
        return None
    config = folder / "ssh_config"
    config.write_text(
        f"Host bench\n HostName 127.0.0.1\n Port {ssh_port}\n User root\n IdentityFile {key}\n IdentitiesOnly yes\n"
        " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
        f" ControlMaster auto\n ControlPath {folder}/cm-%C\n ControlPersist 10m\n"
    )
    spec = folder / "kernels" / "bench-sshpyk"
    spec.mkdir(parents=True)
    provisioner = {
        "provisioner_name": "sshpyk-provisioner",
        "config": {
            "ssh_config": str(config),
            "ssh_host_alias": "bench",
            "remote_python": sys.executable,
            "remote_kernel_name": "python3",
        },
    }
    body = {"argv": [], "display_name": "bench", "language": "python", "interrupt_mode": "signal"}
    (spec / "kernel.json").write_text(json.dumps({**body, "metadata": {"kernel_provisioner": provisioner}}))
    os.environ["JUPYTER_PATH"] = str(folder)
    # sshpyk leaves its control master behind, for ten minutes.
    end = ["ssh", "-F", str(config), "-O", "exit", "bench"]
    stack.callback(subprocess.run, end, check=False, capture_output=True, timeout=10)
    manager = KernelManager(kernel_name="bench-sshpyk")
    manager.start_kernel()
    stack.callback(manager.shutdown_kernel, now=True)
    return Zmq(dict(manager.get_connection_info()))


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


# -- measurements ------------------------------------------------------------------------------------------


def passes(route: Zmq | Websocket, count: int) -> list[float]:
    """Seconds from sending ``pass`` to the kernel being idle."""
    return [route.run("pass")[0] for _ in range(count)]


def start_times(ours: Ours, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from asking for a kernel to its first result: a local one, and one through the relay."""
    local, remote = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        with tcp_kernel() as manager:
            first_result(Zmq(dict(manager.get_connection_info())))
            local.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        first_result(ours.start())
        remote.append(time.perf_counter() - begin)
    return local, remote


def first_result(kernel: Zmq) -> None:
    """Wait for the reply to the first cell. Its iopub output may come before a TCP client has subscribed."""
    request = kernel.client.execute("1")
    while kernel.client.get_shell_msg(timeout=60)["parent_header"].get("msg_id") != request:
        pass
    kernel.client.stop_channels()


def measure(rounds: int, count: int) -> dict[str, dict[str, list[float]]]:
    """Measure every route in turn, ``rounds`` times."""
    results: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kb-")))
        ssh_port, host_key, password, key = stack.enter_context(openssh(folder))
        lab = stack.enter_context(jupyter(folder))
        ours = stack.enter_context(relayed(folder, ssh_port, host_key, password))
        local = stack.enter_context(tcp_kernel())
        routes: dict[str, Zmq | Websocket | None] = {
            "local kernel": Zmq(dict(local.get_connection_info())),
            "ours": ours.start(),
            "five ssh -L": five_forwards(stack, ssh_port, key),
            "websocket, ssh -L": websocket_over_ssh(stack, ssh_port, key, lab),
            "sshpyk": sshpyk_kernel(stack, folder, ssh_port, key),
        }
        for name, route in list(routes.items()):
            if route is None:
                print(f"(no {name} on this machine)")
                del routes[name]
            else:
                route.ready()
        for _ in range(rounds):
            for name, route in routes.items():
                assert route is not None
                found = results.setdefault(name, {"pass": [], "flood": [], "big": []})
                found["pass"] += passes(route, count // rounds)
                taken, lines, _ = route.run(FLOOD)
                found["flood"].append(lines / taken if lines == 200_000 else 0.0)
                if isinstance(route, Zmq):
                    taken, _, size = route.run(BIG)
                    assert size == 100_000_000
                    found["big"].append(100 / taken)
        local_start, our_start = start_times(ours, max(3, rounds))
        results["local kernel"]["start"] = local_start
        results["ours"]["start"] = our_start
    return results


def measure_far(count: int) -> dict[str, list[float]]:
    """``pass`` to idle over a link of 50 ms: ours, and five forwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kb-")))
        ssh_port, host_key, password, key = stack.enter_context(openssh(folder))
        far = int(stack.enter_context(part("relay", str(ssh_port), str(DELAY)))[0])
        ours = stack.enter_context(relayed(folder, far, host_key, password)).start()
        forwards = five_forwards(stack, far, key)
        local = Zmq(dict(stack.enter_context(tcp_kernel()).get_connection_info()))
        routes = {"local kernel": local, "ours": ours, "five ssh -L": forwards}
        for route in routes.values():
            route.ready()
        return {name: passes(route, count) for name, route in routes.items()}


def report(results: dict[str, dict[str, list[float]]], far: dict[str, list[float]]) -> str:
    """Return the Markdown tables: what was measured, and the bars."""
    rows = []
    for name, found in results.items():
        flood = median(found["flood"])
        row = [name, f"{median(found['pass']) * 1e3:.2f} / {percentile(found['pass'], 99) * 1e3:.2f}"]
        row.append(f"{flood:,.0f}" if flood else "lost lines")
        row.append(f"{median(found['big']):.0f}" if found["big"] else "-")
        row.append(f"{median(found['start']):.2f}" if "start" in found else "-")
        row.append(f"{median(far[name]) * 1e3:.1f}" if name in far else "-")
        rows.append(row)
    header = [
        "route",
        "`pass` p50 / p99, ms",
        "lines/s",
        "100 MB buffer, MB/s",
        "start, s",
        "`pass`, 50 ms link",
    ]
    local, ours, forwards = results["local kernel"], results["ours"], results["five ssh -L"]
    added = (median(far["ours"]) - median(far["local kernel"])) * 1e3
    bars = [
        ("`pass` to idle, p50", median(ours["pass"]) / median(local["pass"]), "<= 1.4x local", 1.4, False),
        ("200,000 lines", median(ours["flood"]) / median(local["flood"]), ">= 0.95x local", 0.95, True),
        ("100 MB buffer", median(ours["big"]) / median(forwards["big"]), ">= 0.8x five forwards", 0.8, True),
        ("start, s more than local", median(ours["start"]) - median(local["start"]), "<= 0.5 s", 0.5, False),
        ("added on a 50 ms link, ms", added, "<= 60 ms", 60.0, False),
    ]
    checked = [
        [name, f"{value:.2f}", bar, "met" if (value >= limit) == at_least else "MISSED"]
        for name, value, bar, limit, at_least in bars
    ]
    return table(header, rows) + "\n\n" + table(["work", "measured", "bar", ""], checked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, fewer cells")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("sshd", path="/usr/sbin:/usr/bin") is None:
        print("Needs root and OpenSSH's sshd: skipped.")
        return
    rounds = 1 if arguments.quick else arguments.rounds
    count = 60 if arguments.quick else PASS_COUNT
    print(report(measure(rounds, count), measure_far(min(count, 100))))


if __name__ == "__main__":
    main()
