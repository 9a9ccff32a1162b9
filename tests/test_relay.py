"""The wire format and the link: nothing lost, nothing twice, order kept, whatever happens to the wire."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyterlab_clearml_session.remote import messages as messages_module
from jupyterlab_clearml_session.remote.link import Link, Stream
from jupyterlab_clearml_session.remote.messages import (
    DELIMITER,
    EVENT,
    HUGE,
    IOPUB,
    REQUEST,
    SHELL,
    MessageReader,
    message_id,
    pack_message,
)
from jupyterlab_clearml_session.remote.output import KernelOutput
from jupyterlab_clearml_session.remote.sendlog import SendLog
from jupyterlab_clearml_session.remote.wire import (
    ACK,
    DATA,
    FRAME_HEADER,
    FRAME_LIMIT,
    HELLO,
    ProtocolError,
    Wire,
    WireClosed,
)

PARTS = st.lists(st.binary(max_size=300), max_size=6)


@given(st.lists(st.tuples(st.integers(0, 5), PARTS), max_size=12), st.lists(st.integers(1, 97), min_size=1))
def test_messages_survive_any_portions(messages: list[tuple[int, list[bytes]]], portions: list[int]) -> None:
    data = b"".join(bytes(b) for channel, parts in messages for b in pack_message(channel, parts))
    reader, got, position, turn = MessageReader(), [], 0, 0
    while position < len(data):
        size = portions[turn % len(portions)]
        got += list(reader.feed(memoryview(data)[position : position + size]))
        position, turn = position + size, turn + 1
    assert [(channel, [bytes(part) for part in parts]) for channel, parts in got] == messages
    assert reader.pending == 0


def test_a_large_part_comes_whole() -> None:
    part = os.urandom(HUGE + 12345)
    data = b"".join(bytes(b) for b in pack_message(IOPUB, [b"topic", part, b""]))
    reader, got = MessageReader(), []
    for start in range(0, len(data), 100_000):
        got += list(reader.feed(memoryview(data)[start : start + 100_000]))
    assert [[bytes(part) for part in parts] for _, parts in got] == [[b"topic", part, b""]]


class Passed:
    """Where large messages go while they come: only every second one of those that are offered."""

    def __init__(self) -> None:
        self.offered = 0
        self.messages: list[tuple[int, list[bytes]]] = []
        self._more = False
        self._missing = 0

    def begin(self, channel: int, parts: list[Any]) -> Passed | None:
        self.offered += 1
        if self.offered % 2:
            return None
        self.messages.append((channel, [bytes(part) for part in parts]))
        self._more, self._missing = True, 0
        return self

    def part(self, length: int, more: bool) -> None:
        assert (self._more, self._missing) == (True, 0)
        self._more, self._missing = more, length
        self.messages[-1][1].append(b"")

    def data(self, data: memoryview) -> None:
        self._missing -= len(data)
        self.messages[-1][1][-1] += bytes(data)

    def end(self) -> None:
        assert (self._more, self._missing) == (False, 0)


@given(st.lists(st.tuples(st.integers(0, 5), PARTS), max_size=12), st.lists(st.integers(1, 97), min_size=1))
def test_large_parts_are_passed_on_while_they_come(
    messages: list[tuple[int, list[bytes]]], portions: list[int]
) -> None:
    data = memoryview(b"".join(bytes(b) for channel, parts in messages for b in pack_message(channel, parts)))
    passed = Passed()
    with mock.patch.object(messages_module, "LARGE", 60):
        reader, got, position, turn = MessageReader(passed.begin), [], 0, 0
        while position < len(data):
            size = portions[turn % len(portions)]
            for channel, parts in reader.feed(data[position : position + size]):
                got.append((channel, [bytes(part) for part in parts]))
            position, turn = position + size, turn + 1
    assert reader.pending == 0
    assert len(passed.messages) == passed.offered // 2
    whole, passed_on = iter(got), iter(passed.messages)
    following = next(whole, None), next(passed_on, None)
    for message in messages:
        assert message in following
        index = following.index(message)
        following = (next(whole, None), following[1]) if index == 0 else (following[0], next(passed_on, None))
    assert following == (None, None)


def test_a_message_is_given_before_the_large_one_after_it_begins() -> None:
    messages = [[b"a"], [b"topic", bytes(300_000)], [b"b"], [b"c"], [b"topic", bytes(300_000)], [b"d"]]
    data = memoryview(b"".join(bytes(b) for parts in messages for b in pack_message(1, parts)))
    events: list[Any] = []

    class Noted(Passed):
        def end(self) -> None:
            events.append("end")

    def begin(channel: int, parts: list[Any]) -> Noted:
        events.append("begin")
        noted = Noted()
        noted.messages.append((channel, []))
        noted._more = True
        return noted

    reader = MessageReader(begin)
    for start in range(
        0, len(data), 200_000
    ):  # in some there is a small one and the beginning of a large one
        events += (parts for _, parts in reader.feed(data[start : start + 200_000]))
    assert events == [[b"a"], "begin", "end", [b"b"], [b"c"], "begin", "end", [b"d"]]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 2000), st.integers(0, 4000))
def test_the_log_gives_back_every_byte(tmp_path_factory: Any, seed: int, memory: int, disk: int) -> None:
    rnd = random.Random(seed)
    log = SendLog(memory, disk, tmp_path_factory.mktemp("log"))
    reference = bytearray()
    received = bytearray()
    delivered = 0
    for _ in range(60):
        action = rnd.randrange(5)
        if action <= 1:
            data = rnd.randbytes(rnd.randrange(1, 400))
            if log.offer([data]):
                reference += data
        elif action == 2:
            offset, taken = log.take(rnd.randrange(1, 700))
            assert offset == len(received)
            received += b"".join(taken)
        elif action == 3:
            delivered = rnd.randint(delivered, len(received))
            log.acknowledge(len(received), delivered)
        else:
            del received[rnd.randint(delivered, len(received)) :]
            log.rewind(len(received))
        assert received == reference[: len(received)]
        assert log.disk <= disk
        assert log.end == len(reference)
    while taken := log.take(64)[1]:
        received += b"".join(taken)
    assert received == reference
    log.acknowledge(len(received), len(received))
    assert log.memory == log.disk == 0


def test_overflow_goes_to_disk_and_no_file_stays(tmp_path: Path) -> None:
    log = SendLog(1000, 10_000, tmp_path)
    assert all(log.offer([bytes([n]) * 500]) for n in range(20))
    assert (log.memory, log.disk) == (1000, 9000)
    assert list(tmp_path.iterdir()) == []
    _, taken = log.take(100_000)
    assert b"".join(taken) == b"".join(bytes([n]) * 500 for n in range(20))
    log.acknowledge(10_000, 10_000)
    assert (log.memory, log.disk) == (0, 0)


def test_beyond_both_limits_nothing_is_taken(tmp_path: Path) -> None:
    log = SendLog(1000, 1000, tmp_path)
    assert log.offer([b"m" * 1000])
    assert log.offer([b"d" * 1000])
    assert not log.offer([b"x"])
    assert log.end == 2000


def test_a_full_disk_is_a_limit_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SendLog(1000, 1 << 30, tmp_path)
    assert log.offer([b"m" * 1000])
    real, room = os.pwrite, [700]

    def pwrite(fd: int, data: Any, position: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, data[: room[0]], position)
        room[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert log.offer([b"a" * 500])
    assert not log.offer([b"b" * 500])  # only 200 of it would fit: none of it is kept
    room[0] = 10_000
    assert log.offer([b"c" * 500])
    _, taken = log.take(1 << 20)
    assert b"".join(taken) == b"m" * 1000 + b"a" * 500 + b"c" * 500


def test_an_overflow_that_found_no_room_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(fd: int, data: Any, position: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    before = len(list(Path("/proc/self/fd").iterdir()))
    log = SendLog(1000, 1 << 30, tmp_path)
    assert log.offer([b"m" * 1000])
    assert not log.offer([b"a" * 500])
    log.clear()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_message_of_its_own_may_be_larger_than_the_limit(tmp_path: Path) -> None:
    log = SendLog(10, 0, tmp_path)
    assert log.offer([b"x" * 100])
    assert not log.offer([b"y"])


def test_what_was_delivered_is_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    log = SendLog(keep_behind=1000)
    log.append([b"a" * 600])
    log.append([b"b" * 600])
    log.append([b"c" * 5000])
    log.take(1 << 20)
    assert log.memory == 6200
    for delivered in (600, 1200):
        log.acknowledge(delivered, delivered)
    assert log.cut_short == clock[0], "600 of the 1200 bytes had to go"
    clock[0] += 10
    log.acknowledge(6200, 6200)
    assert log.memory == 0, "what was delivered is not counted as waiting"
    log.expire(before=clock[0])
    assert log.reopen() == (5000, 5000), "the newest stays, whatever the limits say"
    assert bytes(log.withdraw(1 << 20)) == b"c" * 5000


def jupyter_message(channel: int, number: int, size: int) -> list[bytes]:
    header = json.dumps({"msg_id": f"m{number}", "msg_type": "x"}).encode()
    parent = json.dumps({"msg_id": "m1"}).encode()
    return [b"topic", DELIMITER, b"", header, parent, b"{}", b"x" * size]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3000), st.booleans())
def test_a_replay_begins_after_what_each_watcher_was_shown(
    tmp_path_factory: Any, seed: int, memory: int, spill: bool
) -> None:
    """Two watchers of one kernel were shown different parts of what was sent; some of that was acknowledged."""
    rnd = random.Random(seed)
    log = SendLog(memory if spill else 1 << 62, 1 << 30, tmp_path_factory.mktemp("log"), keep_behind=1 << 30)
    output = KernelOutput(log)
    channels, ends = [], []
    for number in range(rnd.randrange(1, 40)):
        channels.append(rnd.choice([IOPUB, IOPUB, IOPUB, SHELL, EVENT]))
        message = jupyter_message(channels[-1], number, rnd.choice([0, 200, 70_000]))
        assert log.offer(pack_message(channels[-1], message))
        ends.append(log.end)
    log.take(rnd.randrange(1, log.end + 1))
    whole = [number for number, end in enumerate(ends) if end <= log.sent]
    for number in whole:
        if rnd.random() < 0.2:
            log.acknowledge(ends[number], ends[number])
    delivered = [number for number, end in enumerate(ends) if end <= log.start]
    shown: list[dict[int, int]] = [{}, {}]
    for marks in shown:
        for channel in (IOPUB, SHELL):
            candidates = [number for number in whole if channels[number] == channel]
            if candidates and rnd.random() < 0.9:
                marks[channel] = rnd.choice(candidates)
    if rnd.random() < 0.5:
        shown[1] = {}
    seen = {f"m{number}".encode() for marks in shown for number in marks.values()}
    again = output.replay_after(seen)

    reader = MessageReader()
    replayed = [
        (channel, int(message_id(parts)[1:]))
        for data in log.take(1 << 30)[1]
        for channel, parts in reader.feed(data)
    ]
    assert reader.pending == 0
    for channel in (IOPUB, SHELL, EVENT):
        got = [number for kind, number in replayed if kind == channel]
        sent = [number for number, kind in enumerate(channels) if kind == channel]
        last = [marks[channel] for marks in shown if channel in marks]
        if last:
            assert got == [number for number in sent if number > min(last)]
            assert again.get(channel, []) == [f"m{n}" for n in sent if min(last) < n <= max(last)]
        elif seen and channel != EVENT:
            assert got == sent
        else:
            assert got == [number for number in sent if number not in delivered]
            assert channel not in again
    log.clear()
    assert log.memory == log.disk == 0


def test_a_replay_that_may_lack_something_says_so(tmp_path: Path) -> None:
    log = SendLog(keep_behind=10)
    output = KernelOutput(log)
    ends = []
    for number in range(4):
        log.append(pack_message(IOPUB, jupyter_message(IOPUB, number, 10)))
        ends.append(log.end)
    log.take(1 << 20)
    for end in ends:
        log.acknowledge(end, end)
    output.replay_after({b"m0"})
    text = b"".join(log.take(1 << 20)[1])
    assert b"Output may be missing here" in text
    assert b'"m3"' in text
    assert b'"m2"' not in text


# -- links over wires that break ---------------------------------------------------------------------------


class End:
    """One end of a link, with what it received; stream 1 is a kernel's."""

    def __init__(self) -> None:
        self.got: list[tuple[int, int, bytes]] = []
        self.link = Link(self._on_message, lambda hello: None)
        self.link.streams[1] = Stream()
        self.now = 0.0

    def _on_message(self, stream: int, channel: int, parts: list[Any]) -> None:
        self.got.append((stream, channel, b"|".join(bytes(part) for part in parts)))

    def open(self, sock: socket.socket) -> None:
        self.link.open(Wire(sock.fileno(), sock.fileno(), sock.close), {}, self.now)

    def turn(self) -> bool:
        """Write and read once; False where the wire is gone."""
        self.now += 0.04
        try:
            self.link.write(self.now)
            if self.link.wire is not None:
                self.link.read(self.now)
        except WireClosed:
            self.link.close()
        return self.link.wire is not None


