"""What a broken connection does to a remote kernel: each fault of docs/reliability.md, as often as asked for.

Each try is a cell that prints 100,000 numbered lines with display updates between, a result and a reply, while
something breaks. Everything runs on this machine: the real helper and a real kernel, behind a real OpenSSH server
(in a mount namespace of its own; needs root) where SSH is what breaks.

    python -m bench.faults [--tries N] [--first N] [--parallel N] [--only WORD] [--freeze SECONDS]

Where in a try something breaks follows from the try's number: ``--first`` gives other ones.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil

from bench._common import table
from bench.proxy import openssh
from jupyterlab_clearml_session.kernels.attach import as_socket, open_channel
from jupyterlab_clearml_session.kernels.channel import SessionChannel
from jupyterlab_clearml_session.models import SshTarget
from jupyterlab_clearml_session.remote.wire import ACK, DATA, FRAME_HEADER
from tests.counting import Count, Verdict
from tests.kernel_fixture import (
    SESSION_ID,
    Cable,
    RemoteMachine,
    Talk,
    remote_machine,
    running,
    start_kernel,
    talk,
)
from tests.kernel_server_fixture import NAME
from tests.killed_server import TunnelTo, kernel_server, run_and_kill

COUNT = Count()
KILLS = 5
"""Of one server, within one count."""
ROOM = {"CLEARML_SESSION_HELPER_MEMORY": "500000"}


@dataclass
class Result:
    """Of one try, or of several within one count."""

    verdict: Verdict
    note: str = ""
    tries: int = 1


Fault = Callable[[random.Random], Result]


# -- a kernel, and the wire to it --------------------------------------------------------------------------


class Session:
    """A remote kernel with one client."""

    def __init__(self, folder: Path, dial: Callable[[str], socket.socket]) -> None:
        self.refuse = threading.Event()
        """While it is set there is no new wire."""
        self._dial = dial
        self.channel = SessionChannel(self._dial_unless_refused)
        self.channel.start()
        self.talk: Talk = talk(self.channel, start_kernel(self.channel, folder))
        self.talk.run("1")

    def _dial_unless_refused(self, client_id: str) -> socket.socket:
        if self.refuse.is_set():
            raise OSError("no link")
        return self._dial(client_id)

    def come_back(self) -> None:
        """End an outage."""
        self.refuse.clear()
        self.channel.redial()

    def count(self, count: Count, meanwhile: Callable[[int], None]) -> Result:
        """Run the counting cell; ``meanwhile`` is told after each message how many there were."""
        request = self.talk.client.execute(count.code)
        messages: list[dict[str, Any]] = []
        while True:
            message = self.talk.next(timeout=120)
            if message["parent_header"].get("msg_id") == request:
                messages.append(message)
                if message["content"].get("execution_state") == "idle":
                    break
                meanwhile(len(messages))
        replies = [self.talk.reply(request)]
        while self.talk.client.shell_channel.msg_ready():
            late = self.talk.client.get_shell_msg()
            if late["parent_header"].get("msg_id") == request:
                replies.append(late["content"])
        said = [m["content"]["text"] for m in messages if m["content"].get("name") == "stderr"]
        return Result(count.judge(messages, replies), f"{len(said)} notice" if said else "")

    def close(self) -> None:
        self.talk.close()
        self.channel.close()


class Wires:
    """Lays the wires of a session without SSH, so that a fault has its hand on the very bytes."""

    def __init__(self, machine: RemoteMachine, kind: type[Cable] = Cable) -> None:
        self.cables: list[Cable] = []
        self.cut_after: list[int] = []
        self._machine = machine
        self._kind = kind

    def dial(self, client_id: str) -> socket.socket:
        cut_after = self.cut_after.pop() if self.cut_after else None
        self.cables.append(self._kind(self._machine.dial(client_id), cut_after))
        return self.cables[-1].near

    def cut(self) -> None:
        self.cables[-1].cut()


@contextlib.contextmanager
def wired(
    make: Callable[[Path], RemoteMachine] = RemoteMachine, cable: type[Cable] = Cable
) -> Iterator[tuple[Session, Wires]]:
    """A session over wires."""
    with tempfile.TemporaryDirectory(prefix="f-") as name, running(make(Path(name))) as made:
        wires = Wires(made, cable)
        session = Session(Path(name), wires.dial)
        try:
            yield session, wires
        finally:
            session.close()
            for laid in wires.cables:
                laid.cut()


def at(moment: int, act: Callable[[], None]) -> Callable[[int], None]:
    """Do something after so many messages."""

    def meanwhile(messages: int) -> None:
        if messages == moment:
            act()

    return meanwhile


def somewhere(rnd: random.Random) -> int:
    """A number of messages in the middle of the count."""
    return rnd.randrange(20, 2 * COUNT.lines // COUNT.step - 20)


# -- faults of the wire ------------------------------------------------------------------------------------


def cut_in_a_frame(rnd: random.Random) -> Result:
    """Five wires in turn, each cut after a random byte."""
    with wired() as (session, wires):

        def cut() -> None:
            wires.cut_after = [rnd.randrange(30, 60_000) for _ in range(4)]
            wires.cut()

        result = session.count(COUNT, at(somewhere(rnd), cut))
        return Result(result.verdict, "" if len(wires.cables) >= 6 else f"{len(wires.cables) - 1} cuts")


class Injecting(Cable):
    """A cable on which old frames come again, whole or in part, and frames of streams that never were."""

    def __init__(self, far: socket.socket, cut_after: int | None = None) -> None:
        self._rnd = random.Random(7)
        self._rest: dict[int, bytes] = {}
        self._old: dict[int, list[bytes]] = {}
        self.injected = 0
        super().__init__(far, cut_after)

    def change(self, source: socket.socket, data: bytes) -> bytes:
        key = id(source)
        data = self._rest.get(key, b"") + data
        old = self._old.setdefault(key, [])
        out, position = [], 0
        while len(data) - position >= FRAME_HEADER.size:
            kind, length = FRAME_HEADER.unpack_from(data, position)[:2]
            end = position + FRAME_HEADER.size + length
            if end > len(data):
                break
            frame = data[position:end]
            position = end
            out.append(frame)
            if kind in (DATA, ACK):
                old.append(frame)
                del old[:-50]
                out += self._stale(old)
        self._rest[key] = data[position:]
        return b"".join(out)

    def _stale(self, old: list[bytes]) -> Iterator[bytes]:
        frame = self._rnd.choice(old)
        kind, length, stream, offset = FRAME_HEADER.unpack_from(frame)
        payload = frame[FRAME_HEADER.size :]
        self.injected += 2
        yield frame
        if kind == DATA and length > 1:
            begin = self._rnd.randrange(length)
            yield FRAME_HEADER.pack(DATA, length - begin, stream, offset + begin) + payload[begin:]
        yield FRAME_HEADER.pack(DATA, 4, 4711, offset) + b"what"


def stale_frames(rnd: random.Random) -> Result:
    """Two or three stale frames after each true one, both ways."""
    with wired(cable=Injecting) as (session, wires):
        result = session.count(COUNT, lambda messages: None)
        assert isinstance(wires.cables[0], Injecting)
        return Result(result.verdict, "" if wires.cables[0].injected > 100 else "too few were injected")


def interrupted_in_an_outage(rnd: random.Random) -> Result:
    """The user presses interrupt three times; on return the cell is interrupted once, and the next one is not."""
    code = """
