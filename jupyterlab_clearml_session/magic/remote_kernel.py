"""One kernel on a session, kept for this notebook: runs code there and shows here what it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from getpass import getpass
from typing import Any

from ..errors import (
    ClearMLSessionError,
    KernelFailed,
    WaitInterrupted,
)
from .comms import Comms
from .link import KernelLink, Message, interrupts, raising_interrupts
from .outputs import Outputs
from .result import Note, RunResult, raise_for, show_pages

START_DEADLINE = 60.0
"""Seconds that a kernel which the server calls started gets to answer."""
LOOK = 5.0
"""Seconds of silence after which it is checked that the kernel is still there."""
GRACE = 1.0
"""Seconds by which output may come after a later reply: they travel on sockets of their own."""
FORWARD_DEADLINE = 60.0
"""Seconds that a widget's event keeps the local kernel busy at most."""


@dataclass
class Hooks:
    """What a remote kernel needs of the server: all may raise ClearMLSessionError."""

    interrupt: Callable[[], None]
    state: Callable[[], str]
    """What the server says that the kernel does ("busy", "idle"), "" where it has it no more."""
    trouble: Callable[[], str]
    """Why the session cannot be reached just now, "" where it can."""
    notice: Callable[[str], None]
    """Show the user a line."""


class RemoteKernel:
    """The local end of a kernel on a session. Belongs to the main thread."""

    def __init__(self, link: KernelLink, kernel_id: str, where: str, shell: Any, hooks: Hooks) -> None:
        self.id = kernel_id
        self.where = where
        self._link = link
        self._hooks = hooks
        self._shell = shell
        self._outputs = Outputs(shell, kernel_id, link.session.session)
        self._used_ids: set[str] = set()
        self._stream: Any = None
        self._loop: Any = None
        local = getattr(shell, "kernel", None)
        self._local_kernel = local
        self._comms = Comms(local.comm_manager, self._forward) if local is not None else None
        self.on_comm: dict[str, Callable[[Message], None]] = {}
        """Comms of our own, by id: not mirrored."""
        self._begun = False
        self._probe: str | None = None
        self._answered: float | None = None
        self.info = link.wait_connected(START_DEADLINE, self._check_alive)

    @property
    def language(self) -> str:
        return str((self.info.get("language_info") or {}).get("name", ""))

    def close(self) -> None:
        """Close the sockets. The kernel goes on."""
        if self._stream is not None:
            self._stream.close(linger=0)
            self._stream = None
        if self._comms is not None:
            self._comms.close()
        self._link.close()

    def run(self, code: str) -> RunResult:
        """Run code as a cell; its output is shown while it comes.

        Raises RemoteCellError with the remote traceback, RemoteCellInterrupted after a Ctrl-C, WaitInterrupted
        after a second one, KernelFailed where the kernel is gone.
        """
        began = time.monotonic()
        note = Note()
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": self._may_ask(),
            "stop_on_error": True,
        }
        reply = self._exchange("execute_request", content, self._local_header(), note)
        seconds = time.monotonic() - began
        show_pages(reply)
        raise_for(note.named(reply), self.where)
        return note.result(self.where, seconds)

    def run_hidden(self, code: str) -> None:
        """Run code of ours: no output, no history. Raises RemoteCellError."""
        content = {
            "code": code,
            "silent": True,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        raise_for(self._exchange("execute_request", content, None, None), self.where)

    def send_comm(self, kind: str, content: Mapping[str, Any], buffers: Any = ()) -> None:
        """Send a comm message of our own. After the last one, `listen_late`."""
        self._link.send("shell", kind, content, buffers=buffers)

    def pump(self, until: Callable[[], bool], wake: int | None, taken: Callable[[], int]) -> bool:
        """Deal with messages until ``until`` is true; returns False where Ctrl-C came first.

        ``wake`` and ``taken`` are what `interrupts` gives. Raises KernelFailed.
        """
        self._listen_no_more()
        self._probe, self._answered = None, None
        silent_since = time.monotonic()
        while not until():
            for channel, message in self._receive(wake):
                silent_since = time.monotonic()
                if channel == "iopub":
                    self._on_iopub(message, None)
            if taken():
                return False
            if time.monotonic() - silent_since >= LOOK:
                self._look()
                silent_since = time.monotonic()
        return True

    def listen_late(self) -> None:
        """Until the next request, let the local kernel's event loop show what still comes."""
        if self._local_kernel is None or threading.current_thread() is not threading.main_thread():
            return
        if self._stream is None:
            from tornado.ioloop import IOLoop
            from zmq.eventloop.zmqstream import ZMQStream

            self._loop = IOLoop.current(instance=False)
            if self._loop is None:
                return
            self._stream = ZMQStream(self._link.sockets["iopub"], self._loop)
        self._stream.on_recv(self._on_late, copy=False)

    # -- one request -------------------------------------------------------------------------------------------

    def _exchange(
        self,
        kind: str,
        content: Mapping[str, Any],
        parent: Mapping[str, Any] | None,
        note: Note | None,
        *,
        message: Message | None = None,
    ) -> dict[str, Any]:
        """Send a request and deal with all that comes until the kernel is idle again; returns the reply.

        ``message`` is a message of the front end that is sent on; it has no reply.
        """
        self._listen_no_more()
        wanted = self._free_id(parent)
        extra: dict[str, Any] = {}
        reply: dict[str, Any] | None = None
        if message is not None:
            extra = {"buffers": message["buffers"], "metadata": message["metadata"]}
            reply = {}
        sent = self._link.send("shell", kind, content, message_id=wanted, **extra)
        if message is not None:
            self._outputs.expect(sent, message["header"])
        elif parent is not None:
            self._outputs.begin(sent, parent)
        self._begun, self._probe, self._answered = False, None, None
        idle, pressed = False, 0
        silent_since = time.monotonic()
        try:
            with interrupts() as (wake, taken):
                while reply is None or not idle:
                    for channel, received in self._receive(wake):
                        silent_since = time.monotonic()
                        mine = received["parent_header"].get("msg_id") == sent
                        self._begun = self._begun or mine
                        if channel == "iopub":
                            idle = (self._on_iopub(received, note) and mine) or idle
                        elif channel == "stdin" and mine:
                            pressed += self._ask(received)
                        elif channel == "shell" and mine and received["msg_type"].endswith("_reply"):
                            reply = received["content"]
                    pressed = self._interrupt(pressed, taken())
                    if time.monotonic() - silent_since >= LOOK:
                        self._look()
                        silent_since = time.monotonic()
        finally:
            if parent is not None:
                self._outputs.end(reply or {})
            self.listen_late()
        return {**reply, "interrupted": pressed}

    def _on_iopub(self, message: Message, note: Note | None) -> bool:
        """Deal with an output; returns whether it says that a request is finished."""
        kind, content = message["msg_type"], message["content"]
        if kind == "status":
            # The first one of a fresh kernel may still come after our first request was sent, but not after
            # that request has begun.
            if content["execution_state"] == "starting" and self._begun:
                raise self._started_anew()
            return bool(content["execution_state"] == "idle")
        if kind.startswith("comm_"):
            ours = self.on_comm.get(content.get("comm_id", ""))
            if ours is not None:
                ours(message)
                return False
            if self._comms is not None:
                self._comms.heard(message)
        if note is not None:
            note.take(kind, content)
        self._outputs.show(message)
        return False

    def _interrupt(self, pressed: int, now: int) -> int:
        """Deal with Ctrl-C: the first interrupts over there, the second stops the waiting."""
        if not now:
            return pressed
        if pressed:
            raise WaitInterrupted(
                f"Stopped waiting for the cell. It still runs on {self.where}.",
                hint="The next cell for that kernel waits for it; '--new' starts a fresh kernel.",
            )
        self._hooks.interrupt()
        return 1

    def _look(self) -> None:
        """Nothing was heard for a while: is there still somebody to wait for?"""
        self._check_alive()
        trouble = self._hooks.trouble()
        if self._probe is None and not trouble:
            # A kernel answers in order: if it answers this one first, it is not the process that was asked.
            self._probe = self._link.send("shell", "kernel_info_request", {})
        if trouble:
            self._hooks.notice(f"{trouble}. Nothing is lost: output that waits over there will follow.")

    def _receive(self, wake: int | None) -> Iterator[tuple[str, Message]]:
        """Yield what comes. Raises KernelFailed once it is sure that what we wait for will not come."""
        if self._answered is not None and time.monotonic() - self._answered > GRACE:
            raise self._started_anew()
        for channel, message in self._link.receive(LOOK if self._answered is None else GRACE, wake):
            if channel == "shell" and message["parent_header"].get("msg_id") == self._probe:
                self._answered = time.monotonic()
            yield channel, message

    def _started_anew(self) -> KernelFailed:
        return KernelFailed(f"The kernel on {self.where} was started anew; what it held is gone.")

    def _check_alive(self) -> None:
        if self._hooks.state() in ("", "dead"):
            raise KernelFailed(
                f"The kernel on {self.where} has ended.", hint="The next run starts a new one."
            )

    def _ask(self, request: Message) -> int:
        """Answer the remote kernel's question for input; returns 1 where the user pressed Ctrl-C instead."""
        self._outputs.flush()
        content = request["content"]
        ask = getpass if content.get("password") else input
        try:
            with raising_interrupts():
                value = ask(content.get("prompt", ""))
        except KeyboardInterrupt:
            self._hooks.interrupt()
            return 1
        except EOFError:
            value = "\x04"  # as Jupyter clients send the end of input
        self._link.send("stdin", "input_reply", {"value": value}, parent=request)
        return 0

    # -- the local kernel --------------------------------------------------------------------------------------

    def _forward(self, message: Message) -> None:
        """Send a comm message of the front end on, and wait until it is dealt with.

        JupyterLab sends them to a subshell of the kernel, which is another thread: the main thread does it, as
        soon as it has time.
        """
        if threading.current_thread() is threading.main_thread() or self._loop is None:
            self._forward_now(message)
            return
        done = threading.Event()

        def forward() -> None:
            try:
                self._forward_now(message)
            finally:
                done.set()

        self._loop.add_callback(forward)
        done.wait(FORWARD_DEADLINE)

    def _forward_now(self, message: Message) -> None:
        try:
            self._exchange(message["msg_type"], message["content"], message["header"], None, message=message)
        except ClearMLSessionError as error:
            # Nobody catches it here: it belongs under the cell or in the log of the front end.
            self._hooks.notice(error.message)

    def _local_header(self) -> Mapping[str, Any]:
        if self._local_kernel is None:
            return {"msg_id": ""}
        header: Mapping[str, Any] = self._local_kernel.get_parent("shell").get("header", {})
        return header

    def _free_id(self, parent: Mapping[str, Any] | None) -> str | None:
        """Return the id for a request: that of the local one that it stands for, the first time.

        Output widgets find the output that is theirs by that id.
        """
        wanted = str((parent or {}).get("msg_id") or "")
        if not wanted or wanted in self._used_ids:
            return None
        self._used_ids.add(wanted)
        return wanted

    def _may_ask(self) -> bool:
        return bool(getattr(self._local_kernel, "_allow_stdin", True))

    def _listen_no_more(self) -> None:
        if self._stream is not None:
            self._stream.stop_on_recv()

    def _on_late(self, frames: list[Any]) -> None:
        message = self._link.parse(frames)
        if message is None:
            return
        try:
            self._on_iopub(message, None)
        except KernelFailed:
            return  # the next run finds out and says it
        self._outputs.flush()
