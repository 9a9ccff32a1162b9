"""What is noted about the browsers of a kernel, and how an adopted kernel's output waits for them."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from jupyterlab_clearml_session.kernels import port as port_module
from jupyterlab_clearml_session.kernels.port import KernelPort
from jupyterlab_clearml_session.kernels.shown import ShownFolder, ShownKernel, Watcher
from jupyterlab_clearml_session.remote.loop import Loop
from jupyterlab_clearml_session.remote.messages import DELIMITER, IOPUB, SHELL


@pytest.fixture
def kernel(tmp_path: Path) -> ShownKernel:
    return ShownFolder(tmp_path / "shown").kernel("k-1")


def watcher(kernel: ShownKernel, *, owed: bool = True, again: Any = None) -> Watcher:
    return Watcher(kernel.browser("page"), again or {}, lambda watcher: owed)


async def turn() -> None:
    """Let the event loop run what is due."""
    await asyncio.sleep(0)


async def test_a_note_outlives_who_took_it_and_is_private(kernel: ShownKernel, tmp_path: Path) -> None:
    page = watcher(kernel)
    page.sent(IOPUB, b"i-1", waits=False)
    page.sent(IOPUB, b"i-2", waits=False)
    page.sent(SHELL, b"s-1", waits=False)
    assert kernel.read() == [{IOPUB: "i-2", SHELL: "s-1"}]
    page.sent(IOPUB, b"i-3", waits=False)
    page.leave()
    assert kernel.read() == [{IOPUB: "i-3", SHELL: "s-1"}], "the server ends: the next one needs it"
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_the_note_of_a_page_that_was_closed_goes(kernel: ShownKernel) -> None:
    page = watcher(kernel, owed=False)
    page.sent(IOPUB, b"i-1", waits=False)
    page.leave()
    page.leave()
    page.sent(IOPUB, b"i-2", waits=False)
    assert kernel.read() == []


async def test_a_message_counts_as_shown_when_the_system_has_it(kernel: ShownKernel) -> None:
    page = watcher(kernel)
    first, second, lost = (asyncio.get_running_loop().create_future() for _ in range(3))
    for number, write in enumerate((first, second, lost), 1):
        page.written = write
        page.sent(IOPUB, b"i-%d" % number, waits=True)
    await turn()
    assert kernel.read() == []
    first.set_result(None)
    await turn()
    assert kernel.read() == [{IOPUB: "i-1"}]
    page.sent(IOPUB, b"i-4", waits=False)
    second.set_result(None)
    lost.set_exception(OSError())
    await turn()
    assert kernel.read() == [{IOPUB: "i-4"}], "a later message was noted already"
    page.leave()


async def test_what_cannot_be_noted_leaves_no_stale_note(kernel: ShownKernel) -> None:
    page = watcher(kernel)
    page.sent(IOPUB, b"i-1", waits=False)
    before = kernel.read()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # a full disk, as far as a write can tell
    try:
        page.sent(IOPUB, b"i-2", waits=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (before, kernel.read()) == ([{IOPUB: "i-1"}], [])


async def test_a_page_is_not_sent_again_what_it_was_shown(kernel: ShownKernel) -> None:
    before = watcher(kernel)
    before.sent(IOPUB, b"i-2", waits=False)
    before.leave()
    page = watcher(kernel, again={IOPUB: ["i-1", "i-2", "i-3"], SHELL: ["s-1"]})
    assert [page.knows(IOPUB, b"i-%d" % n) for n in range(1, 5)] == [True, True, False, False]
    assert not page.knows(SHELL, b"s-1")
    page.leave()


async def test_a_page_opened_anew_is_sent_what_no_page_was_shown(kernel: ShownKernel) -> None:
    """The notebook was reopened. What comes again (here: for a page that lags behind) another page was shown."""
    page = watcher(kernel, again={IOPUB: ["i-1", "i-2"]})
    assert [page.knows(IOPUB, b"i-%d" % n) for n in range(1, 4)] == [True, True, False]
    page.leave()


async def test_pages_that_did_not_come_back_are_forgotten(kernel: ShownKernel) -> None:
    for session, message in (("gone", b"i-1"), ("back", b"i-2")):
        note = kernel.browser(session)
        note.note(IOPUB, message)
        note.close()
    kernel.keep({"back": None})
    assert kernel.read() == [{IOPUB: "i-2"}]


def test_only_a_kernels_id_becomes_a_folder(tmp_path: Path) -> None:
    for bad in ("", "..", "a/b", "x" * 65, "a\n"):
        with pytest.raises(ValueError, match="no kernel's id"):
            ShownFolder(tmp_path).kernel(bad)


def test_old_notes_are_removed(tmp_path: Path) -> None:
    folder = ShownFolder(tmp_path)
    for name in ("old", "young", "used"):
        folder.kernel(name).browser("page").close()
    for note in (tmp_path / "old").iterdir():
        os.utime(note, (0, 0))
    for name in ("old", "used"):
        os.utime(tmp_path / name, (0, 0))
    folder.tidy()
    assert {path.name for path in tmp_path.iterdir()} == {"young", "used"}
    ShownFolder(tmp_path / "nothing").tidy()


# -- the output of an adopted kernel -----------------------------------------------------------------------


class Adopted:
    """The local end of an adopted kernel, with subscribers."""

    def __init__(self, folder: Path, hold_for: int) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.loop = Loop()
        self.port = KernelPort(self.context, self.loop, folder / "k", b"key", "hmac-sha256")
        self.port.hold_for = hold_for
        self.port.started(1, {"key": "key", "signature_scheme": "hmac-sha256"})

    def subscribe(self) -> zmq.Socket[Any]:
        sock: zmq.Socket[Any] = self.context.socket(zmq.SUB)
        sock.setsockopt(zmq.SUBSCRIBE, b"")
        sock.connect(f"ipc://{self.port.info['ip']}-{self.port.info['iopub_port']}")
        while not sock.poll(0):  # until the welcome is there
            self.loop.turn(10)
        return sock

    def say(self, text: bytes) -> None:
        self.port.deliver(IOPUB, [b"topic", DELIMITER, text])

    def close(self) -> None:
        self.port.close()
        self.loop.close()
        self.context.destroy(linger=0)


def heard(sock: zmq.Socket[Any]) -> list[bytes]:
    """What a subscriber gets, without the welcomes."""
    found = []
    while sock.poll(300):
        message = sock.recv_multipart()
        if message[0] == b"topic":
            found.append(message[-1])
    return found


@pytest.fixture
def adopted(tmp_path: Path) -> Iterator[Adopted]:
    made = Adopted(tmp_path, hold_for=3)
    yield made
    made.close()


def test_output_waits_for_all_who_watched_before(adopted: Adopted) -> None:
    adopted.say(b"1")
    server = adopted.subscribe()
    first = adopted.subscribe()
    adopted.say(b"2")
    assert heard(first) == []
    assert not adopted.port.stalled
    second = adopted.subscribe()
    assert heard(server) == heard(first) == heard(second) == [b"1", b"2"]


def test_output_does_not_wait_for_ever_for_the_second_page(
    adopted: Adopted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_module, "HOLD_LIMIT", 0.0)
    adopted.say(b"1")
    server = adopted.subscribe()
    waits = [adopted.port.stalled]
    page = adopted.subscribe()
    waits.append(adopted.port.stalled)
    assert waits == [False, True], "the server alone is nobody"
    adopted.port.retry()
    adopted.say(b"2")
    assert heard(server) == heard(page) == [b"1", b"2"]


def test_replies_wait_in_order_for_a_page_that_comes_back(adopted: Adopted) -> None:
    """All cells were run at once, the server was killed, and the kernel is done before the page is back."""
    replies = [str(number).encode() for number in range(500)]
    for reply in replies:
        adopted.port.deliver(SHELL, [b"nobody", DELIMITER, reply])
        adopted.port.deliver(SHELL, [memoryview(bytearray(b"page")), DELIMITER, reply])
    page: zmq.Socket[Any] = adopted.context.socket(zmq.DEALER)
    page.setsockopt(zmq.ROUTING_ID, b"page")
    page.connect(f"ipc://{adopted.port.info['ip']}-{adopted.port.info['shell_port']}")
    page.send(b"hello")
    assert adopted.port.sockets[SHELL].poll(10_000)
    adopted.port.receive(SHELL)
    got = []
    while page.poll(300):
        got.append(page.recv_multipart()[-1])
    assert got == replies


def test_replies_that_wait_are_bounded(adopted: Adopted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_module, "UNCLAIMED_LIMIT", 10_000)
    for _ in range(50):
        adopted.port.deliver(SHELL, [b"nobody", DELIMITER, b"x" * 1000])
    (waiting,) = adopted.port._unclaimed.values()
    assert len(waiting) == 9
