"""The relay with a real helper and a real kernel, over wires that a test breaks. No SSH here: see integration."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import json
import logging
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from jupyter_client.kernelspec import KernelSpec

from jupyterlab_clearml_session.errors import ClearMLSessionError, KernelFailed, TunnelDown
from jupyterlab_clearml_session.kernels.channel import SessionChannel
from jupyterlab_clearml_session.kernels.gate import Gate, dial
from jupyterlab_clearml_session.kernels.manager import SessionKernelManager
from jupyterlab_clearml_session.kernels.provisioner import ClearMLSessionProvisioner
from jupyterlab_clearml_session.remote.clients import CLIENT_KEPT, SILENCE_LIMIT, Client, Clients
from jupyterlab_clearml_session.remote.loop import Loop
from jupyterlab_clearml_session.remote.wire import FRAME_HEADER, HELLO

from .counting import Count
from .kernel_fixture import (
    SESSION_ID,
    Cable,
    RemoteMachine,
    Talk,
    machine,
    remote_machine,
    start_kernel,
    talk,
)
from .kernel_server_fixture import OneSession

__all__ = ["machine"]

COUNT = Count(lines=20_000, step=100)
"""The full count, and each fault twenty times: ``python -m bench.faults``."""


class Lines:
    """Gives cables, and has a hand on the one in use."""

    def __init__(self, machine: RemoteMachine) -> None:
        self._machine = machine
        self.cables: list[Cable] = []
        self.said = bytearray()
        """What the machine was told over all of them."""
        self.cut_after: list[int] = []
        self.refuse = threading.Event()

    def dial(self, client_id: str) -> socket.socket:
        if self.refuse.is_set():
            raise OSError("no link")
        cut_after = self.cut_after.pop() if self.cut_after else None
        self.cables.append(_Tapped(self._machine.dial(client_id), cut_after, self.said))
        return self.cables[-1].near

    def break_off(self, channel: SessionChannel) -> None:
        """Begin an outage; returns when the channel has noticed."""
        self.refuse.set()
        self.cables[-1].cut()
        wait_until(lambda: not channel.up.is_set())

    def come_back(self, channel: SessionChannel) -> None:
        """End an outage."""
        self.refuse.clear()
        channel.redial()


class _Tapped(Cable):
    def __init__(self, far: socket.socket, cut_after: int | None, said: bytearray) -> None:
        self._said = said
        super().__init__(far, cut_after)

    def change(self, source: socket.socket, data: bytes) -> bytes:
        if source is self._middle:
            self._said += data
        return data


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send_in_vain(client: Talk, channel: SessionChannel, stream: int, code: str) -> str:
    """Execute a cell during an outage; returns when it waits for the link."""
    before = channel._link.streams[stream].log.end
    request: str = client.client.execute(code)
    wait_for_bytes(channel, stream, before)
    return request


def wait_for_bytes(channel: SessionChannel, stream: int, end: int) -> None:
    """Wait until clients have sent a kernel more than so many bytes."""
    wait_until(lambda: channel._link.streams[stream].log.end > end)


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


def test_large_messages_among_small_ones_come_whole_and_in_order(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    client = talk(channel, start_kernel(channel, tmp_path))
    client.run("1")
    go, done = tmp_path / "go", tmp_path / "done"
    code = f"""
import pathlib, time
while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)
for i in range(40):
    print(i, flush=True)
    get_ipython().display_pub.publish({{"text/plain": chr(65 + i % 26) * 1_000_000}})
