"""The publisher of a kernel's local end: real ZMQ subscribers, and bare sockets for what those never do."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from jupyterlab_clearml_session.kernels import publisher as publisher_module
from jupyterlab_clearml_session.kernels import subscriber as subscriber_module
from jupyterlab_clearml_session.kernels import zmtp
from jupyterlab_clearml_session.kernels.publisher import Publisher
from jupyterlab_clearml_session.kernels.subscriber import Subscriber
from jupyterlab_clearml_session.remote import messages
from jupyterlab_clearml_session.remote.loop import Loop

LARGE = os.urandom(3_000_000)


class Stage:
    """A publisher, its loop, and what it was told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "iopub"
        self.loop = Loop()
        self.asked: list[bytes] = []
        self.cancelled = 0
        self.publisher = Publisher(self.loop, self.path, self._on_subscribe, self._on_cancel)
        self.publisher.bind()
        self.context: zmq.Context[Any] = zmq.Context()
        self.plain: list[socket.socket] = []
        self.newest: Subscriber | None = None

    def _on_subscribe(self, subscriber: Subscriber, topic: bytes) -> None:
        self.asked.append(topic)
        self.newest = subscriber

    def _on_cancel(self) -> None:
        self.cancelled += 1

    def until(self, true: Callable[[], Any]) -> None:
        """Let the loop run until something is so."""
        while not true():
            self.loop.turn(10)

    def subscribe(self, topic: bytes = b"", *, kind: int = zmq.SUB) -> zmq.Socket[Any]:
        sock: zmq.Socket[Any] = self.context.socket(kind)
        sock.setsockopt(zmq.RECONNECT_IVL, 10)
        sock.set_hwm(0)
        if kind == zmq.SUB:
            sock.setsockopt(zmq.SUBSCRIBE, topic)
        sock.connect(f"ipc://{self.path}")
        if kind == zmq.SUB:
            known = len(self.asked)
            self.until(lambda: len(self.asked) > known)
        return sock

    def connect(self, *said: bytes) -> socket.socket:
        """A subscriber that is a bare socket, and reads only when it is told to."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        sock.setblocking(False)
        self.plain.append(sock)
        for data in said:
            sock.sendall(data)
        return sock

    def connect_subscribed(self) -> socket.socket:
        known = len(self.asked)
        sock = self.connect(hello(), b"\0\1\1")
        self.until(lambda: len(self.asked) > known)
        assert self.read(sock, len(zmtp.greeting())) == zmtp.greeting()
        return sock

    def read(self, sock: socket.socket, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                data += sock.recv(size - len(data))
            except BlockingIOError:
                self.loop.turn(10)
        return bytes(data)

    def get(self, sock: zmq.Socket[Any]) -> list[bytes]:
        self.until(lambda: sock.poll(0))
        return list(sock.recv_multipart())

    def is_let_go(self, sock: socket.socket) -> bool:
        """Whether the publisher has closed the connection; what it had said before is skipped."""
        self.loop.turn(10)
        try:
            return sock.recv(1 << 20) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def send_large(self, data: bytes, *, last: bytes | None = None) -> None:
        """Send a large message in pieces whose memory is used again at once."""
        assert self.publisher.begin([b"topic", b"header"])
        self.publisher.part(len(data), last is not None)
        lent = bytearray(100_000)
        for start in range(0, len(data), len(lent)):
            piece = data[start : start + len(lent)]
            lent[: len(piece)] = piece
            self.publisher.data(memoryview(lent)[: len(piece)])
            lent[:] = bytes(len(lent))
            self.loop.turn(0)
        if last is not None:
            self.publisher.part(len(last), False)
            self.publisher.data(memoryview(last))
        self.publisher.end()

    def close(self) -> None:
        self.publisher.close()
        self.loop.close()
        self.context.destroy(linger=0)
        for sock in self.plain:
            sock.close()


def hello(kind: bytes = b"SUB", version: int = 3, mechanism: bytes = b"NULL") -> bytes:
    ready = b"\x05READY\x08Identity\0\0\0\0\x0bSocket-Type" + struct.pack("!I", len(kind)) + kind
    greeting = struct.pack("!B8sBBB20sB31x", 0xFF, b"", 0x7F, version, 1, mechanism, 0)
    return greeting + zmtp.command(ready)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


# -- messages ----------------------------------------------------------------------------------------------


def test_everybody_gets_what_it_asked_for_in_order(stage: Stage) -> None:
    everything, some = stage.subscribe(), stage.subscribe(b"kernel.1")
    messages = [
        [b"kernel.1.stream", b"a"],
        [b"kernel.2", b"", b"b"],
        [b"kernel.1", os.urandom(100_000), b"c"],
    ]
    for message in messages:
        assert stage.publisher.publish(message)
    assert [stage.get(everything) for _ in messages] == messages
    assert [stage.get(some) for _ in range(2)] == [messages[0], messages[2]]
    assert stage.asked == [b"", b"kernel.1"]


def test_a_topic_that_was_given_up_brings_nothing_more(stage: Stage) -> None:
    sock = stage.subscribe(b"a")
    sock.setsockopt(zmq.SUBSCRIBE, b"b")
    stage.until(lambda: stage.asked == [b"a", b"b"])
    sock.setsockopt(zmq.UNSUBSCRIBE, b"a")
    stage.until(lambda: stage.cancelled == 1)
    stage.publisher.publish([b"a"])
    stage.publisher.publish([b"b"])
    assert stage.get(sock) == [b"b"]
    sock.close()
    stage.until(lambda: stage.cancelled == 2)


def test_one_that_is_told_something_is_the_only_one(stage: Stage) -> None:
    first, second = stage.subscribe(), stage.subscribe()
    assert stage.newest is not None
    stage.publisher.tell(stage.newest, [b"welcome"])
    stage.publisher.publish([b"topic"])
    assert stage.get(first) == [b"topic"]
    assert [stage.get(second) for _ in range(2)] == [[b"welcome"], [b"topic"]]


# -- large messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [None, b"", b"the end"])
def test_a_large_message_is_passed_on_while_it_comes(stage: Stage, last: bytes | None) -> None:
    first, second = stage.subscribe(), stage.subscribe(b"top")
    stage.send_large(LARGE, last=last)
    stage.publisher.publish([b"topic", b"next"])
    for sock in (first, second):
        assert stage.get(sock) == [b"topic", b"header", LARGE, *([] if last is None else [last])]
        assert stage.get(sock) == [b"topic", b"next"]


def test_its_beginning_does_not_wait_for_its_end(stage: Stage) -> None:
    sock = stage.connect_subscribed()
    assert stage.publisher.begin([b"topic"])
    stage.publisher.part(1_000_000, False)
    stage.publisher.data(memoryview(b"begins"))
    assert stage.read(sock, 22) == b"\1\5topic" + struct.pack("!BQ", 2, 1_000_000) + b"begins"


def test_who_reads_slowly_gets_all_of_it_although_it_was_only_lent(stage: Stage) -> None:
    sock = stage.connect_subscribed()
    stage.send_large(LARGE)
    head = b"\1\5topic\1\6header" + struct.pack("!BQ", 2, len(LARGE))
    assert stage.read(sock, len(head) + len(LARGE)) == head + LARGE


def test_a_newcomer_is_not_given_the_middle_of_a_message(stage: Stage) -> None:
    stage.publisher.begin([b"topic"])
    stage.publisher.part(10, False)
    sock = stage.subscribe()
    stage.publisher.data(memoryview(b"0123456789"))
    stage.publisher.end()
    stage.publisher.publish([b"topic", b"next"])
    assert stage.get(sock) == [b"topic", b"next"]


def test_nothing_comes_between_the_parts_of_a_message(stage: Stage) -> None:
    sock = stage.connect_subscribed()
    stage.publisher.begin([b"topic"])
    ping = zmtp.command(b"\4PING\0\7context")
    sock.sendall(ping + b"\0\2\1x")  # a sign of life is asked for, and another topic
    stage.until(lambda: stage.asked == [b"", b"x"])
    assert stage.newest is not None
    stage.publisher.tell(stage.newest, [b"welcome"])
    stage.publisher.part(2, False)
    stage.publisher.data(memoryview(b"in"))
    stage.publisher.end()
    expected = b"\1\5topic\0\2in" + zmtp.command(b"\4PONGcontext")
    assert stage.read(sock, len(expected)) == expected
    sock.sendall(ping + struct.pack("!BQ", 6, 1007) + b"\4PING\0\7" + b"x" * 1000)
    expected = zmtp.command(b"\4PONGcontext") + zmtp.command(b"\4PONG" + b"x" * 16)
    assert stage.read(sock, len(expected)) == expected


def test_who_has_half_of_a_message_that_was_given_up_connects_again(stage: Stage) -> None:
    sock = stage.subscribe()
    stage.publisher.begin([b"topic"])
    stage.publisher.part(len(LARGE), False)
    stage.publisher.data(memoryview(LARGE)[:1000])
    stage.publisher.abandon()
    assert stage.cancelled == 1
    # A ZMQ socket asks for its topics again when it is used.
    stage.until(lambda: sock.poll(0) or len(stage.asked) == 2)
    stage.publisher.publish([b"topic", b"next"])
    assert stage.get(sock) == [b"topic", b"next"]


def test_one_that_goes_in_the_middle_does_not_disturb_the_others(stage: Stage) -> None:
    leaving, staying = stage.connect_subscribed(), stage.subscribe()
    stage.publisher.begin([b"topic"])
    stage.publisher.part(len(LARGE), False)
    leaving.close()
    for start in range(0, len(LARGE), 100_000):
        stage.publisher.data(memoryview(LARGE)[start : start + 100_000])
    stage.publisher.end()
    assert stage.get(staying) == [b"topic", LARGE]
    stage.until(lambda: stage.cancelled == 1)


def test_one_that_asks_for_signs_of_life_gets_large_messages_whole(stage: Stage) -> None:
    sock, other = stage.context.socket(zmq.SUB), stage.subscribe(b"other")
    sock.setsockopt(zmq.HEARTBEAT_IVL, 50)
    sock.setsockopt(zmq.SUBSCRIBE, b"topic")
    sock.connect(f"ipc://{stage.path}")
    stage.until(lambda: stage.newest is not None and stage.newest.impatient)
    # The rest of it may come after an outage: ZMQ would have given the connection up, and the message with it.
    assert not stage.publisher.begin([b"topic"])
    assert stage.publisher.publish([b"topic", LARGE])
    assert stage.get(sock) == [b"topic", LARGE]
    assert stage.publisher.begin([b"other"]), "it is none of its business"
    stage.publisher.part(0, False)
    stage.publisher.end()
    assert stage.get(other) == [b"other", b""]


# -- slow subscribers --------------------------------------------------------------------------------------


def fill(stage: Stage, quick: Subscriber) -> int:
    """Publish until one that does not read is full, ``quick`` never is; return how many messages that were."""
    count = 0
    while stage.publisher.publish([b"topic", bytes(100_000), str(count).encode()]):
        count += 1
        stage.until(lambda: not quick.pending)
    return count


def test_one_that_is_full_holds_up_the_others_until_it_is_passed_over(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber_module, "OUTPUT_QUEUE", 20)
    slow, quick = stage.connect_subscribed(), stage.subscribe()
    assert stage.newest is not None
    count = fill(stage, stage.newest)
    assert not stage.publisher.begin([b"topic"])
    assert stage.publisher.publish([b"topic", b"", b"last"], drop=True)
    got = [stage.get(quick)[-1] for _ in range(count + 1)]
    assert got == [*(str(number).encode() for number in range(count)), b"last"]
    stage.read(slow, count * 100_000)
    assert stage.publisher.publish([b"topic"]), "it has caught up"


def test_those_who_are_slow_share_what_waits_for_them_until_they_have_read_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[weakref.ref[Any]] = []
    size = 0

    def allocate(length: int) -> memoryview:
        nonlocal size
        size += length
        room = messages.allocate(length)
        rooms.append(weakref.ref(room.obj))
        return room

    monkeypatch.setattr(publisher_module, "allocate", allocate)
    slow = [stage.connect_subscribed() for _ in range(3)]
    data = LARGE * 8
    head = b"\1\5topic\1\6header" + struct.pack("!BQ", 2, len(data))
    tracemalloc.start()
    try:
        stage.send_large(data)
        # Memory of small pieces does not go back to the system soon.
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    for sock in slow:
        assert stage.read(sock, len(head) + len(data)) == head + data
    assert len(data) / 2 < size < 1.5 * len(data)
    assert all(room() is None for room in rooms)


def test_what_waits_is_sent_after_the_end_for_a_moment(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "LINGER", 60.0)
    sock = stage.subscribe()
    slow = stage.connect_subscribed()
    stage.publisher.publish([b"topic", LARGE])
    stage.publisher.close()
    slow.setblocking(True)
    size = len(b"\1\5topic") + 9 + len(LARGE)
    got = bytearray()
    while data := slow.recv(1 << 20):
        got += data
    assert len(got) == size
    assert got.endswith(LARGE)
    assert sock.recv_multipart() == [b"topic", LARGE]
    assert not stage.path.exists()


@pytest.mark.parametrize("end", ["abandon", "close"])
def test_half_of_a_message_does_not_take_those_before_it_along(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(publisher_module, "LINGER", 60.0)
    sock = stage.connect_subscribed()
    larger = LARGE * 8  # than what the system takes at once
    stage.publisher.publish([b"topic", larger])
    assert stage.publisher.begin([b"topic"])
    stage.publisher.part(10, False)
    getattr(stage.publisher, end)()
    sock.setblocking(True)
    got = bytearray()
    while data := sock.recv(1 << 20):
        got += data
    whole = b"\1\5topic" + struct.pack("!BQ", 2, len(larger)) + larger
    assert got == whole + b"\1\5topic\0\12"


def test_the_moment_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "LINGER", 0.05)
    stage.connect_subscribed()
    stage.publisher.publish([b"topic", LARGE])
    before = set(threading.enumerate())
    stage.publisher.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_where_no_thread_is_left_there_is_no_such_moment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = stage.connect_subscribed()
    stage.publisher.publish([b"topic", LARGE * 8])

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    stage.publisher.close()
    stage.until(lambda: stage.is_let_go(sock))


# -- connections -------------------------------------------------------------------------------------------


def test_a_file_that_was_removed_is_made_again_and_nobody_is_let_go(stage: Stage) -> None:
    first = stage.subscribe()
    stage.publisher.bind()
    stage.path.unlink()
    stage.publisher.bind()
    second = stage.subscribe()
    stage.publisher.publish([b"topic"])
    assert stage.get(first) == stage.get(second) == [b"topic"]


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-Header: b\r\n" * 10 + b"\r\n",
        hello(version=1),
        hello(mechanism=b"CURVE"),
        hello(kind=b"DEALER"),
        hello()[:64] + zmtp.command(b"\x05ERROR\x04full"),
        hello()[:64] + zmtp.command(b"\x05READY\x0bSocket-Type"),
        hello() + struct.pack("!BQ", 2, 1 << 40),
    ],
    ids=["http", "version", "mechanism", "dealer", "error", "cut", "huge"],
)
def test_what_is_no_subscriber_is_let_go(stage: Stage, said: bytes) -> None:
    subscriber = stage.subscribe()
    stranger = stage.connect(said)
    stage.until(lambda: stage.is_let_go(stranger))
    stage.publisher.publish([b"topic"])
    assert stage.get(subscriber) == [b"topic"]


def test_a_greeting_may_come_in_any_portions(stage: Stage) -> None:
    sock = stage.connect()
    said = hello() + b"\0\1\1" + struct.pack("!BQ", 2, 3) + b"\1ab"
    for byte in said:
        sock.sendall(bytes([byte]))
        stage.loop.turn(0)
    stage.until(lambda: stage.asked == [b"", b"ab"])


def test_newcomers_are_let_in_again_when_there_are_descriptors(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, refused = socket.socket.accept, [OSError(errno.EMFILE, "Too many open files")]

    def accept_later(listener: socket.socket) -> Any:
        if refused:
            raise refused.pop()
        return accept(listener)

    monkeypatch.setattr(publisher_module, "ACCEPT_AGAIN", 0.01)
    monkeypatch.setattr(socket.socket, "accept", accept_later)
    sock = stage.subscribe()
    assert not refused
    stage.publisher.publish([b"topic"])
    assert stage.get(sock) == [b"topic"]


def test_one_that_has_gone_before_it_was_let_in_disturbs_nobody(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_option, gone = socket.socket.setsockopt, [OSError(errno.EINVAL, "Invalid argument")]

    def has_no_options(sock: socket.socket, *option: Any) -> None:
        if gone:
            raise gone.pop()  # as on macOS
        set_option(sock, *option)

    monkeypatch.setattr(socket.socket, "setsockopt", has_no_options)
    stage.connect().close()
    stage.until(lambda: not gone)
    sock = stage.subscribe()
    stage.publisher.publish([b"topic"])
    assert stage.get(sock) == [b"topic"]