import time
hits = 0
try:
    while True: time.sleep(0.01)
except KeyboardInterrupt:
    hits += 1
end = time.monotonic() + 0.3
while time.monotonic() < end:
    try:
        while time.monotonic() < end: time.sleep(0.01)
    except KeyboardInterrupt:
        hits += 1
print(hits)
"""
    with wired() as (session, wires):
        request = session.talk.client.execute(code)
        while session.talk.next()["msg_type"] != "execute_input":
            pass
        session.refuse.set()
        wires.cut()
        for _ in range(3):
            session.channel.signal(1, "k-1", signal.SIGINT)
        time.sleep(rnd.uniform(0, 0.3))
        session.come_back()
        texts = [m["content"].get("text") for m in session.talk.until_idle(request)]
        hits = next(int(text) for text in texts if text is not None)
        result = session.count(COUNT, lambda messages: None)
        return Result(
            result.verdict, f"took effect {hits} time" if hits == 1 else f"took effect {hits} times"
        )


def sent_in_an_outage(rnd: random.Random) -> Result:
    """The count is the last of four cells that are sent while there is no link."""
    with wired() as (session, wires):
        session.talk.run("seen = [0]")
        session.refuse.set()
        wires.cut()
        for number in range(1, 4):
            session.talk.client.execute(f"seen.append({number})")
        back = threading.Timer(rnd.uniform(0.1, 0.5), session.come_back)
        back.start()
        result = session.count(COUNT, lambda messages: None)
        back.join()
        in_order = session.talk.run("print(seen)") == "[0, 1, 2, 3]\n"
        return Result(result.verdict, "" if in_order else "THE CELLS BEFORE IT DID NOT RUN IN ORDER")


# -- faults of the room ------------------------------------------------------------------------------------


def unwatched(session: Session, wires: Wires, folder: Path) -> Result:
    """Count while there is no link, as fast as it goes."""
    count = Count(step=50, pause=0.0, gates=folder)

    def away(messages: int) -> None:
        # After "busy" and the echo of the input, before the first line.
        if messages == 2:
            session.refuse.set()
            wires.cut()
            count.open_gate(0)
            threading.Thread(target=come_back).start()

    def come_back() -> None:
        while not count.finished:
            time.sleep(0.05)
        session.come_back()

    return session.count(count, away)


def overflow_to_disk(rnd: random.Random) -> Result:
    """Half a megabyte of memory, enough disk."""
    with (
        wired(lambda root: RemoteMachine(root, **ROOM)) as (session, wires),
        tempfile.TemporaryDirectory() as folder,
    ):
        return unwatched(session, wires, Path(folder))


def overflow_of_disk_limit(rnd: random.Random) -> Result:
    """Half a megabyte of memory, one of disk: the surplus is dropped, visibly."""
    room = {**ROOM, "CLEARML_SESSION_HELPER_DISK": "1000000"}
    with (
        wired(lambda root: RemoteMachine(root, **room)) as (session, wires),
        tempfile.TemporaryDirectory() as folder,
    ):
        return unwatched(session, wires, Path(folder))


class SmallDisk(RemoteMachine):
    """The helper's files lie on a disk of one megabyte, in a mount namespace of their own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, **ROOM)
        self.helper_dir.mkdir()
        script = f"mount -t tmpfs -o size=1m tmpfs {self.helper_dir} && echo ready && exec sleep 3600"
        self._holder = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise RuntimeError("no small disk")
        self.prefix = ["nsenter", "-m", "-t", str(self._holder.pid)]
        self.helper_dir = Path(f"/proc/{self._holder.pid}/root{self.helper_dir}")

    def stop(self) -> None:
        super().stop()
        self._holder.kill()
        self._holder.communicate()