def connect(left: End, right: End) -> tuple[socket.socket, socket.socket]:
    """Lay a new wire between two ends; returns the middles, through which the test passes the bytes."""
    a, a_middle = socket.socketpair()
    b, b_middle = socket.socketpair()
    left.open(a)
    right.open(b)
    a_middle.setblocking(False)
    b_middle.setblocking(False)
    return a_middle, b_middle


def carry(source: socket.socket, sink: socket.socket, limit: int) -> int:
    """Carry at most ``limit`` bytes; returns how many."""
    try:
        data = source.recv(min(limit, 65536)) if limit else b""
        if data:
            sink.setblocking(True)
            sink.sendall(data)
            sink.setblocking(False)
        return len(data)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return 0


@pytest.mark.parametrize("seed", range(25))
def test_a_wire_cut_anywhere_loses_and_repeats_nothing(seed: int) -> None:
    """Twenty cuts in one run, each after a random number of bytes: also in the middle of a frame's header."""
    rnd = random.Random(seed)
    left, right = End(), End()
    sent: dict[tuple[str, int], list[bytes]] = {("l", 0): [], ("l", 1): [], ("r", 0): [], ("r", 1): []}

    def say(end: End, name: str) -> None:
        stream = rnd.randrange(2)
        size = rnd.choice([0, 10, 200, 5000, 90_000])
        body = b"%d:" % len(sent[name, stream]) + rnd.randbytes(size).replace(b"|", b"!")
        sent[name, stream].append(body)
        end.link.send(stream, IOPUB, [body])

    for _ in range(20):
        a, b = connect(left, right)
        budget = [rnd.randrange(1, 150_000), rnd.randrange(1, 150_000)]
        for _ in range(40):
            if rnd.random() < 0.5:
                say(left, "l")
            if rnd.random() < 0.5:
                say(right, "r")
            left.turn()
            right.turn()
            budget[0] -= carry(a, b, budget[0])
            budget[1] -= carry(b, a, budget[1])
            if not all(budget):
                break
        a.close()
        b.close()
    a, b = connect(left, right)
    for _ in range(4000):
        alive = left.turn() & right.turn()
        assert alive
        moved = carry(a, b, 1 << 20) + carry(b, a, 1 << 20)
        done = all(
            stream.log.start == stream.log.end
            for end in (left, right)
            for stream in end.link.streams.values()
        )
        if done and not moved:
            break
    for name, end in (("l", right), ("r", left)):
        for stream in (0, 1):
            assert [body for number, _, body in end.got if number == stream] == sent[name, stream]
    left.link.close()
    right.link.close()
    a.close()
    b.close()


