"""The proxy beside its peers: no tunnel, ``ssh -L``, jupyter-server-proxy over ``ssh -L``. Prints Markdown.

``ssh -L`` is OpenSSH with its default cipher and ``-N``; "CLI" is the command that ``clearml-session`` starts: with
compression, and with a shell, which switches Nagle's algorithm off in sshd.

Everything runs on this machine: a real OpenSSH server in a mount namespace of its own (needs root; nothing of the
system is changed), a real Jupyter server as the remote one, and a local Jupyter server with both proxies. The
rounds of all routes are interleaved, so the ratios count and not the absolutes.

    python -m bench.proxy [--rounds N] [--quick] [--only WORD]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec

from bench._common import median, part, percentile, process, table

P = ParamSpec("P")
MB = 1 << 20
DELAY = 0.025
SESSION = "0123456789abcdef0123456789abcdef"
TOKEN = "bench"
"""Of both Jupyter servers: jupyter-server-proxy hands the local one on to the remote."""
SLOW = ("jsp", "CLI")
"""The routes that carry 64 MB instead of hundreds."""
ROUTES = ("direct", "ssh -L", "CLI", "jsp", "ours")


@dataclass
class Route:
    """How a client reaches one remote service."""

    port: int
    path: str = ""
    token: str = ""

    def head(self, method: str, path: str, *more: str) -> bytes:
        lines = [f"{method} {self.path}{path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *more]
        if self.token:
            lines.append(f"Authorization: token {self.token}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


@dataclass
class Site:
    """Everything that runs, and the routes to the three remote services (bytes, echo, Jupyter)."""

    ssh_port: int
    host_key: str
    password: str
    jupyter: int
    key: Path
    routes: dict[str, dict[str, Route]] = field(default_factory=dict)


# -- the parts


@contextlib.contextmanager
def openssh(folder: Path, more: str = "") -> Iterator[tuple[int, str, str, Path]]:
    """A real sshd with its own passwords and keys, in a mount namespace: (port, host key, password, client key)."""
    password = secrets.token_hex(8)
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", password], check=True, capture_output=True, text=True
    ).stdout.strip()
    # A copy of the whole folder: a mount on the one file would end when somebody replaces that file.
    subprocess.run(["cp", "-a", "/etc", folder / "etc"], check=True)
    shadow = folder / "etc" / "shadow"
    lines = [re.sub(r"^root:[^:]*", f"root:{hashed}", line) for line in shadow.read_text().splitlines()]
    shadow.write_text("\n".join(lines) + "\n")
    (folder / "authorized").write_text((folder / "client.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\n"
        f"HostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        "PermitRootLogin yes\nPasswordAuthentication yes\nUsePAM no\nStrictModes no\n"
        f"PidFile none\nMaxStartups 100\nSubsystem sftp internal-sftp\n{more}"
    )
    script = (
        f"mount --bind {folder / 'etc'} /etc && mount -t tmpfs tmpfs /run && mkdir /run/sshd && "
        f"exec /usr/sbin/sshd -D -f {folder / 'sshd_config'}"
    )
    with process("unshare", "-m", "sh", "-c", script, lines=0):
        wait_for(port)
        yield port, (folder / "host.pub").read_text().strip(), password, folder / "client"


@contextlib.contextmanager
def jupyter(folder: Path) -> Iterator[int]:
    """A real Jupyter server at ``/``, as the remote script starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "server", "--no-browser", "--allow-root", f"--port={port}"]
    command += [
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.log_level=40",
    ]
    with process(*command, lines=0, stderr=subprocess.DEVNULL):
        wait_for(port)
        yield port


def ssh_forward(
    ssh_port: int, key: Path, ports: list[int], more: tuple[str, ...] = ("-N",)
) -> tuple[list[str], list[int]]:
    """The command line of ``ssh -L`` for some remote ports, and the local ports it will open."""
    local = []
    command = ["ssh", *more, "-F", "/dev/null", "-p", str(ssh_port), "-i", str(key)]
    for option in (
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ):
        command += ["-o", option]
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            local.append(probe.getsockname()[1])
        command += ["-L", f"127.0.0.1:{local[-1]}:127.0.0.1:{port}"]
    return [*command, "root@127.0.0.1"], local


