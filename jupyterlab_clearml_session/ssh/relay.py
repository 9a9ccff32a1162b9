"""A small process on the remote machine that reads local TCP ports without making their servers wait.

Jupyter never switches Nagle's algorithm off on its WebSockets. Whoever reads one over the remote loopback through
sshd waits about 40 ms for each cell: the server holds the second small write back until the first is acknowledged,
and the kernel delays that (docs/proxy.md). This process acknowledges at once (TCP_QUICKACK after each read).

It also joins the channels of a large upload (see `lanes`).

It listens on a Unix socket in a folder that only its user can enter, and ends when its stdin does, that is, with
the SSH connection. Nothing of it stays on the machine.
"""

from __future__ import annotations

import shlex

ACCEPTED = b"+"

SOURCE = r"""
import os, shutil, socket, sys, tempfile, threading
WAIT = 10
groups = {}
lock = threading.Lock()
QUICKACK = getattr(socket, "TCP_QUICKACK", None)
def down(tcp, unix):
    try:
        while True:
            data = tcp.recv(262144)
            if QUICKACK is not None:
                tcp.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
            if not data:
                break
            unix.sendall(data)
        unix.shutdown(socket.SHUT_WR)
    except OSError:
        finish(tcp, unix)
def finish(*ends):
    for end in ends:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
def connect(unix, port):
    try:
        tcp = socket.create_connection(("127.0.0.1", int(port)), timeout=WAIT)
    except (OSError, ValueError):
        unix.sendall(b"-")
        return None
    tcp.settimeout(None)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    unix.sendall(b"+")
    return tcp
def serve(unix):
    line = b""
    while not line.endswith(b"\n") and len(line) < 64:
        line += unix.recv(1) or b"\n"
    port, *lane = line.split() or [b""]
    if lane:
        gather(unix, port, *lane)
    else:
        one(unix, port)
def one(unix, port):
    tcp = connect(unix, port)
    if tcp is None:
        unix.close()
        return
    reader = threading.Thread(target=down, args=(tcp, unix), daemon=True)
    reader.start()
    try:
        while True:
            data = unix.recv(262144)
            if not data:
                break
            tcp.sendall(data)
        tcp.shutdown(socket.SHUT_WR)
    except OSError:
        finish(tcp, unix)
    reader.join()
    tcp.close()
    unix.close()
def gather(unix, port, name, index, count):
    with lock:
        lanes, full = groups.setdefault(name, ({}, threading.Event()))
        lanes[int(index)] = unix
        if len(lanes) == int(count):
            del groups[name]
            full.set()
    if not full.wait(WAIT):
        with lock:
            groups.pop(name, None)
        finish(unix)
        unix.close()
    elif int(index) == 0:
        several([lanes[at] for at in range(len(lanes))], port)
        for lane in lanes.values():
            lane.close()
def several(lanes, port):
    tcp = connect(lanes[0], port)
    if tcp is None:
        return
    reader = threading.Thread(target=down, args=(tcp, lanes[0]), daemon=True)
    reader.start()
    try:
        turn = 0
        while True:
            lane = lanes[turn % len(lanes)]
            size = int.from_bytes(exactly(lane, 4), "big")
            if not size:
                break
            data = exactly(lane, size)
            try:
                tcp.sendall(data)
            except OSError:
                reader.join(WAIT)
                break
            turn += 1
        lanes[0].recv(1)
    except (OSError, EOFError):
        pass
    finish(tcp, *lanes)
    reader.join()
    tcp.close()
def exactly(lane, size):
    data = lane.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError
    return data
def accept(server):
    while True:
        unix, _ = server.accept()
        threading.Thread(target=serve, args=(unix,), daemon=True).start()
folder = tempfile.mkdtemp(prefix="clearml-session-")
try:
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.join(folder, "s"))
    server.listen(64)
    threading.Thread(target=accept, args=(server,), daemon=True).start()
    print(os.path.join(folder, "s"), flush=True)
    sys.stdin.buffer.read()
finally:
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
"""

_CANDIDATES = "python3 python /usr/bin/python3 /usr/local/bin/python3 /opt/conda/bin/python3"
_RUNNING = "$(readlink /proc/[0-9]*/exe 2>/dev/null | grep -m1 /python3)"


def command() -> str:
    """Return the line that starts it with the first Python that is found, on the path or among what runs.

    Isolated (``-IS``): a ``PYTHONPATH`` over there may lead to another Python's standard library.
    """
    start = f'command -v "$p" >/dev/null 2>&1 && exec "$p" -IS -c {shlex.quote(SOURCE)}'
    return f"for p in {_CANDIDATES} {_RUNNING}; do {start}; done"