def greeted() -> tuple[End, socket.socket]:
    """An end whose other end is the test, after the greeting."""
    end = End()
    near, far = socket.socketpair()
    end.open(near)
    far.sendall(FRAME_HEADER.pack(HELLO, 15, 0, 0) + b'{"received":{}}')
    end.turn()
    assert end.link.up
    return end, far


def frame(stream: int, offset: int, data: bytes) -> bytes:
    return FRAME_HEADER.pack(DATA, len(data), stream, offset) + data


@pytest.mark.parametrize("seed", range(25))
def test_duplicate_and_stale_frames_are_discarded(seed: int) -> None:
    """Old frames come again, whole or overlapping, and frames of a stream that is not there any more."""
    rnd = random.Random(seed)
    end, far = greeted()
    data = b"".join(bytes(b) for n in range(50) for b in pack_message(IOPUB, [b"%d" % n]))
    position = 0
    while position < len(data):
        size = rnd.randrange(1, 40)
        far.sendall(frame(1, position, data[position : position + size]))
        position = min(position + size, len(data))
        for _ in range(2):
            start = rnd.randrange(position)
            far.sendall(frame(1, start, data[start : rnd.randrange(start, position) + 1]))
        far.sendall(frame(7, rnd.randrange(1000), rnd.randbytes(30)))
        assert end.turn()
    assert [body for _, _, body in end.got] == [b"%d" % n for n in range(50)]
    end.link.close()
    far.close()


