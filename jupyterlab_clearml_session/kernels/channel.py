"""The local end of the relay: one thread that joins the kernels' local sockets and the link to the helper.

A thread of its own, with plain ZMQ sockets and one poller: a flood of output then costs the server's event loop
only the decryption, and the same code serves processes that have no running event loop (``jupyter console``).
"""

from __future__ import annotations

import json
import logging
import math
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from ..errors import ClearMLSessionError, KernelFailed
from ..remote.link import Link, Stream
from ..remote.loop import Loop
from ..remote.messages import CONTROL, EVENT, REQUEST, signed_frames
from ..remote.wire import Wire, WireClosed
from .port import RETRY_INTERVAL, KernelPort

PING_INTERVAL = 5.0
"""Seconds without any byte after which the helper is asked for a sign of life."""
SILENCE_LIMIT = 20.0
"""Seconds without any byte after which the wire is given up."""
RETRY_MIN, RETRY_MAX = 0.1, 5.0
STEADY = 2.0
"""Seconds after which a wire was of use although it brought no message. Where each one breaks after the greeting,
something is wrong over there, and every try starts a process on that machine: not again at once."""
WAITED_FOR = 1024 * 1024
"""Bytes on their way to a kernel after which it is killed: not those of a large message over a slow link."""
FAILED_RETRY_MAX = 300.0
"""Where the helper cannot run over there: each try starts several processes on that machine, mostly for nothing."""

Dial = Callable[[str], socket.socket]
"""Returns a socket to a fresh ``attach`` of the helper, made for the client id it gets; blocks. Raises
ClearMLSessionError or OSError."""


