"""Remote kernels in a real Jupyter server, over a real SSH server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.utils import url_path_join
from tornado.httpclient import HTTPClientError

from jupyterlab_clearml_session.api.handlers import handlers
from jupyterlab_clearml_session.errors import Conflict, KernelFailed, NotAttached, TunnelDown, UnknownKernel
from jupyterlab_clearml_session.kernels.channel import SessionChannel

from ..kernel_fixture import SESSION_ID, RemoteMachine, machine, start_kernel
from ..kernel_server_fixture import NAME, app, attached

pytestmark = pytest.mark.integration
__all__ = ["app", "machine"]


async def reply_to(client: Any, request: str) -> dict[str, Any]:
    """Return the reply to a request; replies to earlier ones (kernel_info) may still come."""
    while True:
        reply: dict[str, Any] = await client.get_shell_msg(timeout=10)
        if reply["parent_header"]["msg_id"] == request:
            return reply


async def test_a_remote_kernel_runs_code(machine: RemoteMachine, app: Any) -> None:
    async with attached(machine, app) as setup:
        assert NAME in setup.sessions.names
        kernel_id = await app.kernel_manager.start_kernel(kernel_name=NAME)
        client = app.kernel_manager.get_kernel(kernel_id).client()
        client.start_channels()
        await client.wait_for_ready(timeout=30)
        said: list[str] = []
        reply = await client.execute_interactive(
            "import os; print(os.environ['HOME'], os.getcwd())",
            timeout=30,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
        assert reply["content"]["status"] == "ok"
        assert "".join(said) == f"{machine.home} {machine.home}\n"
        client.stop_channels()


async def test_interrupt_restart_and_shutdown(machine: RemoteMachine, app: Any) -> None:
    async with attached(machine, app):
        manager = app.kernel_manager
        kernel_id = await manager.start_kernel(kernel_name=NAME)
        kernel = manager.get_kernel(kernel_id)
        client = kernel.client()
        client.start_channels()
        await client.wait_for_ready(timeout=30)
        request = client.execute("x = 1\nimport time\nprint('here', flush=True)\ntime.sleep(60)")
        # An interrupt between "execute_input" and the cell's first line interrupts nothing.
        while (await client.get_iopub_msg(timeout=30))["msg_type"] != "stream":
            pass
        await manager.interrupt_kernel(kernel_id)
        reply = await reply_to(client, request)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        await manager.restart_kernel(kernel_id)
        await client.wait_for_ready(timeout=30)
        reply = await client.execute_interactive("x", timeout=30, store_history=False)
        assert reply["content"]["ename"] == "NameError"
        client.stop_channels()
        await manager.shutdown_kernel(kernel_id)
        assert manager.list_kernel_ids() == []


async def test_kernelspecs_vanish_on_detach_and_the_notebook_is_told(
    machine: RemoteMachine, app: Any
) -> None:
    async with attached(machine, app) as setup:
        kernel_id = await app.kernel_manager.start_kernel(kernel_name=NAME)
        assert NAME in app.kernel_spec_manager.find_kernel_specs()
        assert setup.sessions.on_gone is not None
        await setup.sessions.on_gone(SESSION_ID)
        assert NAME not in app.kernel_spec_manager.find_kernel_specs()
        assert kernel_id not in app.kernel_manager
        with pytest.raises(NotAttached):
            await setup.kernels.list_kernels(SESSION_ID)
        await setup.attach()
        # It went on living, and this server had it: it is here again.
        assert kernel_id in app.kernel_manager


async def test_an_ssh_connection_that_breaks_loses_nothing(machine: RemoteMachine, app: Any) -> None:
    async with attached(machine, app) as setup:
        kernel_id = await app.kernel_manager.start_kernel(kernel_name=NAME)
        client = app.kernel_manager.get_kernel(kernel_id).client()
        client.start_channels()
        await client.wait_for_ready(timeout=30)
        request = client.execute(
            "import sys, time\nfor i in range(100000):\n    print(i)\n"
            "    if i % 1000 == 0: sys.stdout.flush(); time.sleep(0.03)"
        )
        text, cuts = "", 0
        while True:
            message = await client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "stream":
                text += message["content"]["text"]
                if cuts < 5 and len(text) > cuts * 100_000:
                    cuts += 1
                    await setup.server.drop()
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        assert cuts == 5
        assert text.split() == [str(n) for n in range(100_000)]
        assert (await reply_to(client, request))["content"]["status"] == "ok"
        client.stop_channels()


async def test_a_kernel_is_adopted_by_the_next_server(machine: RemoteMachine, app: Any) -> None:
    """The first server is stopped while a cell runs; the second has the kernel, its variables and the output."""
    manager = app.kernel_manager
    notebook = Path(app.root_dir) / "work.ipynb"
    notebook.write_text("{}")
    async with attached(machine, app) as setup:
        kernel_id = await manager.start_kernel(kernel_name=NAME, env={"JPY_SESSION_NAME": str(notebook)})
        client = manager.get_kernel(kernel_id).client()
        client.start_channels()
        await client.wait_for_ready(timeout=30)
        await client.execute_interactive("x = 41", timeout=30)
        client.execute("import time; time.sleep(1.5); print('made while nobody was there'); x += 1")
        while (await client.get_iopub_msg(timeout=10))["msg_type"] != "execute_input":
            pass
        client.stop_channels()
        await setup.kernels.close()
        await manager.shutdown_all()
    assert manager.list_kernel_ids() == []
    async with attached(machine, app) as setup:
        assert manager.list_kernel_ids() == [kernel_id]
        (known,) = await setup.kernels.list_kernels(SESSION_ID)
        assert (known["id"], known["adopted"]) == (kernel_id, True)
        (model,) = await app.session_manager.list_sessions()
        assert (model["path"], model["kernel"]["id"]) == ("work.ipynb", kernel_id)
        client = manager.get_kernel(kernel_id).client()
        client.start_channels()
        text = ""
        while "nobody" not in text:
            message = await client.get_iopub_msg(timeout=20)
            text += message["content"].get("text", "")
        output: list[str] = []
        await client.execute_interactive(
            "print(x)", timeout=30, output_hook=lambda m: output.append(m["content"].get("text", ""))
        )
        assert "".join(output) == "42\n"
        client.stop_channels()


async def test_a_foreign_kernel_is_listed_adopted_on_request_and_killed(
    machine: RemoteMachine, app: Any, jp_fetch: Any
) -> None:
    """A kernel that another client left behind is not taken by itself, but offered. All of it over REST."""
    about = {"name": "clearml-session"}
    # In place of the whole extension: the handlers log with it.
    app.web_app.settings["clearml-session"] = app
    app.web_app.add_handlers(
        ".*$", [(url_path_join(app.base_url, where), handler, about) for where, handler in handlers]
    )
    kernels = f"clearml-session/api/sessions/{SESSION_ID}/kernels"

    async def listed() -> list[dict[str, Any]]:
        answer = json.loads((await jp_fetch(kernels)).body)["kernels"]
        assert isinstance(answer, list)
        return answer

    async with attached(machine, app):
        channel = SessionChannel(machine.dial)
        channel.start()
        for kernel_id in ("left-behind", "unwanted"):
            await asyncio.to_thread(start_kernel, channel, machine.home, kernel_id)
        await asyncio.to_thread(channel.close)
        known = {kernel["id"]: kernel for kernel in await listed()}
        assert sorted(known) == ["left-behind", "unwanted"]
        assert {"id", "name", "state", "started", "adopted"} <= known["unwanted"].keys()
        assert (known["unwanted"]["name"], known["unwanted"]["adopted"]) == ("python3", False)
        answer = await jp_fetch(kernels, "left-behind", "adopt", method="POST", body="")
        assert json.loads(answer.body) == {"id": "left-behind"}
        assert app.kernel_manager.list_kernel_ids() == ["left-behind"]
        assert {kernel["id"]: kernel["adopted"] for kernel in await listed()} == {
            "left-behind": True,
            "unwanted": False,
        }
        for kernel_id in ("unwanted", "left-behind"):
            assert (await jp_fetch(kernels, kernel_id, method="DELETE")).code == 204
        assert await listed() == []
        assert app.kernel_manager.list_kernel_ids() == []
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch(kernels, "unwanted", method="DELETE")
        assert refused.value.code == 404
        assert refused.value.response is not None
        assert json.loads(refused.value.response.body)["error"]["code"] == UnknownKernel.code


async def test_someone_elses_session_says_nothing_about_notebooks_here(
    machine: RemoteMachine, app: Any
) -> None:
    """What its machine claims of a kernel is not believed: that this server had it, and for which notebook."""
    manager = app.kernel_manager
    notebook = Path(app.root_dir) / "work.ipynb"
    notebook.write_text("{}")
    async with attached(machine, app) as setup:
        assert setup.sessions.on_gone is not None
        kernel_id = await manager.start_kernel(kernel_name=NAME, env={"JPY_SESSION_NAME": str(notebook)})
        await setup.sessions.on_gone(SESSION_ID)
        await setup.attach(mine=False)
        assert manager.list_kernel_ids() == []
        assert await setup.kernels.adopt(SESSION_ID, kernel_id) == kernel_id
        assert manager.list_kernel_ids() == [kernel_id]
        assert await app.session_manager.list_sessions() == []


async def test_a_kernel_whose_id_is_taken_here_is_not_adopted(machine: RemoteMachine, app: Any) -> None:
    async with attached(machine, app) as setup:
        kernel_id = await app.kernel_manager.start_kernel(kernel_name="python3")
        channel = SessionChannel(machine.dial)
        channel.start()
        try:
            # Its name is long, and a socket's path must be short.
            await asyncio.to_thread(start_kernel, channel, setup.kernels.sockets, kernel_id)
            (known,) = await setup.kernels.list_kernels(SESSION_ID)
            assert (known["id"], known["adopted"]) == (kernel_id, False)
            with pytest.raises(Conflict):
                await setup.kernels.adopt(SESSION_ID, kernel_id)
        finally:
            await asyncio.to_thread(channel.close)


async def test_who_asks_while_the_link_is_down_is_told_why(machine: RemoteMachine, app: Any) -> None:
    async def no_helper(session_id: str, wait: float = 0.0) -> Any:
        raise KernelFailed("there is no pyzmq over there")

    async with attached(machine, app) as setup:
        setup.sessions.tunnel = no_helper  # type: ignore[method-assign]
        channel = await setup.kernels.channel(SESSION_ID)
        await setup.server.drop()
        while "pyzmq" not in channel.cause:
            await asyncio.sleep(0.01)
        with pytest.raises(TunnelDown, match="there is no pyzmq over there"):
            await setup.kernels._ask(SESSION_ID, "metrics", timeout=0.1)


async def test_culling_works_on_remote_kernels(machine: RemoteMachine, app: Any) -> None:
    async with attached(machine, app) as setup:
        await app.kernel_manager.start_kernel(kernel_name=NAME)
        app.kernel_manager.cull_idle_timeout = 1
        (kernel_id,) = app.kernel_manager.list_kernel_ids()
        kernel = app.kernel_manager.get_kernel(kernel_id)
        kernel.last_activity -= timedelta(seconds=10)
        kernel.execution_state = "idle"
        await app.kernel_manager.cull_kernels()
        assert app.kernel_manager.list_kernel_ids() == []
        assert await setup.kernels.list_kernels(SESSION_ID) == []


async def test_a_dead_kernel_is_restarted_with_its_reason(machine: RemoteMachine, app: Any) -> None:
    async with attached(machine, app) as setup:
        kernel_id = await app.kernel_manager.start_kernel(kernel_name=NAME)
        kernel = app.kernel_manager.get_kernel(kernel_id)
        (known,) = await setup.kernels.list_kernels(SESSION_ID)
        os.kill(known["pid"], signal.SIGKILL)
        while await kernel.is_alive():
            await asyncio.sleep(0.02)
        assert "status -9" in kernel.reason
        await kernel._restarter.poll()
        assert await kernel.is_alive()
        (known_now,) = await setup.kernels.list_kernels(SESSION_ID)
        assert known_now["pid"] != known["pid"]
