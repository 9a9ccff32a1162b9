"""The relay with a real helper and a real kernel, over wires that a test breaks. No SSH here: see integration."""

from __future__ import annotations

import contextlib
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyterlab_clearml_session.errors import KernelFailed
from jupyterlab_clearml_session.kernels.channel import SessionChannel

from .kernel_fixture import Cable, RemoteMachine, Talk, machine, remote_machine, start_kernel, talk, text_of

__all__ = ["machine"]

LINES = 100_000
# Flushed now and then, so that it is some hundred messages; the updates are messages of another kind between.
COUNT = f"""
import sys, time
from IPython.display import display
handle = display(0, display_id="counter")
for i in range({LINES}):
    print(i)
    if i % 400 == 0:
        sys.stdout.flush()
        handle.update(i)
        time.sleep(0.004)
'the end'
"""


class Lines:
    """Gives cables, and has a hand on the one in use."""

    def __init__(self, machine: RemoteMachine) -> None:
        self._machine = machine
        self.cables: list[Cable] = []
        self.cut_after: list[int] = []
        self.refuse = threading.Event()

    def dial(self, client_id: str) -> socket.socket:
        if self.refuse.is_set():
            raise OSError("no link")
        cut_after = self.cut_after.pop() if self.cut_after else None
        self.cables.append(Cable(self._machine.dial(client_id), cut_after))
        return self.cables[-1].near


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteMachine]:
    with remote_machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


@pytest.fixture
def lines(shared: RemoteMachine) -> Lines:
    return Lines(shared)


@pytest.fixture
def channel(lines: Lines) -> Iterator[SessionChannel]:
    made = SessionChannel(lines.dial)
    made.start()
    yield made
    lines.refuse.clear()
    for kernel in made.request("kernels").result(30):
        made.request("forget", kernel_id=kernel["id"]).result(30)
    made.close()
    for cable in lines.cables:
        cable.cut()


def check_count(messages: list[dict[str, Any]], reply: dict[str, Any]) -> None:
    """Every line once and in order, every update, the result, and the reply."""
    assert text_of(messages).split() == [str(n) for n in range(LINES)]
    updates = [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "update_display_data"]
    assert updates == [str(n) for n in range(0, LINES, 400)]
    results = [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "execute_result"]
    assert results == ["'the end'"]
    assert reply["status"] == "ok"


