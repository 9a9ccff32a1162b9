"""The relay with a real helper and a real kernel, over wires that a test breaks. No SSH here: see integration."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyterlab_clearml_session.errors import KernelFailed
from jupyterlab_clearml_session.kernels.channel import SessionChannel

from .counting import Count
from .kernel_fixture import Cable, RemoteMachine, machine, remote_machine, start_kernel, talk

__all__ = ["machine"]

COUNT = Count(lines=20_000, step=100)
"""The full count, and each fault twenty times: ``python -m bench.faults``."""


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


def test_the_channel_is_cut_in_the_middle_of_frames(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    rnd = random.Random(5)
    lines.cut_after = [rnd.randrange(30, 20_000) for _ in range(5)]
    before = len(lines.cables)
    lines.cables[-1].cut()
    request = client.client.execute(COUNT.code)
    messages = client.until_idle(request)
    assert COUNT.judge(messages, [client.reply(request)])
    assert len(lines.cables) - before >= 5
    client.close()


def test_a_buffer_of_100_mb_comes_whole_over_a_cut(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    client = talk(channel, start_kernel(channel, tmp_path))
    client.run("1")
    lines.cut_after = [30_000_000]
    lines.cables[-1].cut()
    request = client.client.execute("""
import hashlib, os
data = os.urandom(100_000_000)
content = {"data": {"text/plain": hashlib.sha256(data).hexdigest()}, "metadata": {}}
kernel = get_ipython().kernel
kernel.session.send(
    kernel.iopub_socket, "display_data", content, parent=kernel.get_parent(), ident=b"display_data",
    buffers=[memoryview(data)])
""")
    shown = [m for m in client.until_idle(request, timeout=120) if m["msg_type"] == "display_data"]
    assert len(shown) == 1
    assert hashlib.sha256(shown[0]["buffers"][0]).hexdigest() == shown[0]["content"]["data"]["text/plain"]
    assert lines.cut_after == []
    assert lines.cables[-2].cut_off.is_set()
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
    for n in range(1, 4):
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
    assert client.run("print(hits)") == "3\n"
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
    request = client.client.execute(COUNT.code)
    messages = []
    for _ in range(4):
        messages.append(client.next())
        lines.cables[-1].frozen = True
        count = len(lines.cables)
        while len(lines.cables) == count:
            time.sleep(0.02)
    messages += client.until_idle(request)
    assert COUNT.judge(messages, [client.reply(request)])
    client.close()


def test_an_unknown_kernelspec_is_a_typed_error(channel: SessionChannel, tmp_path: Path) -> None:
    with pytest.raises(KernelFailed, match="no kernel 'cobol'"):
        start_kernel(channel, tmp_path, name="cobol")


def test_what_the_helper_cannot_do_is_a_typed_error(channel: SessionChannel) -> None:
    with pytest.raises(KernelFailed, match="cannot do 'fly'"):
        channel.request("fly").result(30)
