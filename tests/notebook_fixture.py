"""A notebook without a browser: a kernel owned by a real Jupyter server, and a client that runs cells in it."""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

from tests.lab_fixture import LabServer

CELL_DEADLINE = 120.0
Message = dict[str, Any]
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Outcome:
    """What one cell did: the reply, and every message that belongs to it."""

    message_id: str
    reply: Message = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> str:
        return str(self.reply["content"]["status"])

    @property
    def stdout(self) -> str:
        return self.text("stdout")

    def text(self, name: str) -> str:
        return "".join(m["content"]["text"] for m in self.of("stream") if m["content"]["name"] == name)

    def of(self, kind: str) -> list[Message]:
        return [message for message in self.messages if message["msg_type"] == kind]

    @property
    def result(self) -> str:
        """Plain text of the value."""
        (message,) = self.of("execute_result")
        return str(message["content"]["data"]["text/plain"])

    @property
    def shown(self) -> list[str]:
        """Plain text of all displays and their updates."""
        kinds = ("display_data", "update_display_data")
        return [m["content"]["data"]["text/plain"] for m in self.messages if m["msg_type"] in kinds]

    @property
    def error(self) -> str:
        """Class and text of the error."""
        content = self.of("error")[-1]["content"]
        return f"{content['ename']}: {content['evalue']}"

    @property
    def traceback(self) -> str:
        """Without its colours."""
        return _COLOURS.sub("", "\n".join(self.of("error")[-1]["content"]["traceback"]))


class Notebook:
    """Runs cells in a kernel of ``lab``."""

    def __init__(self, lab: LabServer, kernel_name: str = "python3") -> None:
        self.lab = lab
        self.kernel_id = str(lab.call("POST", "api/kernels", {"name": kernel_name}).body["id"])
        file = lab.folder / "runtime" / f"kernel-{self.kernel_id}.json"
        self.client = BlockingKernelClient(connection_file=str(file))
        self.client.load_connection_file()
        # Its heartbeat would be missed where the machine is busy; the tests' deadlines do.
        self.client.start_channels(hb=False)
        self.client.wait_for_ready(timeout=60)
        self.others: list[Message] = []
        """Messages that belong to no cell that was running."""

    def close(self) -> None:
        self.client.stop_channels()
        self.lab.call("DELETE", f"api/kernels/{self.kernel_id}")

    def cell(
        self,
        code: str,
        *,
        answers: list[str] | None = None,
        during: Callable[[Message], None] = lambda message: None,
    ) -> Outcome:
        """Run a cell; ``answers`` are given to its questions, ``during`` sees every message as it comes."""
        sent = self.client.execute(code, allow_stdin=answers is not None)
        return self._collect(Outcome(sent), answers or [], during)

    def ok(self, code: str, **kwargs: Any) -> Outcome:
        """Run a cell that must not fail."""
        outcome = self.cell(code, **kwargs)
        assert outcome.status == "ok", outcome.traceback
        return outcome

    def comm(self, comm_id: str, data: dict[str, Any]) -> Outcome:
        """Send a comm message as the front end does; returns what it led to."""
        message = self.client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
        self.client.shell_channel.send(message)
        outcome = Outcome(message["header"]["msg_id"], reply={"content": {"status": "ok"}})
        return self._collect(outcome, [], lambda message: None)

    def until(self, condition: Callable[[Message], bool], deadline: float = 30.0) -> Message:
        """Wait for a message between cells."""
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            try:
                message: Message = self.client.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                continue
            if condition(message):
                return message
        raise AssertionError("the message did not come")

    def interrupt(self) -> None:
        assert self.lab.call("POST", f"api/kernels/{self.kernel_id}/interrupt").status == 204

    def restart(self) -> None:
        assert self.lab.call("POST", f"api/kernels/{self.kernel_id}/restart").status == 200
        self.client.wait_for_ready(timeout=60)

    def _collect(self, outcome: Outcome, answers: list[str], during: Callable[[Message], None]) -> Outcome:
        end = time.monotonic() + CELL_DEADLINE
        idle = False
        while not (idle and outcome.reply):
            assert time.monotonic() < end, f"the cell did not end: {outcome}"
            if answers and self.client.stdin_channel.msg_ready():
                self.client.get_stdin_msg()
                self.client.input(answers.pop(0))
            try:
                message: Message = self.client.get_iopub_msg(timeout=0.1)
            except queue.Empty:
                message = {}
            if message and message["parent_header"].get("msg_id") == outcome.message_id:
                outcome.messages.append(message)
                during(message)
                idle = idle or message["content"].get("execution_state") == "idle"
            elif message:
                self.others.append(message)
            while not outcome.reply and self.client.shell_channel.msg_ready():
                reply = self.client.get_shell_msg()
                if reply["parent_header"].get("msg_id") == outcome.message_id:
                    outcome.reply = reply
        return outcome