class SessionChannel:
    """What one process knows of one session's helper.

    Parameters
    ----------
    dial:
        Called in a thread of its own for each new wire; it gets the client id.
    on_taken:
        Called with a kernel's id when another client has taken it over, in the channel's thread.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        on_taken: Callable[[str], None] = lambda kernel_id: None,
        log: logging.Logger | logging.LoggerAdapter[Any] | None = None,
    ) -> None:
        self.client_id = uuid.uuid4().hex
        self.up = threading.Event()
        self.cause = "not connected yet"
        self._dial = dial
        self._on_taken = on_taken
        self._log = log or logging.getLogger(__name__)
        self._context: zmq.Context[Any] = zmq.Context()
        self._loop = Loop()
        self._link = Link(self._on_message, self._on_hello)
        self._instance: str | None = None
        self._ports: dict[int, KernelPort] = {}
        self._established: set[int] = set()
        self._next_stream = 1
        self._next_request = 1
        self._requests: dict[int, _Request] = {}
        self._unsent: list[int] = []
        """Requests that wait for the link."""
        self._signals: dict[tuple[str, int], Future[Any]] = {}
        self._interrupts: dict[int, tuple[Stream, int]] = {}
        """By stream: where the interrupt ends that was sent last as a message and is not answered."""
        self._dialing = False
        self._retry_at = 0.0
        self._retry_wait = RETRY_MIN
        self._useful_at = math.inf
        """From when on the present wire counts as of use."""
        self._pinged = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="clearml-session-relay", daemon=True)

    # -- for all threads -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, and keep connected until `close`."""
        self._thread.start()

    def close(self) -> None:
        """End the thread. The kernels go on living; what they say waits at the helper."""
        if self._closed:
            return
        self._closed = True
        self._loop.wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    @property
    def closed(self) -> bool:
        """True when it has ended; it does not come back."""
        return self._closed

    @property
    def has_ports(self) -> bool:
        """True while a kernel has its local sockets here."""
        return bool(self._ports)

    def finish(self, timeout: float = 5.0) -> None:
        """Wait until all requests are answered, at most ``timeout`` seconds, and close."""
        deadline = time.monotonic() + timeout
        while self._requests and self.up.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.close()

    def redial(self) -> None:
        """Try to connect now, not at the end of the wait."""
        self._loop.call(self._forget_wait)

    def request(self, method: str, **params: Any) -> Future[Any]:
        """Ask the helper something. The request is sent once the link is up and carried out once.

        One whose future is cancelled before is not sent. The future's exception is a KernelFailed.
        """
        future: Future[Any] = Future()
        self._loop.call(lambda: self._send_request(_Request(future, method, params)))
        return future

    def signal(self, stream: int, kernel_id: str, signum: int) -> Future[Any]:
        """Send a signal to the kernel of a stream. While one is under way, the same one again is not sent twice.

        It is sent also where nobody waits for it any more, and after what clients have sent to the kernel before.
        Only an interrupt is for what the kernel works on now: between two cells it does nothing, or harm.
        """
        future: Future[Any] = Future()

        def send() -> None:
            pending = self._signals.get((kernel_id, signum))
            if pending is None:
                pending = self._signals[kernel_id, signum] = Future()
                pending.add_done_callback(lambda done: self._signals.pop((kernel_id, signum), None))
                params = {"kernel_id": kernel_id, "signum": signum}
                after = self._so_far(stream) if signum != signal.SIGINT else None
                self._send_request(_Request(pending, "signal", params, after))
            pending.add_done_callback(lambda done: _copy_result(done, future))

        self._loop.call(send)
        return future

    def open_port(self, base: Path, key: bytes, signature_scheme: str) -> Future[int]:
        """Bind the local sockets of a kernel; gives the number of its stream."""
        future: Future[int] = Future()

        def bind() -> None:
            if self._closed:
                _settle(future, error=KernelFailed("The connection to the session was closed."))
                return
            try:
                port = KernelPort(self._context, self._loop, base, key, signature_scheme)
            except (zmq.ZMQError, OSError) as error:
                _settle(future, error=_no_sockets(error))
                return
            number = self._next_stream
            self._next_stream += 1
            self._add_port(number, port)
            if not _settle(future, number):
                self._remove_port(number)

        self._loop.call(bind)
        return future

    def port(self, stream: int) -> KernelPort | None:
        """Return the local end of a kernel."""
        return self._ports.get(stream)

    def start_kernel(self, stream: int, hold_for: int, **params: Any) -> Future[Any]:
        """Start (or adopt) the kernel of a stream; socket files that jupyter_client removed are made again.

        ``hold_for``: the output that an adopted kernel made meanwhile is kept back until so many subscribers
        are there, so that it does not go to nobody.

        Where the future is cancelled, a kernel that is started all the same is ended; an adopted one lives on.
        """
        future: Future[Any] = Future()

        def send() -> None:
            port = self._ports.get(stream)
            if port is None:
                _settle(future, error=KernelFailed("The connection to the session was closed."))
                return
            port.exit_status = None
            port.hold_for = hold_for
            try:
                port.bind()
            except (zmq.ZMQError, OSError) as error:
                _settle(future, error=_no_sockets(error))
                return
            # Of a kernel that is restarted: what was sent to the former process is not for the next one.
            after = self._so_far(stream) if stream in self._established else None
            self._send_request(_Request(future, "start", {**params, "stream": stream}, after, starts=stream))

        self._loop.call(send)
        return future

    def close_port(self, stream: int) -> Future[None]:
        """Unbind the local sockets of a kernel."""
        future: Future[None] = Future()

        def close() -> None:
            self._remove_port(stream)
            _settle(future)

        self._loop.call(close)
        return future

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        except Exception:
            # A mistake of ours must not end as a kernel that says nothing for ever.
            self._log.exception("the relay of the session's kernels has failed")
            raise
        finally:
            self._closed = True
            self._shut()

    def _turn(self) -> None:
        now = time.monotonic()
        self._loop.turn(self._wait(now))
        for port in list(self._ports.values()):
            if port.stalled:
                port.retry()
        now = time.monotonic()
        self._keep_connected(now)
        self._write(now)

    def _wait(self, now: float) -> int:
        """Milliseconds until something is due."""
        due = now + min(1.0, PING_INTERVAL)
        if any(port.stalled for port in self._ports.values()):
            due = now + RETRY_INTERVAL
        if self._link.deadline is not None:
            due = min(due, self._link.deadline)
        if self._link.wire is None and not self._dialing:
            due = min(due, self._retry_at)
        return max(0, int((due - now) * 1000) + 1) if due > now else 0

    def _shut(self) -> None:
        for number in list(self._ports):
            self._remove_port(number)
        self._link.close()
        for request in self._requests.values():
            _settle(request.future, error=KernelFailed("The connection to the session was closed."))
        self._requests.clear()
        self.up.clear()
        self._loop.close()
        self._context.destroy(linger=1000)

    # -- the wire ------------------------------------------------------------------------------------------

    def _keep_connected(self, now: float) -> None:
        if self._link.wire is None:
            if not self._dialing and now >= self._retry_at:
                self._dialing = True
                threading.Thread(target=self._dial_once, name="clearml-session-dial", daemon=True).start()
            return
        silence = now - self._link.last_received
        if silence > SILENCE_LIMIT:
            self._lose(now, "the helper does not answer")
        elif silence > PING_INTERVAL and now - self._pinged > PING_INTERVAL:
            self._pinged = now
            self._link.ping()

    def _dial_once(self) -> None:
        try:
            sock = self._dial(self.client_id)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the next try must come
            if not self._closed and not isinstance(error, (ClearMLSessionError, OSError)):
                self._log.exception("the link to the kernels could not be made")
            failure = error
            self._loop.call(lambda: self._dial_failed(failure))
            return
        self._loop.call(lambda: self._dialed(sock))

    def _dial_failed(self, error: Exception) -> None:
        self._dialing = False
        self.cause = str(error) or type(error).__name__
        self._try_later(FAILED_RETRY_MAX if isinstance(error, KernelFailed) else RETRY_MAX)

    def _try_later(self, longest: float = RETRY_MAX) -> None:
        wait = min(longest, self._retry_wait)
        self._retry_at = time.monotonic() + wait * random.uniform(0.5, 1.0)  # noqa: S311
        self._retry_wait = min(longest, wait * 2)

    def _dialed(self, sock: socket.socket) -> None:
        self._dialing = False
        if self._closed:
            sock.close()
            return
        fd = sock.fileno()

        def closed() -> None:
            self._loop.unwatch(fd)
            sock.close()

        self._link.open(Wire(fd, fd, closed), {"client": self.client_id}, time.monotonic())
        self._loop.watch(fd, self._on_readable)

    def _on_readable(self) -> None:
        if self._link.wire is None:
            return
        now = time.monotonic()
        try:
            self._link.read(now)
        except WireClosed as error:
            self._lose(now, str(error))

    def _write(self, now: float) -> None:
        wire = self._link.wire
        if wire is None:
            return
        try:
            self._link.write(now)
        except WireClosed as error:
            self._lose(now, str(error))
            return
        self._loop.want(wire.read_fd, zmq.POLLIN | (zmq.POLLOUT if wire.pending else 0))

    def _lose(self, now: float, cause: str) -> None:
        self._link.close()
        self.cause = cause
        if self.up.is_set():
            self.up.clear()
            self._log.info("the link to the kernels is down: %s", cause)
        if now >= self._useful_at:
            self._forget_wait()
        else:
            self._try_later()
        self._useful_at = math.inf

    def _forget_wait(self) -> None:
        self._retry_at, self._retry_wait = 0.0, RETRY_MIN

    def _on_hello(self, hello: dict[str, Any]) -> None:
        instance = str(hello.get("instance"))
        if self._instance is not None and instance != self._instance:
            self._helper_lost()
        elif not int(hello["received"].get("0", 0)) and self._talked:
            self._begin_anew()  # it has forgotten us: we were away for long, without any kernel
        self._instance = instance
        known = {int(number) for number in hello["received"]}
        for number in self._established - known:
            self._kernel_lost(number)
        self._useful_at = time.monotonic() + STEADY
        self.cause = ""
        self.up.set()
        self._send_unsent()

    @property
    def _talked(self) -> bool:
        """True where the helper is known to have received something of us."""
        requests = self._link.streams[0]
        return bool(requests.received or requests.log.start)

    def _helper_lost(self) -> None:
        """The helper ended, with all kernels, and another one answers: begin anew."""
        self._log.warning("the helper on the remote machine was restarted: its kernels are lost")
        self._begin_anew()
        for number in list(self._established):
            self._kernel_lost(number)

    def _begin_anew(self) -> None:
        """Nothing is left of what was said. Requests that were not answered are sent again."""
        self._link.streams[0] = Stream()
        self._unsent = list(self._requests)

    def _kernel_lost(self, number: int) -> None:
        self._established.discard(number)
        port = self._ports.get(number)
        if port is not None and port.exit_status is None:
            port.exit_tail = ["The remote kernel is gone: the helper that ran it has ended."]
            port.exit_status = -9
        if port is not None and number in self._link.streams:
            port.publisher.abandon()
            self._link.streams[number] = Stream(on_large=port.begin)

    # -- messages ------------------------------------------------------------------------------------------

    def _add_port(self, number: int, port: KernelPort) -> None:
        self._ports[number] = port
        self._link.streams[number] = Stream(on_large=port.begin)
        port.on_pause = lambda paused: self._pause(number, paused)
        for channel, sock in port.sockets.items():
            self._loop.watch(sock, self._forwarder(number, port, channel))
        self._loop.watch(port.heartbeat, port.beat)

    def _forwarder(self, number: int, port: KernelPort, channel: int) -> Callable[[], None]:
        def forward() -> None:
            for parts in port.receive(channel):
                if channel == CONTROL and _is(b'"interrupt_request"', parts):
                    self._interrupt(number, parts)
                else:
                    self._link.send(number, channel, parts)

        return forward

    def _interrupt(self, number: int, parts: list[Any]) -> None:
        """As with `signal`: while one is under way, the same one again is not sent twice."""
        stream = self._link.streams[number]
        sent, end = self._interrupts.get(number, (None, 0))
        if sent is stream and end > stream.log.start:
            return
        self._link.send(number, CONTROL, parts)
        self._interrupts[number] = stream, stream.log.end

    def _pause(self, number: int, paused: bool) -> None:
        if paused:
            self._link.streams[number].paused = True
        else:
            self._link.resume(number, time.monotonic())

    def _remove_port(self, number: int) -> None:
        port = self._ports.get(number)
        if port is None:
            return
        for sock in [*port.sockets.values(), port.heartbeat]:
            self._loop.unwatch(sock)
        port.close()
        del self._ports[number]
        self._interrupts.pop(number, None)
        self._established.discard(number)
        self._link.streams.pop(number, None)

    def _on_message(self, number: int, channel: int, parts: list[Any]) -> None:
        self._useful_at = 0.0
        if number == 0:
            self._on_answer(json.loads(bytes(parts[0])))
            return
        port = self._ports[number]
        if channel == CONTROL and _is(b'"interrupt_reply"', parts):
            self._interrupts.pop(number, None)
        if channel != EVENT:
            port.deliver(channel, parts)
            return
        event = json.loads(bytes(parts[0]))
        # That the former process has ended, of which a restart did not wait to hear, is no news.
        if event["event"] == "exit" and event.get("pid", port.pid) == port.pid:
            port.exit_tail = event["tail"]
            port.exit_status = event["status"]

    def _so_far(self, stream: int) -> tuple[Stream, int] | None:
        """What clients have sent to a kernel up to now; None where that is too much to wait for."""
        sent = self._link.streams.get(stream)
        if sent is None or sent.log.end - sent.log.received > WAITED_FOR:
            return None
        return sent, sent.log.end

    def _send_request(self, request: _Request) -> None:
        if self._closed:
            _settle(request.future, error=KernelFailed("The connection to the session was closed."))
            return
        number = self._next_request
        self._next_request += 1
        self._requests[number] = request
        self._unsent.append(number)
        if self.up.is_set():
            self._send_unsent()

    def _send_unsent(self) -> None:
        """The link is up. What was asked in vain meanwhile is left out: after a long outage it could be a lot."""
        for number in self._unsent:
            request = self._requests[number]
            if request.future.cancelled():
                del self._requests[number]
                continue
            if request.after is not None:
                self._link.streams[0].wait_for(*request.after)
            body = {"id": number, "method": request.method, "params": request.params}
            self._link.send(0, REQUEST, [json.dumps(body).encode()])
        self._unsent.clear()

    def _on_answer(self, answer: dict[str, Any]) -> None:
        if answer.get("event") == "taken":
            self._on_taken(str(answer["kernel_id"]))
            return
        request = self._requests.pop(answer["id"], None)
        if request is None:
            return
        if "error" in answer:
            error = KernelFailed(f"The helper on the remote machine: {answer['error']}")
            _settle(request.future, error=error)
            return
        port = self._ports.get(request.starts)
        if port is not None and not request.future.cancelled():
            self._established.add(request.starts)
            port.started(answer["result"]["pid"], answer["result"].get("adopted"))
        if (
            not _settle(request.future, answer["result"])
            and request.starts
            and "adopted" not in answer["result"]
        ):
            self._end_unwanted(request.params["kernel_id"])

    def _end_unwanted(self, kernel_id: str) -> None:
        """A kernel was started for someone who has given up: it must not live on, known to nobody.

        Unless another try to start it is under way, which takes it over.
        """
        for request in self._requests.values():
            if request.starts and request.params["kernel_id"] == kernel_id and not request.future.cancelled():
                return
        self._send_request(_Request(Future(), "forget", {"kernel_id": kernel_id}))


@dataclass(frozen=True)
class _Request:
    """What the helper is asked."""

    future: Future[Any]
    method: str
    params: dict[str, Any]
    after: tuple[Stream, int] | None = None
    """What it is sent after: a stream, up to an offset."""
    starts: int = 0
    """The stream of the kernel that it starts; 0 where it starts none."""


def _is(kind: bytes, parts: list[Any]) -> bool:
    frames = signed_frames(parts)
    return frames is not None and kind in bytes(frames[0])


def _no_sockets(error: zmq.ZMQError | OSError) -> KernelFailed:
    return KernelFailed(f"The kernel's local sockets cannot be made: {error}")


def _settle(future: Future[Any], result: Any = None, error: BaseException | None = None) -> bool:
    """Finish a future; False where whoever waited has given it up."""
    if not future.set_running_or_notify_cancel():
        return False
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
    return True


def _copy_result(done: Future[Any], future: Future[Any]) -> None:
    error = done.exception()
    _settle(future, None if error else done.result(), error)