def disk_full(rnd: random.Random) -> Result:
    """Half a megabyte of memory, and the file system over there is full after one."""
    with wired(SmallDisk) as (session, wires), tempfile.TemporaryDirectory() as folder:
        return unwatched(session, wires, Path(folder))


# -- faults of SSH -----------------------------------------------------------------------------------------


class Hop:
    """A TCP hop before the SSH server, which can reset what goes through it."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pairs.append((near, far))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self._pairs)

    @property
    def far_port(self) -> int:
        """The port from which the newest connection reaches the SSH server."""
        return int(self._pairs[-1][1].getsockname()[1])

    def reset(self) -> None:
        """Break the newest connection, as a router does that has forgotten it."""
        for sock in self._pairs[-1]:
            # An RST takes the place of the FIN, and wakes whoever waits in recv.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)
            sock.close()

    def close(self) -> None:
        self._listener.close()
        for pair in self._pairs:
            for sock in pair:
                sock.close()


class Sshd:
    """The OpenSSH server of all tries, and the event loop of their tunnels."""

    def __init__(self, folder: Path, freeze: float) -> None:
        self.freeze = freeze
        self._server = openssh(folder)
        self._port, self._host_key, self._password, _ = self._server.__enter__()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.__exit__(None, None, None)

    def target(self, port: int | None = None) -> SshTarget:
        return SshTarget("127.0.0.1", port or self._port, "root", self._password, (self._host_key,))

    @contextlib.contextmanager
    def session(self) -> Iterator[tuple[Session, Hop]]:
        """A session through a tunnel of its own."""
        hop = Hop(self._port)
        with tempfile.TemporaryDirectory(prefix="f-") as name, remote_machine(Path(name)) as machine:

            async def begin() -> TunnelTo:
                tunnel = TunnelTo(machine.env, self.target(hop.port))
                tunnel.start()
                await tunnel.wait_up(30)
                return tunnel

            async def connect(client_id: str) -> socket.socket:
                await tunnel.wait_up(30)
                return as_socket(*await open_channel(tunnel.start_process, SESSION_ID, client_id))

            tunnel = self._run(begin())
            session = Session(Path(name), lambda client_id: self._run(connect(client_id)))
            try:
                yield session, hop
            finally:
                session.close()
                self._run(tunnel.close())
                hop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    # -- what breaks

    def connection_reset(self, rnd: random.Random) -> Result:
        """Both ends get an RST."""
        with self.session() as (session, hop):
            return session.count(COUNT, at(somewhere(rnd), hop.reset))

    def child_frozen_and_killed(self, rnd: random.Random) -> Result:
        """The server's process for this connection is stopped, and killed long after."""
        with self.session() as (session, hop):
            frozen: list[psutil.Process] = []

            def freeze() -> None:
                frozen.extend(_holders(hop.far_port, "sshd"))
                for process in frozen:
                    process.suspend()

            begin = time.monotonic()
            result = session.count(COUNT, at(somewhere(rnd), freeze))
            taken = time.monotonic() - begin
            time.sleep(max(0.0, self.freeze - taken))
            for process in frozen:
                process.kill()
            # What was on its way through the dead one must not come now.
            after = session.talk.run("print('after')")
            note = "another connection took over" if hop.connections > 1 else "NO OTHER CONNECTION TOOK OVER"
            if not frozen or after != "after\n":
                note = "NOT FROZEN"
            return Result(result.verdict, note)

    def socket_lost(self, rnd: random.Random) -> Result:
        """The tunnel's own process finds its socket gone."""
        with self.session() as (session, hop):

            def lose() -> None:
                for connection in psutil.Process().net_connections("tcp"):
                    if connection.raddr and connection.raddr.port == hop.port:
                        with socket.socket(fileno=os.dup(connection.fd)) as taken:
                            taken.shutdown(socket.SHUT_RDWR)

            return session.count(COUNT, at(somewhere(rnd), lose))

    def server_killed(self, rnd: random.Random, *, reopened: bool = False) -> Result:
        """A real Jupyter server is killed within one count, again and again; a page comes to each next one."""
        with tempfile.TemporaryDirectory(prefix="f-") as name, remote_machine(Path(name)) as machine:
            count = Count(step=20, pause=0.0, gates=Path(name), parts=KILLS + 1)
            server = kernel_server(Path(name) / "server", machine, self.target())
            outcome = run_and_kill(server, NAME, count, rnd, reopened=reopened)
            note = f"{outcome.repeated_messages} messages passed over"
            return Result(outcome.verdict, note, tries=KILLS)