CLI = ("-C", "-o", "Compression=yes", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=10", "-tt")
"""How ``clearml_session.__main__.start_ssh_tunnel`` (0.17) calls ssh; ``-tt`` stands for its terminal."""


def wait_for(port: int) -> None:
    """Wait until something listens."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on {port}")


@contextlib.contextmanager
def site(delay: float = 0.0) -> Iterator[Site]:
    """Start everything; with `delay`, a relay that holds each byte back stands before the SSH server."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ssh_port, host_key, password, key = stack.enter_context(openssh(folder))
        if delay:
            ssh_port = int(stack.enter_context(part("relay", str(ssh_port), str(delay)))[0])
        lab = stack.enter_context(jupyter(folder))
        stream, echo = (int(port) for port in stack.enter_context(part("remote"))[0].split())
        services = {"bytes": stream, "echo": echo, "jupyter": lab}
        command, forwarded = ssh_forward(ssh_port, key, list(services.values()))
        stack.enter_context(process(*command, lines=0))
        command, compressed = ssh_forward(ssh_port, key, list(services.values()), CLI)
        stack.enter_context(process(*command, lines=0, stdin=subprocess.PIPE))
        config = {"ssh_port": ssh_port, "host_key": host_key, "password": password, "root": str(folder)}
        config |= {"ports": {"jupyter": lab}, "token": TOKEN}
        here = int(stack.enter_context(part("local", json.dumps(config)))[0])
        for port in (*forwarded, *compressed):
            wait_for(port)
        result = Site(ssh_port, host_key, password, lab, key)
        for (name, port), local, cli in zip(services.items(), forwarded, compressed, strict=True):
            token = TOKEN if name == "jupyter" else ""
            ours = f"/clearml-session/proxy/{SESSION}/" + ("jupyter" if token else f"port/{port}")
            result.routes[name] = {
                "direct": Route(port, token=token),
                "ssh -L": Route(local, token=token),
                "CLI": Route(cli, token=token),
                "jsp": Route(here, f"/proxy/{local}", token="bench"),
                "ours": Route(here, ours, token="bench"),
            }
        yield result


# -- one measurement of one route


def read_head(sock: socket.socket) -> tuple[int, int, bytes]:
    """Read a response head: (status, content length, what came after it)."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError("closed before an answer")
        data += piece
    head, rest = data.split(b"\r\n\r\n", 1)
    match = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return int(head.split(b" ")[1]), int(match[1]) if match else -1, rest


def request(sock: socket.socket, head: bytes) -> bytes:
    """Send a request and read the whole answer."""
    sock.sendall(head)
    status, length, body = read_head(sock)
    if length < 0:
        while not body.endswith(b"0\r\n\r\n"):
            body += sock.recv(65536)
    while len(body) < length:
        body += sock.recv(65536)
    if status >= 400:
        raise ConnectionError(f"status {status}: {body[:200]!r}")
    return body


def download(route: Route, size: int) -> float:
    """MB/s."""
    buffer = memoryview(bytearray(MB))
    with route.connect() as sock:
        begin = time.perf_counter()
        sock.sendall(route.head("GET", f"/{size}"))
        status, length, rest = read_head(sock)
        if status != 200:
            raise ConnectionError(f"status {status}")
        left = size - len(rest)
        if length < 0:
            left = sys.maxsize  # chunked: read on to the last chunk
        tail = b""
        while left:
            got = sock.recv_into(buffer)
            if not got:
                raise ConnectionError("broken off")
            left -= got
            if length < 0:
                tail = bytes(buffer[max(0, got - 5) : got])
                if tail.endswith(b"0\r\n\r\n"):
                    break
        return size / MB / (time.perf_counter() - begin)


def upload(route: Route, size: int) -> float:
    """MB/s."""
    block = os.urandom(MB)
    with route.connect() as sock:
        begin = time.perf_counter()
        sock.sendall(route.head("PUT", "/sink", f"Content-Length: {size}"))
        for _ in range(size // MB):
            sock.sendall(block)
        status, length, body = read_head(sock)
        while len(body) < length:
            body += sock.recv(65536)
        if status != 200 or body != str(size).encode():
            raise ConnectionError(f"status {status}: {body[:100]!r}")
        return size / MB / (time.perf_counter() - begin)


def small_gets(route: Route, count: int) -> list[float]:
    """Milliseconds of each of some GETs of ``/api/status`` on one connection."""
    head = route.head("GET", "/api/status")
    times = []
    with route.connect() as sock:
        request(sock, head)
        for _ in range(count):
            begin = time.perf_counter()
            request(sock, head)
            times.append((time.perf_counter() - begin) * 1000)
    return times


async def many_gets(route: Route, count: int) -> tuple[float, list[float]]:
    """16 at once: (requests per second, milliseconds of each)."""
    head = route.head("GET", "/api/status")
    times: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", route.port)
        for _ in range(count):
            begin = time.perf_counter()
            writer.write(head)
            answer = await reader.readuntil(b"\r\n\r\n")
            match = re.search(rb"content-length: *(\d+)", answer, re.IGNORECASE)
            assert match is not None, answer
            await reader.readexactly(int(match[1]))
            times.append((time.perf_counter() - begin) * 1000)
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(16)))
    return 16 * count / (time.perf_counter() - begin), times


def gets_beside_download(stream: Route, status: Route, count: int) -> list[float]:
    """Milliseconds of small GETs while another process downloads over the same tunnel."""
    code = (
        "import sys; from bench.proxy import Route, download\n"
        f"route = Route({stream.port}, {stream.path!r}, {stream.token!r})\n"
        "print('go', flush=True)\n"
        f"while True: download(route, {64 * MB})\n"
    )
    with process(sys.executable, "-c", code):
        time.sleep(0.3)
        return small_gets(status, count)


class WebSocket:
    """Just enough of a client; frames are masked with zeros."""

    def __init__(self, route: Route, path: str) -> None:
        self.sock = route.connect()
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        self.sock.sendall(
            route.head(
                "GET",
                path,
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                f"Sec-WebSocket-Key: {key}",
            )
        )
        status, _, self._rest = read_head(self.sock)
        if status != 101:
            raise ConnectionError(f"status {status}")

    def send(self, payload: bytes, opcode: int = 2) -> None:
        size = len(payload)
        if size < 126:
            head = bytes([0x80 | opcode, 0x80 | size])
        elif size < 65536:
            head = bytes([0x80 | opcode, 0x80 | 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([0x80 | opcode, 0x80 | 127]) + size.to_bytes(8, "big")
        self.sock.sendall(head + b"\0\0\0\0" + payload)

    def receive(self) -> tuple[int, bytes]:
        first, size = self._exactly(2)
        if size == 126:
            size = int.from_bytes(self._exactly(2), "big")
        elif size == 127:
            size = int.from_bytes(self._exactly(8), "big")
        return first & 15, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        parts = [self._rest[:size]]
        self._rest = self._rest[size:]
        left = size - len(parts[0])
        while left:
            piece = self.sock.recv(min(left, MB))
            if not piece:
                raise ConnectionError("closed")
            parts.append(piece)
            left -= len(piece)
        return b"".join(parts)


def echoes(route: Route, size: int, count: int) -> list[float]:
    """Milliseconds of each of some WebSocket round trips."""
    client = WebSocket(route, "/ws")
    payload = os.urandom(size)
    times = []
    for index in range(count + 3):
        begin = time.perf_counter()
        client.send(payload)
        assert client.receive()[1] == payload
        if index >= 3:
            times.append((time.perf_counter() - begin) * 1000)
    client.sock.close()
    return times


def cells(route: Route, kernel: str, count: int) -> list[float]:
    """Milliseconds from sending ``pass`` to the kernel's idle status, over Jupyter's WebSocket."""
    client = WebSocket(route, f"/api/kernels/{kernel}/channels")
    times = []
    for index in range(count + 2):
        ident = secrets.token_hex(8)
        header = {
            "msg_id": ident,
            "msg_type": "execute_request",
            "username": "",
            "session": "bench",
            "date": "",
            "version": "5.3",
        }
        content = {
            "code": "pass",
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
        }
        message = {
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
            "channel": "shell",
            "buffers": [],
        }
        begin = time.perf_counter()
        client.send(json.dumps(message).encode(), opcode=1)
        while True:
            opcode, data = client.receive()
            if opcode != 1:
                continue
            answer = json.loads(data)
            ours = answer["parent_header"].get("msg_id") == ident
            if ours and answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
                break
        if index >= 2:
            times.append((time.perf_counter() - begin) * 1000)
        time.sleep(0.06)  # a person waits between cells; without it delayed ACKs hide
    client.sock.close()
    return times


def attach_ssh(ssh_port: int, key: Path, jupyter_port: int) -> float:
    """Milliseconds from starting ``ssh -L`` to the first byte of ``/api/status``."""
    command, (local,) = ssh_forward(ssh_port, key, [jupyter_port])
    route = Route(local, token=TOKEN)
    begin = time.perf_counter()
    with process(*command, lines=0):
        while True:
            try:
                with route.connect() as sock:
                    sock.sendall(route.head("GET", "/api/status"))
                    sock.recv(1)
                    return (time.perf_counter() - begin) * 1000
            except ConnectionError:
                time.sleep(0.001)


def attach_ours_now(here: Site) -> float:
    """Milliseconds of `attach_ours` in an event loop of its own."""
    return asyncio.run(attach_ours(here))


async def attach_ours(here: Site) -> float:
    """The same with our tunnel, in this process."""
    from jupyterlab_clearml_session.models import SshTarget
    from jupyterlab_clearml_session.ssh.tunnel import Tunnel

    async def target() -> SshTarget:
        return SshTarget("127.0.0.1", here.ssh_port, "root", here.password, (here.host_key,))

    tunnel = Tunnel(target)
    begin = time.perf_counter()
    tunnel.start()
    await tunnel.wait_up(10)
    channel = await tunnel.open_channel(here.jupyter)
    channel.write(Route(here.jupyter, token=TOKEN).head("GET", "/api/status"))
    await channel.read()
    taken = (time.perf_counter() - begin) * 1000
    await tunnel.close()
    return taken


# -- the table


@dataclass
class Work:
    """One line: what is measured, in which unit, and what must hold (a test of the ratios)."""

    name: str
    unit: str
    routes: tuple[str, ...] = ROUTES
    values: dict[str, list[float]] = field(default_factory=dict)
    bars: list[tuple[str, str, float]] = field(default_factory=list)
    """(peer, "<=" or ">=", ratio to ours)"""

    def add(
        self, route: str, measure: Callable[P, float | list[float]], *args: P.args, **options: P.kwargs
    ) -> None:
        """Take one measurement (of several values, the median); a route that fails has no value."""
        try:
            value = measure(*args, **options)
            self.values.setdefault(route, []).append(median(value) if isinstance(value, list) else value)
        except (OSError, AssertionError) as exc:
            print(f"  {self.name}, {route}: {type(exc).__name__}: {str(exc)[:100]}", file=sys.stderr)

    def row(self) -> list[str]:
        """The line of the table."""
        cells = [f"{self.name}, {self.unit}"]
        for route in ROUTES:
            values = self.values.get(route, [])
            cells.append(f"{median(values):.3g}" if values else ("fails" if route in self.routes else ""))
        verdicts = []
        for peer, sign, bar in self.bars:
            if not self.values.get(peer) or not self.values.get("ours"):
                verdicts.append(f"{peer}: no value")
                continue
            ratio = median(self.values["ours"]) / median(self.values[peer])
            met = ratio <= bar if sign == "<=" else ratio >= bar
            verdicts.append(f"{ratio:.2f}x {peer} ({sign} {bar}: {'met' if met else 'MISSED'})")
        return [*cells, "; ".join(verdicts)]


def measure_near(rounds: int, quick: bool, only: str) -> list[Work]:
    """All work over loopback."""
    big = (128 if quick else 512) * MB
    works = {
        "down": Work(
            "download 512 MB" if not quick else "download 128 MB", "MB/s", bars=[("ssh -L", ">=", 1.3)]
        ),
        "up": Work("upload 256 MB", "MB/s", bars=[("ssh -L", ">=", 1.0)]),
        "get": Work("GET, one at a time, p50", "ms", bars=[("ssh -L", "<=", 2.0), ("jsp", "<=", 0.6)]),
        "many": Work("GET, 16 at once", "req/s", bars=[("ssh -L", ">=", 0.9), ("jsp", ">=", 2.0)]),
        "tail": Work("GET, 16 at once, p99", "ms", bars=[("ssh -L", "<=", 0.5)]),
        "beside": Work(
            "GET beside a download, p50", "ms", ("ssh -L", "CLI", "jsp", "ours"), bars=[("jsp", "<=", 0.35)]
        ),
        "ws": Work("WebSocket 200 B, p50", "ms", bars=[("ssh -L", "<=", 1.1)]),
        "ws1m": Work("WebSocket 1 MB, p50", "ms", bars=[("ssh -L", "<=", 0.7)]),
        "ws1mtail": Work("WebSocket 1 MB, p99", "ms", bars=[("ssh -L", "<=", 0.2)]),
        "cell": Work("cell `pass` to idle, p50", "ms", bars=[("ssh -L", "<=", 0.25)]),
        "attach": Work("connect to first byte", "ms", ("ssh -L", "ours"), bars=[("ssh -L", "<=", 0.3)]),
    }
    with site() as here:
        stream, echo, lab = (here.routes[name] for name in ("bytes", "echo", "jupyter"))
        url = f"http://127.0.0.1:{here.jupyter}/api/kernels"
        made = subprocess.run(
            ["curl", "-s", "-XPOST", "-H", f"Authorization: token {TOKEN}", url],
            check=True,
            capture_output=True,
            text=True,
        )
        kernel = json.loads(made.stdout)["id"]
        for name in ROUTES * rounds:
            wanted = {key for key, work in works.items() if name in work.routes and only in ("", key)}
            if "down" in wanted:
                works["down"].add(name, download, stream[name], 64 * MB if name in SLOW else big)
            if "up" in wanted:
                works["up"].add(name, upload, stream[name], 64 * MB if name in SLOW else 256 * MB)
            if "get" in wanted:
                works["get"].add(name, small_gets, lab[name], 200)
            if "many" in wanted:
                rate, times = asyncio.run(many_gets(lab[name], 60))
                works["many"].values.setdefault(name, []).append(rate)
                works["tail"].values.setdefault(name, []).extend(times)
            if "beside" in wanted:
                works["beside"].add(name, gets_beside_download, stream[name], lab[name], 60)
            if "ws" in wanted:
                works["ws"].add(name, echoes, echo[name], 200, 200)
            if "ws1m" in wanted:
                with contextlib.suppress(OSError):
                    times = echoes(echo[name], MB, 40)
                    works["ws1m"].values.setdefault(name, []).append(median(times))
                    works["ws1mtail"].values.setdefault(name, []).extend(times)
            if "cell" in wanted:
                works["cell"].add(name, cells, lab[name], kernel, 12)
            if "attach" in wanted and name == "ssh -L":
                works["attach"].add(name, attach_ssh, here.ssh_port, here.key, here.jupyter)
            if "attach" in wanted and name == "ours":
                works["attach"].add(name, attach_ours_now, here)
    for key in ("tail", "ws1mtail"):
        works[key].values = {name: [percentile(times, 99)] for name, times in works[key].values.items()}
    return list(works.values())


def measure_far(rounds: int, only: str) -> list[Work]:
    """Bulk and latency over a link of 50 ms."""
    routes = ("ssh -L", "CLI", "jsp", "ours")
    works = {
        "down": Work("download 64 MB, 50 ms", "MB/s", routes, bars=[("ssh -L", ">=", 4.0)]),
        "up": Work("upload 64 MB, 50 ms", "MB/s", routes, bars=[("ssh -L", ">=", 2.0)]),
        "get": Work("GET, 50 ms, p50", "ms", routes, bars=[("ssh -L", "<=", 1.05)]),
    }
    with site(DELAY) as here:
        stream, lab = here.routes["bytes"], here.routes["jupyter"]
        for name in routes:
            # All of them are connected then: our second connection is made beside the first small requests.
            small_gets(lab[name], 20)
        for name in routes * rounds:
            if only in ("", "down"):
                works["down"].add(name, download, stream[name], 64 * MB)
            if only in ("", "up"):
                works["up"].add(name, upload, stream[name], 64 * MB)
            if only in ("", "get"):
                works["get"].add(name, small_gets, lab[name], 20)
    return list(works.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="less data")
    parser.add_argument("--only", default="", help="one kind of work, by its short name")
    parser.add_argument("--near", action="store_true", help="loopback only")
    parser.add_argument("--far", action="store_true", help="50 ms link only")
    options = parser.parse_args()
    works: list[Work] = []
    if not options.far:
        works += measure_near(options.rounds, options.quick, options.only)
    if not options.near:
        works += measure_far(options.rounds, options.only)
    print(file=sys.stderr)
    rows = [work.row() for work in works if work.values]
    print(table(["work", *ROUTES, "ours against"], rows))


if __name__ == "__main__":
    main()