@pytest.mark.parametrize(
    "bad",
    [
        b"\0" * FRAME_HEADER.size,
        FRAME_HEADER.pack(99, 0, 0, 0),
        FRAME_HEADER.pack(ACK, FRAME_LIMIT + 1, 0, 0),
        frame(1, 5, b"a gap"),
        FRAME_HEADER.pack(ACK, 8, 1, 10) + b"\0" * 8,
        FRAME_HEADER.pack(ACK, 1, 1, 0) + b"\0",
        FRAME_HEADER.pack(HELLO, 2, 0, 0) + b"[]",
    ],
)
def test_nonsense_ends_the_wire_and_nothing_else(bad: bytes) -> None:
    end, far = greeted()
    far.sendall(bad)
    assert not end.turn()
    assert end.got == []
    far.close()


def test_resuming_before_what_is_kept_is_refused() -> None:
    log = SendLog()
    log.append([b"0123456789"])
    log.take(10)
    log.acknowledge(10, 6)
    with pytest.raises(ProtocolError):
        log.rewind(5)


def test_a_flood_on_one_stream_does_not_hold_up_another() -> None:
    left, right = End(), End()
    left.link.streams[2], right.link.streams[2] = Stream(), Stream()
    a, b = connect(left, right)
    left.link.send(1, IOPUB, [b"x" * 30_000_000])
    for _ in range(20):
        left.turn(), right.turn(), carry(a, b, 1 << 20), carry(b, a, 1 << 20)
    left.link.send(2, IOPUB, [b"small"])
    turns = 0
    while (2, IOPUB, b"small") not in right.got:
        left.turn(), right.turn(), carry(a, b, 1 << 20), carry(b, a, 1 << 20)
        turns += 1
    assert turns < 40
    assert all(stream != 1 for stream, _, _ in right.got)
    for end, sock in ((left, a), (right, b)):
        end.link.close()
        sock.close()