pathlib.Path({str(done)!r}).touch()
"""
    request = client.client.execute(code)
    while client.next()["msg_type"] != "execute_input":
        pass
    lines.break_off(channel)
    go.touch()
    wait_until(done.exists)
    lines.come_back(channel)  # the end of one message and the beginning of the next come in one frame now
    got = [
        message["content"].get("text") or message["content"]["data"]["text/plain"]
        for message in client.until_idle(request)
        if message["msg_type"] in ("stream", "display_data")
    ]
    assert "".join(got) == "".join(f"{i}\n" + chr(65 + i % 26) * 1_000_000 for i in range(40))
    client.close()


def test_clients_go_on_with_the_next_kernel_after_half_of_a_large_message(
    machine: RemoteMachine, tmp_path: Path
) -> None:
    lines = Lines(machine)
    channel = SessionChannel(lines.dial)
    channel.start()
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    lines.cut_after = [1_000_000]
    lines.cables[-1].cut()
    wait_until(lambda: len(lines.cables) == 2)
    lines.refuse.set()
    client.client.execute("get_ipython().display_pub.publish({'text/plain': 'x' * 10_000_000})")
    lines.cables[-1].cut_off.wait(60)
    greeting = machine.greeting()
    assert greeting is not None
    os.kill(greeting["pid"], signal.SIGKILL)
    lines.come_back(channel)
    while client.next()["msg_type"] != "iopub_welcome":
        pass  # it has connected again
    port = channel.port(stream)
    assert port is not None
    assert port.exit_status == -9
    start_again = {
        "env": {},
        "folders": [],
        "meta": {},
        "adopt": False,
        "kernel_id": "k-1",
        "name": "python3",
    }
    signed = {"key": "secret", "signature_scheme": "hmac-sha256"}
    channel.start_kernel(stream, 0, **start_again, **signed).result(60)
    assert client.run("print('again')") == "again\n"
    client.close()
    channel.close()
    for cable in lines.cables:
        cable.cut()


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
            channel.signal(stream, "k-1", signal.SIGINT)
        lines.refuse.clear()
        channel.redial()
        client.until_idle(request)
        assert client.reply(request)["status"] == "ok"
    assert client.run("print(hits)") == "3\n"
    client.close()


def test_an_interrupt_by_message_during_an_outage_is_sent_once(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    interrupts = []
    code = "print('here', flush=True)\nimport time\ntime.sleep(60)"
    for _ in range(2):
        # Where a cell fails, ipykernel refuses what comes next for a moment, unless it is told not to.
        request = client.client.execute(code, stop_on_error=False)
        while client.next()["msg_type"] != "stream":
            pass
        lines.break_off(channel)
        before = channel._link.streams[stream].log.end
        for kind, fill in [("interrupt_request", 0)] * 3 + [("usage_request", 10_000)]:
            client.client.control_channel.send(client.client.session.msg(kind, {"fill": "x" * fill}))
        wait_for_bytes(channel, stream, before + 10_000)
        lines.come_back(channel)
        assert client.reply(request)["ename"] == "KeyboardInterrupt"
        while client.client.get_control_msg(timeout=60)["msg_type"] != "usage_reply":
            pass
        interrupts.append(lines.said.count(b'"interrupt_request"'))
    assert interrupts == [1, 2]
    # One that is answered is not under way, though its delivery may not be acknowledged yet.
    for _ in range(5):
        client.client.control_channel.send(client.client.session.msg("interrupt_request", {}))
        while client.client.get_control_msg(timeout=60)["msg_type"] != "interrupt_reply":
            pass
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


def test_a_restart_during_an_outage_is_not_taken_for_a_death_on_return(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("x = 1")
    lines.break_off(channel)
    send_in_vain(client, channel, stream, "y = 1")  # for the kernel that is restarted
    # As KernelManager does, which waits only for 5 s for the old process to end.
    channel.signal(stream, "k-1", signal.SIGKILL)
    restart = channel.start_kernel(
        stream,
        1,
        kernel_id="k-1",
        name="python3",
        key="secret",
        signature_scheme="hmac-sha256",
        env={},
        folders=[],
        meta={},
        adopt=False,
    )
    lines.come_back(channel)
    restart.result(30)
    assert client.run("print('x' in globals(), 'y' in globals())") == "False False\n"
    port = channel.port(stream)
    assert port is not None
    assert port.exit_status is None
    # A death of the new one is told.
    channel.signal(stream, "k-1", signal.SIGKILL)
    wait_until(lambda: port.exit_status == -signal.SIGKILL)
    client.close()


def test_a_kernel_is_killed_without_waiting_for_a_large_message(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    lines.break_off(channel)
    send_in_vain(client, channel, stream, "#" + 2_000_000 * "x")
    killed = channel.signal(stream, "k-1", signal.SIGKILL)
    lines.come_back(channel)
    killed.result(30)
    assert lines.said.index(b'"signal"') < lines.said.index(1000 * b"x")
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


def test_a_kernel_is_busy_as_long_as_a_cell_runs(channel: SessionChannel, tmp_path: Path) -> None:
    """What is asked on its control channel meanwhile, or of a subshell, begins and ends with a state of its own."""
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    over = tmp_path / "over"
    cell = client.client.execute(
        f"import os, time\nprint('here', flush=True)\nwhile not os.path.exists({str(over)!r}): time.sleep(0.01)"
    )
    while client.next()["msg_type"] != "stream":
        pass
    asked = client.client.session.msg("usage_request", {})
    client.client.control_channel.send(asked)
    client.until_idle(asked["header"]["msg_id"])
    states = [kernel["state"] for kernel in channel.request("kernels").result(30)]
    over.touch()
    client.until_idle(cell)
    states += [kernel["state"] for kernel in channel.request("kernels").result(30)]
    assert states == ["busy", "idle"]
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


@pytest.mark.parametrize(
    "spec", [{"argv": []}, {"argv": ["true"], "env": {"THREADS": 4}}], ids=["argv", "env"]
)
def test_a_kernel_that_cannot_be_started_is_not_kept(
    channel: SessionChannel, shared: RemoteMachine, tmp_path: Path, spec: dict[str, Any]
) -> None:
    folder = shared.home / ".local" / "share" / "jupyter" / "kernels" / "broken"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.json").write_text(json.dumps({"display_name": "Broken", "language": "", **spec}))
    assert "broken" in channel.request("kernelspecs").result(30)
    with pytest.raises(KernelFailed):
        start_kernel(channel, tmp_path, name="broken")
    assert channel.request("kernels").result(30) == []


def test_sockets_that_cannot_be_made_again_are_that_kernel_s_trouble_only(
    channel: SessionChannel, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    stream = channel.open_port(tmp_path / "gone" / "k", b"secret", "hmac-sha256").result(30)
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(KernelFailed, match="sockets"):
        channel.start_kernel(stream, 1, kernel_id="k-1").result(30)
    assert channel.request("kernels").result(30) == []


def test_what_the_helper_cannot_do_is_a_typed_error(channel: SessionChannel) -> None:
    with pytest.raises(KernelFailed, match="cannot do 'fly'"):
        channel.request("fly").result(30)


# -- the link --------------------------------------------------------------------------------------------------


def test_what_was_asked_in_vain_during_an_outage_is_not_asked_on_return(
    channel: SessionChannel, lines: Lines
) -> None:
    assert channel.request("kernels").result(30) == []
    lines.break_off(channel)
    for _ in range(20):
        channel.request("metrics").cancel()
    waiting = channel.request("kernels")
    lines.come_back(channel)
    assert waiting.result(30) == []
    assert (lines.said.count(b'"kernels"'), lines.said.count(b'"metrics"')) == (2, 0)


def test_an_interrupt_takes_effect_on_return_also_where_nobody_waits_for_it(
    channel: SessionChannel, lines: Lines, tmp_path: Path
) -> None:
    stream = start_kernel(channel, tmp_path)
    client = talk(channel, stream)
    client.run("1")
    request = client.client.execute("print('here', flush=True)\nimport time\ntime.sleep(60)")
    while client.next()["msg_type"] != "stream":
        pass
    lines.break_off(channel)
    channel.signal(stream, "k-1", signal.SIGINT).cancel()
    lines.come_back(channel)
    assert client.reply(request)["ename"] == "KeyboardInterrupt"
    client.close()


def test_a_client_that_was_away_for_long_keeps_its_kernels(tmp_path: Path) -> None:
    """A laptop may sleep over night."""
    loop = Loop()
    clients = Clients(
        loop, tmp_path, greeting=dict, about={}, on_message=lambda client, stream, kind, parts: None
    )
    for name in ("with a kernel", "without"):
        clients._known[name] = Client(name, lambda client, stream, kind, parts: None)
    clients._known["with a kernel"].kernels[1] = mock.Mock()
    clients.check(time.monotonic() + 2 * CLIENT_KEPT)
    assert [client.id for client in clients] == ["with a kernel"]
    clients.close()
    loop.close()


def test_a_client_whose_machine_is_gone_does_not_count_as_connected(tmp_path: Path) -> None:
    """Nothing tells the helper of a laptop without power; the kernels are for the next server to adopt."""
    loop = Loop()
    clients = Clients(
        loop, tmp_path, greeting=dict, about={}, on_message=lambda client, stream, kind, parts: None
    )
    ours, theirs = socket.socketpair()
    connection, attach = socket.socketpair()
    clients._open_wire("laptop", connection, os.dup(theirs.fileno()), os.dup(theirs.fileno()))
    theirs.close()
    (client,) = clients
    now = time.monotonic()
    clients.write(now)
    assert clients.check(now + SILENCE_LIMIT / 2)
    assert not clients.check(now + SILENCE_LIMIT + 1)
    assert client.link.wire is None
    assert ours.recv(65536)
    assert ours.recv(1) == attach.recv(1) == b""
    for sock in (ours, attach):
        sock.close()
    clients.close()
    loop.close()


def test_a_helper_that_has_forgotten_its_client_serves_it_anew(channel: SessionChannel, lines: Lines) -> None:
    assert channel.request("kernels").result(30) == []
    lines.break_off(channel)
    waiting = channel.request("kernels")
    channel.client_id = "one that the helper does not know"
    lines.come_back(channel)
    assert waiting.result(30) == []


def test_wires_that_break_after_each_greeting_are_made_less_and_less_often() -> None:
    dialled: list[float] = []
    enough = threading.Event()

    def dial(client_id: str) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(FRAME_HEADER.pack(HELLO, 15, 0, 0) + b'{"received":{}}')
        dialled.append(time.monotonic())
        if len(dialled) == 5:
            enough.set()
        return ours

    channel = SessionChannel(dial)
    channel.start()
    assert enough.wait(30)
    channel.close()
    pauses = [after - before for before, after in itertools.pairwise(dialled[:5])]
    # 0.1, 0.2, 0.4, 0.8 s, up to a half less: all at once otherwise.
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4), strict=True))


def test_an_unforeseen_failure_to_connect_is_logged_and_tried_again(
    lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ValueError("not foreseen")]

    def dial_badly(client_id: str) -> socket.socket:
        if failures:
            raise failures.pop()
        return lines.dial(client_id)

    channel = SessionChannel(dial_badly)
    channel.start()
    assert channel.request("kernels").result(30) == []
    channel.close()
    assert "ValueError: not foreseen" in caplog.text
    assert "dial_badly" in caplog.text, "the traceback"


def test_a_helper_that_cannot_run_is_tried_ever_more_rarely(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jupyterlab_clearml_session.kernels.channel.RETRY_MIN", 0.02)
    monkeypatch.setattr("jupyterlab_clearml_session.kernels.channel.RETRY_MAX", 0.02)
    tries = []
    failing = True

    def dial_badly(client_id: str) -> socket.socket:
        tries.append(time.monotonic())
        if failing:
            raise KernelFailed("there is no pyzmq")
        return lines.dial(client_id)

    channel = SessionChannel(dial_badly)
    channel.start()
    wait_until(lambda: len(tries) == 7)
    assert tries[6] - tries[5] > 0.3
    assert channel.cause == "there is no pyzmq"
    failing = False
    channel.redial()
    assert channel.request("kernels").result(30) == []
    channel.close()


def test_a_reconnect_of_the_session_does_not_wait_for_the_next_try(lines: Lines, tmp_path: Path) -> None:
    sessions = OneSession(mock.Mock())
    kernels = SessionKernelManager(
        sessions, mock.Mock(), log=logging.getLogger(__name__), runtime_dir=tmp_path
    )
    mended = threading.Event()

    def dial_badly(client_id: str) -> socket.socket:
        if not mended.is_set():
            raise KernelFailed("there is no pyzmq")
        return lines.dial(client_id)

    channel = kernels._channels[SESSION_ID] = SessionChannel(dial_badly)
    channel._retry_wait = 200.0
    channel.start()
    wait_until(lambda: channel.cause == "there is no pyzmq")
    mended.set()
    assert sessions.on_reconnect is not None
    sessions.on_reconnect(SESSION_ID)
    assert channel.request("kernels").result(30) == []
    channel.close()


@pytest.mark.parametrize("error", [KernelFailed, TunnelDown])
async def test_another_process_learns_whether_it_is_of_use_to_try_again(
    error: type[ClearMLSessionError], tmp_path: Path
) -> None:
    async def fail(session_id: str, client_id: str) -> Any:
        raise error("not now")

    gate = Gate(tmp_path / "gate", fail)
    gate.start()
    with pytest.raises(error, match="not now"):
        await asyncio.to_thread(dial, gate.path, SESSION_ID, "client")
    await gate.close()


async def test_the_gate_stays_open_where_no_descriptor_is_left_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(session_id: str, client_id: str) -> Any:
        raise TunnelDown("not now")

    loop = asyncio.get_running_loop()
    accept, refused = loop.sock_accept, [OSError(errno.EMFILE, "Too many open files")]

    async def accept_later(listener: socket.socket) -> Any:
        if refused:
            raise refused.pop()
        return await accept(listener)

    monkeypatch.setattr("jupyterlab_clearml_session.kernels.gate.ACCEPT_AGAIN", 0.01)
    monkeypatch.setattr(loop, "sock_accept", accept_later)
    gate = Gate(tmp_path / "gate", fail)
    gate.start()
    with pytest.raises(TunnelDown, match="not now"):
        await asyncio.to_thread(dial, gate.path, SESSION_ID, "client")
    assert not refused
    await gate.close()


# -- a start that fails ----------------------------------------------------------------------------------------


class OneChannel:
    """The hub as far as a start needs it."""

    closing = False
    hold_for = 1

    def __init__(self, channel: SessionChannel, sockets: Path) -> None:
        self._channel = channel
        self.sockets = sockets

    async def channel(self, session_id: str) -> SessionChannel:
        return self._channel

    def meta(self, cwd: str | None, env: Mapping[str, str]) -> dict[str, Any]:
        return {}

    def folders(self, cwd: str | None) -> list[str]:
        return []

    def shown(self, kernel_id: str) -> None:
        return None


@pytest.fixture
def provisioner(channel: SessionChannel, tmp_path: Path) -> ClearMLSessionProvisioner:
    """Of the kernel k-1."""
    (tmp_path / "s").mkdir()
    made = ClearMLSessionProvisioner(
        kernel_id="k-1", kernel_spec=KernelSpec(), session_id=SESSION_ID, remote_kernel="python3"
    )
    made._hub = OneChannel(channel, tmp_path / "s")
    channel.request("kernels").result(30)  # the link is up
    return made


async def fail_to_launch(
    provisioner: ClearMLSessionProvisioner, channel: SessionChannel, lines: Lines, outage: str
) -> None:
    """Try to launch the kernel in an outage that began before, or begins with the request on its way."""
    if outage == "before":
        lines.break_off(channel)
    else:
        lines.cables[-1].frozen = True
    provisioner.launch_timeout = 0.5
    with pytest.raises(KernelFailed, match="no link" if outage == "before" else "in time"):
        await provisioner.launch_kernel([])
    provisioner.launch_timeout = 60.0


def end_outage(channel: SessionChannel, lines: Lines) -> None:
    if lines.cables[-1].frozen:
        lines.cables[-1].cut()
    lines.come_back(channel)


OUTAGES = pytest.mark.parametrize("outage", ["before", "in the middle"])


@OUTAGES
async def test_an_adoption_that_fails_leaves_the_kernel_alive_and_can_be_tried_again(
    provisioner: ClearMLSessionProvisioner,
    channel: SessionChannel,
    lines: Lines,
    shared: RemoteMachine,
    tmp_path: Path,
    outage: str,
) -> None:
    former = SessionChannel(shared.dial)
    former.start()
    client = talk(former, start_kernel(former, tmp_path))
    client.run("x = 41")
    client.close()
    former.close()
    await fail_to_launch(provisioner, channel, lines, outage)
    wait_until(lambda: not channel.has_ports)
    assert list((tmp_path / "s").iterdir()) == []
    end_outage(channel, lines)
    (kernel,) = channel.request("kernels").result(30)  # what was under way has been carried out
    assert kernel["state"] == "idle"
    client = Talk(dict(await provisioner.launch_kernel([])))
    assert client.run("print(x)") == "41\n"
    client.close()


@OUTAGES
async def test_a_start_that_fails_leaves_no_kernel_behind(
    provisioner: ClearMLSessionProvisioner, channel: SessionChannel, lines: Lines, outage: str
) -> None:
    await fail_to_launch(provisioner, channel, lines, outage)
    end_outage(channel, lines)
    wait_until(lambda: channel.request("kernels").result(30) == [])


@OUTAGES
async def test_a_start_that_fails_does_not_end_the_kernel_of_the_next(
    provisioner: ClearMLSessionProvisioner, channel: SessionChannel, lines: Lines, outage: str
) -> None:
    await fail_to_launch(provisioner, channel, lines, outage)
    wait_until(lambda: not channel.has_ports)
    launch = asyncio.create_task(provisioner.launch_kernel([]))
    while not channel.has_ports:
        await asyncio.sleep(0.01)
    end_outage(channel, lines)
    client = Talk(dict(await launch))
    assert client.run("print('here')") == "here\n"
    assert [kernel["id"] for kernel in channel.request("kernels").result(30)] == ["k-1"]
    client.close()


@OUTAGES
async def test_a_restart_that_fails_leaves_no_kernel_behind(
    provisioner: ClearMLSessionProvisioner, channel: SessionChannel, lines: Lines, outage: str
) -> None:
    await provisioner.launch_kernel([])
    await fail_to_launch(provisioner, channel, lines, outage)
    end_outage(channel, lines)
    wait_until(lambda: channel.request("kernels").result(30) == [])


def test_a_start_that_is_given_up_as_its_answer_comes_leaves_no_kernel_behind(
    channel: SessionChannel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = channel.open_port(tmp_path / "k", b"secret", "hmac-sha256").result(30)
    start: list[Future[Any]] = []
    monkeypatch.setattr(channel.port(stream), "started", lambda pid, adopted: start[0].cancel())
    params = {"env": {}, "folders": [], "meta": {}, "adopt": True, "key": "secret"}
    start.append(
        channel.start_kernel(
            stream, 1, kernel_id="k-1", name="python3", signature_scheme="hmac-sha256", **params
        )
    )
    wait_until(start[0].cancelled)
    wait_until(lambda: channel.request("kernels").result(30) == [])


def test_sockets_that_nobody_waits_for_any_more_are_closed(lines: Lines, tmp_path: Path) -> None:
    lines.refuse.set()
    channel = SessionChannel(lines.dial)
    channel.open_port(tmp_path / "k", b"secret", "hmac-sha256").cancel()
    channel.start()
    channel.close_port(0).result(30)  # it is done after what was asked before
    assert not channel.has_ports
    assert not list(tmp_path.glob("k-*"))
    channel.close()