def test_the_channel_is_cut_in_the_middle_of_frames_20_times(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    rnd = random.Random(5)
    lines.cut_after = [rnd.randrange(30, 40_000) for _ in range(20)]
    before = len(lines.cables)
    lines.cables[-1].cut()
    request = client.client.execute(COUNT)
    messages = client.until_idle(request)
    check_count(messages, client.reply(request))
    assert len(lines.cables) - before >= 20
    client.close()


def test_an_interrupt_during_an_outage_takes_effect_on_return_once(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("hits = 0")
    code = """
import time
while hits < {n}:
    try:
        while True: time.sleep(0.01)
    except KeyboardInterrupt:
        hits += 1
time.sleep(0.15)
"""
    for n in range(1, 21):
        request = client.client.execute(code.format(n=n))
        while client.next()["msg_type"] != "execute_input":
            pass
        lines.refuse.set()
        lines.cables[-1].cut()
        for _ in range(3):
            channel.signal("k-1", signal.SIGINT)
        lines.refuse.clear()
        channel.redial()
        client.until_idle(request)
        assert client.reply(request)["status"] == "ok"
    assert client.run("print(hits)") == "20\n"
    client.close()


def test_cells_sent_during_an_outage_run_in_order(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("seen = []")
    lines.refuse.set()
    lines.cables[-1].cut()
    requests = [client.client.execute(f"seen.append({n})") for n in range(20)]
    lines.refuse.clear()
    channel.redial()
    for request in requests:
        assert client.reply(request)["status"] == "ok"
    assert client.run("print(seen == list(range(20)))") == "True\n"
    client.close()


def test_heartbeats_are_answered_while_the_link_is_down(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    lines.refuse.set()
    lines.cables[-1].cut()
    port = channel.port(stream)
    assert port is not None
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as beat:
        beat.connect(f"ipc://{port.info['ip']}-{port.info['hb_port']}")
        beat.send(b"ping")
        assert beat.poll(5000)
        assert beat.recv() == b"ping"
    assert not channel.up.is_set()
    client.close()


def test_death_is_told_with_status_and_last_words(channel: SessionChannel, tmp_path: Path) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    request = client.client.execute("import os; os.write(2, b'the last words\\n'); os.kill(os.getpid(), 9)")
    port = channel.port(stream)
    assert port is not None
    seen = ""
    while "SIGKILL" not in seen:
        message = client.next(timeout=30)
        if message["parent_header"].get("msg_id") == request and message["msg_type"] == "stream":
            seen += message["content"]["text"]
    deadline = time.monotonic() + 30
    while port.exit_status is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert port.exit_status == -9
    assert "the last words" in "\n".join(port.exit_tail)
    client.close()


def test_death_is_told_also_where_not_even_busy_was_said(channel: SessionChannel, tmp_path: Path) -> None:
    """What ipykernel publishes leaves it through another thread: a quick death comes before that."""
    client = talk(channel, start_kernel(channel, tmp_path))
    client.run("""
import os
kernel = get_ipython().kernel
publish = kernel._publish_status
def die_unheard(status, *arguments, **named):
    if status == "busy":
        os.kill(os.getpid(), 9)
    publish(status, *arguments, **named)
kernel._publish_status = die_unheard
""")
    request = client.client.execute("1")
    message = client.next(timeout=30)
    assert message["parent_header"].get("msg_id") == request
    assert message["msg_type"] == "stream", "nothing of the kernel's own came before"
    assert "SIGKILL" in message["content"]["text"]
    client.close()


def test_a_frozen_link_is_given_up_and_made_anew(
    channel: SessionChannel, lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jupyterlab_clearml_session.kernels.channel.PING_INTERVAL", 0.05)
    monkeypatch.setattr("jupyterlab_clearml_session.kernels.channel.SILENCE_LIMIT", 0.2)
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    request = client.client.execute(COUNT)
    messages = []
    for _ in range(20):
        messages.append(client.next())
        lines.cables[-1].frozen = True
        count = len(lines.cables)
        while len(lines.cables) == count:
            time.sleep(0.02)
    messages += client.until_idle(request)
    check_count(messages, client.reply(request))
    client.close()


# A twentieth of the count for each life of the server, so that each one dies in the middle of it.
PACED = COUNT.replace(
    "    print(i)",
    """
    while i % 5000 == 0 and not pathlib.Path("DIRECTORY", f"go{i // 5000}").exists():
        time.sleep(0.005)
    print(i)""",
).replace("import sys", "import pathlib, sys")
SERVER = """
import sys
from pathlib import Path
from jupyterlab_clearml_session.kernels.channel import SessionChannel
from tests.kernel_fixture import RemoteMachine, start_kernel

root, directory, after = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
channel = SessionChannel(RemoteMachine(root).dial)
channel.start()
start_kernel(channel, directory, **({"after": after} if after else {}))
print("serving", flush=True)
sys.stdin.read()
"""


def test_a_server_killed_20_times_and_started_again(
    channel: SessionChannel, shared: RemoteMachine, tmp_path: Path
) -> None:
    """Each time the kernel is adopted, and the output goes on after the last message that was seen."""
    messages: list[dict[str, Any]] = []
    request, session, last_id = "", "", ""
    for life in range(21):
        directory = tmp_path / f"s{life}"
        directory.mkdir()
        command = [sys.executable, "-c", SERVER, str(shared.root), str(directory), last_id]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"serving\n"
        client = Talk(
            {
                "transport": "ipc",
                "ip": str(directory / "k-1"),
                "key": b"secret",
                **{
                    f"{name}_port": n
                    for n, name in enumerate(["shell", "iopub", "stdin", "control", "hb"], 1)
                },
            },
            session,
        )
        if not request:
            session = client.client.session.session
            client.run("1")
            request = client.client.execute(PACED.replace("DIRECTORY", str(tmp_path)))
        (tmp_path / f"go{life}").touch()
        if life == 20:
            messages += client.until_idle(request)
            check_count(messages, client.reply(request))
        else:
            for _ in range(12):
                messages.append(client.next())
        server.kill()
        server.wait()
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(client.next(timeout=0.1))
        last_id = client.last_id or ""
        client.close()
        server.stdin.close()
        server.stdout.close()


def test_an_unknown_kernelspec_is_a_typed_error(channel: SessionChannel, tmp_path: Path) -> None:
    with pytest.raises(KernelFailed, match="no kernel 'cobol'"):
        start_kernel(channel, tmp_path, name="cobol")


def test_what_the_helper_cannot_do_is_a_typed_error(channel: SessionChannel) -> None:
    with pytest.raises(KernelFailed, match="cannot do 'fly'"):
        channel.request("fly").result(30)