def test_a_request_waits_for_what_was_sent_to_its_kernel_before_on_each_wire() -> None:
    left, right = End(), End()
    kernel = left.link.streams[1]
    left.link.send(1, SHELL, [b"before"])
    left.link.streams[0].wait_for(kernel, kernel.log.end)
    left.link.send(1, SHELL, [b"later"])
    left.link.send(0, REQUEST, [b"request"])
    a, b = connect(left, right)
    left.turn(), right.turn(), carry(a, b, 1 << 20), carry(b, a, 1 << 20)
    for _ in range(3):
        left.turn()
    assert (
        left.link.streams[0].log.sent == left.link.streams[0].log.end
    )  # all is sent, and none of it arrives
    for end, sock in ((left, a), (right, b)):
        end.link.close()
        sock.close()
    a, b = connect(left, right)
    for _ in range(5):
        left.turn(), right.turn(), carry(a, b, 1 << 20), carry(b, a, 1 << 20)
    bodies = [body for _, _, body in right.got]
    assert bodies.index(b"before") < bodies.index(b"request")
    assert sorted(bodies) == [b"before", b"later", b"request"]
    # A stream that is given up is not waited for.
    left.link.streams[0].wait_for(kernel, kernel.log.end + 1)
    left.link.send(0, REQUEST, [b"next"])
    left.turn(), carry(a, b, 1 << 20), right.turn()
    assert right.got[-1][2] != b"next"
    left.link.streams[1] = Stream()
    for _ in range(3):
        left.turn(), carry(a, b, 1 << 20), right.turn()
    assert right.got[-1][2] == b"next"
    for end, sock in ((left, a), (right, b)):
        end.link.close()
        sock.close()


def test_a_paused_stream_stops_its_sender_and_loses_nothing() -> None:
    left, right = End(), End()
    right.link.streams[1].paused = True
    a, b = connect(left, right)
    for n in range(300):
        left.link.send(1, IOPUB, [b"%d" % n, b"x" * 65_000])
    for _ in range(600):
        left.turn(), right.turn(), carry(a, b, 1 << 20), carry(b, a, 1 << 20)
    assert len(right.got) < 300
    assert left.link.streams[1].log.start == 0
    right.link.resume(1, right.now)
    for _ in range(2000):
        left.turn(), right.turn(), carry(a, b, 1 << 20), carry(b, a, 1 << 20)
        if left.link.streams[1].log.start == left.link.streams[1].log.end:
            break
    assert [body.split(b"|")[0] for _, _, body in right.got] == [b"%d" % n for n in range(300)]
    for end, sock in ((left, a), (right, b)):
        end.link.close()
        sock.close()
