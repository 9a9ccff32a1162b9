"""A real JupyterLab behind a real SSH server, used through the proxy by a real browser and by plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from jupyterlab_clearml_session.ssh.tunnel import Tunnel

from ..browser.conftest import ARGUMENTS, HOW_TO, find_chromium
from ..proxy_parts import REMOTE_TOKEN, SESSION, FakeManager, RemoteService, Request, install
from ..sshd_fixture import ssh_server

pytestmark = pytest.mark.integration

MEMORY = 64 << 20
"""What bodies of any size may cost (bench/proxy_memory.py: 5 GB)."""

END = 10.0
"""Seconds that the remote JupyterLab may take to end."""


@contextlib.asynccontextmanager
async def remote_lab(home: Path, python: str = sys.executable) -> AsyncIterator[int]:
    """Run a JupyterLab at ``/`` with a token, as the remote script does; yield its port."""
    (home / "root").mkdir(parents=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    env |= {"HOME": str(home), "WHERE": "over there", "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    process = await asyncio.create_subprocess_exec(
        python,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port=0",
        f"--ServerApp.root_dir={home / 'root'}",
        f"--IdentityProvider.token={REMOTE_TOKEN}",
        "--LabApp.expose_app_in_browser=True",
        cwd=home,
        env=env,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    drain: asyncio.Task[bytes] | None = None
    try:
        while True:
            line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
            assert line, "the remote JupyterLab ended"
            if match := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/", line):
                break
        drain = asyncio.create_task(process.stderr.read())
        yield int(match[1])
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END)
        except asyncio.TimeoutError:
            # Seen with JupyterLab 4.6: a thread of anyio's that nobody ends keeps the process.
            process.kill()
            await process.wait()
        if drain is not None:
            await drain


@contextlib.asynccontextmanager
async def proxied(serverapp: Any, ports: dict[str, int]) -> AsyncIterator[str]:
    """Put the proxy into a server, over a real tunnel; yield the local path of the session, with a final slash."""
    async with ssh_server() as server:

        async def target() -> Any:
            return server.target()

        tunnel = Tunnel(target)
        tunnel.start()
        await tunnel.wait_up(10)
        install(serverapp, FakeManager(tunnel, ports))
        try:
            yield f"{serverapp.base_url}clearml-session/proxy/{SESSION}/"
        finally:
            await tunnel.close()


@contextlib.asynccontextmanager
async def proxied_lab(serverapp: Any, home: Path, python: str = sys.executable) -> AsyncIterator[str]:
    """Yield the local path of a proxied remote JupyterLab, with a final slash."""
    async with remote_lab(home, python) as port, proxied(serverapp, {"jupyter": port}) as path:
        yield f"{path}jupyter/"


@contextlib.asynccontextmanager
async def chromium_page() -> AsyncIterator[Any]:
    """Yield a page of a new browser; without one, skip as the browser's tests do."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = find_chromium(playwright)
        if chromium is None and not os.environ.get("CLEARML_SESSION_REQUIRE_BROWSER"):
            pytest.skip(HOW_TO)
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield await browser.new_page()
        await browser.close()


def tokens(serverapp: Any) -> dict[str, str]:
    return {"Authorization": f"token {serverapp.identity_provider.token}"}


async def test_browser(jp_serverapp: Any, jp_fetch: Any, tmp_path: Path) -> None:
    async with proxied_lab(jp_serverapp, tmp_path / "home") as path, chromium_page() as page:
        failed: list[str] = []

        def note(answer: Any) -> None:
            # The panel of this extension is installed over there as well, but its server half is not enabled.
            if answer.status >= 400 and "clearml-session/api" not in answer.url:
                failed.append(f"{answer.status} {answer.url}")

        page.on("response", note)
        origin = f"http://127.0.0.1:{jp_serverapp.port}"
        await page.goto(f"{origin}{path}lab?token={jp_serverapp.identity_provider.token}")
        await page.wait_for_selector(".jp-LauncherCard", timeout=60_000)
        await page.click('.jp-LauncherCard[data-category="Notebook"]')
        # A cell that is run before there is a kernel is not run at all.
        await page.wait_for_selector('#jp-main-statusbar:has-text("| Idle")', timeout=60_000)
        await page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
        await page.keyboard.type("import os; print(os.environ['WHERE'], 6 * 7)")
        await page.keyboard.press("Shift+Enter")
        await page.wait_for_selector("text=over there 42", timeout=60_000)
        assert REMOTE_TOKEN not in await page.content()
        assert failed == []
        await page.goto(f"{origin}{path}nosuch")
        assert "404" in await page.content()
        assert REMOTE_TOKEN not in await page.content()

        # Were it someone else's: a warning, and JupyterLab at an address of its own.
        jp_serverapp.web_app.settings["clearml_session_manager"].mine = False
        await page.goto(f"{origin}{path}lab")
        async with page.expect_popup() as opened:
            await page.get_by_role("link", name="Open it at an address of its own").click()
        apart = await opened.value
        await apart.wait_for_selector(".jp-Notebook .jp-Cell, .jp-LauncherCard", timeout=60_000)
        assert apart.url.startswith("http://localhost:")
        assert "token" not in apart.url
        answer = await apart.evaluate(
            "fetch('/api/kernels', {method: 'POST', body: '{}'}).then(_ => _.status)"
        )
        assert answer == 201
        assert REMOTE_TOKEN not in await apart.content()
        await jp_serverapp.web_app.settings["clearml_session_aparts"].forget(SESSION)


