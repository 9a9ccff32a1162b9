"""What one kernel says, kept until somebody took it: bounded, replayed for another client, and in what state it is.

Runs on any Python from 3.8 on with the standard library only: it is sent to the remote machine.
"""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections import deque
from collections.abc import Collection
from datetime import datetime, timezone
from typing import Any

from .messages import (
    DELIMITER,
    EVENT,
    IOPUB,
    SHELL,
    SMALL,
    MessageReader,
    header_id,
    message_id,
    pack_message,
    packed_size,
    sign,
    signed_frames,
)
from .sendlog import SendLog

OWN = b"clearml-session-helper"
"""The session of messages that are the helper's own."""
CUT_SHORT = 60.0
"""Seconds after which it does not matter any more that some output was not remembered for a replay."""


class KernelOutput:
    """The messages of a kernel, over restarts of its process.

    Parameters
    ----------
    log:
        Where they are kept until they are acknowledged.
    """

    def __init__(self, log: SendLog) -> None:
        self.log = log
        self.state = "starting"
        """``starting``, ``busy``, ``idle`` or ``dead``. ``busy`` as long as the kernel works on any request: a
        subshell or the control channel may be done with one while a cell runs on."""
        self.last_activity = time.monotonic()
        self.key = ""
        self.signature_scheme = "hmac-sha256"
        self.urgent = False
        """True where something was kept that should leave now; see `LAZY` in clients.py."""
        self._busy_parent = b"{}"
        self._works_on: dict[bytes, bytes] = {}
        """The requests that the kernel works on, the first one first: header by id."""
        self._unanswered: deque[bytes] = deque()
        self._dropped = 0
        self._dropped_bytes = 0

    def begin(self, key: str, signature_scheme: str) -> None:
        """A process is about to start, which will sign with this key."""
        self.key, self.signature_scheme = key, signature_scheme
        self.state = "starting"
        self._works_on.clear()
        self._unanswered.clear()

    def asked(self, channel: int, parts: list[Any]) -> None:
        """A client's message was given to the kernel."""
        self.last_activity = time.monotonic()
        frames = signed_frames(parts) if channel == SHELL else None
        if frames is not None and b'"execute_request"' in bytes(frames[0]):
            self._unanswered.append(bytes(frames[0]))

    def request(self, code: str) -> list[bytes]:
        """Return a message that has the kernel run code of ours. Nobody sees it, nor what comes of it."""
        content = {"code": code, "silent": True, "store_history": False, "allow_stdin": False}
        return [OWN, *self._message("execute_request", b"{}", {**content, "user_expressions": {}})]

    def keep(self, channel: int, parts: list[Any]) -> None:
        """Keep a message of the kernel. Output beyond the log's limits is dropped, and a notice of it kept."""
        if channel == IOPUB:
            self._keep_output(parts)
            return
        if parts[0] == OWN:
            return  # the answer to what `request` asked
        frames = signed_frames(parts) if self._unanswered else None
        if frames is not None and b'"execute_reply"' in bytes(frames[0]):
            self._unanswered.popleft()
        # A kernel that is not idle has one more thing to say after a reply.
        self._keep(pack_message(channel, parts), urgent=self.state == "idle")

    def end(self, pid: int, status: int, tail: list[str]) -> None:
        """The process has ended: say so in the cell it worked on, and to its client. ``tail``: its last lines."""
        if self.state != "busy" and self._unanswered:
            # It died so fast that its "busy" never left it.
            self.state, self._busy_parent = "busy", self._unanswered[0]
        if self.state == "busy":
            lines = "\n".join(tail)
            self._keep(self._notice(f"The remote kernel died ({_exit_text(status)}).\n{lines}\n"))
        self.state = "dead"
        event = {"event": "exit", "pid": pid, "status": status, "tail": tail}
        self._keep(pack_message(EVENT, [json.dumps(event).encode()]))

    def replay_after(self, seen: Collection[bytes]) -> dict[int, list[str]]:
        """Make the log begin anew, for another client.

        The former one may have been killed with output in its hands that it had acknowledged. ``seen`` says what
        those who watched through it were last shown: ids of messages, one for each watcher and channel. The log
        then begins right after the earliest of them on each channel, so that nothing is missed; what comes again
        for some of the watchers is returned, by channel. Where nobody watched, it begins with what was not
        acknowledged.
        """
        messages = self._withdraw()
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for index, (channel, parts, _) in enumerate(messages):
            if message_id(parts) in seen:
                first.setdefault(channel, index)
                last[channel] = index
        again: dict[int, list[str]] = {}
        buffers: list[Any] = []
        if seen and IOPUB not in first and time.monotonic() - self.log.cut_short < CUT_SHORT:
            buffers += self._notice(
                "\n[clearml-session] Output may be missing here: JupyterLab was killed before it could show it.\n"
            )
        for index, (channel, parts, was_delivered) in enumerate(messages):
            # On a channel whose last shown message is not here, all that is here came after it.
            begin = first.get(channel, -1 if seen and channel != EVENT else None)
            if was_delivered if begin is None else index <= begin:
                continue
            buffers += pack_message(channel, parts)
            if index <= last.get(channel, -1):
                again.setdefault(channel, []).append(message_id(parts).decode(errors="replace"))
        self.log.put_back(buffers)
        return again

    def _withdraw(self) -> list[tuple[int, list[Any], bool]]:
        """Take the messages that a client may have seen out of the log, and say which were delivered to it."""
        delivered, sent = self.log.reopen()
        reader, messages, fed, end = MessageReader(), [], 0, 0
        while fed < sent or reader.pending:
            data = self.log.withdraw(SMALL)
            fed += len(data)
            for channel, parts in reader.feed(data):
                end += packed_size(parts)
                messages.append((channel, parts, end <= delivered))
        return messages

    def _keep_output(self, parts: list[Any]) -> None:
        buffers = pack_message(IOPUB, parts)
        frames = signed_frames(parts)
        if frames is not None and OWN in frames[1]:
            return
        if frames is not None and b'"status"' in frames[0]:
            self._note_status(frames)
            self._say_dropped()
            self._keep(buffers, urgent=self.state == "idle")
            return
        if self._dropped and not self._roomy():
            kept = False
        else:
            self._say_dropped()
            announces = frames is not None and b'"execute_input"' in frames[0]
            kept = self._keep(buffers, bounded=True, urgent=not announces)
        if not kept:
            self._dropped += 1
            self._dropped_bytes += sum(map(len, parts))

    def _keep(self, buffers: list[Any], *, bounded: bool = False, urgent: bool = True) -> bool:
        """Put a message into the log; False where it had no room for it."""
        self.urgent = self.urgent or urgent
        if bounded:
            if not self.log.offer(buffers):
                return False
        else:
            self.log.append(buffers)
        return True

    def _note_status(self, frames: list[Any]) -> None:
        try:
            state = json.loads(bytes(frames[3])).get("execution_state")
        except (ValueError, AttributeError):
            return
        self.last_activity = time.monotonic()
        if state not in ("busy", "idle"):
            return
        parent = bytes(frames[1])
        if state == "busy":
            self._works_on[header_id(parent)] = parent
        elif self._works_on.pop(header_id(parent), None) is None:
            self._works_on.clear()  # it does not say what it is done with
        self.state = "busy" if self._works_on else "idle"
        self._busy_parent = next(iter(self._works_on.values()), self._busy_parent)

    def _roomy(self) -> bool:
        # Once output had to be dropped, it begins again only when a quarter of the room is free: one notice
        # for a gap, not one for each line.
        limit = self.log.memory_limit + self.log.disk_limit
        return self.log.memory < self.log.memory_limit * 3 // 4 and self.log.disk <= limit * 3 // 4

    def _say_dropped(self) -> None:
        if not self._dropped:
            return
        text = (
            f"\n[clearml-session] {self._dropped} messages ({self._dropped_bytes / 1e6:.1f} MB) of output were "
            f"dropped here: nobody took them, and the buffer of this kernel "
            f"({self.log.memory_limit / 1e6:.0f} MB of memory, {self.log.disk_limit / 1e6:.0f} MB of disk) "
            f"was full.\n"
        )
        self._dropped = self._dropped_bytes = 0
        self._keep(self._notice(text))

    def _notice(self, text: str) -> list[Any]:
        """Return a stream message of our own, in the output of what the kernel works on."""
        content = {"name": "stderr", "text": text}
        return pack_message(IOPUB, [b"stream", *self._message("stream", self._busy_parent, content)])

    def _message(self, kind: str, parent: bytes, content: dict[str, Any]) -> list[bytes]:
        header = {
            "msg_id": secrets.token_hex(16),
            "session": OWN.decode(),
            "username": "clearml-session",
            "date": now(),
            "msg_type": kind,
            "version": "5.3",
        }
        frames = [json.dumps(header).encode(), parent, b"{}", json.dumps(content).encode()]
        return [DELIMITER, sign(self.key, self.signature_scheme, frames), *frames]


def now() -> str:
    """Return the time as Jupyter's messages have it."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def _exit_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    hint = "; was it out of memory?" if -status == signal.SIGKILL else ""
    return f"signal {name}{hint}"