def _holders(port: int, name: str) -> list[psutil.Process]:
    """The processes of that name that hold a connection from a port."""
    found = []
    for process in psutil.process_iter(["name"]):
        if (process.info["name"] or "").startswith(name):
            with contextlib.suppress(psutil.Error):
                if any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp")):
                    found.append(process)
    return found


# -- all of them -------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the table."""

    name: str
    tries: int = 0
    lost: int = 0
    twice: int = 0
    in_order: bool = True
    notes: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.tries += result.tries
        self.lost += result.verdict.lost
        self.twice += result.verdict.twice
        self.in_order &= result.verdict.in_order
        if result.note:
            self.notes.append(result.note)

    @property
    def cells(self) -> list[str]:
        notes = "; ".join(f"{self.notes.count(note)}x {note}" for note in sorted(set(self.notes)))
        numbers = [str(number) for number in (self.tries, self.lost, self.twice)]
        return [self.name, *numbers, "yes" if self.in_order else "NO", notes]


def run(name: str, fault: Fault, runs: range, parallel: int) -> Row:
    """Try a fault once for each number, some of them at once."""
    row = Row(name)
    with ThreadPoolExecutor(parallel) as pool:
        for result in pool.map(fault, [random.Random(f"{name} {number}") for number in runs]):
            row.add(result)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=3, help="of each fault")
    parser.add_argument("--first", type=int, default=0, help="number of the first try")
    parser.add_argument("--parallel", type=int, default=2, help="tries at once")
    parser.add_argument("--only", default="", help="faults whose name matches this")
    parser.add_argument("--freeze", type=float, default=30.0, help="seconds for which sshd is frozen")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("sshd", path="/usr/sbin:/usr/bin") is None:
        print("Needs root and OpenSSH's sshd: skipped.")
        return
    with tempfile.TemporaryDirectory(prefix="f-") as folder:
        sshd = Sshd(Path(folder), arguments.freeze)
        frozen = f"sshd's process frozen for {arguments.freeze:.0f} s, then killed"
        # The fault, its tries in one run, and how many times as many of it as of the others can run at once.
        faults: dict[str, tuple[Fault, int, int]] = {
            "SSH connection reset": (sshd.connection_reset, 1, 1),
            frozen: (sshd.child_frozen_and_killed, 1, 2),
            "the tunnel loses its socket": (sshd.socket_lost, 1, 1),
            "local server killed by SIGKILL, started again": (sshd.server_killed, KILLS, 1),
            "the same, and the notebook opened anew": (partial(sshd.server_killed, reopened=True), KILLS, 1),
            "channel cut in the middle of a frame, five times": (cut_in_a_frame, 1, 1),
            "duplicate, overlapping and stale frames": (stale_frames, 1, 1),
            "interrupt pressed three times in an outage": (interrupted_in_an_outage, 1, 1),
            "cells sent in an outage": (sent_in_an_outage, 1, 1),
            "overflow to disk": (overflow_to_disk, 1, 1),
            "overflow beyond the limits": (overflow_of_disk_limit, 1, 1),
            "disk for the overflow full": (disk_full, 1, 1),
        }
        rows = []
        last = arguments.first + arguments.tries
        try:
            for name, (fault, tries_a_run, more) in faults.items():
                if re.search(arguments.only, name, re.IGNORECASE):
                    runs = range(arguments.first // tries_a_run, -(-last // tries_a_run))
                    begin = time.monotonic()
                    row = run(name, fault, runs, min(len(runs), arguments.parallel * more))
                    rows.append(row.cells)
                    print(
                        f"{time.monotonic() - begin:6.0f} s",
                        *row.cells,
                        sep=" | ",
                        file=sys.stderr,
                        flush=True,
                    )
        finally:
            sshd.close()
    print(table(["fault", "tried", "lost", "twice", "order kept", "noted"], rows))


if __name__ == "__main__":
    main()
