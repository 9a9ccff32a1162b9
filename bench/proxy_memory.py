"""How much memory the local server needs for large bodies: up, down, and with an end that does not keep up.

``python -m bench.proxy_memory [--gb 5]``. Needs root, as `bench.proxy` does. "Extra" is the highest resident memory
during the transfer less that before it (after a first small transfer: buffers and code are there already).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from ._common import part, table
from .proxy import MB, SESSION, Route, download, openssh, read_head, upload

GB = 1024 * MB
Transfer = Callable[[Route, int], object]
STALL = 10.0
"""Seconds for which a stalled end takes nothing, while the other goes on sending."""


@contextlib.contextmanager
def local_server(folder: Path, delay: float = 0.0) -> Iterator[tuple[Route, psutil.Process]]:
    """Run a local server, an SSH server and a remote service; yield the route and the local server's process."""
    with contextlib.ExitStack() as stack:
        ssh_port, host_key, password, _ = stack.enter_context(openssh(folder))
        if delay:
            ssh_port = int(stack.enter_context(part("relay", str(ssh_port), str(delay)))[0])
        remote = int(stack.enter_context(part("remote"))[0].split()[0])
        config = {"ssh_port": ssh_port, "host_key": host_key, "password": password, "root": str(folder)}
        config |= {"ports": {}, "token": ""}
        here = int(stack.enter_context(part("local", json.dumps(config)))[0])
        owner = next(entry.pid for entry in psutil.net_connections("tcp") if entry.laddr.port == here)
        path = f"/clearml-session/proxy/{SESSION}/port/{remote}"
        yield Route(here, path, token="bench"), psutil.Process(owner)


def extra(server: psutil.Process, transfer: Transfer, route: Route, size: int) -> tuple[float, float]:
    """Run a transfer; return the extra memory of the server in MB, and the seconds it took."""
    before = server.memory_info().rss
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # VmHWM, the peak, begins anew
    begin = time.perf_counter()
    transfer(route, size)
    seconds = time.perf_counter() - begin
    status = Path(f"/proc/{server.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return peak / 1024 - before / MB, seconds


def stalled_download(route: Route, size: int) -> None:
    """Ask for much, take a little, then nothing for a while; go away in the end."""
    with route.connect() as sock:
        sock.sendall(route.head("GET", f"/{size}"))
        read_head(sock)
        sock.recv(MB)
        time.sleep(STALL)


def stalled_upload(route: Route, size: int) -> None:
    """Send as fast as it is taken, to a service that takes nothing; go away in the end."""
    block = os.urandom(MB)
    with route.connect() as sock:
        sock.sendall(route.head("PUT", "/stall", f"Content-Length: {size}"))
        timer = threading.Timer(STALL, sock.shutdown, (socket.SHUT_RDWR,))
        timer.start()
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(block)
        timer.cancel()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gb", type=float, default=5)
    size = int(parser.parse_args().gb * 1024) * MB
    transfers: list[tuple[str, Transfer]] = [
        ("download", download),
        ("upload", upload),
        ("download, reader stalls", stalled_download),
        ("upload, service stalls", stalled_upload),
    ]
    rows = []
    for delay, amount in ((0.0, size), (0.025, size // 10 // MB * MB)):
        link = f"{delay * 2000:.0f} ms" if delay else "loopback"
        with tempfile.TemporaryDirectory() as folder, local_server(Path(folder), delay) as (route, server):
            for warm in (download, upload):
                warm(route, 16 * MB)
            for name, transfer in transfers:
                memory, seconds = extra(server, transfer, route, amount)
                whole = transfer in (download, upload)
                speed = f"{amount / MB / seconds:.0f}" if whole else ""
                rows.append((name, f"{amount / GB:g} GB" if whole else "", link, f"{memory:.1f}", speed))
    print(table(("transfer", "size", "link", "extra memory, MB", "MB/s"), rows))


if __name__ == "__main__":
    main()
