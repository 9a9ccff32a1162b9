"""What kernels do beside running cells, through the relay: debugger, comms, interrupts, other languages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jupyterlab_clearml_session.errors import NotAttached, UnknownKernel

from ..kernel_fixture import SESSION_ID, RemoteMachine, machine, session
from ..kernel_server_fixture import app, attached

pytestmark = pytest.mark.integration
__all__ = ["app", "machine"]
OTHER_ID = "0ddba11" + "0" * 25


@pytest.fixture
def kernels(machine: RemoteMachine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for more kernelspecs of the machine."""
    # What sshd runs gets this process's environment.
    monkeypatch.setenv("JUPYTER_PATH", str(machine.home / "share"))
    return machine.home / "share" / "kernels"


def install(kernels: Path, name: str, argv: list[str], language: str) -> str:
    """Give the machine a kernelspec that is interrupted by message; return its local name."""
    folder = kernels / name
    folder.mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": language, "interrupt_mode": "message"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    return f"clearml-{SESSION_ID[:8]}-{name}"


class Client:
    """A client of a kernel that waits for what it is after."""

    def __init__(self, kernel: Any) -> None:
        self.client = kernel.client()
        self.client.start_channels()
        self._seq = 0

    async def until(self, kind: str, **content: Any) -> dict[str, Any]:
        """Return the next iopub message of a kind with this content."""
        while True:
            message: dict[str, Any] = await self.client.get_iopub_msg(timeout=30)
            if message["msg_type"] == kind and content.items() <= message["content"].items():
                return message

    async def said(self, request: str) -> str:
        """Return what a cell prints from now on, up to its end."""
        text = ""
        while True:
            message: dict[str, Any] = await self.client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") == request:
                text += str(message["content"].get("text", ""))
                if message["content"].get("execution_state") == "idle":
                    return text

    async def reply(self, request: str) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = await self.client.get_shell_msg(timeout=30)
            if message["parent_header"].get("msg_id") == request:
                return message["content"]  # type: ignore[no-any-return]

    async def debug(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a debug_request, which must succeed; return the body of the answer."""
        self._seq += 1
        content = {"type": "request", "seq": self._seq, "command": command, "arguments": arguments or {}}
        request = self.client.session.msg("debug_request", content)
        self.client.control_channel.send(request)
        while True:
            message = await self.client.get_control_msg(timeout=30)
            if message["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                assert message["content"]["success"], message["content"]
                return message["content"].get("body") or {}


COMM_TARGET = """
def opened(comm, message):
    @comm.on_msg
    def echo(message):
        data = message["content"]["data"]
        comm.send({"twice": 2 * data["n"]}, buffers=[bytes(b)[::-1] for b in message["buffers"]])
get_ipython().kernel.comm_manager.register_target("echo", opened)
import ipywidgets
slider = ipywidgets.IntSlider(3)
display(slider)
"""


async def test_debugger_comms_widgets_and_an_interrupt_by_message(
    machine: RemoteMachine, app: Any, kernels: Path
) -> None:
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    name = install(kernels, "by-message", argv, "python")
    async with attached(machine, app):
        kernel_id = await app.kernel_manager.start_kernel(kernel_name=name)
        kernel = app.kernel_manager.get_kernel(kernel_id)
        talk = Client(kernel)
        await talk.client.wait_for_ready(timeout=30)

        # Comms: both ways, with buffers; a widget's own comm brings the front end's change to the kernel.
        talk.client.execute(COMM_TARGET)
        model = (await talk.until("display_data"))["content"]["data"][
            "application/vnd.jupyter.widget-view+json"
        ]
        send = talk.client.session.send
        shell = talk.client.shell_channel.socket
        send(shell, "comm_open", {"comm_id": "c1", "target_name": "echo", "data": {}})
        big = bytes(range(256)) * 4096
        send(shell, "comm_msg", {"comm_id": "c1", "data": {"n": 21}}, buffers=[big])
        answer = await talk.until("comm_msg", comm_id="c1")
        assert answer["content"]["data"] == {"twice": 42}
        assert bytes(answer["buffers"][0]) == big[::-1]
        change = {"method": "update", "state": {"value": 8}, "buffer_paths": []}
        send(shell, "comm_msg", {"comm_id": model["model_id"], "data": change})
        assert await talk.said(talk.client.execute("print(slider.value)")) == "8\n"

        # Where a cell fails, ipykernel refuses what comes next for a moment; the debugger, too.
        code = "import time; print(end='asleep', flush=True); time.sleep(60)"
        request = talk.client.execute(code, stop_on_error=False)
        await talk.until("stream", text="asleep")
        await app.kernel_manager.interrupt_kernel(kernel_id)
        assert (await talk.reply(request))["ename"] == "KeyboardInterrupt"

        # The debugger: a breakpoint is hit, the frame is seen, and the cell goes on.
        code = "def double(n):\n    twice = 2 * n\n    return twice\nprint(double(4))"
        await talk.debug("initialize", {"clientID": "test", "adapterID": "", "pathFormat": "path"})
        await talk.debug("attach")
        source = {"path": (await talk.debug("dumpCell", {"code": code}))["sourcePath"]}
        await talk.debug("setBreakpoints", {"source": source, "breakpoints": [{"line": 3}]})
        await talk.debug("configurationDone")
        request = talk.client.execute(code)
        stopped = await talk.until("debug_event", event="stopped")
        thread = {"threadId": stopped["content"]["body"]["threadId"]}
        frames = (await talk.debug("stackTrace", thread))["stackFrames"]
        assert (frames[0]["name"], frames[0]["line"]) == ("double", 3)
        await talk.debug("continue", thread)
        assert await talk.said(request) == "8\n"
        await talk.debug("disconnect", {"restart": False, "terminateDebuggee": False})

        talk.client.stop_channels()


async def test_a_kernel_in_another_language(machine: RemoteMachine, app: Any, kernels: Path) -> None:
    """No ipykernel in its command: it gets TCP ports over there."""
    script = str(Path(__file__).parent.parent / "echo_kernel.py")
    name = install(kernels, "echo", [sys.executable, script, "{connection_file}"], "echo")
    async with attached(machine, app) as setup:
        (spec,) = [spec for spec in await setup.kernels.kernelspecs(SESSION_ID) if spec["name"] == name]
        assert (spec["display_name"], spec["language"]) == ("echo · trainer", "echo")
        kernel_id = await app.kernel_manager.start_kernel(kernel_name=name)
        kernel = app.kernel_manager.get_kernel(kernel_id)
        talk = Client(kernel)
        await talk.client.wait_for_ready(timeout=30)
        said: list[str] = []
        await talk.client.execute_interactive(
            "grüße", timeout=30, output_hook=lambda message: said.append(message["content"].get("text", ""))
        )
        assert "".join(said) == "grüße"
        request = talk.client.execute("wait")
        await talk.until("status", execution_state="busy")
        await app.kernel_manager.interrupt_kernel(kernel_id)
        assert (await talk.reply(request))["ename"] == "Interrupted"
        await app.kernel_manager.restart_kernel(kernel_id)
        await talk.client.wait_for_ready(timeout=30)
        talk.client.stop_channels()
        await app.kernel_manager.shutdown_kernel(kernel_id)
        assert await setup.kernels.list_kernels(SESSION_ID) == []


async def test_two_sessions_side_by_side(machine: RemoteMachine, app: Any) -> None:
    async with attached(machine, app) as setup:
        assert setup.sessions.on_ready is not None
        assert setup.sessions.on_gone is not None
        await setup.sessions.on_ready(session("other", OTHER_ID), setup.tunnel)
        names = [f"clearml-{session_id[:8]}-python3" for session_id in (SESSION_ID, OTHER_ID)]
        ids = [await app.kernel_manager.start_kernel(kernel_name=name) for name in names]
        for session_id, kernel_id in zip((SESSION_ID, OTHER_ID), ids, strict=True):
            assert [known["id"] for known in await setup.kernels.list_kernels(session_id)] == [kernel_id]
        ids.append(await app.kernel_manager.start_kernel(kernel_name="python3"))
        for foreign in ids[1:]:
            with pytest.raises(UnknownKernel):
                await setup.kernels.kill_kernel(SESSION_ID, foreign)
            with pytest.raises(UnknownKernel):
                await setup.kernels.adopt(SESSION_ID, foreign)
        assert sorted(app.kernel_manager.list_kernel_ids()) == sorted(ids)
        await app.kernel_manager.shutdown_kernel(ids.pop(), now=True)
        await setup.sessions.on_gone(OTHER_ID)
        assert app.kernel_manager.list_kernel_ids() == ids[:1]
        assert names[1] not in app.kernel_spec_manager.find_kernel_specs()
        with pytest.raises(NotAttached):
            await setup.kernels.list_kernels(OTHER_ID)
        talk = Client(app.kernel_manager.get_kernel(ids[0]))
        await talk.client.wait_for_ready(timeout=30)
        assert await talk.said(talk.client.execute("print('still here')")) == "still here\n"
        talk.client.stop_channels()
        # Attached again, the other one has what it left.
        await setup.sessions.on_ready(session("other", OTHER_ID), setup.tunnel)
        assert sorted(app.kernel_manager.list_kernel_ids()) == sorted(ids)