async def test_api_terminal_and_kernel(jp_serverapp: Any, jp_fetch: Any, tmp_path: Path) -> None:
    async with proxied_lab(jp_serverapp, tmp_path / "home") as path:
        parts = [part for part in path.removeprefix(jp_serverapp.base_url).split("/") if part]
        status = json.loads((await jp_fetch(*parts, "api", "status")).body)
        assert status["kernels"] == 0

        model = json.dumps({"type": "file", "format": "text", "content": "héllo"})
        await jp_fetch(*parts, "api", "contents", "new.txt", method="PUT", body=model)
        assert (tmp_path / "home" / "root" / "new.txt").read_text() == "héllo"

        terminal = json.loads((await jp_fetch(*parts, "api", "terminals", method="POST", body="")).body)[
            "name"
        ]
        url = f"ws://127.0.0.1:{jp_serverapp.port}{path}"
        request = HTTPRequest(f"{url}terminals/websocket/{terminal}", headers=tokens(jp_serverapp))
        socket = await websocket_connect(request)
        await socket.write_message(json.dumps(["stdin", "echo $WHERE-$((6*7))\r"]))
        seen = ""
        while "over there-42" not in seen:
            seen += str(await asyncio.wait_for(socket.read_message(), 30))
        socket.close()
        await jp_fetch(*parts, "api", "terminals", terminal, method="DELETE")

        body = json.dumps({"name": "python3"})
        kernel = json.loads((await jp_fetch(*parts, "api", "kernels", method="POST", body=body)).body)["id"]
        await jp_fetch(*parts, "api", "kernels", kernel, "restart", method="POST", body="")
        await jp_fetch(*parts, "api", "kernels", kernel, method="DELETE")


async def test_large_file_up_and_down_unchanged_in_little_memory(
    jp_serverapp: Any, jp_fetch: Any, tmp_path: Path
) -> None:
    size, block = 128 << 20, os.urandom(1 << 20)
    expected = hashlib.sha256()
    for _ in range(size >> 20):
        expected.update(block)

    async with RemoteService(swallow_and_send) as service, proxied(jp_serverapp, {}) as session:
        path = f"{session}port/{service.port}/x"
        lines = [
            f"Host: 127.0.0.1:{jp_serverapp.port}",
            f"Authorization: {tokens(jp_serverapp)['Authorization']}",
        ]
        reader, writer = await asyncio.open_connection("127.0.0.1", jp_serverapp.port, limit=1 << 18)
        # Both ends, both servers and the SSH server between them are in this one process.
        process = psutil.Process()
        before = peak = process.memory_info().rss

        head = [f"PUT {path} HTTP/1.1", *lines, f"Content-Length: {size}", "", ""]
        writer.write("\r\n".join(head).encode())
        for _ in range(size >> 20):
            writer.write(block)
            await writer.drain()
            peak = max(peak, process.memory_info().rss)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(64) == expected.hexdigest().encode()

        writer.write("\r\n".join([f"GET {path}?{size} HTTP/1.1", *lines, "", ""]).encode())
        await reader.readuntil(b"\r\n\r\n")
        left, got = size, hashlib.sha256()
        while left:
            data = await reader.read(1 << 18)
            assert data
            got.update(data)
            left -= len(data)
            peak = max(peak, process.memory_info().rss)
        writer.close()
        zeros = hashlib.sha256()
        for _ in range(size >> 20):
            zeros.update(bytes(1 << 20))
        assert got.hexdigest() == zeros.hexdigest()
        assert peak - before < MEMORY


async def swallow_and_send(
    request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """PUT: answer with the body's SHA-256. GET: send as many zeros as the query says."""
    if request.method == "PUT":
        digest, left = hashlib.sha256(), int(request.get("Content-Length") or 0)
        while left:
            data = await reader.read(min(left, 1 << 18))
            digest.update(data)
            left -= len(data)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest.hexdigest().encode())
        return True
    left = int(request.target.partition("?")[2])
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
    while left:
        writer.write(bytes(min(left, 1 << 18)))
        left -= min(left, 1 << 18)
        await writer.drain()
    return True
